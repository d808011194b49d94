//! Lists the NAT rules of a host, whichever program made them, and finds their faults.
//!
//! ```text
//! ruleset::host::Host ──forwards, listing──▶ rows in order of precedence
//!                     └─findings───────────▶ findings, each with evidence and a fix
//! ```
//! The rules, the host's facts and the simulator are in [`crate::ruleset`]; each file below `findings` has one family of
//! findings.

pub mod finding;
pub mod findings;
pub mod forwards;
pub mod listing;
