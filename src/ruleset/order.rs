//! The order in which the base chains of all tables see a packet.

use std::sync::OnceLock;

use super::table::{Base, Chain, Hook, Kind, Ruleset, Table};
use crate::model::Family;

/// A base chain in its place.
#[derive(Debug, Clone, Copy)]
pub struct Placed<'a> {
    /// The number of its table.
    pub table_at: usize,
    /// The number of the chain in it.
    pub chain_at: usize,
    /// The table.
    pub table: &'a Table,
    /// The chain.
    pub chain: &'a Chain,
    /// How it is attached.
    pub base: &'a Base,
    /// Whether another one of the same priority is at this place, and which is asked first depends on which was made
    /// last, which the kernel does not tell.
    pub tied: bool,
}

/// The base chains of rules in their places, each place looked up once: for who leads many packets.
#[derive(Debug)]
pub struct Order<'a> {
    rules: &'a Ruleset,
    /// By family, by hook, by whether they translate.
    places: [[[OnceLock<Vec<Placed<'a>>>; 2]; HOOKS]; 2],
}

/// How many hooks there are.
const HOOKS: usize = Hook::Egress as usize + 1;

impl<'a> Order<'a> {
    /// Of these rules.
    pub fn new(rules: &'a Ruleset) -> Self {
        Self { rules, places: Default::default() }
    }

    /// What [`chains`] gives.
    pub fn at(&self, family: Family, hook: Hook, nat: bool) -> &[Placed<'a>] {
        let hooks = self.places.get(usize::from(family == Family::Ipv6));
        let place = hooks.and_then(|hooks| hooks.get(hook as usize)).and_then(|kinds| kinds.get(usize::from(nat)));
        place.map_or(&[], |place| place.get_or_init(|| chains(self.rules, family, hook, nat)))
    }

    /// The rules.
    pub fn rules(&self) -> &'a Ruleset {
        self.rules
    }
}

/// The base chains that packets of a family meet at a hook, in this order. With `nat` those that translate, which are asked
/// one after the other until one has rewritten the address; else the others.
///
/// Lower priorities come first. Of the same priority the one that was registered last is asked first (measured on
/// Linux 6.18; `nf_hook_entries_grow` in net/netfilter/core.c). Within a table the numbers of chains tell which that is;
/// between tables it is taken to be the chain of the table that was made last.
pub fn chains(rules: &Ruleset, family: Family, hook: Hook, nat: bool) -> Vec<Placed<'_>> {
    let mut found: Vec<Placed<'_>> = Vec::new();
    for (table_at, table) in rules.tables.iter().enumerate() {
        if table.dormant || !table.family.sees(family) {
            continue;
        }
        for (chain_at, chain) in table.chains.iter().enumerate() {
            if let Some(base) = &chain.base
                && base.hook == hook
                && (base.kind == Kind::Nat) == nat
            {
                found.push(Placed { table_at, chain_at, table, chain, base, tied: false });
            }
        }
    }
    found.sort_by_key(|placed| {
        let age = placed.chain.handle.unwrap_or(u64::try_from(placed.chain_at).unwrap_or(u64::MAX));
        (placed.base.priority, std::cmp::Reverse(placed.table_at), std::cmp::Reverse(age))
    });
    for at in 0..found.len() {
        let this = found[at];
        found[at].tied = found.iter().any(|other| {
            // The tables of iptables-legacy are asked as one; of two with the same priority there is only one.
            other.table_at != this.table_at && other.base.priority == this.base.priority
        });
    }
    found
}
