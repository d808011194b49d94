//! The host as the simulator sees it: rules, local addresses and interfaces, prepared for many packets.

use ipnetwork::IpNetwork;
use std::collections::{HashMap, HashSet};

use crate::model::Family;
use crate::ruleset::facts::{Facts, Link};
use crate::ruleset::host::Host;
use crate::ruleset::region::LOCAL;
use crate::ruleset::set::{Set, number_of, number_of_name};
use crate::ruleset::simulate::chains::Tracer;
use crate::ruleset::table::{Chain, Hook, Ruleset, Table, TableFamily};

/// The kind of an address of another host: `RTN_UNICAST` in include/uapi/linux/rtnetlink.h.
pub const UNICAST: u128 = 1;
/// `RTN_BROADCAST` there.
pub(super) const BROADCAST: u128 = 3;
/// `RTN_MULTICAST` there.
pub const MULTICAST: u128 = 5;

/// The addresses and settings of an interface.
#[derive(Debug)]
pub(super) struct Interface<'a> {
    pub link: &'a Link,
    /// The addresses with their networks, in the kernel's order.
    pub addresses: Vec<IpNetwork>,
    /// True if the host forwards packets from the interface, for IPv4 and IPv6.
    pub forwards: [Option<bool>; 2],
    /// True if packets may have addresses of 127/8 (`route_localnet`).
    pub localnet: Option<bool>,
    /// The mode of the reverse path filter (`rp_filter`): 0 off, 1 strict, 2 loose.
    pub reverse_path: Option<u8>,
    /// True if packets may have a source address of this host (`accept_local`).
    pub accepts_local: bool,
    /// True if the reverse path filter uses the packet mark (`src_valid_mark`).
    pub source_mark: bool,
}

/// Simulates packets on a host.
#[derive(Debug)]
pub struct Simulator<'a> {
    /// The host.
    pub host: &'a Host,
    /// The evaluation of the rules.
    pub tracer: Tracer<'a>,
    local: [Set; 2],
    broadcast: Set,
    pub(super) interfaces: HashMap<u128, Interface<'a>>,
    /// The base chains of ingress and egress hooks and of bridges, which the simulator does not evaluate.
    pub(super) outside: Vec<(usize, usize)>,
    /// The interfaces with a program or an ingress chain.
    seen_before: HashSet<u128>,
}

impl<'a> Simulator<'a> {
    /// Prepares a host.
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
        let outside = outside_chains(&host.rules);
        Self { host, tracer: Tracer::new(&host.rules), local, broadcast, interfaces, outside, seen_before }
    }

    /// Returns true if an address is this host's, `None` if that is unknown.
    pub fn is_local(&self, family: Family, address: u128) -> Option<bool> {
        self.kind(family, address).map(|kind| kind == LOCAL)
    }

    /// Returns the addresses of this host, none if they are unknown.
    pub fn local(&self, family: Family) -> &Set {
        let [four, six] = &self.local;
        if family == Family::Ipv4 { four } else { six }
    }

    /// Returns true if a program or an ingress chain sees the packets of an interface before the IP hooks.
    pub fn is_seen_before(&self, interface: u128) -> bool {
        self.seen_before.contains(&interface)
    }

    /// Returns the kind of an address: `inet_addr_type` in net/ipv4/fib_frontend.c.
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

/// Returns true if a base chain does more than count packets.
fn may_drop(chain: &Chain) -> bool {
    let acts = chain.rules.iter().flat_map(|rule| &rule.cases).any(|case| !case.actions.is_empty());
    acts || chain.base.as_ref().is_some_and(|base| base.drops)
}

/// Returns the interfaces of a host by the number of their name.
fn interfaces(facts: &Facts) -> HashMap<u128, Interface<'_>> {
    let mut addresses: HashMap<u32, Vec<IpNetwork>> = HashMap::new();
    for (link, network) in &facts.addresses {
        addresses.entry(*link).or_default().push(*network);
    }
    let number = |path: &str| facts.setting(path).and_then(|value| value.parse::<u8>().ok());
    let (forwards, forwards_ipv6) = (number("net/ipv4/ip_forward"), number("net/ipv6/conf/all/forwarding"));
    let interfaces = facts.links.iter().map(|link| {
        let name = &link.name;
        let here = |setting: &str| number(&format!("net/ipv4/conf/{name}/{setting}"));
        // `IN_DEV_MAXCONF` and `IN_DEV_ORCONF` in include/linux/inetdevice.h: the larger of both values applies.
        let larger = |setting: &str| here(setting).max(number(&format!("net/ipv4/conf/all/{setting}")));
        let is_on = |value: Option<u8>| value.map(|value| value > 0);
        // `ip6_forward` in net/ipv6/ip6_output.c: the interface's own `forwarding` has no effect on packets.
        let forced = number(&format!("net/ipv6/conf/{name}/force_forwarding"));
        let interface = Interface {
            link,
            addresses: addresses.get(&link.index).cloned().unwrap_or_default(),
            forwards: [is_on(here("forwarding").or(forwards)), is_on(forwards_ipv6.max(forced))],
            localnet: if larger("route_localnet") > Some(0) { Some(true) } else { is_on(here("route_localnet")) },
            reverse_path: larger("rp_filter"),
            accepts_local: larger("accept_local") > Some(0),
            source_mark: larger("src_valid_mark") > Some(0),
        };
        (number_of_name(name.as_bytes(), 0), interface)
    });
    interfaces.collect()
}

/// Returns the positions of the base chains that the simulator does not evaluate.
fn outside_chains(rules: &Ruleset) -> Vec<(usize, usize)> {
    let tables = rules.tables.iter().enumerate().filter(|(_, table)| !table.dormant);
    let is_outside = |table: &Table, chain: &Chain| {
        chain.base.as_ref().is_some_and(|base| {
            table.family == TableFamily::Bridge || matches!(base.hook, Hook::Ingress | Hook::Egress)
        })
    };
    tables
        .flat_map(|(at, table)| table.chains.iter().enumerate().map(move |(number, chain)| (at, table, number, chain)))
        .filter(|(_, table, _, chain)| is_outside(table, chain))
        .map(|(at, _, number, _)| (at, number))
        .collect()
}
