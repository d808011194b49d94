//! Which part of the kernel holds the rules, and one way to speak to either.

use std::path::Path;
use std::sync::Arc;

use super::iptables::Iptables;
use super::timing::{Phase, Timing};
use super::{EngineError, Live, nft};
use crate::iptables::command::Variant;
use crate::iptables::diff::Changes as ChainChanges;
use crate::iptables::program::Program as Chains;
use crate::model::{Asked, Family};
use crate::nft::compile::compile;
use crate::nft::decode::decode;
use crate::nft::diff::{Changes, diff};
use crate::nft::program::Program;
use crate::nft::transaction::{Connection, KernelError};

/// Which backend is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// nftables where the kernel has it, iptables otherwise.
    Auto,
    /// nftables.
    Nft,
    /// iptables, of the host's own variant.
    Iptables,
    /// iptables of this variant.
    Variant(Variant),
}

/// Where rules are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// Our table of nf_tables.
    Nft,
    /// Chains of ours in iptables.
    Iptables(Variant),
}

impl std::fmt::Display for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nft => f.write_str("nftables"),
            Self::Iptables(variant) => write!(f, "iptables-{}", variant.name()),
        }
    }
}

/// A backend that is ready to work.
pub(super) enum Backend {
    Nft(Connection),
    Iptables(Iptables),
}

/// What would have to be sent for the kernel to hold what is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// One netlink batch.
    Nft {
        /// What would be sent.
        changes: Box<Changes>,
        /// What the kernel will hold.
        program: Program,
        /// The generation it was decided on, or moved to before it was sent.
        generation: u32,
    },
    /// The input of one iptables-restore for each family.
    Iptables {
        /// What would be written, by family.
        changes: Vec<(Family, ChainChanges)>,
        /// What the kernel will hold.
        program: Arc<Chains>,
        /// What it held when that was decided.
        before: Arc<Chains>,
    },
}

impl Work {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Nft { changes, .. } => changes.is_empty(),
            Self::Iptables { changes, .. } => changes.is_empty(),
        }
    }
}

impl Work {
    /// The generation that the rules have once it is carried out; iptables has none.
    pub fn generation_after(&self) -> Option<u32> {
        match self {
            Self::Nft { generation, .. } => Some(generation.wrapping_add(1)),
            Self::Iptables { .. } => None,
        }
    }
}

impl Backend {
    /// Opens nftables.
    pub(super) fn nft() -> Result<Self, KernelError> {
        let mut connection = Connection::open()?;
        // Asked first, so that who may not do anything at all leaves no trace on disk.
        connection.generation()?;
        Ok(Self::Nft(connection))
    }

    /// Opens iptables. `input` is the file that what is to be restored is written to; none: one without a name.
    pub(super) fn iptables(variant: Option<Variant>, input: Option<&Path>) -> Result<Self, EngineError> {
        Ok(Self::Iptables(Iptables::open(variant, input)?))
    }

    pub(super) fn home(&self) -> Home {
        match self {
            Self::Nft(_) => Home::Nft,
            Self::Iptables(iptables) => Home::Iptables(iptables.variant()),
        }
    }

    /// Reads what is there.
    pub(super) fn live(&mut self, timing: &mut Timing) -> Result<Live, EngineError> {
        match self {
            Self::Nft(connection) => {
                let (program, generation) = timing.talk(Phase::Read, connection, decode)?;
                Ok(Live::Nft { program, generation })
            }
            Self::Iptables(iptables) => Ok(Live::Iptables(timing.of(Phase::Read, || iptables.read())?)),
        }
    }

    /// Reads what is there, and compares it with what is asked.
    pub(super) fn decide(&mut self, asked: &Asked, timing: &mut Timing) -> Result<(Live, Work), EngineError> {
        match self {
            Self::Nft(connection) => {
                let (now, generation) = timing.talk(Phase::Read, connection, decode)?;
                let program = timing.of(Phase::Compile, || compile(asked))?;
                let changes = Box::new(timing.of(Phase::Plan, || diff(&now, &program)));
                Ok((Live::Nft { program: now, generation }, Work::Nft { changes, program, generation }))
            }
            Self::Iptables(iptables) => {
                let (before, work) = iptables.decide(asked, timing)?;
                Ok((Live::Iptables(before), work))
            }
        }
    }

    /// Does it, all or nothing, and gives what was sent, as text; `None` where somebody else changed the rules in
    /// between, and the work must be planned anew.
    pub(super) fn carry_out(
        &mut self,
        work: &mut Work,
        timing: &mut Timing,
    ) -> Result<Option<Vec<String>>, EngineError> {
        match (self, work) {
            (Self::Nft(connection), Work::Nft { changes, program, generation }) => {
                nft::carry_out(connection, changes, program, generation, timing)
            }
            (Self::Iptables(iptables), Work::Iptables { changes, before, program }) => {
                iptables.carry_out(changes, before, program, timing)
            }
            // It was planned for another backend.
            _ => Ok(None),
        }
    }

    /// Reads back what was done, as far as that is worth it.
    pub(super) fn check(&mut self, work: &Work, timing: &mut Timing) -> Result<(), EngineError> {
        match (self, work) {
            (Self::Nft(connection), Work::Nft { changes, program, generation }) => {
                let check = |connection: &mut Connection| nft::check(connection, changes, program, *generation);
                timing.talk(Phase::Read, connection, check)
            }
            (Self::Iptables(iptables), Work::Iptables { changes, program, .. }) => {
                timing.of(Phase::Read, || iptables.check(changes, program))
            }
            _ => Ok(()),
        }
    }
}
