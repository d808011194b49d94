//! Plans and commits changes. Only this module uses both the desired state and the kernel's rules.
//!
//! ```text
//! desired state ──compile──▶ program ─┐
//!                                     ├─diff──▶ changes ──encode──▶ batch ──commit──▶ kernel ──decode──▶ verified
//! kernel ────────── decode ─▶ program ─┘
//! ```
//! `commit.rs` runs the phases of a change, and undoes them if the kernel refuses the change. `nft.rs` and
//! `iptables.rs` read and write the kernel's rules.
//!
//! portfwd plans a change from the live rules. The batch carries the generation of these rules. If another program
//! commits before the batch arrives, the kernel refuses the batch, and portfwd plans again.
//!
//! The intent is the new desired state, marked as unfinished. portfwd writes the intent to disk before it changes the
//! kernel, and removes the intent if the kernel refuses the change. If portfwd is killed in between, the next command
//! completes the change.

mod backend;
mod choice;
mod commit;
mod connections;
mod effect;
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
pub use effect::Obstacles;
pub use error::EngineError;
pub use live::Live;
pub use nft::PARTIAL_LIMIT;
pub use open::{Engine, Storage};
pub use plan::{Plan, Sign, Step, Words};
pub use scope::{Part, Scope};
pub use sysctls::Sysctls;
pub use timing::Timing;
