//! Compares two programs and returns the changes that turn one into the other, without I/O.
//!
//! Chains are small: a changed chain is flushed and filled again, within one transaction. Maps are large: only the
//! changed elements are deleted and added. If the shape of a map differs or the table has flags, the table is deleted and
//! created again.

use std::collections::BTreeMap;

use super::program::{Chain, Element, Key, Program, Rule, Shape};

/// Elements to delete from or add to one map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elements {
    /// The map's name.
    pub map: String,
    /// The key and data types of the map.
    pub shape: Shape,
    /// The elements, in the order of their keys.
    pub elements: Vec<(Key, Element)>,
}

/// The changes to a table. The fields are in the order in which the changes must be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// True if the table is deleted with all its contents.
    pub delete_table: bool,
    /// True if the table is created.
    pub add_table: bool,
    /// Chains that are flushed.
    pub empty_chains: Vec<String>,
    /// Elements that are deleted.
    pub delete_elements: Vec<Elements>,
    /// Chains that are deleted. Base chains are first.
    pub delete_chains: Vec<String>,
    /// Maps that are deleted.
    pub delete_maps: Vec<String>,
    /// Maps that are created, without elements.
    pub add_maps: Vec<(String, Shape)>,
    /// Chains that are created, without rules. Regular chains are first.
    pub add_chains: Vec<(String, Chain)>,
    /// Elements that are added.
    pub add_elements: Vec<Elements>,
    /// Rules that are appended to their chains. Base chains are last, so that the chains they jump to have their rules.
    pub add_rules: Vec<(String, Vec<Rule>)>,
}

impl Changes {
    /// Returns true if there is nothing to send.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns true if only elements change: table, chains, rules and maps stay.
    pub fn changes_only_elements(&self) -> bool {
        !(self.delete_table || self.add_table)
            && [&self.empty_chains, &self.delete_chains, &self.delete_maps].iter().all(|names| names.is_empty())
            && self.add_maps.is_empty()
            && self.add_chains.is_empty()
            && self.add_rules.is_empty()
    }
}

/// Returns the changes that turn `live` into `asked`.
pub fn diff(live: &Program, desired: &Program) -> Changes {
    let mut changes = Changes::default();
    if !desired.table {
        changes.delete_table = live.table;
        return changes;
    }
    let reshaped = desired.maps.iter().any(|(name, map)| live.maps.get(name).is_some_and(|now| now.shape != map.shape));
    let nothing = Program::default();
    let live = if live.table && (reshaped || live.flagged) {
        changes.delete_table = true;
        &nothing
    } else {
        live
    };
    changes.add_table = !live.table;
    maps(live, desired, &mut changes);
    chains(live, desired, &mut changes);
    changes
}

fn maps(live: &Program, desired: &Program, changes: &mut Changes) {
    changes.delete_maps = live.maps.keys().filter(|name| !desired.maps.contains_key(*name)).cloned().collect();
    let nothing = BTreeMap::new();
    for (name, map) in &desired.maps {
        let now = live.maps.get(name);
        if now.is_none() {
            changes.add_maps.push((name.clone(), map.shape.clone()));
        }
        let now = now.map_or(&nothing, |now| &now.elements);
        let removed = only_in(now, &map.elements);
        let added = only_in(&map.elements, now);
        let of_map = |elements| Elements { map: name.clone(), shape: map.shape.clone(), elements };
        if !removed.is_empty() {
            changes.delete_elements.push(of_map(removed));
        }
        if !added.is_empty() {
            changes.add_elements.push(of_map(added));
        }
    }
}

/// Returns the elements of `left` that `right` lacks or has with other data, comment or range.
fn only_in(left: &BTreeMap<Key, Element>, right: &BTreeMap<Key, Element>) -> Vec<(Key, Element)> {
    (left.iter())
        .filter(|(key, element)| !right.get(*key).is_some_and(|other| other.same_content(element)))
        .map(|(key, element)| (key.clone(), element.clone()))
        .collect()
}

fn chains(live: &Program, desired: &Program, changes: &mut Changes) {
    for (name, chain) in &live.chains {
        let desired = desired.chains.get(name);
        let stays = desired.is_some_and(|desired| desired.base == chain.base);
        let same = stays && desired.is_some_and(|desired| desired.rules == chain.rules);
        if !same && !chain.rules.is_empty() {
            changes.empty_chains.push(name.clone());
        }
        if !stays {
            changes.delete_chains.push(name.clone());
        }
    }
    // A chain can be deleted only after the rules that jump to it, and must be created before them.
    changes.delete_chains.sort_by_key(|name| live.chains.get(name).is_some_and(|chain| chain.base.is_none()));
    let mut names: Vec<&String> = desired.chains.keys().collect();
    names.sort_by_key(|name| desired.chains.get(*name).is_some_and(|chain| chain.base.is_some()));
    for name in names {
        let Some(chain) = desired.chains.get(name) else { continue };
        let now = live.chains.get(name).filter(|now| now.base == chain.base);
        if now.is_none() {
            changes.add_chains.push((name.clone(), Chain { base: chain.base, rules: Vec::new() }));
        }
        if now.is_none_or(|now| now.rules != chain.rules) && !chain.rules.is_empty() {
            changes.add_rules.push((name.clone(), chain.rules.clone()));
        }
    }
}
