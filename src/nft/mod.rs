//! The nftables backend. It compiles the model to a [`program`], compares programs, sends the changes as one netlink
//! batch, and reads the table back.
//!
//! ```text
//! model ──compile──▶ program ──diff──▶ changes ──encode──▶ batch ──transaction──▶ kernel
//! model ◀───lift──── program ◀──────────────────decode──── dumps ◀──transaction──┘
//! ```
//! A program is plain data. It can be built, printed, compared and tested without privileges. All `unsafe` code of the
//! crate is in `ffi`, behind safe functions.
//!
//! Be aware: the backend changes only table `inet portfwd` and reads the rules of no other table. While commits of other
//! programs interrupt a dump, `watch` reads the names of the tables that they change.

pub mod batch;
pub mod compile;
pub mod decode;
pub mod diff;
pub mod element;
pub mod encode;
pub mod expr;
pub mod lift;
pub mod map;
pub(crate) mod message;
pub mod program;
pub mod transaction;
pub mod user_data;
mod watch;
