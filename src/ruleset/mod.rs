//! Any host's rules in one normal form, and the simulator that shows what they do with a packet.
//!
//! ```text
//! netlink, iptables-save, nft -j ──read──▶ table::Ruleset ─┬─view──────▶ symbolic: the packets that reach each rule
//!                rtnetlink, /proc ──read──▶ facts::Facts ──┴─simulate──▶ concrete: one packet through every hook
//! ```
//! A rule has cases: a [`region`] of packets, and the actions for them. Every reader ends in this form, so that rules of
//! nft(8), iptables(8) and other programs are compared and simulated by the same code.
//!
//! Limit: a condition or an action that no reader understands stays in the rule as unknown, and every verdict that depends on
//! the rule is unknown.

pub mod confidence;
pub mod describe;
pub mod facts;
pub mod fold;
pub mod host;
#[cfg(test)]
pub(crate) mod hosts;
pub mod index;
pub mod order;
pub mod owner;
pub mod read;
pub mod region;
pub mod reject;
pub mod set;
pub mod simulate;
pub mod table;
pub mod view;
