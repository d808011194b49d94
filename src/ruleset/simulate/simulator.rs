//! The host as the simulator sees it: rules, local addresses and interfaces, prepared for many packets.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::model::Family;
use crate::ruleset::facts::{Facts, Link};
use crate::ruleset::host::Host;
use crate::ruleset::region::LOCAL;
use crate::ruleset::set::{Set, number_of, number_of_name};
use crate::ruleset::simulate::chains::Tracer;
use crate::ruleset::table::Hook;

/// The kind of an address of some other host: `RTN_UNICAST` in include/uapi/linux/rtnetlink.h.
pub const UNICAST: u128 = 1;
/// `RTN_BROADCAST` there.
const BROADCAST: u128 = 3;
/// `RTN_MULTICAST` there.
pub const MULTICAST: u128 = 5;

/// What is known of an interface that packets arrive by.
#[derive(Debug)]
pub(super) struct Interface<'a> {
    pub link: &'a Link,
    /// Its addresses, of IPv4 and IPv6.
    pub addresses: [Option<IpAddr>; 2],
    /// Whether packets that it brings are passed on.
    pub forwards: [Option<bool>; 2],
    /// Whether packets for 127/8 that it brings are taken.
    pub localnet: Option<bool>,
}

/// Leads packets through a host.
#[derive(Debug)]
pub struct Simulator<'a> {
    /// The host.
    pub host: &'a Host,
    /// Its rules.
    pub tracer: Tracer<'a>,
    local: [Set; 2],
    broadcast: Set,
    pub(super) interfaces: HashMap<u128, Interface<'a>>,
    /// Interfaces whose packets something sees before any hook.
    seen_before: HashSet<u128>,
}

impl<'a> Simulator<'a> {
    /// Of this host.
    pub fn new(host: &'a Host) -> Self {
        let facts = host.facts.as_ref();
        let local = Family::ALL.map(|family| facts.map_or_else(Set::none, |facts| facts.local(family)));
        let routes = facts.map_or(&[][..], |facts| &facts.routes);
        let broadcast =
            Set::from_ranges(routes.iter().filter(|route| u128::from(route.kind) == BROADCAST).map(|route| {
                let to = route.to;
                (number_of(to.network()), number_of(to.broadcast()))
            }));
        let interfaces = facts.map(interfaces).unwrap_or_default();
        let mut seen_before: HashSet<u128> = HashSet::new();
        let programs = facts.map_or(&[][..], |facts| &facts.programs);
        seen_before.extend(programs.iter().map(|name| number_of_name(name.as_bytes(), 0)));
        for table in host.rules.tables.iter().filter(|table| !table.dormant) {
            let bases = table.chains.iter().filter(|chain| may_drop(chain)).filter_map(|chain| chain.base.as_ref());
            for base in bases.filter(|base| base.hook == Hook::Ingress) {
                seen_before.extend(base.devices.iter().map(|name| number_of_name(name.as_bytes(), 0)));
            }
        }
        Self { host, tracer: Tracer::new(&host.rules), local, broadcast, interfaces, seen_before }
    }

    /// Whether an address is this host's; `None` where that is not known.
    pub fn is_local(&self, family: Family, address: u128) -> Option<bool> {
        self.kind(family, address).map(|kind| kind == LOCAL)
    }

    /// The addresses of a family that are this host's; none where they are not known.
    pub fn local(&self, family: Family) -> &Set {
        let [four, six] = &self.local;
        if family == Family::Ipv4 { four } else { six }
    }

    /// Whether something sees the packets of an interface before any hook does, and may drop them.
    pub fn is_seen_before(&self, interface: u128) -> bool {
        self.seen_before.contains(&interface)
    }

    /// What kind of address it is: what `inet_addr_type` in net/ipv4/fib_frontend.c tells.
    pub(super) fn kind(&self, family: Family, address: u128) -> Option<u128> {
        let local = self.local(family);
        let (multicast, all) = match family {
            Family::Ipv4 => (address >> 28 == 0xe, address == u32::MAX.into() || self.broadcast.has(address)),
            Family::Ipv6 => (address >> 120 == 0xff, false),
        };
        match (local.is_empty(), local.has(address)) {
            (true, _) => None,
            (_, true) => Some(LOCAL),
            _ if multicast => Some(MULTICAST),
            _ if all => Some(BROADCAST),
            _ => Some(UNICAST),
        }
    }
}

/// Whether a base chain does anything but count.
fn may_drop(chain: &crate::ruleset::table::Chain) -> bool {
    let acts = chain.rules.iter().flat_map(|rule| &rule.cases).any(|case| !case.actions.is_empty());
    acts || chain.base.as_ref().is_some_and(|base| base.drops)
}

/// The interfaces of a host.
fn interfaces(facts: &Facts) -> HashMap<u128, Interface<'_>> {
    let mut addresses: HashMap<u32, [Option<IpAddr>; 2]> = HashMap::new();
    for (link, network) in &facts.addresses {
        let [four, six] = addresses.entry(*link).or_default();
        match network.ip() {
            IpAddr::V4(_) => four.get_or_insert(network.ip()),
            // What is only of the link is the last that the kernel takes.
            IpAddr::V6(address) if six.is_none() || address.segments()[0] & 0xffc0 != 0xfe80 => {
                six.insert(network.ip())
            }
            IpAddr::V6(_) => continue,
        };
    }
    let is_on = |path: &str| facts.setting(path).map(|value| value != "0");
    let (four, six) = (is_on("net/ipv4/ip_forward"), is_on("net/ipv6/conf/all/forwarding"));
    let everywhere = is_on("net/ipv4/conf/all/route_localnet");
    let interface = |link: &'_ Link| {
        let of_link = |setting| is_on(&format!("net/{setting}"));
        let name = &link.name;
        [
            of_link(format!("ipv4/conf/{name}/forwarding")).or(four),
            of_link(format!("ipv6/conf/{name}/forwarding")).or(six),
            match (everywhere, of_link(format!("ipv4/conf/{name}/route_localnet"))) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (_, here) => here,
            },
        ]
    };
    let interfaces = facts.links.iter().map(|link| {
        let [four, six, localnet] = interface(link);
        let addresses = addresses.get(&link.index).copied().unwrap_or_default();
        let number = number_of_name(link.name.as_bytes(), 0);
        (number, Interface { link, addresses, forwards: [four, six], localnet })
    });
    interfaces.collect()
}
