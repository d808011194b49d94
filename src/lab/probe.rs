//! Probes: packets to send, their expected results, and their actual results.
//!
//! If an answer can return, a real client connects to a real server, which proves both directions. Otherwise only the
//! first packet is sent and captured. This is so for protocols without a server here, for targets whose answer bypasses
//! the host, and for packets that the host should drop.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::capture::{Capture, Observation};
use super::client::{Answer, query};
use super::layout::{Subnet, family_index};
use super::topology::{DISCARD, Topology};
use super::{LabError, Netns};
use crate::model::egress::OutInterface;
use crate::model::meaning::{DropReason, Fate, Host, meaning};
use crate::model::precedence;
use crate::model::{Binding, DesiredState, Family, IfName, Packet, Protocol, RuleSet};

/// The timeout for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The source ports of planned packets. Linux does not assign these ports to clients (`ip_local_port_range`).
const SOURCE_PORTS: std::ops::Range<u16> = 10_000..30_000;

/// The place that a probe is sent from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vantage {
    /// A client behind an uplink.
    Outside,
    /// The host under test.
    Host,
    /// A host behind a bridge.
    Inside,
    /// A neighbour of the target, on the same bridge.
    Hairpin,
}

impl fmt::Display for Vantage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outside => "outside",
            Self::Host => "host",
            Self::Inside => "inside",
            Self::Hairpin => "hairpin",
        })
    }
}

/// A packet to send, and its expected result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The packet as its sender sends it.
    pub packet: Packet,
    /// The result that the rules require.
    pub fate: Fate,
}

/// The actual result of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    /// The answer that a client received.
    Answer(Answer),
    /// The place where a packet without an answer was captured.
    Observation(Observation),
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(answer) => answer.fmt(f),
            Self::Observation(Observation::NotSeen) => f.write_str("not received"),
            Self::Observation(Observation::Delivered { to, from }) => {
                write!(f, "this host got it at {to} from {}", from.ip())
            }
            Self::Observation(Observation::Left { to, from, .. }) => write!(f, "{to} got it from {}", from.ip()),
        }
    }
}

/// A probe with its actual result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The packet and its expected result.
    pub probe: Probe,
    /// The place that the packet was sent from.
    pub vantage: Vantage,
    /// The actual result of the probe.
    pub outcome: ProbeResult,
}

impl Report {
    /// Returns true if the actual result is the expected one.
    pub fn is_as_expected(&self) -> bool {
        let Probe { packet, fate } = &self.probe;
        match &self.outcome {
            ProbeResult::Observation(observation) => observation.matches_fate(packet, fate),
            ProbeResult::Answer(answer) => answer_matches(fate, answer),
        }
    }

    /// Returns the expected result in the wording of an answer.
    pub fn expected(&self) -> String {
        match &self.probe.fate {
            Fate::Dropped(why) => format!("dropped: {}", drop_reason(*why)),
            Fate::Local { port, source: seen, .. } => format!("this host port {port} sees {}", seen.first),
            Fate::Sent { to, source: seen, .. } if seen.first == seen.last => {
                format!("{} port {} sees {}", to.ip(), to.port(), seen.first)
            }
            Fate::Sent { to, source: seen, .. } => {
                format!("{} port {} sees one of {}-{}", to.ip(), to.port(), seen.first, seen.last)
            }
        }
    }
}

/// Returns the reason for a drop, for messages.
fn drop_reason(why: DropReason) -> &'static str {
    match why {
        DropReason::Martian => "it has a loopback address and arrives from a wire",
        DropReason::NoRoute => "this host has no route to its destination",
        DropReason::NotForwarded => "this host does not forward its family",
        DropReason::Isolated => "its network is isolated, and no forward publishes this port",
        DropReason::NoAddress => "the interface that NAT takes its address from has none",
    }
}

/// Returns true if an answer agrees with the expected result. The client's port is not known beforehand, so only the
/// ports of a pool are compared.
fn answer_matches(fate: &Fate, answer: &Answer) -> bool {
    let (address, expected, source) = match fate {
        Fate::Dropped(_) => return !matches!(answer, Answer::From { .. }),
        Fate::Local { port, source: seen, .. } => ("this host".to_owned(), port, seen),
        Fate::Sent { to, source: seen, .. } => (to.ip().to_string(), &to.port(), seen),
    };
    let Answer::From { server, port, client } = answer else { return false };
    *server == address && port == expected && source.allows(*client, client.port())
}

/// Returns at most `limit` forwards, sampled evenly.
pub(super) fn sample_forwards(desired: &DesiredState, limit: usize) -> Vec<&Binding> {
    let all: Vec<&Binding> = desired.bindings.iter().map(|owned| &owned.rule).collect();
    let count = all.len().min(limit);
    (0..count).filter_map(|index| all.get(index * all.len() / count).copied()).collect()
}

/// Returns the forwards that match the protocol and destination port of a packet.
pub(super) fn forwards_for<'a>(desired: &'a DesiredState, packets: &[Packet]) -> Vec<&'a Binding> {
    let meets = |binding: &&Binding| {
        let of_protocol = packets.iter().filter(|packet| packet.protocol == binding.protocol);
        let ports = binding.ports.first()..=binding.ports.last();
        of_protocol.map(|packet| packet.destination.port()).any(|port| ports.contains(&port))
    };
    desired.bindings.iter().map(|owned| &owned.rule).filter(meets).collect()
}

/// Returns packets to the first, middle and last port of each chosen forward, from every vantage, and packets for all
/// other rules.
pub(super) fn plan_packets(desired: &DesiredState, chosen: &[&Binding], topology: &Topology) -> Vec<Packet> {
    let mut packets: Vec<Packet> = Vec::new();
    for binding in chosen {
        let (first, last) = (binding.ports.first(), binding.ports.last());
        let mut ports = vec![first, first + (last - first) / 2, last];
        ports.dedup();
        packets.extend(ports.into_iter().flat_map(|port| forward_packets(binding, port, topology)));
    }
    packets.extend(desired.netmaps.iter().filter_map(|owned| {
        let inside = *topology.residents.get(&owned.rule.to)?;
        let destination = crate::model::netmap::translate(inside, owned.rule.listen);
        let uplink = topology.uplink(None)?;
        let source = *uplink.address.get(family_index(Family::of_address(inside)))?;
        new_packet(Protocol::Tcp, source, SocketAddr::new(destination, DISCARD), uplink.name.parse().ok())
    }));
    packets.extend(egress_packets(desired, topology));
    packets.extend(isolation_packets(desired, topology));
    let mut sent = HashSet::new();
    packets.retain(|packet| sent.insert(packet.clone()));
    for (packet, port) in packets.iter_mut().zip(SOURCE_PORTS.cycle()) {
        packet.source.set_port(port);
    }
    packets
}

/// Returns a packet whose source port is set later, or `None` if the families differ. No rule matches source ports, but
/// each connection needs its own.
fn new_packet(
    protocol: Protocol,
    source: IpAddr,
    destination: SocketAddr,
    interface: Option<IfName>,
) -> Option<Packet> {
    (Family::of_address(source) == Family::of_address(destination.ip())).then(|| Packet {
        protocol,
        source: SocketAddr::new(source, 0),
        destination,
        interface,
    })
}

/// Returns packets to one port of a forward: from a client inside its `from` prefix, from the ordinary client, from the
/// host and from a neighbour of the target.
fn forward_packets(binding: &Binding, port: u16, topology: &Topology) -> Vec<Packet> {
    let Some(uplink) = topology.uplink_of(binding) else { return Vec::new() };
    let family = family_index(binding.family);
    let Some((client, host)) = uplink.address.get(family).zip(uplink.host.get(family)) else { return Vec::new() };
    let destination = SocketAddr::new(binding.address.unwrap_or(*host), port);
    let send = |source, interface: Option<&str>| {
        new_packet(binding.protocol, source, destination, interface.and_then(|name| name.parse().ok()))
    };
    let mut packets = Vec::with_capacity(5);
    if binding.serves_non_loopback() {
        packets.extend(topology.client_of(binding).and_then(|let_in| send(let_in, Some(&uplink.name))));
        packets.extend(send(*client, Some(&uplink.name)));
        packets.extend(send(destination.ip(), None).filter(|_| topology.plan.owns(destination.ip())));
        let neighbour = binding.to.address.and_then(|target| topology.subnet_of(target));
        packets.extend(neighbour.and_then(|subnet| send(subnet.neighbour?, Some(&subnet.bridge))));
    }
    if binding.loopback {
        let own = crate::model::address::loopback(binding.family);
        let own = if own.prefix() == 8 { IpAddr::from([127, 0, 0, 1]) } else { own.ip() };
        let at = binding.address.filter(IpAddr::is_loopback).unwrap_or(own);
        packets.extend(new_packet(binding.protocol, own, SocketAddr::new(at, port), None));
    }
    packets
}

/// Returns a packet for each masquerade and snat rule, and one for each 1:1 translation.
fn egress_packets(desired: &DesiredState, topology: &Topology) -> Vec<Packet> {
    let mut rules: Vec<(Option<IpNetwork>, OutInterface, Vec<Family>)> = Vec::new();
    for (egress, _) in precedence::by_precedence(desired) {
        let families = egress.families();
        rules.push((egress.from, egress.out, families));
    }
    let netmaps = desired.netmaps.iter().map(|owned| owned.rule.to);
    rules.extend(netmaps.map(|to| (Some(to), OutInterface::Any, vec![Family::of_network(to)])));
    let narrow: Vec<IpNetwork> = rules.iter().filter_map(|(from, ..)| *from).collect();
    let mut packets = Vec::new();
    for (from, way, families) in &rules {
        packets.extend(families.iter().filter_map(|family| egress_packet(*from, way, *family, &narrow, topology)));
    }
    packets
}

/// Returns a packet that an egress rule matches, by its `from` prefix and egress interface.
///
/// If possible, the source is outside of the prefixes in `narrow` that are longer than `from`.
fn egress_packet(
    from: Option<IpNetwork>,
    way: &OutInterface,
    family: Family,
    narrow: &[IpNetwork],
    topology: &Topology,
) -> Option<Packet> {
    let out = if let OutInterface::Is(out) = way { Some(out.as_str()) } else { None };
    let uplink = topology.uplink(out);
    let bridged = || topology.subnets.iter().filter(|subnet| Some(subnet.bridge.as_str()) == out);
    let destination = match uplink {
        Some(uplink) => uplink.address.get(family_index(family)).copied(),
        None => bridged().filter_map(|subnet| subnet.neighbour).find(|address| Family::of_address(*address) == family),
    }?;
    let by = uplink.map(|uplink| uplink.name.as_str()).or(out);
    let destination = SocketAddr::new(destination, DISCARD);
    if let Some(resident) = from.and_then(|from| topology.residents.get(&from)) {
        let bridge = topology.subnet_of(*resident)?.bridge.as_str();
        return new_packet(Protocol::Tcp, *resident, destination, bridge.parse().ok());
    }
    let narrower = |address: IpAddr| {
        let longer = |prefix: &&IpNetwork| from.is_none_or(|from| prefix.prefix() > from.prefix());
        narrow.iter().filter(longer).any(|prefix| prefix.contains(address))
    };
    let about = |(address, arrived): &(IpAddr, Option<&str>)| {
        Family::of_address(*address) == family && from.is_none_or(|from| from.contains(*address)) && *arrived != by
    };
    // `min_by_key` returns the first source that no longer prefix contains, or else the first one.
    let (source, arrived) = senders(topology).filter(about).min_by_key(|(address, _)| narrower(*address))?;
    new_packet(Protocol::Tcp, source, destination, arrived.and_then(|name| name.parse().ok()))
}

/// Returns the addresses of all possible senders, each with the host's interface to it. The host's own addresses come
/// last.
fn senders(topology: &Topology) -> impl Iterator<Item = (IpAddr, Option<&str>)> {
    let neighbours =
        topology.subnets.iter().filter_map(|subnet| Some((subnet.neighbour?, Some(subnet.bridge.as_str()))));
    let targets = topology.targets.keys().filter_map(|address| {
        let subnet = topology.subnet_of(*address)?;
        Some((*address, Some(subnet.bridge.as_str())))
    });
    let clients =
        topology.uplinks.iter().flat_map(|uplink| uplink.address.map(|address| (address, Some(uplink.name.as_str()))));
    let host = topology.uplinks.iter().flat_map(|uplink| uplink.host.map(|address| (address, None)));
    neighbours.chain(targets).chain(clients).chain(host)
}

/// Returns a packet from outside into every isolated network, to a port that is not published.
fn isolation_packets(desired: &DesiredState, topology: &Topology) -> Vec<Packet> {
    let isolated =
        |bridge: &str| desired.networks.iter().any(|owned| owned.rule.isolate && owned.rule.name.as_str() == bridge);
    let subnets = topology.subnets.iter().filter(|subnet| isolated(&subnet.bridge));
    let into = |subnet: &Subnet| {
        let uplink = topology.uplink(None)?;
        let inside = subnet.neighbour?;
        let source = *uplink.address.get(family_index(Family::of_address(inside)))?;
        new_packet(Protocol::Tcp, source, SocketAddr::new(inside, DISCARD), uplink.name.parse().ok())
    };
    subnets.filter_map(into).collect()
}

/// Computes the expected result of each packet.
pub(super) fn predict(packets: Vec<Packet>, sets: &[RuleSet], host: &Host) -> Vec<Probe> {
    let probe = |packet: Packet| Probe { fate: meaning(sets, host, &packet).fate, packet };
    packets.into_iter().map(probe).collect()
}

impl Probe {
    fn vantage(&self, topology: &Topology) -> Vantage {
        match (&self.packet.interface, &self.fate) {
            (None, _) => Vantage::Host,
            (Some(arrived), _) if topology.uplink(Some(arrived.as_str())).is_some() => Vantage::Outside,
            (arrived, Fate::Sent { interface: by, .. }) if arrived.as_ref() == Some(by) => Vantage::Hairpin,
            _ => Vantage::Inside,
        }
    }

    /// Returns the namespace and address of the server that should answer. Returns `None` if no server should answer,
    /// or if the answer would not come back through the host.
    pub(super) fn server<'a>(&self, topology: &'a Topology) -> Option<(&'a Netns, SocketAddr)> {
        if !matches!(self.packet.protocol, Protocol::Tcp | Protocol::Udp) {
            return None;
        }
        match &self.fate {
            Fate::Dropped(_) => None,
            Fate::Local { port, .. } => Some((&topology.host, SocketAddr::new(self.packet.destination.ip(), *port))),
            // The target answers the client directly and bypasses the host.
            Fate::Sent { interface: by, source: seen, .. }
                if self.packet.interface.as_ref() == Some(by) && seen.first == self.packet.source.ip() =>
            {
                None
            }
            Fate::Sent { to, .. } => Some((topology.namespace_of(to.ip())?, *to)),
        }
    }
}

/// Sends the packet of a probe and reports where it was captured.
pub(super) fn observe(probe: Probe, topology: &Topology, capture: &Capture<'_>) -> Result<Report, LabError> {
    let seen = capture.send(std::slice::from_ref(&probe.packet))?;
    let outcome = ProbeResult::Observation(seen.into_iter().next().unwrap_or(Observation::NotSeen));
    Ok(Report { vantage: probe.vantage(topology), probe, outcome })
}

/// Sends a probe and reports its result. If a server should answer, a real client connects.
pub(super) fn send(probe: Probe, topology: &Topology, capture: &Capture<'_>) -> Result<Report, LabError> {
    let packet = &probe.packet;
    match topology.sender(packet) {
        Some(namespace) if probe.server(topology).is_some() => {
            let answer = query(namespace, packet.protocol, packet.source.ip(), packet.destination, ANSWER_TIMEOUT)?;
            Ok(Report { vantage: probe.vantage(topology), outcome: ProbeResult::Answer(answer), probe })
        }
        _ => observe(probe, topology, capture),
    }
}
