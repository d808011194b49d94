//! Standing networks: named namespaces, veth pairs, bridges and containers from a file, for `portfwd lab`.
//!
//! ```text
//! file ──read──▶ description ──plan──▶ steps ──make──▶ kernel
//!                                        │ journal: written before the first step
//!                                        ◀──────────── live state, compared by identity
//! ```
//! A lab never changes or removes objects of other programs. So each object has an identity that the kernel keeps, and
//! that is in the journal before the object is created:
//!
//! - a link: a random hardware address, from its creation on;
//! - a namespace: the kernel's cookie, and a random token in the file that its name is mounted on;
//! - a route: a protocol number of its own;
//! - a process: its start time; the process waits until the journal has it;
//! - a rule set and an Open vSwitch bridge: a random token.
//!
//! So `down` removes what the lab created and nothing else, even if a process was killed meanwhile.

mod address;
mod apply;
mod check;
pub mod description;
mod error;
mod exec;
mod executor;
mod forwarding;
pub mod host;
mod init;
mod journal;
mod links;
mod list;
mod mounts;
mod name;
mod named;
mod ovs;
pub mod picture;
pub mod plan;
mod presence;
mod process;
mod read;
mod rules;
#[cfg(test)]
mod tests;
mod up;

pub use description::Lab;
pub use error::NetError;
pub use exec::{exec, make_temporary};
pub use init::{ContainerInit, init};
pub use journal::Journals;
pub use list::{LabStatus, list};
pub use name::{LabName, NetnsName};
pub use ovs::OvsError;
pub use plan::{Location, Name, Step};
pub use process::Process;
pub use read::read;
pub use rules::{Published, Rules};
pub use up::{Change, down, up};
