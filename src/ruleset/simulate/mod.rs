//! The simulator: the path of a packet through a host, with every hook, NAT and routing decision, and the path of its answer.
//!
//! ```text
//! arrives ▶ prerouting: raw, mangle ▶ nat ▶ filter ▶ routing ┬▶ input: filter ▶ nat ▶ a socket
//!                                                            └▶ forward ▶ postrouting: mangle ▶ nat ▶ leaves
//! is sent ▶ routing ▶ output: raw, mangle ▶ nat ▶ filter ▶ routing ▶ postrouting … ▶ leaves, or by lo to this host
//! ```
//! The input is a [`Packet`] with all known fields. The output is a [`PacketTrace`], a list of [`Stage`]s with the rules that
//! decide. A [`Journey`] adds the trace of the answer and a verdict. A [`Simulator`] prepares a host for many packets.
//!
//! Limit: XDP, tc, chains of the families netdev and bridge, IPsec and IPVS are not modelled. If one of them may change the
//! result, the trace contains a [`Guess`]. BPF programs of tcx, netkit and netfilter hooks are not found.

mod answer;
mod bridge;
pub mod chains;
mod journey;
mod outcome;
mod outside;
mod render;
mod routing;
mod simulator;
#[cfg(test)]
mod tests;
mod tie;
mod trace;
mod walk;

pub use answer::{Answer, AnswerEnd, Listening};
pub use journey::Journey;
pub use render::{Rendered, packet as packet_in_words};
pub use simulator::{MULTICAST, Simulator, UNICAST};
pub use trace::{End, Guess, PacketTrace, Part, Refusal, RouteDecision, Stage};

use std::net::IpAddr;

use crate::model::Family;
use crate::ruleset::region::{Field, Packet, packet};
use crate::ruleset::set::number_of;

/// Returns the first packet of a connection, which arrives by an interface or which this host sends.
pub fn first(input: Option<&str>, protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Packet {
    packet(Family::of_address(to.0), input)
        .with(Field::Protocol, protocol.into())
        .with(Field::Source, number_of(from.0))
        .with(Field::SourcePort, from.1.into())
        .with(Field::Destination, number_of(to.0))
        .with(Field::Port, to.1.into())
}
