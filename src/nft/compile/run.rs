//! Maps of forwards laid out in chains, so that following a chain is following precedence.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::model::{ChainName, Protocol};
use crate::nft::map::{Kind, MapId, Place};

/// About which packets a chain of forwards is asked, in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Loopback,
    ByAddress,
    Any,
}

impl Stage {
    fn of(id: &MapId) -> Self {
        match (id.place, id.class.address) {
            (Place::Outside, true) => Self::ByAddress,
            (Place::Outside, false) => Self::Any,
            (Place::Loopback | Place::LoopbackAt, _) => Self::Loopback,
        }
    }

    /// What the name of such a chain ends in.
    fn suffix(self) -> &'static str {
        match self {
            Self::Loopback => "-loopback",
            Self::ByAddress => "-by-address",
            Self::Any => "",
        }
    }
}

/// Maps that are asked one after the other in one chain.
pub(super) struct Run {
    /// The chain's name.
    pub(super) name: String,
    pub(super) stage: Stage,
    chain: ChainName,
    /// The maps in the order of precedence, each with the protocols in it.
    pub(super) maps: Vec<(MapId, BTreeSet<Protocol>)>,
}

/// Lays the maps out in chains so that following them is following precedence.
///
/// A chain name's forwards are in one chain for each stage. Only where forwards of different chain names take turns in
/// precedence is a chain continued, in `NAME-2` and so on.
pub(super) fn runs(mut maps: Vec<(MapId, BTreeSet<Protocol>)>) -> Vec<Run> {
    let level = |id: &MapId| {
        let class = id.class;
        (Stage::of(id), !class.address, !class.interface, Reverse(class.from), id.kind != Kind::Ports)
    };
    // Families never compete, so they share a level; within a level chains may come in any order, but a label before the
    // forwards that it belongs to.
    let rest = |id: &MapId| (id.chain.clone(), id.class.family, id.kind, id.redirect, id.place, id.role);
    maps.sort_by_cached_key(|(id, _)| (level(id), rest(id)));
    let named: BTreeSet<ChainName> = maps.iter().map(|(id, _)| id.chain.clone()).collect();
    let mut runs: Vec<Run> = Vec::new();
    while let Some((first, _)) = maps.first() {
        let end = maps.iter().position(|(id, _)| level(id) != level(first)).unwrap_or(maps.len());
        let mut now: Vec<_> = maps.drain(..end).collect();
        // What continues the last run goes first.
        if let Some(last) = runs.last() {
            let chain = last.chain.clone();
            now.sort_by_key(|(id, _)| id.chain != chain);
        }
        for (id, protocols) in now {
            let stage = Stage::of(&id);
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

/// The name of the next chain of forwards: what it is, and a number where a chain has that name already, be it because a
/// set of an older program named its own so.
fn run_name(runs: &[Run], named: &BTreeSet<ChainName>, chain: &ChainName, stage: Stage) -> String {
    let base = format!("{chain}{}", stage.suffix());
    let numbered = |number: usize| if number == 1 { base.clone() } else { format!("{base}-{number}") };
    let own = |name: &str| stage == Stage::Any && name == chain.as_str();
    let taken = |name: &str| {
        runs.iter().any(|run| run.name == name) || !own(name) && named.iter().any(|other| other.as_str() == name)
    };
    (1..).map(numbered).find(|name| !taken(name)).unwrap_or(base)
}
