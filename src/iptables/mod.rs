//! The iptables backend, for hosts without nf_tables and for hosts with a policy that requires iptables. Its modules
//! compile the model to a [`program`] and compare two programs. They write the changes for iptables-restore(8), and
//! read the rules from iptables-save(8).
//!
//! ```text
//! model ──compile──▶ program ──diff──▶ changes ──restore──▶ text ──command──▶ iptables-restore ──▶ kernel
//! model ◀───lift──── program ◀──────────────────save─────── text ◀──command── iptables-save ◀─────┘
//! ```
//! Only `command` performs I/O. iptables-nft and iptables-legacy get the same text, except for the policies of built-in
//! chains.
//!
//! Be aware: portfwd owns the chains whose names start with `PORTFWD`. portfwd also owns at most one jump in each
//! built-in chain. portfwd does not flush or move the rules of other programs, and does not reset their counters.

pub mod command;
pub mod compile;
pub mod diff;
pub mod lift;
pub mod limits;
pub(crate) mod matching;
pub mod program;
pub(crate) mod protocol;
pub(crate) mod quoting;
pub mod restore;
pub mod rule;
pub mod save;
pub(crate) mod structure;
mod target;
