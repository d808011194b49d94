//! The live state of a lab: its namespaces with their links, addresses, routes and neighbours, for `portfwd lab show`.
//!
//! ```text
//! journal ──▶ read_picture ──▶ Picture (plain data) ──▶ text, SVG, JSON
//! kernel  ──▶
//! ```
//! The journal lists the namespaces of a lab and the steps of `up`. Everything else is read from the kernel inside each
//! namespace, whatever created it. A missing object is shown as its step, so a new kind of step needs no code here.
//!
//! Be aware: the namespaces are read one after the other, so a change in between may show on one side only. The host is
//! shown only as far as the lab touches it, because a host may have hundreds of other links.

mod card;
mod collect;
mod draw;
mod dump;
mod place;
mod process;
#[cfg(test)]
mod samples;
mod space;
#[cfg(test)]
mod tests;
mod text;

pub use collect::read_picture;
pub use draw::svg;
pub use space::{Link, Mac, NamespaceView, Neighbour, Peer, Picture, Process, Route, State};
