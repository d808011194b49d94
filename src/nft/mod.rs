//! The nftables backend. Its modules compile the model to a [`program`], compare two programs, and send the changes to
//! the kernel as one netlink batch. They also read the kernel's table back.
//!
//! ```text
//! model ──compile──▶ program ──diff──▶ changes ──encode──▶ batch ──transaction──▶ kernel
//! model ◀───lift──── program ◀──────────────────decode──── dumps ◀──transaction──┘
//! ```
//! A program is plain data, so tests of programs need no privileges. All `unsafe` code of the crate is in `ffi`, behind
//! safe functions.
//!
//! Be aware: the backend changes only the table `inet portfwd`, and reads no rules of other tables. If commits of other
//! programs interrupt a dump, `watch` reads the names of the tables that these commits change.

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
