//! The whole way of the first packet of a connection through a host: every hook that it meets, how its addresses are
//! rewritten, where it is routed to, and where it ends.
//!
//! ```text
//! arrives ▶ prerouting: raw, mangle ▶ nat ▶ filter ▶ routing ┬▶ input: filter ▶ nat ▶ a socket
//!                                                            └▶ forward ▶ postrouting: mangle ▶ nat ▶ leaves
//! is sent ▶ routing ▶ output: raw, mangle ▶ nat ▶ filter ▶ routing ▶ postrouting … ▶ leaves, or by lo to this host
//! ```
//! In goes a [`Packet`] of which as much is known as can be; out comes a [`PacketTrace`], a list of [`Stage`]s with the rules that
//! decided. [`Simulator`] leads many packets through one host and looks at what they share only once.
//!
//! Be aware: of the host's own routes only those of its three usual tables are asked, and reverse path filters are not. What
//! sees packets before any hook (XDP, chains of family netdev) is named as a [`Guess`] and not followed.

pub mod chains;
mod render;
#[cfg(test)]
mod tests;
mod walk;

pub use render::{Rendered, packet as packet_in_words};

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::confidence::Confidence;
use crate::model::Family;
use crate::ruleset::facts::{Facts, Link};
use crate::ruleset::host::Host;
use crate::ruleset::region::{Field, LOCAL, Packet, packet};
use crate::ruleset::set::{Set, number_of, number_of_name};
use crate::ruleset::simulate::chains::{Outcome, Tracer};
use crate::ruleset::table::{At, Hook};
use crate::ruleset::view::Translation;

/// The kind of an address of some other host: `RTN_UNICAST` in include/uapi/linux/rtnetlink.h.
pub const UNICAST: u128 = 1;
/// `RTN_BROADCAST` there.
const BROADCAST: u128 = 3;
/// `RTN_MULTICAST` there.
pub const MULTICAST: u128 = 5;

/// Which chains of a hook a stage is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Those before connections are followed.
    Raw,
    /// Those before addresses are rewritten.
    BeforeNat,
    /// Those that rewrite addresses.
    Nat,
    /// Those behind that; or all, where none rewrites.
    Filter,
}

/// A stage of a packet's way.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all stages are the large one, and millions of traces are made")]
pub enum Stage<'a> {
    /// It met the chains of a hook.
    Rules {
        /// Which hook.
        hook: Hook,
        /// Which of its chains.
        part: Part,
        /// What they did with it.
        outcome: Outcome,
        /// Its new address and port, where they rewrote one: those of its destination, or of its source.
        rewritten: Option<(Option<IpAddr>, Option<u16>)>,
    },
    /// It was routed.
    Route(RouteDecision<'a>),
}

/// Where a packet is routed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteDecision<'a> {
    /// To this host.
    Here,
    /// Out by a link, and to the next host on the way unless it is on the link.
    Out(&'a Link, Option<IpAddr>),
    /// Nowhere.
    Refused(Refusal),
    /// Out, by what is not known.
    Somewhere,
    /// That is not known.
    Unknown,
}

/// Why a packet is routed nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No route leads there.
    NoRoute,
    /// It is for a loopback address, came by another interface, and `route_localnet` is off there; of IPv6 always.
    Loopback,
    /// It is for another host, and this one does not pass packets on (`ip_forward`, `forwarding`).
    NotForwarding,
}

/// Where a packet's way ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End<'a> {
    /// At this host.
    Arrives,
    /// It leaves, by a link and to the next host on the way where they are known.
    Leaves(Option<&'a Link>, Option<IpAddr>),
    /// A rule, or a policy, drops it.
    Dropped(Hook, Part, At),
    /// A program decides.
    Queued(Hook, At),
    /// It is routed nowhere.
    Refused(Refusal),
    /// Where it is routed to is not known.
    Unknown,
}

/// What a trace takes to be so and does not know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guess {
    /// Nothing is known but rules.
    NoFacts,
    /// Rules decide which table of routes is asked; the usual ones were.
    PolicyRouting,
    /// The kernel chooses one of several addresses; the first one was taken.
    OneOfSeveral,
    /// What an interface has no address, or setting, known for.
    Interface(String),
    /// What sees the packets of an interface before any hook does as well not drop them.
    SeenBefore(String),
}

/// The way of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketTrace<'a> {
    /// The packet as it came, or was sent.
    pub start: Packet,
    /// The packet as it ended.
    pub packet: Packet,
    /// The stages in order; hooks without chains are none.
    pub stages: Vec<Stage<'a>>,
    /// Where it ended.
    pub end: End<'a>,
    /// What was taken to be so.
    pub guesses: Vec<Guess>,
}

impl<'a> PacketTrace<'a> {
    /// Leads a packet through a host. Who has many makes a [`Simulator`].
    pub fn new(host: &'a Host, packet: Packet) -> Self {
        Simulator::new(host).simulate(packet)
    }

    /// What the chains of a part of a hook did, where it met them; of a packet that met them twice the first time.
    pub fn at(&self, wanted: Hook, of: Part) -> Option<&Outcome> {
        self.outcomes().find(|(hook, part, _)| (*hook, *part) == (wanted, of)).map(|(_, _, outcome)| outcome)
    }

    /// What all chains that it met did, in order.
    pub fn outcomes(&self) -> impl Iterator<Item = (Hook, Part, &Outcome)> {
        self.stages.iter().filter_map(|stage| match stage {
            Stage::Rules { hook, part, outcome, .. } => Some((*hook, *part, outcome)),
            Stage::Route(_) => None,
        })
    }

    /// How its destination was rewritten, and by which rule.
    pub fn forwarded_by(&self) -> Option<At> {
        self.rewrites().find(|(what, _)| matches!(what, Translation::Dnat | Translation::Redirect)).map(|(_, at)| at)
    }

    /// Which rule rewrote its source.
    pub fn masqueraded_by(&self) -> Option<At> {
        self.rewrites().find(|(what, _)| matches!(what, Translation::Snat | Translation::Masquerade)).map(|(_, at)| at)
    }

    fn rewrites(&self) -> impl Iterator<Item = (Translation, At)> {
        self.outcomes().filter_map(|(_, _, outcome)| outcome.rewritten.as_ref().map(|(what, _, at)| (*what, *at)))
    }

    /// The rules of which it is not known whether they are about it, or what they do.
    pub fn doubts(&self) -> impl Iterator<Item = At> {
        self.outcomes().flat_map(|(_, _, outcome)| outcome.doubts.iter().copied())
    }

    /// Whether all of it is sure.
    pub fn is_sure(&self) -> bool {
        self.guesses.is_empty() && self.outcomes().all(|(_, _, outcome)| outcome.is_sure())
    }

    /// How sure what it shows is: unknown where a rule on the way is not understood, or an order that is not known mattered.
    pub fn confidence(&self) -> Confidence {
        match (self.outcomes().all(|(_, _, outcome)| outcome.is_sure()), self.guesses.is_empty()) {
            (true, true) => Confidence::Proved,
            (true, false) => Confidence::Likely,
            (false, _) => Confidence::Unknown,
        }
    }
}

/// What is known of an interface that packets arrive by.
#[derive(Debug)]
struct Interface<'a> {
    link: &'a Link,
    /// Its addresses, of IPv4 and IPv6.
    addresses: [Option<IpAddr>; 2],
    /// Whether packets that it brings are passed on.
    forwards: [Option<bool>; 2],
    /// Whether packets for 127/8 that it brings are taken.
    localnet: Option<bool>,
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
    interfaces: HashMap<u128, Interface<'a>>,
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

    /// Leads a packet to its end: one that arrives by its [`Field::Input`], or that this host sends where that is no
    /// interface. Its kinds of addresses are filled in where they can be known.
    pub fn simulate(&self, packet: Packet) -> PacketTrace<'a> {
        walk::Walk::new(self, packet, true).whole()
    }

    /// Leads a packet as [`Simulator::simulate`] does, for who asks only whether it gets through: how its source is rewritten is
    /// looked at only where chains are asked behind that. So what is not understood there makes nothing unsure.
    pub fn simulate_passage(&self, packet: Packet) -> PacketTrace<'a> {
        walk::Walk::new(self, packet, false).whole()
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
    fn kind(&self, family: Family, address: u128) -> Option<u128> {
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

/// A new connection's first packet: from and to an address and a port, by an interface or sent by this host.
pub fn first(input: Option<&str>, protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Packet {
    packet(Family::of_address(to.0), input)
        .with(Field::Protocol, protocol.into())
        .with(Field::Source, number_of(from.0))
        .with(Field::SourcePort, from.1.into())
        .with(Field::Destination, number_of(to.0))
        .with(Field::Port, to.1.into())
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
