//! Compiles forwards with client prefixes of many lengths.
//!
//! Each prefix length needs a map and a rule. Each rule costs every packet about 0.2 µs (measured, Linux 6.18). If
//! there are three or more lengths, their rules are in a separate chain. A packet enters the chain only if a set
//! contains the packet's port:
//! ```text
//! meta nfproto ipv4 meta l4proto . th dport @ip-ports-clients jump forwards-clients-ip
//! ```
//! The set contains the keys of all maps that the chain looks up, without the client field. If no prefix contains the
//! client, the packet returns from the chain and continues with the next rule.

use std::collections::{BTreeMap, BTreeSet};

use super::expressions::{FIRST, family_is};
use super::lookup::{load_key, rules as map_rules};
use super::run::Run;
use crate::model::{Counter, Family};
use crate::nft::expr::{Expr, Lookup, Verdict};
use crate::nft::map::{MapId, MapRole};
use crate::nft::program::{Chain, Element, Key, Map, Program, Rule, Shape};

/// The minimum number of prefix lengths for a separate chain. A lookup in the client set costs as much as one prefix
/// length.
const MIN_LENGTHS: usize = 3;

/// The family of a map, and whether its key contains an address and an interface. In one group, the precedence of
/// forwards depends only on the prefix length.
type Group = (Family, bool, bool);

fn group(id: &MapId) -> Group {
    (id.class.family, id.class.address, id.class.interface)
}

/// Returns the rules for a chain of forwards. Adds client sets and the separate chains for client prefixes to
/// `program`.
pub(super) fn rules(run: &Run, program: &mut Program) -> Vec<Rule> {
    let mut lengths: BTreeMap<Group, BTreeSet<u8>> = BTreeMap::new();
    for (id, _) in &run.maps {
        lengths.entry(group(id)).or_default().extend(id.class.from);
    }
    lengths.retain(|_, lengths| lengths.len() >= MIN_LENGTHS);
    let mut rules = Vec::new();
    let mut separate: BTreeMap<Group, Vec<Rule>> = BTreeMap::new();
    for (id, protocols) in &run.maps {
        let lookups = map_rules(id, protocols);
        if id.class.from.is_none() || !lengths.contains_key(&group(id)) {
            rules.extend(lookups);
            continue;
        }
        let client_rules = separate.entry(group(id)).or_default();
        // The first map of a group has the highest precedence, so the jump to the group's chain is at this position.
        if client_rules.is_empty() {
            rules.extend(guarded_jumps(run, group(id), program));
        }
        client_rules.extend(lookups);
    }
    for (group, rules) in separate {
        program.chains.insert(chain_name(run, group), Chain { base: None, rules });
    }
    rules
}

fn chain_name(run: &Run, (family, address, interface): Group) -> String {
    let family = match family {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    };
    // A chain for loopback addresses may contain maps with and without an address. All other chains contain only one of
    // these two types.
    let address = if address { "-address" } else { "" };
    let interface = if interface { "-interface" } else { "" };
    format!("{}-clients-{family}{address}{interface}", run.name)
}

/// Adds the client sets of a group to `program`, one set for each kind of key. Returns one rule for each set: the rule
/// looks up the set and jumps to the group's chain.
fn guarded_jumps(run: &Run, wanted: Group, program: &mut Program) -> Vec<Rule> {
    let mut sets: BTreeMap<MapId, Map> = BTreeMap::new();
    let targets = run.maps.iter().map(|(id, _)| id).filter(|id| id.role == MapRole::Targets);
    for id in targets.filter(|id| id.class.from.is_some() && group(id) == wanted) {
        let set_id = id.clients();
        let length = usize::from(Shape::length(&set_id.shape().key));
        let set = sets.entry(set_id).or_insert_with_key(|id| Map { shape: id.shape(), elements: BTreeMap::new() });
        let keys = program.maps.get(&id.to_string()).into_iter().flat_map(|map| map.elements.keys());
        for key in keys.filter_map(|key| key.0.get(..length)) {
            let element = || Element { data: [].into(), comment: "".into(), span: None, counter: Counter::default() };
            set.elements.entry(Key(key.into())).or_insert_with(element);
        }
    }
    let chain = chain_name(run, wanted);
    let rules = sets.keys().map(|id| guarded_jump(id, &chain)).collect();
    program.maps.extend(sets.into_iter().map(|(id, set)| (id.to_string(), set)));
    rules
}

fn guarded_jump(id: &MapId, chain: &str) -> Rule {
    let mut exprs = family_is(id.class.family).to_vec();
    exprs.extend(load_key(id, &id.shape().key));
    exprs.push(Expr::Lookup(Lookup { map: id.to_string(), from: FIRST, to: None }));
    exprs.push(Expr::Verdict(Verdict::Jump(chain.to_owned())));
    Rule { exprs, comment: None }
}
