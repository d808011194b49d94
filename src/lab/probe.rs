//! Probes: who asks what, what must become of it, what did.
//!
//! Where an answer finds its way back a real client asks a real server, which proves both directions. Otherwise (protocols
//! that no server here speaks, targets that answer past this host) the first packet is sent and watched for.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::ask::{Answer, ask};
use super::sight::{Sight, Sighting};
use super::topology::{DISCARD, Topology, client_in, of, resident};
use super::{LabError, Netns};
use crate::model::egress::{self, Way};
use crate::model::meaning::{Fate, Host, meaning};
use crate::model::{Asked, Binding, Family, IfName, Packet, Protocol, RuleSet};

/// How long an answer may take, and how long one that should not come is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
const DOUBT: Duration = Duration::from_millis(300);

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
            Fate::Dropped(why) => format!("nobody gets it ({why:?})"),
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
        let inside = resident(owned.rule.to)?;
        let destination = crate::model::netmap::translate(inside, owned.rule.listen);
        let uplink = topology.uplink(None)?;
        let source = *uplink.address.get(of(Family::of(inside)))?;
        packet(Protocol::Tcp, source, SocketAddr::new(destination, DISCARD), uplink.name.parse().ok())
    }));
    let leaving = egress::ordered(asked).into_iter().map(|(egress, _)| (egress.from, egress.way));
    let translated = asked.netmaps.iter().map(|owned| (Some(owned.rule.to), Way::Any));
    packets.extend(leaving.chain(translated).filter_map(|(from, way)| outward(from?, &way, topology)));
    let mut sent: Vec<Packet> = Vec::new();
    for packet in packets {
        if !sent.contains(&packet) {
            sent.push(packet);
        }
    }
    sent
}

/// The source port does not matter to any rule; a real client gets another one.
fn packet(protocol: Protocol, source: IpAddr, destination: SocketAddr, interface: Option<IfName>) -> Option<Packet> {
    (Family::of(source) == Family::of(destination.ip())).then(|| Packet {
        protocol,
        source: SocketAddr::new(source, 49152),
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
        let let_in = client_in(binding.from).filter(|address| topology.subnet_of(*address).is_none());
        packets.extend(let_in.and_then(|let_in| send(let_in, Some(&uplink.name))));
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

/// A packet from a network to a client outside, by a way that a rule is about.
fn outward(from: ipnetwork::IpNetwork, way: &Way, topology: &Topology) -> Option<Packet> {
    let source = resident(from).filter(|address| topology.targets.contains_key(address))?;
    let out = if let Way::By(out) = way { Some(out.as_str()) } else { None };
    let uplink = topology.uplink(out)?;
    let destination = *uplink.address.get(of(Family::of(source)))?;
    let bridge = topology.subnet_of(source)?.bridge.parse().ok();
    packet(Protocol::Tcp, source, SocketAddr::new(destination, DISCARD), bridge)
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
    let dropped = matches!(probe.fate, Fate::Dropped(_));
    let spoken = matches!(packet.protocol, Protocol::Tcp | Protocol::Udp);
    match topology.sender(packet) {
        Some(namespace) if spoken && (dropped || probe.server(topology).is_some()) => {
            let patience = if dropped { DOUBT } else { PATIENCE };
            let answer = ask(namespace, packet.protocol, packet.source.ip(), packet.destination, patience)?;
            Ok(Report { vantage: probe.vantage(topology), outcome: Outcome::Heard(answer), probe })
        }
        _ => watch(probe, topology, sight),
    }
}
