//! All NAT on a host, whoever made it: which forwards there are, in which order they win, and what is wrong with them.
//!
//! ```text
//! netlink, iptables-save, nft -j ──read──▶ ruleset ──view──▶ ways, in the order in which they win ──findings──▶ report
//!                rtnetlink, /proc ──read──▶ facts ───────────────────────────────────┘
//! ```
//! [`ruleset`] is one normal form for the rules of all tools: for each rule the packets that it is about, as a [`region`], and
//! what it does. [`view`] walks it with all packets at once, [`trace`] with one.
//!
//! Be aware: what is not understood is kept as such, and whatever depends on it is unknown and never fine.

pub mod describe;
pub mod facts;
pub mod finding;
pub mod findings;
pub mod forwards;
pub mod host;
mod index;
pub mod journey;
pub mod listing;
pub mod order;
pub mod overlap;
pub mod owner;
pub mod read;
pub mod region;
mod routes;
pub mod ruleset;
pub mod set;
pub mod trace;
pub mod view;
