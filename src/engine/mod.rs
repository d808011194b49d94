//! Reads the live rules, and plans and commits changes: the only place where the desired state and the kernel meet.
//!
//! ```text
//! desired state ──compile──▶ program ─┐
//!                                     ├─diff──▶ changes ──encode──▶ batch ──commit──▶ kernel ──decode──▶ verified
//! kernel ────────── decode ─▶ program ─┘
//! ```
//! `commit.rs` runs the phases of a change and can undo each of them. `nft.rs` and `iptables.rs` do the kernel's part.
//!
//! A change is decided on the live rules. The batch carries the generation of the rules on which it was decided: if another
//! program commits in between, the kernel refuses the batch, and the engine decides again. The intent is written to disk
//! before the kernel is changed, and removed if the kernel refuses the change. So a process that is killed in between leaves
//! an intent that the next command completes.

mod backend;
mod choice;
mod commit;
mod connections;
mod error;
pub mod guard;
mod iptables;
mod live;
mod nft;
mod open;
pub mod plan;
mod recover;
mod rollback;
mod scope;
mod stale_backends;
mod sysctls;
pub mod timing;

pub use backend::Work;
pub use choice::{BackendId, Choice, LOCK_WAIT};
pub use commit::{Options, Outcome};
pub use error::EngineError;
pub use live::Live;
pub use nft::PARTIAL_LIMIT;
pub use open::{Engine, Storage};
pub use plan::{Plan, Sign, Step, Words};
pub use scope::{Part, Scope};
pub use sysctls::Sysctls;
pub use timing::Timing;
