//! Probes: who asks what, what must become of it, what did.
//!
//! Where an answer finds its way back a real client asks a real server, which proves both directions. Otherwise (protocols
//! that no server here speaks, targets that answer past this host, nobody who should get it) the first packet is sent and
//! watched for.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::ask::{Answer, ask};
use super::layout::{Subnet, of};
use super::sight::{Sight, Sighting};
use super::topology::{DISCARD, Topology};
use super::{LabError, Netns};
use crate::model::egress::Way;
use crate::model::meaning::{Dropped, Fate, Host, meaning};
use crate::model::precedence;
use crate::model::{Asked, Binding, Family, IfName, Packet, Protocol, RuleSet};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The source ports of planned packets, one after the other: none that a client which asks gets (`ip_local_port_range`).
const SOURCE_PORTS: std::ops::Range<u16> = 10_000..30_000;

/// From where a probe is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vantage {
    /// From a client behind an uplink.
    Outside,
    /// From the host itself.
    Host,
    /// From behind a bridge.
    Inside,
    /// From a neighbour of the target.
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

/// A packet to send, and what must become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What.
    pub packet: Packet,
    /// What must become of it.
    pub fate: Fate,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// What a client heard.
    Heard(Answer),
    /// Where a packet without an answer was seen.
    Seen(Sighting),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heard(answer) => answer.fmt(f),
            Self::Seen(Sighting::Nowhere) => f.write_str("seen by nobody"),
            Self::Seen(Sighting::Here { to, from }) => write!(f, "this host got it at {to} from {}", from.ip()),
            Self::Seen(Sighting::Left { to, from, .. }) => write!(f, "{to} got it from {}", from.ip()),
        }
    }
}

/// A probe and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The probe.
    pub probe: Probe,
    /// From where it was sent.
    pub vantage: Vantage,
    /// What became of it.
    pub outcome: Outcome,
}

impl Report {
    /// Whether that is what must become of it.
    pub fn is_as_expected(&self) -> bool {
        let Probe { packet, fate } = &self.probe;
        match &self.outcome {
            Outcome::Seen(sighting) => sighting.agrees(packet, fate),
            Outcome::Heard(answer) => heard(fate, answer),
        }
    }

    /// What must become of it, in the words of an answer.
    pub fn expected(&self) -> String {
        match &self.probe.fate {
            Fate::Dropped(why) => format!("nobody gets it: {}", reason(*why)),
            Fate::Here { port, seen, .. } => format!("this host port {port} sees {}", seen.first),
            Fate::Leaves { to, seen, .. } if seen.first == seen.last => {
                format!("{} port {} sees {}", to.ip(), to.port(), seen.first)
            }
            Fate::Leaves { to, seen, .. } => {
                format!("{} port {} sees one of {}-{}", to.ip(), to.port(), seen.first, seen.last)
            }
        }
    }
}

/// Why nobody gets a packet.
fn reason(why: Dropped) -> &'static str {
    match why {
        Dropped::Martian => "over a wire no loopback address is anybody's",
        Dropped::NoRoute => "this host has no route to it",
        Dropped::NotForwarded => "this host does not forward its family",
        Dropped::Isolated => "the network is isolated, and nothing publishes this",
        Dropped::NoAddress => "the interface has no address for it",
    }
}

/// Whether an answer is what must come. The client's port is not known beforehand, so only a pool's ports are compared.
fn heard(fate: &Fate, answer: &Answer) -> bool {
    let (who, expected, sees) = match fate {
        Fate::Dropped(_) => return !matches!(answer, Answer::By { .. }),
        Fate::Here { port, seen, .. } => ("this host".to_owned(), port, seen),
        Fate::Leaves { to, seen, .. } => (to.ip().to_string(), &to.port(), seen),
    };
    let Answer::By { who: answered, port, seen } = answer else { return false };
    *answered == who && port == expected && sees.allows(*seen, seen.port())
}

/// At most `limit` forwards, spread evenly.
pub(super) fn choose(asked: &Asked, limit: usize) -> Vec<&Binding> {
    let all: Vec<&Binding> = asked.bindings.iter().map(|owned| &owned.rule).collect();
    let count = all.len().min(limit);
    (0..count).filter_map(|index| all.get(index * all.len() / count).copied()).collect()
}

/// The forwards that one of the packets could meet, by protocol and port.
pub(super) fn meetable<'a>(asked: &'a Asked, packets: &[Packet]) -> Vec<&'a Binding> {
    let meets = |binding: &&Binding| {
        let of_protocol = packets.iter().filter(|packet| packet.protocol == binding.protocol);
        let ports = binding.ports.first()..=binding.ports.last();
        of_protocol.map(|packet| packet.destination.port()).any(|port| ports.contains(&port))
    };
    asked.bindings.iter().map(|owned| &owned.rule).filter(meets).collect()
}

/// Packets for the chosen forwards: first, middle and last port of each, from everywhere; and for every other rule.
pub(super) fn packets(asked: &Asked, chosen: &[&Binding], topology: &Topology) -> Vec<Packet> {
    let mut packets: Vec<Packet> = Vec::new();
    for binding in chosen {
        let (first, last) = (binding.ports.first(), binding.ports.last());
        let mut ports = vec![first, first + (last - first) / 2, last];
        ports.dedup();
        packets.extend(ports.into_iter().flat_map(|port| of_forward(binding, port, topology)));
    }
    packets.extend(asked.netmaps.iter().filter_map(|owned| {
        let inside = *topology.residents.get(&owned.rule.to)?;
        let destination = crate::model::netmap::translate(inside, owned.rule.listen);
        let uplink = topology.uplink(None)?;
        let source = *uplink.address.get(of(Family::of(inside)))?;
        packet(Protocol::Tcp, source, SocketAddr::new(destination, DISCARD), uplink.name.parse().ok())
    }));
    packets.extend(leaving(asked, topology));
    packets.extend(intruding(asked, topology));
    let mut sent = HashSet::new();
    packets.retain(|packet| sent.insert(packet.clone()));
    for (packet, port) in packets.iter_mut().zip(SOURCE_PORTS.cycle()) {
        packet.source.set_port(port);
    }
    packets
}

/// A packet whose source port is still to be said. No rule looks at it, but two connections must not have the same.
fn packet(protocol: Protocol, source: IpAddr, destination: SocketAddr, interface: Option<IfName>) -> Option<Packet> {
    (Family::of(source) == Family::of(destination.ip())).then(|| Packet {
        protocol,
        source: SocketAddr::new(source, 0),
        destination,
        interface,
    })
}

/// Packets to one port of a forward: by a client that it lets in, by one that it does not, by the host, by a neighbour.
fn of_forward(binding: &Binding, port: u16, topology: &Topology) -> Vec<Packet> {
    let Some(uplink) = topology.uplink_of(binding) else { return Vec::new() };
    let family = of(binding.family);
    let Some((client, host)) = uplink.address.get(family).zip(uplink.host.get(family)) else { return Vec::new() };
    let destination = SocketAddr::new(binding.address.unwrap_or(*host), port);
    let send = |source, interface: Option<&str>| {
        packet(binding.protocol, source, destination, interface.and_then(|name| name.parse().ok()))
    };
    let mut packets = Vec::with_capacity(5);
    if binding.serves_others() {
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
        packets.extend(packet(binding.protocol, own, SocketAddr::new(at, port), None));
    }
    packets
}

/// A packet for every rule about what leaves, and for what 1:1 translations make of it.
fn leaving(asked: &Asked, topology: &Topology) -> Vec<Packet> {
    let mut rules: Vec<(Option<IpNetwork>, Way, Vec<Family>)> = Vec::new();
    for (egress, _) in precedence::ordered(asked) {
        let families = egress.families();
        rules.push((egress.from, egress.way, families));
    }
    let netmaps = asked.netmaps.iter().map(|owned| owned.rule.to);
    rules.extend(netmaps.map(|to| (Some(to), Way::Any, vec![Family::of_network(to)])));
    let narrow: Vec<IpNetwork> = rules.iter().filter_map(|(from, ..)| *from).collect();
    let mut packets = Vec::new();
    for (from, way, families) in &rules {
        packets.extend(families.iter().filter_map(|family| outward(*from, way, *family, &narrow, topology)));
    }
    packets
}

/// A packet that leaves by a way that a rule is about, from whom it is about; if possible from one that no `narrow` prefix
/// is about as well.
fn outward(
    from: Option<IpNetwork>,
    way: &Way,
    family: Family,
    narrow: &[IpNetwork],
    topology: &Topology,
) -> Option<Packet> {
    let out = if let Way::By(out) = way { Some(out.as_str()) } else { None };
    let uplink = topology.uplink(out);
    let bridged = || topology.subnets.iter().filter(|subnet| Some(subnet.bridge.as_str()) == out);
    let destination = match uplink {
        Some(uplink) => uplink.address.get(of(family)).copied(),
        None => bridged().filter_map(|subnet| subnet.neighbour).find(|address| Family::of(*address) == family),
    }?;
    let by = uplink.map(|uplink| uplink.name.as_str()).or(out);
    let destination = SocketAddr::new(destination, DISCARD);
    if let Some(resident) = from.and_then(|from| topology.residents.get(&from)) {
        let bridge = topology.subnet_of(*resident)?.bridge.as_str();
        return packet(Protocol::Tcp, *resident, destination, bridge.parse().ok());
    }
    let narrower = |address: IpAddr| {
        let longer = |prefix: &&IpNetwork| from.is_none_or(|from| prefix.prefix() > from.prefix());
        narrow.iter().filter(longer).any(|prefix| prefix.contains(address))
    };
    let about = |(address, arrived): &(IpAddr, Option<&str>)| {
        Family::of(*address) == family && from.is_none_or(|from| from.contains(*address)) && *arrived != by
    };
    // The first of the least.
    let (source, arrived) = senders(topology).filter(about).min_by_key(|(address, _)| narrower(*address))?;
    packet(Protocol::Tcp, source, destination, arrived.and_then(|name| name.parse().ok()))
}

/// Everybody who may send, with the interface that he is behind; this host comes last.
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

/// A packet from outside into every isolated network, at a port that nothing publishes.
fn intruding(asked: &Asked, topology: &Topology) -> Vec<Packet> {
    let isolated =
        |bridge: &str| asked.networks.iter().any(|owned| owned.rule.isolate && owned.rule.name.as_str() == bridge);
    let subnets = topology.subnets.iter().filter(|subnet| isolated(&subnet.bridge));
    let into = |subnet: &Subnet| {
        let uplink = topology.uplink(None)?;
        let inside = subnet.neighbour?;
        let source = *uplink.address.get(of(Family::of(inside)))?;
        packet(Protocol::Tcp, source, SocketAddr::new(inside, DISCARD), uplink.name.parse().ok())
    };
    subnets.filter_map(into).collect()
}

/// What must become of packets.
pub(super) fn expect(packets: Vec<Packet>, sets: &[RuleSet], host: &Host) -> Vec<Probe> {
    let probe = |packet: Packet| Probe { fate: meaning(sets, host, &packet).fate, packet };
    packets.into_iter().map(probe).collect()
}

impl Probe {
    fn vantage(&self, topology: &Topology) -> Vantage {
        match (&self.packet.interface, &self.fate) {
            (None, _) => Vantage::Host,
            (Some(arrived), _) if topology.uplink(Some(arrived.as_str())).is_some() => Vantage::Outside,
            (arrived, Fate::Leaves { by, .. }) if arrived.as_ref() == Some(by) => Vantage::Hairpin,
            _ => Vantage::Inside,
        }
    }

    /// Who should answer; none where nobody should, or where no answer comes back.
    pub(super) fn server<'a>(&self, topology: &'a Topology) -> Option<(&'a Netns, SocketAddr)> {
        if !matches!(self.packet.protocol, Protocol::Tcp | Protocol::Udp) {
            return None;
        }
        match &self.fate {
            Fate::Dropped(_) => None,
            Fate::Here { port, .. } => Some((&topology.host, SocketAddr::new(self.packet.destination.ip(), *port))),
            // The target answers past this host.
            Fate::Leaves { by, seen, .. }
                if self.packet.interface.as_ref() == Some(by) && seen.first == self.packet.source.ip() =>
            {
                None
            }
            Fate::Leaves { to, .. } => Some((topology.owner(to.ip())?, *to)),
        }
    }
}

/// Sends the packet of a probe and says where it was seen.
pub(super) fn watch(probe: Probe, topology: &Topology, sight: &Sight<'_>) -> Result<Report, LabError> {
    let seen = sight.send(std::slice::from_ref(&probe.packet))?;
    let outcome = Outcome::Seen(seen.into_iter().next().unwrap_or(Sighting::Nowhere));
    Ok(Report { vantage: probe.vantage(topology), probe, outcome })
}

/// Sends a probe, by a client that asks where there may be an answer, and says what became of it.
pub(super) fn send(probe: Probe, topology: &Topology, sight: &Sight<'_>) -> Result<Report, LabError> {
    let packet = &probe.packet;
    match topology.sender(packet) {
        Some(namespace) if probe.server(topology).is_some() => {
            let answer = ask(namespace, packet.protocol, packet.source.ip(), packet.destination, PATIENCE)?;
            Ok(Report { vantage: probe.vantage(topology), outcome: Outcome::Heard(answer), probe })
        }
        _ => watch(probe, topology, sight),
    }
}
