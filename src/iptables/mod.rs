//! The iptables backend, for hosts without nf_tables or where policy demands it: the model compiled to a [`program`] of
//! chains and rules, programs compared, written as the input of iptables-restore(8), and read back from iptables-save(8).
//!
//! ```text
//! model ──compile──▶ program ──diff──▶ changes ──restore──▶ text ──command──▶ iptables-restore ──▶ kernel
//! model ◀───lift──── program ◀──────────────────save─────── text ◀──command── iptables-save ◀─────┘
//! ```
//! Everything but `command` is pure. Both variants, iptables-nft and iptables-legacy, are spoken to in the same words.
//!
//! Be aware: ours are the chains whose names begin with `PORTFWD`, and one jump from each built-in chain that needs one. Nothing
//! else is ever flushed, moved or counted to zero.

pub mod command;
pub mod compile;
pub mod diff;
pub mod lift;
pub mod limits;
mod matching;
pub mod program;
pub mod restore;
pub mod rule;
pub mod save;
mod target;
pub(crate) mod words;
