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

/// A new connection's first packet: from and to an address and a port, by an interface or sent by this host.
pub fn first(input: Option<&str>, protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Packet {
    packet(Family::of_address(to.0), input)
        .with(Field::Protocol, protocol.into())
        .with(Field::Source, number_of(from.0))
        .with(Field::SourcePort, from.1.into())
        .with(Field::Destination, number_of(to.0))
        .with(Field::Port, to.1.into())
}
