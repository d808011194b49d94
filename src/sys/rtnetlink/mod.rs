//! Links, addresses, routes, neighbours and routing rules of a network namespace, over rtnetlink(7).
//!
//! ```text
//! RouteNetlinkMessage (crate netlink-packet-route) ──▶ Socket ──▶ kernel ──▶ Attributes ──▶ Link, Address, Route, …
//! ```
//! The crate netlink-packet-route encodes requests and reads headers. [`Attributes`](super::netlink::Attributes) reads the
//! attributes of answers. The readers of the crate drop a whole message if one attribute has an unknown format. For example,
//! they drop a link whose name is not UTF-8, and its IPv4 addresses, whose label is that name. Here, a message is unreadable
//! only if an attribute that portfwd needs is.

mod address;
mod link;
mod neighbour;
mod qdisc;
mod route;
mod rule;
mod socket;
#[cfg(test)]
mod tests;

pub use address::Address;
pub use link::{Link, NewLink, interfaces};
pub use neighbour::{Neighbour, NeighbourState};
pub use netlink_packet_route::route::RouteType;
pub use qdisc::Qdisc;
pub use route::{Hop, NewRoute, Route, interfaces_to};
pub use rule::{Effect, Rule};
pub use socket::{Dump, IfPresent, Rtnetlink};
