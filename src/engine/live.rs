//! What the kernel holds, wherever it is kept.

use std::sync::Arc;

use crate::iptables::lift::lift as lift_chains;
use crate::iptables::program::Program as Chains;
use crate::model::{Held, Priority};
use crate::nft::lift::lift;
use crate::nft::program::{Base, ChainType, Hook, Program};

/// What the kernel holds.
pub enum Live {
    /// In nftables.
    Nft {
        /// As a program.
        program: Program,
        /// The generation of which it is the truth.
        generation: u32,
    },
    /// In iptables.
    Iptables(Arc<Chains>),
}

impl Live {
    /// What it means.
    pub fn lift(&self) -> Held {
        match self {
            Self::Nft { program, .. } => lift(program),
            Self::Iptables(program) => lift_chains(program),
        }
    }

    /// The priority of the DNAT chains, where it is another than the usual one.
    pub(super) fn priority(&self) -> Option<Priority> {
        let Self::Nft { program, .. } = self else { return None };
        let bases = program.chains.values().filter_map(|chain| chain.base.as_ref());
        let of = |base: &&Base| base.chain_type == ChainType::Nat && base.hook == Hook::Prerouting;
        let priority = bases.filter(of).find_map(|base| Priority::new(base.priority));
        priority.filter(|priority| *priority != Priority::DEFAULT)
    }

    /// The generation of which it is the truth; iptables has none.
    pub fn generation(&self) -> Option<u32> {
        match self {
            Self::Nft { generation, .. } => Some(*generation),
            Self::Iptables(_) => None,
        }
    }
}
