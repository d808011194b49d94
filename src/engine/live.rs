//! The live rules of portfwd, from nftables or iptables.

use std::sync::Arc;

use crate::iptables::lift::lift as lift_chains;
use crate::iptables::program::Program as Chains;
use crate::model::{Observed, Priority};
use crate::nft::lift::lift;
use crate::nft::program::{Base, ChainType, Hook, Program};

/// The live rules of portfwd.
pub enum Live {
    /// Table `inet portfwd` of nf_tables.
    Nft {
        /// The decoded table.
        program: Program,
        /// The generation in which the table was read.
        generation: u32,
    },
    /// The chains whose names begin with `PORTFWD`.
    Iptables(Arc<Chains>),
}

impl Live {
    /// Converts the live rules to forwards, networks and other rules, as rule-set files contain them.
    pub fn lift(&self) -> Observed {
        match self {
            Self::Nft { program, .. } => lift(program),
            Self::Iptables(program) => lift_chains(program),
        }
    }

    /// Returns the priority of the DNAT chains, if it is not the default.
    pub(super) fn priority(&self) -> Option<Priority> {
        let Self::Nft { program, .. } = self else { return None };
        let bases = program.chains.values().filter_map(|chain| chain.base.as_ref());
        let of = |base: &&Base| base.chain_type == ChainType::Nat && base.hook == Hook::Prerouting;
        let priority = bases.filter(of).find_map(|base| Priority::new(base.priority));
        priority.filter(|priority| *priority != Priority::DEFAULT)
    }

    /// Returns the generation in which the rules were read; `None` with iptables, which has no generations.
    pub fn generation(&self) -> Option<u32> {
        match self {
            Self::Nft { generation, .. } => Some(*generation),
            Self::Iptables(_) => None,
        }
    }
}
