//! The nftables backend: the model compiled to a [`program`], programs compared, encoded into one netlink batch,
//! and read back.
//!
//! ```text
//! model ──compile──▶ program ──diff──▶ changes ──encode──▶ batch ──transaction──▶ kernel
//! model ◀───lift──── program ◀──────────────────decode──── dumps ◀──transaction──┘
//! ```
//! A program is plain data: it can be made, printed, compared and tested without privileges.
//!
//! Be aware: we never look at, and never change, anything outside of table `inet portfwd`; of what others do we take the
//! names of their tables, and only while they disturb us (`watch`).

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
