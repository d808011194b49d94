//! Compares two programs and returns the changes that turn one program into the other, without I/O.
//!
//! Chains are small, so a changed chain is flushed and filled again in the same transaction. Maps are large, so only
//! changed elements are deleted and added. If a map has another shape, the table is deleted and created again. The same
//! applies if the table has flags.

use std::collections::BTreeMap;

use super::program::{Chain, Element, Key, Program, Rule, Shape};

/// Elements to delete from or add to one map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elements {
    /// The name of the map.
    pub map: String,
    /// The key and data types of the map.
    pub shape: Shape,
    /// The elements, in ascending order of their keys.
    pub elements: Vec<(Key, Element)>,
}

/// The changes to portfwd's table. The kernel must receive the changes in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// True if the batch deletes the table with all its contents.
    pub delete_table: bool,
    /// True if the batch creates the table.
    pub add_table: bool,
    /// The names of chains to flush.
    pub empty_chains: Vec<String>,
    /// Elements to delete from maps.
    pub delete_elements: Vec<Elements>,
    /// The names of chains to delete. Base chains come first.
    pub delete_chains: Vec<String>,
    /// The names of maps to delete.
    pub delete_maps: Vec<String>,
    /// Maps to create, without their elements.
    pub add_maps: Vec<(String, Shape)>,
    /// Chains to create, without their rules. Regular chains come first.
    pub add_chains: Vec<(String, Chain)>,
    /// Elements to add to maps.
    pub add_elements: Vec<Elements>,
    /// Rules to append to chains. Base chains come last, because the chains that they jump to must be complete.
    pub add_rules: Vec<(String, Vec<Rule>)>,
}

impl Changes {
    /// Returns true if there are no changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns true if only map elements change.
    pub fn changes_only_elements(&self) -> bool {
        !(self.delete_table || self.add_table)
            && [&self.empty_chains, &self.delete_chains, &self.delete_maps].iter().all(|names| names.is_empty())
            && self.add_maps.is_empty()
            && self.add_chains.is_empty()
            && self.add_rules.is_empty()
    }
}

/// Returns the changes that turn `live` into `desired`.
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

/// Returns the elements of `left` that are missing in `right`, or that have other data, another comment or another port
/// range there.
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
    // The kernel deletes a chain only if no rule jumps to the chain. A rule can jump only to an existing chain.
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
