//! Probes: who asks what, who should answer, who did.

use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use super::topology::{Topology, client_in, of};
use super::{LabError, Netns};
use crate::model::precedence::{Packet, winner};
use crate::model::{Asked, Binding, Protocol};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// From where a probe is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vantage {
    /// From the client behind an uplink.
    Outside(String),
    /// From the host itself.
    Host,
    /// From a neighbour of the target, behind a bridge.
    Inside(String),
}

impl fmt::Display for Vantage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outside(_) => "outside",
            Self::Host => "host",
            Self::Inside(_) => "hairpin",
        })
    }
}

/// Who should answer, and whom he should see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The target; none: this host.
    pub target: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// The address that it sees.
    pub seen: IpAddr,
}

/// A packet to send, and what should become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// From where.
    pub vantage: Vantage,
    /// What.
    pub packet: Packet,
    /// Who should answer; none: nobody, it is refused.
    pub expected: Option<Expected>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Who answered, at which port, and whom he saw.
    By {
        /// The target's address, or `this host`.
        who: String,
        /// Its port.
        port: u16,
        /// The address that it saw.
        seen: IpAddr,
    },
    /// Nobody is there.
    Refused,
    /// Nothing came.
    Silence,
    /// Something else went wrong.
    Failed(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By { who, port, seen } => write!(f, "{who} port {port} answered and saw {seen}"),
            Self::Refused => f.write_str("refused"),
            Self::Silence => f.write_str("no answer"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// A probe and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The probe.
    pub probe: Probe,
    /// The answer.
    pub answer: Answer,
}

impl Report {
    /// Whether the answer is what it should be.
    pub fn is_as_expected(&self) -> bool {
        match (&self.probe.expected, &self.answer) {
            (None, Answer::Refused) => true,
            (Some(expected), Answer::By { who, port, seen }) => {
                *who == name(expected.target) && *port == expected.port && *seen == expected.seen
            }
            _ => false,
        }
    }

    /// What should have come back.
    pub fn expected(&self) -> String {
        match &self.probe.expected {
            Some(Expected { target, port, seen }) => {
                Answer::By { who: name(*target), port: *port, seen: *seen }.to_string()
            }
            None => Answer::Refused.to_string(),
        }
    }
}

fn name(target: Option<IpAddr>) -> String {
    target.map_or_else(|| "this host".to_owned(), |address| address.to_string())
}

/// At most `limit` forwards, spread evenly, of protocols that a probe speaks; and the protocols that it does not.
pub(super) fn choose(asked: &Asked, limit: usize) -> (Vec<&Binding>, Vec<Protocol>) {
    let speaks = |protocol| matches!(protocol, Protocol::Tcp | Protocol::Udp);
    let all: Vec<&Binding> = asked.bindings.iter().map(|owned| &owned.rule).collect();
    let mut unspoken: Vec<Protocol> = all.iter().map(|binding| binding.protocol).filter(|p| !speaks(*p)).collect();
    unspoken.sort_unstable();
    unspoken.dedup();
    let spoken: Vec<&Binding> = all.into_iter().filter(|binding| speaks(binding.protocol)).collect();
    let count = spoken.len().min(limit);
    let chosen = (0..count).filter_map(|index| spoken.get(index * spoken.len() / count).copied()).collect();
    (chosen, unspoken)
}

/// The probes for the chosen forwards: first, middle and last port of each, from everywhere.
pub(super) fn plan(asked: &Asked, chosen: &[&Binding], topology: &Topology) -> Vec<Probe> {
    let mut probes: Vec<Probe> = Vec::new();
    for binding in chosen {
        let (first, last) = (binding.ports.first(), binding.ports.last());
        let mut ports = vec![first, first + (last - first) / 2, last];
        ports.dedup();
        for port in ports {
            for (vantage, packet) in packets(binding, port, topology) {
                let expected = expect(asked, &vantage, &packet, topology);
                let probe = Probe { vantage, packet, expected };
                if !probes.contains(&probe) {
                    probes.push(probe);
                }
            }
        }
    }
    probes
}

/// Packets to one port of a forward: by a client that it lets in, by one that it does not, by the host, by a neighbour.
fn packets(binding: &Binding, port: u16, topology: &Topology) -> Vec<(Vantage, Packet)> {
    let Some(uplink) = topology.uplink_of(binding) else { return Vec::new() };
    let family = of(binding.family);
    let Some((client, host)) = uplink.address.get(family).zip(uplink.host.get(family)) else { return Vec::new() };
    let destination = binding.address.unwrap_or(*host);
    let packet = |source, interface: Option<&str>| Packet {
        protocol: binding.protocol,
        source,
        destination,
        port,
        local: true,
        interface: interface.and_then(|name| name.parse().ok()),
    };
    let mut packets = Vec::with_capacity(4);
    let outside = || Vantage::Outside(uplink.name.clone());
    if let Some(let_in) = client_in(binding.from).filter(|address| topology.subnet_of(*address).is_none()) {
        packets.push((outside(), packet(let_in, Some(&uplink.name))));
    }
    packets.push((outside(), packet(*client, Some(&uplink.name))));
    packets.push((Vantage::Host, packet(destination, None)));
    let neighbour = binding.to.address.and_then(|target| topology.subnet_of(target));
    if let Some(subnet) = neighbour
        && let Some(neighbour) = subnet.neighbour
    {
        packets.push((Vantage::Inside(subnet.bridge.clone()), packet(neighbour, Some(&subnet.bridge))));
    }
    packets
}

/// What should become of a packet.
fn expect(asked: &Asked, vantage: &Vantage, packet: &Packet, topology: &Topology) -> Option<Expected> {
    let met = winner(asked.bindings.iter().map(|owned| &owned.rule), packet)?;
    let binding = &asked.bindings.get(met)?.rule;
    let port = binding.target_port(packet.port);
    let Some(target) = binding.to.address else {
        return Some(Expected { target: None, port, seen: packet.source });
    };
    let subnet = topology.subnet_of(target)?;
    let seen = match vantage {
        Vantage::Inside(bridge) if *bridge == subnet.bridge => subnet.gateway,
        _ if masqueraded(asked, packet.source, &subnet.bridge) => subnet.gateway,
        _ => packet.source,
    };
    Some(Expected { target: Some(target), port, seen })
}

/// Whether a rule set wants what `source` sends out of `bridge` to take the bridge's address.
fn masqueraded(asked: &Asked, source: IpAddr, bridge: &str) -> bool {
    let by_rule = asked.masquerades.iter().any(|owned| {
        let from = owned.rule.from.is_none_or(|from| from.contains(source));
        from && owned.rule.out.as_ref().is_none_or(|out| out.as_str() == bridge)
    });
    let by_network = asked.networks.iter().any(|owned| {
        let network = &owned.rule;
        let inside = network.subnets.iter().any(|subnet| subnet.contains(source));
        network.masquerade && inside && network.name.as_str() != bridge
    });
    by_rule || by_network
}

/// Sends a probe and waits for its answer.
pub(super) fn send(probe: &Probe, topology: &Topology) -> Result<Answer, LabError> {
    let namespace: Option<&Netns> = match &probe.vantage {
        Vantage::Outside(name) => topology.uplink(Some(name)).map(|uplink| &uplink.client),
        Vantage::Host => Some(&topology.host),
        Vantage::Inside(bridge) => topology.neighbours.get(bridge),
    };
    let Some(namespace) = namespace else { return Ok(Answer::Failed("there is nobody to ask".into())) };
    let packet = &probe.packet;
    let from = SocketAddr::new(packet.source, 0);
    let to = SocketAddr::new(packet.destination, packet.port);
    let text = namespace.run(|| match packet.protocol {
        Protocol::Udp => ask_udp(from, to),
        _ => ask_tcp(from, to),
    })?;
    Ok(match text {
        Ok(text) => read(&text),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Answer::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Answer::Silence,
            _ => Answer::Failed(error.to_string()),
        },
    })
}

fn ask_tcp(from: SocketAddr, to: SocketAddr) -> io::Result<String> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn ask_udp(from: SocketAddr, to: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind(from)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"?")?;
    let mut answer = [0; 128];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
}

/// Reads what a server said: who he is, his port, whom he saw.
fn read(text: &str) -> Answer {
    let mut words = text.rsplitn(3, ' ');
    let seen = words.next().and_then(|word| word.parse().ok());
    let port = words.next().and_then(|word| word.parse().ok());
    match (words.next(), port, seen) {
        (Some(who), Some(port), Some(seen)) => Answer::By { who: who.to_owned(), port, seen },
        _ => Answer::Failed(format!("`{}` is no answer", crate::model::error::printable(text))),
    }
}
