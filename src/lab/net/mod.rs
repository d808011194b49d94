//! LabStatus networks: namespaces with names, pairs of links, bridges and containers from a file; `portfwd lab`.
//!
//! ```text
//! file ──read──▶ description ──plan──▶ steps ──make──▶ kernel
//!                                        │ journal: written before anything is made
//!                                        ◀──────────── what is there, and ours
//! ```
//! What is made is told from what others made by identities that the kernel holds and that are chosen and written down before
//! anything is made: a link has a random hardware address from its first moment on, a namespace is known by the kernel's
//! cookie of it, the file that its name is mounted on has a random word in it, a route has a protocol of its own, a process is
//! known by when it was started and waits until that is written down, a rule set and a bridge of Open vSwitch have a random
//! word. So whatever ends the process, `down` removes what is there and ours, and nothing else.

mod address;
mod apply;
mod check;
pub mod description;
mod error;
mod exec;
mod forwarding;
mod ground;
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
