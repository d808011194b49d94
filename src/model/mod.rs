//! The nouns of port forwarding, their text forms and their meaning. This room uses no kernel, no file and no backend.
//!
//! Text and TOML become [`Forward`]s, [`Network`]s, [`Masquerade`]s, [`Snat`]s and [`Netmap`]s in a [`RuleSet`]. All
//! rule sets together have one normal form, [`DesiredState`], the desired state. It splits each forward into [`Binding`]s: one
//! protocol, one contiguous range of ports, at most one client prefix, one family. The compilers, the state and `list`
//! use the normal form, so no other room handles port lists.
//!
//! The order of rules has no meaning. [`Binding::class`] and [`conflict`] decide which of two forwards wins.
//! [`precedence`] decides which of two source NAT rules wins. [`meaning`] defines the result for a packet.

pub mod address;
pub mod binding;
pub mod conflict;
pub mod desired;
pub mod egress;
pub mod error;
pub mod family;
pub mod forward;
pub mod label;
pub mod listen;
pub mod meaning;
pub mod name;
pub mod netmap;
pub mod network;
pub mod observed;
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

pub use binding::{Binding, Class, Destination, PortMap};
pub use desired::{DesiredState, SetRule};
pub use egress::Egress;
pub use error::ParseError;
pub use family::Family;
pub use forward::Forward;
pub use listen::Listen;
pub use name::{ChainName, Comment, IfName, SetName};
pub use netmap::Netmap;
pub use network::{Masquerade, Network};
pub use observed::{Counter, Observed};
pub use packet::Packet;
pub use ports::{PortRange, Ports};
pub use protocol::Protocol;
pub use rule_set::{IpForward, Priority, RuleSet, Settings};
pub use snat::{Mode, Pool, Snat};
pub use source::Source;
pub use target::Target;
