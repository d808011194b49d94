//! Standing networks: namespaces with names, pairs of links, bridges and containers from a file; `portfwd lab`.
//!
//! ```text
//! file ──read──▶ description ──plan──▶ steps ──make──▶ kernel
//!                                        │ journal: written before anything is made
//!                                        ◀──────────── what is there, and ours
//! ```
//! What is made is told from what others made by marks that the kernel holds and that are chosen and written down before
//! anything is made: a link has a random hardware address from its first moment on, a namespace is known by the kernel's
//! cookie of it, the file that its name is mounted on has a random word in it, a route has a protocol of its own. So whatever
//! ends the process, `down` removes what is there and ours, and nothing else.

mod address;
mod check;
pub mod description;
mod name;
pub mod plan;
mod read;

pub use description::Lab;
pub use name::{LabName, NetnsName};
pub use plan::{Site, Step};
pub use read::read;
