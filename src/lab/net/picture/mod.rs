//! A lab as the kernel has it: who sees which links, addresses, routes and neighbours; `portfwd lab show`.
//!
//! ```text
//! journal ──▶ look ──▶ Picture (plain data) ──▶ text, SVG, JSON
//! kernel  ──▶
//! ```
//! The journal says which namespaces belong to a lab and what `up` made; everything else is read from the kernel, in each
//! namespace, whoever made it. What `up` made and is not there any more is told by its step, so a new kind of step needs
//! nothing here.
//!
//! Be aware: each namespace is read on its own, so what changes meanwhile may be seen on one side only. Of the host only
//! what the lab touches is told, because a host may have hundreds of links that are none of the lab's business.

mod card;
mod draw;
mod dump;
mod look;
mod place;
mod process;
#[cfg(test)]
mod samples;
mod space;
#[cfg(test)]
mod tests;
mod text;

pub use draw::svg;
pub use look::read_picture;
pub use space::{Link, Mac, NamespaceView, Neighbour, Peer, Picture, Process, Route, State};
