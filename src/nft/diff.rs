//! The difference of two programs: what must be sent to turn one into the other. Pure.
//!
//! Chains are small, so a chain that differs is emptied and filled again, which one transaction makes invisible.
//! Maps are large, so of a map only the elements that differ are touched. Where a map has another shape, or the table
//! another kind of thing in it, the whole table is made anew.

use std::collections::BTreeMap;

use super::program::{Chain, Element, Key, Map, Program, Rule, Shape};

/// Elements of one map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elements {
    /// The map's name.
    pub map: String,
    /// The map's shape.
    pub shape: Shape,
    /// The elements, in the order of their keys.
    pub elements: Vec<(Key, Element)>,
}

/// What to send, in the order in which it must be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The table goes, with all that is in it.
    pub delete_table: bool,
    /// The table comes.
    pub add_table: bool,
    /// Chains that lose all their rules.
    pub empty_chains: Vec<String>,
    /// Elements that go.
    pub delete_elements: Vec<Elements>,
    /// Chains that go.
    pub delete_chains: Vec<String>,
    /// Maps that go.
    pub delete_maps: Vec<String>,
    /// Maps that come, without elements.
    pub add_maps: Vec<(String, Shape)>,
    /// Chains that come, without rules. Those that are only jumped to are first.
    pub add_chains: Vec<(String, Chain)>,
    /// Elements that come.
    pub add_elements: Vec<Elements>,
    /// Rules that come, at the end of their chains. Base chains are last, so that what they jump to is filled.
    pub add_rules: Vec<(String, Vec<Rule>)>,
}

impl Changes {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether tables, chains, rules and maps stay as they are.
    pub fn is_of_elements(&self) -> bool {
        !(self.delete_table || self.add_table)
            && [&self.empty_chains, &self.delete_chains, &self.delete_maps].iter().all(|names| names.is_empty())
            && self.add_maps.is_empty()
            && self.add_chains.is_empty()
            && self.add_rules.is_empty()
    }
}

/// What turns `live` into `asked`.
pub fn diff(live: &Program, asked: &Program) -> Changes {
    let mut changes = Changes::default();
    if !asked.table {
        changes.delete_table = live.table;
        return changes;
    }
    let reshaped = asked.maps.iter().any(|(name, map)| live.maps.get(name).is_some_and(|now| now.shape != map.shape));
    let nothing = Program::default();
    let live = if live.table && (reshaped || live.flagged) {
        changes.delete_table = true;
        &nothing
    } else {
        live
    };
    changes.add_table = !live.table;
    maps(live, asked, &mut changes);
    chains(live, asked, &mut changes);
    changes
}

fn maps(live: &Program, asked: &Program, changes: &mut Changes) {
    changes.delete_maps = live.maps.keys().filter(|name| !asked.maps.contains_key(*name)).cloned().collect();
    let nothing = BTreeMap::new();
    for (name, map) in &asked.maps {
        let now = live.maps.get(name);
        if now.is_none() {
            changes.add_maps.push((name.clone(), map.shape.clone()));
        }
        let now = now.map_or(&nothing, |now| &now.elements);
        let gone = only_in(now, &map.elements);
        let come = only_in(&map.elements, now);
        let of = |elements| Elements { map: name.clone(), shape: map.shape.clone(), elements };
        if !gone.is_empty() {
            changes.delete_elements.push(of(gone));
        }
        if !come.is_empty() {
            changes.add_elements.push(of(come));
        }
    }
}

/// The elements of `these` that `those` does not have, or has with another meaning.
fn only_in(these: &BTreeMap<Key, Element>, those: &BTreeMap<Key, Element>) -> Vec<(Key, Element)> {
    (these.iter())
        .filter(|(key, element)| !those.get(*key).is_some_and(|other| other.says_the_same(element)))
        .map(|(key, element)| (key.clone(), element.clone()))
        .collect()
}

fn chains(live: &Program, asked: &Program, changes: &mut Changes) {
    for (name, chain) in &live.chains {
        let asked = asked.chains.get(name);
        let stays = asked.is_some_and(|asked| asked.base == chain.base);
        let same = stays && asked.is_some_and(|asked| asked.rules == chain.rules);
        if !same && !chain.rules.is_empty() {
            changes.empty_chains.push(name.clone());
        }
        if !stays {
            changes.delete_chains.push(name.clone());
        }
    }
    // What is jumped to can only go after what jumps to it, and only come before.
    changes.delete_chains.sort_by_key(|name| live.chains.get(name).is_some_and(|chain| chain.base.is_none()));
    let mut names: Vec<&String> = asked.chains.keys().collect();
    names.sort_by_key(|name| asked.chains.get(*name).is_some_and(|chain| chain.base.is_some()));
    for name in names {
        let Some(chain) = asked.chains.get(name) else { continue };
        let now = live.chains.get(name).filter(|now| now.base == chain.base);
        if now.is_none() {
            changes.add_chains.push((name.clone(), Chain { base: chain.base, rules: Vec::new() }));
        }
        if now.is_none_or(|now| now.rules != chain.rules) && !chain.rules.is_empty() {
            changes.add_rules.push((name.clone(), chain.rules.clone()));
        }
    }
}

/// Carries changes out on plain data: what the kernel is to hold afterwards. For tests, and for showing a plan.
pub fn apply(live: &Program, changes: &Changes) -> Program {
    let mut program = if changes.delete_table { Program::default() } else { live.clone() };
    program.table |= changes.add_table;
    for name in &changes.empty_chains {
        if let Some(chain) = program.chains.get_mut(name) {
            chain.rules.clear();
        }
    }
    for gone in &changes.delete_elements {
        if let Some(map) = program.maps.get_mut(&gone.map) {
            for (key, _) in &gone.elements {
                map.elements.remove(key);
            }
        }
    }
    program.chains.retain(|name, _| !changes.delete_chains.contains(name));
    program.maps.retain(|name, _| !changes.delete_maps.contains(name));
    for (name, shape) in &changes.add_maps {
        program.maps.insert(name.clone(), Map { shape: shape.clone(), elements: BTreeMap::new() });
    }
    program.chains.extend(changes.add_chains.iter().cloned());
    for come in &changes.add_elements {
        if let Some(map) = program.maps.get_mut(&come.map) {
            map.elements.extend(come.elements.iter().cloned());
        }
    }
    for (name, rules) in &changes.add_rules {
        if let Some(chain) = program.chains.get_mut(name) {
            chain.rules.extend(rules.iter().cloned());
        }
    }
    program
}
