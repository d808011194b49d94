//! The iptables backend, for hosts without nf_tables or with a policy that requires iptables. It compiles the model to a
//! [`program`], compares programs, writes the changes for iptables-restore(8), and reads the rules from iptables-save(8).
//!
//! ```text
//! model ──compile──▶ program ──diff──▶ changes ──restore──▶ text ──command──▶ iptables-restore ──▶ kernel
//! model ◀───lift──── program ◀──────────────────save─────── text ◀──command── iptables-save ◀─────┘
//! ```
//! Only `command` performs I/O. The text for iptables-nft and iptables-legacy is the same, except for the policies
//! of built-in chains.
//!
//! Be aware: portfwd owns the chains whose names start with `PORTFWD`, and one jump from each built-in chain that needs
//! one. portfwd does not flush or move other rules and does not reset their counters.

pub mod command;
pub mod compile;
pub mod diff;
pub mod lift;
pub mod limits;
mod matching;
pub mod program;
pub(crate) mod quoting;
pub mod restore;
pub mod rule;
pub mod save;
mod target;
