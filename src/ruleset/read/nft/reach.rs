//! Which chains packets are led to by base chains that translate, and so which sets must be read.
//!
//! A dump of a foreign set's elements that no rule of NAT asks costs time for nothing, and may be of millions: it is left
//! out. What is written in a rule itself (anonymous sets) belongs to the rule.

use std::collections::{HashMap, HashSet};

use super::dump::{Data, Dump, Element, Expr, GOTO, JUMP, Set, TableKey, Verdict, verdict};
use crate::nft::transaction::KernelError;

/// The elements of sets, by the set's number in the dump.
pub(super) type Elements = HashMap<usize, Vec<Element>>;

/// What was found on the way.
#[derive(Debug, Default)]
pub(super) struct Reached {
    /// The elements that were read.
    pub(super) elements: Elements,
    /// The numbers of sets by their tables and names.
    pub(super) sets: HashMap<TableKey, HashMap<String, usize>>,
}

/// What a rule refers to.
#[derive(Debug, Default)]
struct References {
    sets: Vec<usize>,
    chains: Vec<String>,
}

/// Walks all chains that translate. `read` gives the elements of a set.
pub(super) fn reach(
    dump: &Dump,
    mut read: impl FnMut(&Set) -> Result<Vec<Element>, KernelError>,
) -> Result<Reached, KernelError> {
    let mut reached = Reached::default();
    for (number, set) in dump.sets.iter().enumerate() {
        reached.sets.entry(set.table.clone()).or_default().insert(set.name.clone(), number);
        // A map of objects decides nothing that we tell apart.
        if set.anonymous && !set.objects {
            reached.elements.insert(number, read(set)?);
        }
    }
    let mut chains: HashMap<(&TableKey, &str), References> = HashMap::new();
    for rule in &dump.rules {
        let sets = reached.sets.get(&rule.table);
        let found = chains.entry((&rule.table, &rule.chain)).or_default();
        for expr in rule.exprs() {
            let set = set_of(&expr).and_then(|name| sets?.get(&name)).copied();
            found.sets.extend(set.filter(|set| !found.sets.contains(set)));
            found.chains.extend(verdict_of(&expr).and_then(target));
        }
    }
    let mut waiting: Vec<(&TableKey, String)> = Vec::new();
    for chain in &dump.chains {
        if chain.base.as_ref().is_some_and(|base| base.kind == "nat") {
            waiting.push((&chain.table, chain.name.clone()));
        }
    }
    let mut targets: HashMap<usize, Vec<String>> = HashMap::new();
    let mut met: HashSet<(&TableKey, String)> = HashSet::new();
    while let Some((table, name)) = waiting.pop() {
        if !met.insert((table, name.clone())) {
            continue;
        }
        let Some(found) = chains.get(&(table, name.as_str())) else { continue };
        for number in &found.sets {
            let Some(set) = dump.sets.get(*number).filter(|set| !set.objects) else { continue };
            if !reached.elements.contains_key(number) {
                reached.elements.insert(*number, read(set)?);
            }
            let elements = reached.elements.get(number).map(Vec::as_slice).unwrap_or_default();
            let targets = targets.entry(*number).or_insert_with(|| targets_of(elements));
            waiting.extend(targets.iter().map(|name| (table, name.clone())));
        }
        waiting.extend(found.chains.iter().map(|name| (table, name.clone())));
    }
    Ok(reached)
}

/// The name of the set that an expression asks.
fn set_of(expr: &Expr<'_>) -> Option<String> {
    const LOOKUP_SET: u16 = 1;
    (expr.name == "lookup").then(|| expr.attributes.text(LOOKUP_SET)).flatten()
}

/// The verdict that an expression gives.
pub(super) fn verdict_of(expr: &Expr<'_>) -> Option<Verdict> {
    const DATA: u16 = 2;
    (expr.name == "immediate").then(|| expr.attributes.nested(DATA).and_then(verdict)).flatten()
}

fn target(verdict: Verdict) -> Option<String> {
    verdict.chain.filter(|_| matches!(verdict.code, JUMP | GOTO))
}

fn targets_of(elements: &[Element]) -> Vec<String> {
    let of = |element: &Element| match &element.data {
        Some(Data::Verdict(verdict)) => target(verdict.clone()),
        _ => None,
    };
    let names: HashSet<String> = elements.iter().filter_map(of).collect();
    names.into_iter().collect()
}

/// Whether an expression is one that only iptables(8) makes.
pub(super) fn is_compat(expr: &Expr<'_>) -> bool {
    matches!(expr.name.as_str(), "match" | "target")
}

/// Whether an expression is one that iptables(8) has no words for, and that it shows no table for: among rules of IPv4 and
/// IPv6 it has its own matches and targets in their place. Source: `nft_is_expr_compatible` in iptables' iptables/nft.c, 1.8.9.
pub(super) fn is_native(expr: &Expr<'_>) -> bool {
    let known = [
        "bitwise",
        "byteorder",
        "cmp",
        "connlimit",
        "counter",
        "immediate",
        "limit",
        "log",
        "lookup",
        "match",
        "meta",
        "payload",
        "range",
        "target",
    ];
    !known.contains(&expr.name.as_str())
}
