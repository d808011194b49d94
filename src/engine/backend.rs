//! The interface of a backend: read the live rules, and plan, send and verify a change.
//!
//! `nft.rs` and `iptables.rs` implement [`Backend`].

use std::sync::Arc;

use super::EngineError;
use super::choice::BackendId;
use super::live::Live;
use super::timing::Timing;
use crate::iptables::diff::Changes as ChainChanges;
use crate::iptables::program::Program as Chains;
use crate::model::{DesiredState, Family};
use crate::nft::diff::Changes;
use crate::nft::program::Program;
use crate::store::Verified;

/// A change that is ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// A netlink batch for nf_tables.
    Nft {
        /// The difference between live and desired rules.
        changes: Box<Changes>,
        /// The rules after the change.
        program: Program,
        /// The generation that the batch carries. The kernel refuses the batch if its own generation differs.
        generation: u32,
    },
    /// The input of one iptables-restore for each family.
    Iptables {
        /// The difference between live and desired rules, by family.
        changes: Vec<(Family, ChainChanges)>,
        /// The rules after the change.
        program: Arc<Chains>,
        /// The live rules from which portfwd planned the change.
        before: Arc<Chains>,
    },
}

impl Work {
    /// Returns true if the live rules already equal the desired rules.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Nft { changes, .. } => changes.is_empty(),
            Self::Iptables { changes, .. } => changes.is_empty(),
        }
    }

    /// Returns the generation of the rules after the change; `None` with iptables, which has no generations.
    pub fn generation_after(&self) -> Option<u32> {
        match self {
            Self::Nft { generation, .. } => Some(generation.wrapping_add(1)),
            Self::Iptables { .. } => None,
        }
    }
}

/// A planned change, with the live rules from which portfwd planned it.
pub(super) struct Decision {
    pub(super) live: Live,
    pub(super) work: Work,
    /// The desired rules that the plan compared with the live rules. A partial plan compares only some rules.
    pub(super) compared: Arc<DesiredState>,
}

/// A change of a few forwards, planned without the whole desired state.
pub(super) struct PartialChange<'a> {
    /// The old versions of the changed forwards, and one representative of each rule shape.
    pub(super) before: DesiredState,
    /// The new versions of the changed forwards, and one representative of each rule shape.
    pub(super) after: DesiredState,
    /// The last generation in which the live rules equalled the desired rules, if known.
    pub(super) last_verified: Option<&'a Verified>,
    /// True if the plan may read from the kernel. This is necessary if another program committed after
    /// `last_verified`.
    pub(super) may_read: bool,
}

/// The kernel interface that holds the rules of one network namespace.
pub(super) trait Backend {
    /// Returns the ID of this backend.
    fn id(&self) -> BackendId;

    /// Returns the version lines of the external programs, if the backend has any.
    fn versions(&self) -> Vec<String>;

    /// Reads the live rules of portfwd.
    fn live(&mut self, timing: &mut Timing) -> Result<Live, EngineError>;

    /// Reads the live rules and compares them with the desired ones.
    fn plan(&mut self, desired: &Arc<DesiredState>, timing: &mut Timing) -> Result<Decision, EngineError>;

    /// Plans a change of a few forwards. Returns `None` if all rules must be compared.
    fn plan_partial(
        &mut self,
        change: &PartialChange<'_>,
        timing: &mut Timing,
    ) -> Result<Option<Decision>, EngineError>;

    /// Sends a change, all of it or nothing. Returns the sent messages as text. Returns `None` if another program
    /// has changed portfwd's rules after the plan.
    fn send(&mut self, work: &mut Work, timing: &mut Timing) -> Result<Option<Vec<String>>, EngineError>;

    /// Reads the changed rules again, and compares them with the planned ones.
    fn verify(&mut self, work: &Work, timing: &mut Timing) -> Result<(), EngineError>;
}
