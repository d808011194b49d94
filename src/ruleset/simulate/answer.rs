//! The answer to a delivered packet: back through all hooks, as the second packet of the connection.
//!
//! The answer of another host arrives by the interface by which the packet left. This assumes that the host sends the answer
//! through this host.

use std::net::IpAddr;

use super::simulator::Simulator;
use super::trace::{End, PacketTrace};
use super::walk::{Reply, Walk};
use crate::model::{Family, Protocol};
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Facts, Link, Listener};
use crate::ruleset::region::{CONFIRMED, Field, Packet, State};
use crate::ruleset::set::{address_of, number_of_name};

/// `IPS_SEEN_REPLY` and `IPS_CONFIRMED` of include/uapi/linux/netfilter/nf_conntrack_common.h.
const ANSWERED: u128 = 1 << 1 | CONFIRMED;

/// The fate of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerEnd<'a> {
    /// The sender of the packet receives the answer.
    Arrives,
    /// The answer leaves by another interface than the one by which the packet arrived.
    Elsewhere(&'a Link),
    /// The receiver is on the sender's link and answers directly. The flag is true if the sender accepts such an answer,
    /// because no address of the packet was rewritten.
    Direct(bool),
    /// A rule drops the answer, or the kernel does not route it.
    Lost,
    /// The fate is unknown.
    Unknown,
}

/// The way of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The trace of the answer. `None` if the answer does not pass this host.
    pub trace: Option<PacketTrace<'a>>,
    /// The fate of the answer.
    pub end: AnswerEnd<'a>,
    /// The other host whose routes lead the answer through this host.
    pub routed_by: Option<IpAddr>,
}

impl Answer<'_> {
    /// Returns the confidence of the answer's fate. The packet's own trace has another.
    pub fn confidence(&self) -> Confidence {
        match (&self.trace, self.end) {
            (_, AnswerEnd::Unknown) => Confidence::Unknown,
            (Some(trace), _) => trace.confidence(),
            (None, _) => Confidence::Proved,
        }
    }
}

/// The sockets of this host that a delivered packet finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listening<'a> {
    /// A socket accepts the packet.
    Yes(&'a Listener),
    /// No socket accepts the packet, but these listen at its port on other addresses.
    Elsewhere(Vec<&'a Listener>),
    /// No socket listens at the port.
    No,
    /// The sockets are unknown.
    Unknown,
}

impl<'a> Simulator<'a> {
    /// Simulates the answer to a delivered packet. Returns `None` if the packet is not delivered.
    pub fn answer(&self, trace: &PacketTrace<'a>) -> Option<Answer<'a>> {
        let output = match trace.end {
            End::Arrives => 0,
            End::Leaves(Some(link), _) => number_of_name(link.name.as_bytes(), 0),
            End::Leaves(None, _) => {
                return Some(Answer { trace: None, end: AnswerEnd::Unknown, routed_by: None });
            }
            _ => return None,
        };
        let untracked = trace.outcomes().any(|(_, _, outcome)| outcome.untracked.is_some());
        let known = [Field::Source, Field::Destination].iter().all(|field| trace.packet.get(*field).is_some());
        if untracked || !known {
            return Some(Answer { trace: None, end: AnswerEnd::Unknown, routed_by: None });
        }
        let receiver = self.receiver(trace);
        if let End::Leaves(Some(link), None) = trace.end
            && self.is_near(trace, link)
        {
            let plain = [Field::Source, Field::Destination, Field::SourcePort, Field::Port];
            let unchanged = plain.iter().all(|field| trace.packet.get(*field) == trace.start.get(*field));
            return Some(Answer { trace: None, end: AnswerEnd::Direct(unchanged), routed_by: None });
        }
        let of = |address, port| (trace.start.get(address), trace.start.get(port));
        let reply = Reply { listen: of(Field::Destination, Field::Port), client: of(Field::Source, Field::SourcePort) };
        let answer = Walk::new(self, answer(&trace.packet, output), true, Some(reply)).whole();
        let end = match answer.end {
            End::Arrives => AnswerEnd::Arrives,
            End::Leaves(Some(link), _) => {
                let back = trace.start.get(Field::Input) == Some(number_of_name(link.name.as_bytes(), 0));
                if back { AnswerEnd::Arrives } else { AnswerEnd::Elsewhere(link) }
            }
            End::Leaves(None, _) | End::Unknown | End::Queued(..) => AnswerEnd::Unknown,
            End::Dropped(..) | End::Refused(_) => AnswerEnd::Lost,
        };
        let routed_by = receiver.filter(|_| !self.is_own_source(trace));
        Some(Answer { trace: Some(answer), end, routed_by })
    }

    fn receiver(&self, trace: &PacketTrace<'_>) -> Option<IpAddr> {
        let address = trace.packet.get(Field::Destination)?;
        address_of(address, trace.packet.family).filter(|_| matches!(trace.end, End::Leaves(..)))
    }

    /// Returns true if the receiver sees an address of this host as source.
    fn is_own_source(&self, trace: &PacketTrace<'_>) -> bool {
        let source = trace.packet.get(Field::Source);
        source.is_some_and(|source| self.is_local(trace.packet.family, source) == Some(true))
    }

    /// Returns true if the receiver on a link sees a source address of the same link that is not this host's.
    fn is_near(&self, trace: &PacketTrace<'_>, link: &Link) -> bool {
        let Some(facts) = &self.host.facts else { return false };
        let source = trace.packet.get(Field::Source).and_then(|source| address_of(source, trace.packet.family));
        let networks = || facts.addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, network)| network);
        !self.is_own_source(trace) && source.is_some_and(|source| networks().any(|network| network.contains(source)))
    }
}

/// The TCP flag SYN of RFC 9293 in [`Field::TcpFlags`].
const SYN: u128 = 0x02;

/// The TCP flag ACK.
const ACK: u128 = 0x10;

/// Returns the answer to a packet as it arrives, or as this host sends it.
fn answer(packet: &Packet, input: u128) -> Packet {
    let mut answer = Packet::new(packet.family);
    for (field, from) in [
        (Field::Source, Field::Destination),
        (Field::SourcePort, Field::Port),
        (Field::Destination, Field::Source),
        (Field::Port, Field::SourcePort),
        (Field::Protocol, Field::Protocol),
        (Field::ConnectionMark, Field::ConnectionMark),
        (Field::Label, Field::Label),
        (Field::OriginalDestination, Field::OriginalDestination),
        (Field::OriginalPort, Field::OriginalPort),
    ] {
        answer.set(field, packet.get(from));
    }
    answer.set(Field::Status, packet.get(Field::Status).map(|status| status | ANSWERED));
    answer.set(Field::TcpFlags, packet.get(Field::TcpFlags).filter(|flags| *flags == SYN).map(|_| SYN | ACK));
    answer
        .with(Field::State, State::Established.number())
        .with(Field::Direction, 1)
        .with(Field::Mark, 0)
        .with(Field::Input, input)
}

impl PacketTrace<'_> {
    /// Returns the sockets that a packet finds which was delivered to this host.
    pub fn listening<'f>(&self, facts: Option<&'f Facts>) -> Listening<'f> {
        let number = |field| self.packet.get(field);
        let protocol = match number(Field::Protocol) {
            Some(6) => Protocol::Tcp,
            Some(17) => Protocol::Udp,
            _ => return Listening::Unknown,
        };
        let address = number(Field::Destination).and_then(|address| address_of(address, self.packet.family));
        let port = number(Field::Port).and_then(|port| u16::try_from(port).ok());
        let readable = |facts: &&Facts| !facts.gaps.iter().any(|gap| gap.what == "sockets that wait");
        let (Some(facts), Some(address), Some(port)) = (facts.filter(readable), address, port) else {
            return Listening::Unknown;
        };
        if let Some(listener) = facts.listeners_at(protocol, address, port).next() {
            return Listening::Yes(listener);
        }
        let same = |one: &&Listener| one.protocol == protocol && one.port == port;
        let elsewhere: Vec<&Listener> = facts.listeners.iter().filter(same).collect();
        if elsewhere.is_empty() { Listening::No } else { Listening::Elsewhere(elsewhere) }
    }
}

impl Listening<'_> {
    /// Returns what the service must do to accept a packet to an address, as text. Returns `None` if a socket accepts it.
    pub fn advice(&self, address: IpAddr, port: u16) -> Option<String> {
        match self {
            Self::Yes(_) | Self::Unknown => None,
            Self::No => Some(format!("nothing listens on port {port} of this host")),
            Self::Elsewhere(listeners) => {
                let mut places: Vec<String> =
                    listeners.iter().map(|one| std::net::SocketAddr::new(one.address, one.port).to_string()).collect();
                places.sort();
                places.dedup();
                let owner = listeners.iter().find_map(|one| one.owner.as_ref());
                let who = owner.map_or_else(|| "the service".to_owned(), |(name, _)| name.clone());
                let all = if Family::of_address(address) == Family::Ipv4 { "0.0.0.0" } else { "::" };
                Some(format!(
                    "nothing accepts it: {who} listens on {} only; it must listen on {all} or {address}",
                    places.join(", ")
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests;
