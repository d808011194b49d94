//! Assigns the maps of forwards to chains. The order of rules in the chains is the order of precedence.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::model::{ChainName, Protocol};
use crate::nft::map::{AddressScope, Kind, MapId};

/// The packets that a chain of forwards receives. The variants are in the order of the jumps to the chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Loopback,
    ByAddress,
    Any,
}

impl Stage {
    fn for_map(id: &MapId) -> Self {
        match (id.scope, id.class.address) {
            (AddressScope::NonLoopback, true) => Self::ByAddress,
            (AddressScope::NonLoopback, false) => Self::Any,
            (AddressScope::AnyLoopback | AddressScope::OneLoopback, _) => Self::Loopback,
        }
    }

    /// Returns the suffix of the chain's name.
    fn suffix(self) -> &'static str {
        match self {
            Self::Loopback => "-loopback",
            Self::ByAddress => "-by-address",
            Self::Any => "",
        }
    }
}

/// Consecutive maps that one chain looks up in order.
pub(super) struct Run {
    /// The name of the nft chain.
    pub(super) name: String,
    pub(super) stage: Stage,
    chain: ChainName,
    /// The maps in the order of precedence, each with the protocols of its elements.
    pub(super) maps: Vec<(MapId, BTreeSet<Protocol>)>,
}

/// Sorts the maps by precedence. Groups consecutive maps with the same chain name and stage into one nft chain.
///
/// Usually each chain name and stage has one nft chain. If maps with other chain names come in between, the remaining
/// maps are in `NAME-2`, `NAME-3` and so on.
pub(super) fn runs(mut maps: Vec<(MapId, BTreeSet<Protocol>)>) -> Vec<Run> {
    let level = |id: &MapId| {
        let class = id.class;
        (Stage::for_map(id), !class.address, !class.interface, Reverse(class.from), id.kind != Kind::Ports)
    };
    // Maps of both families share a level, because the families never overlap. Within a level, only one order matters:
    // labels come before their targets.
    let within_level = |id: &MapId| (id.chain.clone(), id.class.family, id.kind, id.redirect, id.scope, id.role);
    maps.sort_by_cached_key(|(id, _)| (level(id), within_level(id)));
    let named: BTreeSet<ChainName> = maps.iter().map(|(id, _)| id.chain.clone()).collect();
    let mut runs: Vec<Run> = Vec::new();
    while let Some((first, _)) = maps.first() {
        let end = maps.iter().position(|(id, _)| level(id) != level(first)).unwrap_or(maps.len());
        let mut same_level: Vec<_> = maps.drain(..end).collect();
        // Each level starts with maps of the previous chain, so that this chain continues.
        if let Some(last) = runs.last() {
            let chain = last.chain.clone();
            same_level.sort_by_key(|(id, _)| id.chain != chain);
        }
        for (id, protocols) in same_level {
            let stage = Stage::for_map(&id);
            match runs.last_mut() {
                Some(run) if run.chain == id.chain && run.stage == stage => run.maps.push((id, protocols)),
                _ => {
                    let name = run_name(&runs, &named, &id.chain, stage);
                    runs.push(Run { name, stage, chain: id.chain.clone(), maps: vec![(id, protocols)] });
                }
            }
        }
    }
    runs
}

/// Returns an unused name for the next chain. If another chain has the name, a number is appended. For example, a rule
/// set of an older version may contain the name.
fn run_name(runs: &[Run], named: &BTreeSet<ChainName>, chain: &ChainName, stage: Stage) -> String {
    let base = format!("{chain}{}", stage.suffix());
    let numbered = |number: usize| if number == 1 { base.clone() } else { format!("{base}-{number}") };
    let is_chain = |name: &str| stage == Stage::Any && name == chain.as_str();
    let taken = |name: &str| {
        runs.iter().any(|run| run.name == name) || !is_chain(name) && named.iter().any(|other| other.as_str() == name)
    };
    (1..).map(numbered).find(|name| !taken(name)).unwrap_or(base)
}
