//! Representative clients: the interfaces that clients can use, and the first packet of a client on each interface.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::addresses::loopback;
use super::super::context::Context;
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Facts, Link};
use crate::ruleset::region::{Field, Packet, Region, packet};
use crate::ruleset::set::{Set, number_of, number_of_name};
use crate::ruleset::simulate::{End, Guess, PacketTrace, Part, Simulator, UNICAST};
use crate::ruleset::table::{At, Hook};

/// The maximum number of interfaces without a default route that are tried.
const OTHERS: usize = 4;

/// The source port of a client.
const FROM: u128 = 50_000;

/// A remote client, from the documentation networks (RFC 5737, RFC 3849), which no real host has.
fn far(family: Family) -> u128 {
    match family {
        Family::Ipv4 => u32::from(Ipv4Addr::new(203, 0, 113, 9)).into(),
        Family::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 9).into(),
    }
}

/// An ingress interface for clients: up, not loopback, and no port of a bridge.
#[derive(Debug)]
pub(super) struct Ingress<'a> {
    /// The interface.
    pub link: &'a Link,
    /// The interface name as a number.
    pub number: u128,
    /// True if a default route uses the interface. On a host without a default route: true if the interface is not virtual.
    pub uplink: bool,
    /// The networks of the interface, with the host's addresses.
    networks: Vec<(u128, Set, Family)>,
}

impl Ingress<'_> {
    /// Returns the network of this interface that contains an address.
    pub fn network(&self, family: Family, address: u128) -> Option<&Set> {
        let mut networks = self.networks.iter().filter(|(_, _, of)| *of == family);
        networks.find(|(_, network, _)| network.has(address)).map(|(_, network, _)| network)
    }

    fn address(&self, family: Family) -> Option<u128> {
        self.networks.iter().find(|(_, _, of)| *of == family).map(|(address, _, _)| *address)
    }

    /// Returns the networks of a family.
    pub fn all(&self, family: Family) -> impl Iterator<Item = &Set> {
        self.networks.iter().filter(move |(_, _, of)| *of == family).map(|(_, network, _)| network)
    }
}

/// The representative clients of a host.
#[derive(Debug)]
pub(super) struct Clients<'o, 'a> {
    /// What leads their packets.
    pub simulator: &'o Simulator<'a>,
    /// The ingress interfaces, uplinks first. Empty for a dump.
    pub gates: Vec<Ingress<'a>>,
}

/// The results of one forward's clients.
#[derive(Debug, Default)]
pub(super) struct DropAnalysis<'a> {
    /// Packets that a rule or a policy dropped, each with the index of its ingress interface.
    pub dropped: Vec<(usize, Drop, PacketTrace<'a>)>,
    /// Packets that the forward rewrote and that passed.
    pub passed: Vec<(usize, PacketTrace<'a>)>,
}

/// The position of a drop, with its confidence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drop {
    pub hook: Hook,
    pub at: At,
    pub before_nat: bool,
    pub confidence: Confidence,
}

impl<'o, 'a> Clients<'o, 'a> {
    pub fn new(context: &'o Context<'a>) -> Self {
        Self { simulator: &context.simulator, gates: context.facts().map(gates).unwrap_or_default() }
    }

    /// Returns the first packet of a region on an ingress interface, from `from` if that is given. Returns `None` if no
    /// packet of the region can arrive there.
    pub fn packet(&self, region: &Region, family: Family, gate: usize, from: Option<u128>) -> Option<Packet> {
        let gate = self.gates.get(gate)?;
        if !region.get(Field::Input).has(gate.number) {
            return None;
        }
        let sources = region.get(Field::Source);
        let from = match from {
            Some(from) => Some(from).filter(|from| sources.has(*from)),
            None => self.source(sources, family, gate),
        }?;
        let mut packet = packet(family, None);
        packet.put(Field::Input, gate.number);
        packet.put(Field::Source, from);
        packet.put(Field::Destination, self.destination(region.get(Field::Destination), family, gate)?);
        asked(&mut packet, region);
        Some(packet)
    }

    /// Returns a client address for an ingress interface: remote on an uplink, otherwise a neighbour. The address is inside
    /// the region.
    fn source(&self, sources: &Set, family: Family, gate: &Ingress<'_>) -> Option<u128> {
        let near = || self.neighbour(gate, family, gate.address(family)?);
        // A packet from an address of this host is no packet of a client.
        let far = (0..16).map(|more| far(family) + more).find(|from| !self.is_here(family, *from));
        let usual = if gate.uplink { far } else { near().or(far) };
        let all = if sources.is_all() { usual } else { usual.filter(|from| sources.has(*from)) };
        all.or_else(|| sources.ranges().iter().map(|(first, _)| *first).find(|from| !self.is_here(family, *from)))
            .or_else(|| sources.first())
    }

    /// Returns the destination of a client: an address of this host, on the ingress interface if possible.
    fn destination(&self, wanted: &Set, family: Family, gate: &Ingress<'_>) -> Option<u128> {
        if let Some(only) = wanted.only() {
            return Some(only);
        }
        let of_gate = gate.address(family).filter(|address| wanted.has(*address));
        of_gate
            .or_else(|| {
                let elsewhere = self.gates.iter().filter_map(|gate| gate.address(family));
                elsewhere.into_iter().find(|address| wanted.has(*address))
            })
            .or_else(|| wanted.and(self.simulator.local(family)).first())
            .or_else(|| wanted.first().filter(|_| !wanted.is_all()))
    }

    /// Returns another host address in the ingress interface's network that contains `address`.
    pub fn neighbour(&self, gate: &Ingress<'_>, family: Family, of: u128) -> Option<u128> {
        let (first, last) = *gate.network(family, of)?.ranges().first()?;
        // The network address and the broadcast address are no host addresses.
        let (first, last) = if last - first > 2 { (first + 1, last - 1) } else { (first, last) };
        let near = (1..4).flat_map(|far| [of.checked_add(far), of.checked_sub(far)]).flatten();
        near.into_iter().find(|near| (first..=last).contains(near) && !self.is_here(family, *near))
    }

    fn is_here(&self, family: Family, address: u128) -> bool {
        self.simulator.local(family).has(address)
    }

    /// Simulates clients of a forward on all uplinks and a few other interfaces.
    pub fn drop_analysis(&self, forward: &Forward<'_>) -> DropAnalysis<'a> {
        let mut drop_analysis = DropAnalysis::default();
        let mut others = 0;
        for (number, gate) in self.gates.iter().enumerate() {
            if !gate.uplink {
                // If all uplinks have the same result, or the results already differ, other interfaces add nothing.
                if !drop_analysis.passed.is_empty() || others == OTHERS {
                    break;
                }
                others += 1;
            }
            let regions = forward.arriving().map(|(_, step)| &step.region);
            let mut packets = regions
                .filter(|region| !is_loopback(region, forward.family))
                .filter_map(|region| self.packet(region, forward.family, number, None));
            let Some(packet) = packets.next() else { continue };
            let trace = self.simulator.simulate_passage(packet);
            let mine = trace.forwarded_by() == Some(forward.at);
            match (dropped(self.simulator, &trace), &trace.end) {
                (Some(drop), _) if drop.before_nat || mine => {
                    let target = matches!(trace.end, End::Dropped(Hook::Forward, ..));
                    let back = target && trace.packet.get(Field::Output) == Some(gate.number);
                    // Packets from the target's own link are hairpin, which another finding handles.
                    if !back || gate.uplink {
                        drop_analysis.dropped.push((number, drop, trace));
                    }
                }
                (None, End::Leaves(..) | End::Arrives) if mine => drop_analysis.passed.push((number, trace)),
                _ => {}
            }
        }
        drop_analysis
    }
}

/// Returns true if a region contains only loopback addresses.
pub(super) fn is_loopback(region: &Region, family: Family) -> bool {
    let destinations = region.get(Field::Destination);
    !destinations.is_all() && loopback(family).covers(destinations)
}

/// Sets the fields of a packet that a region restricts, except addresses and interfaces.
pub(super) fn asked(packet: &mut Packet, region: &Region) {
    let protocols = region.get(Field::Protocol);
    let protocol = if protocols.has(6) { Some(6) } else { protocols.first() };
    packet.set(Field::Protocol, protocol);
    let ports = region.get(Field::Port);
    packet.set(Field::Port, if ports.is_all() { Some(80) } else { ports.first() });
    let from = region.get(Field::SourcePort);
    packet.set(Field::SourcePort, if from.has(FROM) { Some(FROM) } else { from.first() });
}

/// Returns the drop at the end of a trace, with its confidence. Other observers of the packet do not change a drop.
pub(super) fn dropped(simulator: &Simulator<'_>, trace: &PacketTrace<'_>) -> Option<Drop> {
    let End::Dropped(hook, part, at, _) = trace.end else { return None };
    let before_nat = hook == Hook::Prerouting && part != Part::Filter;
    let mut outcomes: Vec<_> = trace.outcomes().map(|(_, _, outcome)| outcome).collect();
    let last = outcomes.pop()?;
    let sure = simulator.tracer.drops_surely(last) && outcomes.iter().all(|outcome| outcome.is_sure());
    let guessed = trace.guesses.iter().any(|guess| !matches!(guess, Guess::SeenBefore(_)));
    let confidence = match (sure, guessed) {
        (false, _) => Confidence::Unknown,
        (true, true) => Confidence::Likely,
        (true, false) => Confidence::Proved,
    };
    Some(Drop { hook, at, before_nat, confidence })
}

fn gates(facts: &Facts) -> Vec<Ingress<'_>> {
    let routes = facts.routes.iter().filter(|route| route.to.prefix() == 0 && u128::from(route.kind) == UNICAST);
    let default: HashSet<u32> = routes.filter_map(|route| route.output).collect();
    let is_default = |link: &Link| default.contains(&link.index);
    let links = || facts.links.iter().filter(|link| link.up && !link.loopback && link.master.is_none());
    let any_default = links().any(is_default);
    let mut networks: HashMap<u32, Vec<(u128, Set, Family)>> = HashMap::new();
    for (link, network) in &facts.addresses {
        let (address, family) = (number_of(network.ip()), Family::of_address(network.ip()));
        networks.entry(*link).or_default().push((address, Set::network(*network), family));
    }
    let mut gates: Vec<Ingress<'_>> = links()
        .map(|link| Ingress {
            link,
            number: number_of_name(link.name.as_bytes(), 0),
            uplink: if any_default { is_default(link) } else { link.kind.is_none() },
            networks: networks.remove(&link.index).unwrap_or_default(),
        })
        .collect();
    gates.sort_by_key(|gate| (!gate.uplink, gate.link.kind.is_some()));
    gates
}
