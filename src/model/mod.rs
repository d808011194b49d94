//! The nouns of port forwarding, their text forms and their meaning. Pure: knows no kernel, no file, no backend.
//!
//! Text and TOML become [`Forward`]s, [`Network`]s, [`Masquerade`]s, [`Snat`]s and [`Netmap`]s in a [`RuleSet`]; those
//! are brought into one normal form, [`Asked`], whose atoms are [`Binding`]s: one protocol, one contiguous span of ports, at most
//! one client prefix, one family. Everything behind this room (compilers, state, listing) works on the normal form,
//! so no other room has to know what a port list is.
//!
//! A rule set is a set: [`Binding::class`] and [`conflict`] decide which of two forwards wins, [`precedence`] which of two rules
//! about what leaves, never their order. What all of it means for a packet is in [`meaning`].

pub mod address;
pub mod asked;
pub mod binding;
pub mod conflict;
pub mod egress;
pub mod error;
pub mod family;
pub mod forward;
pub mod held;
pub mod label;
pub mod listen;
pub mod meaning;
pub mod name;
pub mod netmap;
pub mod network;
pub mod packet;
pub mod ports;
pub mod precedence;
pub mod prefix;
pub mod protocol;
pub mod rule_comment;
pub mod rule_set;
pub mod snat;
pub mod source;
pub mod target;

pub use asked::{Asked, Owned};
pub use binding::{Binding, Class, Destination, PortMap};
pub use egress::Egress;
pub use error::ParseError;
pub use family::Family;
pub use forward::Forward;
pub use held::{Counter, Held};
pub use listen::Listen;
pub use name::{ChainName, Comment, IfName, SetName};
pub use netmap::Netmap;
pub use network::{Masquerade, Network};
pub use packet::Packet;
pub use ports::{PortRange, Ports};
pub use protocol::Protocol;
pub use rule_set::{IpForward, Priority, RuleSet, Settings};
pub use snat::{Mode, Pool, Snat};
pub use source::Source;
pub use target::Target;
