//! Forwards with client prefixes of many lengths.
//!
//! Each length is a map and a rule of its own, and each rule costs every packet that comes by about 0.2 µs (measured, Linux
//! 6.18). So where there are several, they are in a chain of their own, and only packets that one of them may be about
//! are led there:
//! ```text
//! meta nfproto ipv4 meta l4proto . th dport @ip-ports-clients jump forwards-clients-ip
//! ```
//! The set holds the keys of all those maps without their last field, the client. Who meets it and is in none of the
//! prefixes comes back and goes on as if nothing had been.

use std::collections::{BTreeMap, BTreeSet};

use super::expressions::{FIRST, family_is};
use super::lookup::{load_key, rules as rules_of_map};
use super::run::Run;
use crate::model::{Counter, Family};
use crate::nft::expr::{Expr, Lookup, Verdict};
use crate::nft::map::{MapId, Role};
use crate::nft::program::{Chain, Element, Key, Map, Program, Rule, Shape};

/// From how many lengths on they are worth a chain of their own: the set costs as much as one of them.
const WORTH: usize = 3;

/// Forwards that differ in nothing that decides precedence but the length of the client prefix.
type Group = (Family, bool, bool);

fn group(id: &MapId) -> Group {
    (id.class.family, id.class.address, id.class.interface)
}

/// The rules of a chain of forwards. Adds what is kept in chains of its own.
pub(super) fn rules(run: &Run, program: &mut Program) -> Vec<Rule> {
    let mut lengths: BTreeMap<Group, BTreeSet<u8>> = BTreeMap::new();
    for (id, _) in &run.maps {
        lengths.entry(group(id)).or_default().extend(id.class.from);
    }
    lengths.retain(|_, lengths| lengths.len() >= WORTH);
    let mut rules = Vec::new();
    let mut apart: BTreeMap<Group, Vec<Rule>> = BTreeMap::new();
    for (id, protocols) in &run.maps {
        let of_map = rules_of_map(id, protocols);
        if id.class.from.is_none() || !lengths.contains_key(&group(id)) {
            rules.extend(of_map);
            continue;
        }
        let own = apart.entry(group(id)).or_default();
        // The first of them has the highest precedence of all, so this is the place of all.
        if own.is_empty() {
            rules.extend(guards(run, group(id), program));
        }
        own.extend(of_map);
    }
    for (group, rules) in apart {
        program.chains.insert(chain_name(run, group), Chain { base: None, rules });
    }
    rules
}

fn chain_name(run: &Run, (family, address, interface): Group) -> String {
    let family = match family {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    };
    // Whether an address is named is the same in all of a chain, but for those of loopback addresses.
    let address = if address { "-address" } else { "" };
    let interface = if interface { "-interface" } else { "" };
    format!("{}-clients-{family}{address}{interface}", run.name)
}

/// The sets of a group, one for each kind of key, and the rules that ask them.
fn guards(run: &Run, wanted: Group, program: &mut Program) -> Vec<Rule> {
    let mut sets: BTreeMap<MapId, Map> = BTreeMap::new();
    let targets = run.maps.iter().map(|(id, _)| id).filter(|id| id.role == Role::Targets);
    for id in targets.filter(|id| id.class.from.is_some() && group(id) == wanted) {
        let guard = id.clients();
        let length = usize::from(Shape::length(&guard.shape().key));
        let set = sets.entry(guard).or_insert_with_key(|guard| Map { shape: guard.shape(), elements: BTreeMap::new() });
        let keys = program.maps.get(&id.to_string()).into_iter().flat_map(|map| map.elements.keys());
        for key in keys.filter_map(|key| key.0.get(..length)) {
            let element = || Element { data: [].into(), comment: "".into(), span: None, counter: Counter::default() };
            set.elements.entry(Key(key.into())).or_insert_with(element);
        }
    }
    let chain = chain_name(run, wanted);
    let rules = sets.keys().map(|id| guard(id, &chain)).collect();
    program.maps.extend(sets.into_iter().map(|(id, set)| (id.to_string(), set)));
    rules
}

fn guard(id: &MapId, chain: &str) -> Rule {
    let mut exprs = family_is(id.class.family).to_vec();
    exprs.extend(load_key(id, &id.shape().key));
    exprs.push(Expr::Lookup(Lookup { map: id.to_string(), from: FIRST, to: None }));
    exprs.push(Expr::Verdict(Verdict::Jump(chain.to_owned())));
    Rule { exprs, comment: None }
}
