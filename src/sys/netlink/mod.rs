//! Netlink, the kernel's interface for rules, links, routes, conntrack entries and sockets. One socket type, one reader and
//! one writer of attributes serve every family.
//!
//! ```text
//! Request ──Socket::request, get, dump──▶ Wire ──▶ kernel
//! Message, Attributes ◀──────────────────────────────┘
//! ```
//! Source: include/uapi/linux/netlink.h.

pub mod attributes;
pub mod message;
pub mod socket;
pub mod traffic;
pub mod wire;

pub use mnl::Bus;

pub use self::attributes::{Attributes, NESTED, put_attribute, put_nested, put_text};
pub use self::message::{Message, Refusal, Request, flag};
pub use self::socket::{Dump, Error, Socket};
