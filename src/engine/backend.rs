//! What the engine needs of a backend: reading the live rules, planning, sending and verifying a change.
//!
//! `nft.rs` and `iptables.rs` implement [`Backend`] with functions of the same names, so that they can be read side by side.

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
        /// The generation that the batch carries: the kernel refuses the batch in any other.
        generation: u32,
    },
    /// The input of one iptables-restore for each family.
    Iptables {
        /// The difference between live and desired rules, by family.
        changes: Vec<(Family, ChainChanges)>,
        /// The rules after the change.
        program: Arc<Chains>,
        /// The rules on which the change was decided.
        before: Arc<Chains>,
    },
}

impl Work {
    /// Returns true if the live rules are the desired ones already.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Nft { changes, .. } => changes.is_empty(),
            Self::Iptables { changes, .. } => changes.is_empty(),
        }
    }

    /// Returns the generation of the rules after the change. iptables has no generations.
    pub fn generation_after(&self) -> Option<u32> {
        match self {
            Self::Nft { generation, .. } => Some(generation.wrapping_add(1)),
            Self::Iptables { .. } => None,
        }
    }
}

/// A planned change, with the live rules on which it was decided.
pub(super) struct Decision {
    pub(super) live: Live,
    pub(super) work: Work,
    /// The desired rules that were compared with the live ones: all of them, or those of a partial plan.
    pub(super) compared: Arc<DesiredState>,
}

/// A change of a few forwards, planned without the rest of the desired state.
pub(super) struct PartialChange<'a> {
    /// The old versions of the changed forwards, and the representatives that the change keeps (one for each rule shape).
    pub(super) before: DesiredState,
    /// The new versions of the changed forwards, with the same representatives.
    pub(super) after: DesiredState,
    /// When the live rules were last known to be the desired ones.
    pub(super) last_verified: Option<&'a Verified>,
    /// Whether rules, chains and the elements of these forwards may be read, if another program committed since then.
    pub(super) may_read: bool,
}

/// The kernel interface that holds the rules of one network namespace.
pub(super) trait Backend {
    /// Returns which backend this is.
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

    /// Sends a change, all of it or nothing. Returns the sent messages as text, or `None` if the live rules are no longer
    /// those on which the change was decided.
    fn send(&mut self, work: &mut Work, timing: &mut Timing) -> Result<Option<Vec<String>>, EngineError>;

    /// Reads the changed rules again, and compares them with the planned ones.
    fn verify(&mut self, work: &Work, timing: &mut Timing) -> Result<(), EngineError>;
}
