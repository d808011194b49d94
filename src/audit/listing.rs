//! The view in rows: forwards in the order in which they win, and sources that are rewritten, in words.

use std::collections::BTreeMap;

use super::describe;
use super::forwards::Forward;
use super::host::Host;
use super::overlap::Overlaps;
use super::region::{Field, LOCAL, Region};
use super::ruleset::{At, Hook};
use super::set::Set;
use super::view::{Fate, Step, Translation};
use crate::model::{Counter, Family};

/// A row: a rule that rewrites an address, or one element of a map that it asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The family of its packets.
    pub family: Family,
    /// How it rewrites.
    pub translation: Translation,
    /// Protocols, `tcp`; none: all.
    pub protocol: Option<String>,
    /// Destinations: `local` is every address of the host; none: all.
    pub address: Option<String>,
    /// Destination ports, `80` or `{ 80, 443 }`; none: all.
    pub ports: Option<String>,
    /// The interface that packets arrive by.
    pub input: Option<String>,
    /// The interface that they leave by.
    pub output: Option<String>,
    /// Sources.
    pub from: Option<String>,
    /// What else is asked for, in the words of nft(8), what is not understood in brackets.
    pub conditions: Vec<String>,
    /// What is decided before this for some of the packets above: who is taken out, and how.
    pub except: Vec<String>,
    /// Where it leads, or what the source becomes; empty for the address of the interface, or this host.
    pub to: String,
    /// At which hooks, and its place in the order there.
    pub hooks: Vec<(Hook, usize)>,
    /// Whether all of that is sure: understood, and in an order that is known.
    pub sure: bool,
    /// Who made it.
    pub owner: String,
    /// Table, chain, and handle or line.
    pub rule: String,
    /// Its place.
    pub at: At,
    /// Its comment.
    pub comment: Option<String>,
    /// What the rule counted; of a map that is of all of its elements.
    pub counter: Option<Counter>,
}

/// The most exceptions that a row names.
const MOST: usize = 8;

/// The forwards of a host, in the order in which they win. A rule that jumps lead different packets to has a row for each of
/// them.
pub fn forwards(host: &Host) -> Vec<Row> {
    let exceptions = Exceptions::new(host);
    let mut rows = Vec::new();
    for forward in Forward::all(&host.view) {
        for steps in variants(&forward) {
            let Some((_, _, first)) = steps.first() else { continue };
            let mut row = Row::new(host, forward.family, forward.at, &first.region);
            row.translation = forward.translation;
            row.to = describe::target(forward.to);
            for (hook, number, step) in steps {
                row.hooks.push((hook, number));
                let (words, sure) = exceptions.of(forward.family, hook, number, step);
                row.sure &= sure && step.region.is_known() && !step.tied;
                row.except.extend(words);
            }
            row.except.sort_unstable();
            row.except.dedup();
            rows.push(row);
        }
    }
    rows
}

type Steps<'a> = Vec<(Hook, usize, &'a Step)>;

/// The steps of a forward, one at each hook together; those for packets that an earlier one at the hook takes all are left out.
fn variants<'a>(forward: &Forward<'a>) -> Vec<Steps<'a>> {
    let mut variants: Vec<Steps<'a>> = Vec::new();
    for (hook, number, step) in &forward.steps {
        let here = |steps: &Steps<'a>| steps.iter().find(|(at, _, _)| at == hook).map(|(_, _, step)| *step);
        if variants.iter().filter_map(here).any(|known| known.region.covers(&step.region)) {
            continue;
        }
        match variants.iter_mut().find(|steps| here(steps).is_none()) {
            Some(steps) => steps.push((*hook, *number, step)),
            None => variants.push(vec![(*hook, *number, step)]),
        }
    }
    variants
}

/// The rules that rewrite sources, in the order in which they win.
pub fn sources(host: &Host) -> Vec<Row> {
    let exceptions = Exceptions::new(host);
    let mut rows = Vec::new();
    for way in host.view.ways.iter().filter(|way| matches!(way.hook, Hook::Input | Hook::Postrouting)) {
        for (number, step, translation, to) in way.translations() {
            let mut row = Row::new(host, way.family, step.at, &step.region);
            row.translation = translation;
            row.to = describe::target(to);
            row.hooks.push((way.hook, number));
            let (words, sure) = exceptions.of(way.family, way.hook, number, step);
            row.except = words;
            row.sure = sure && step.region.is_known() && !step.tied;
            rows.push(row);
        }
    }
    rows
}

impl Row {
    fn new(host: &Host, family: Family, at: At, region: &Region) -> Self {
        let (known, place) = (host.rules.at(at), host.place(at));
        let rule = known.map(|(_, _, rule)| rule);
        let words = |field| {
            let set = region.get(field);
            (!set.is_all()).then(|| describe::set(field, set, family))
        };
        // What a hook says of all packets is not worth a word.
        let interface = |field| {
            words(field).filter(|_| !Set::one(0).not().eq(region.get(field)) && region.get(field).only() != Some(0))
        };
        Self {
            family,
            translation: Translation::Dnat,
            protocol: words(Field::Protocol),
            address: address(host, family, region),
            ports: words(Field::Port),
            input: interface(Field::Input),
            output: interface(Field::Output),
            from: words(Field::Source),
            conditions: conditions(region, family),
            except: Vec::new(),
            to: String::new(),
            hooks: Vec::new(),
            sure: true,
            owner: place.owner,
            rule: place.rule,
            at,
            comment: rule.and_then(|rule| rule.comment.as_deref()).map(str::to_owned),
            counter: rule.and_then(|rule| rule.counter),
        }
    }
}

/// The addresses of a region: `local` says it shorter than all addresses that this host has.
fn address(host: &Host, family: Family, region: &Region) -> Option<String> {
    let (set, kind) = (region.get(Field::Destination), region.get(Field::DestinationKind));
    let all = || set.is_all() || host.facts.as_ref().is_some_and(|facts| facts.local(family) == *set);
    let words = || describe::set(Field::Destination, set, family);
    if kind.only() == Some(LOCAL) {
        return Some(if all() { "local".into() } else { format!("local {}", words()) });
    }
    match (set.is_all(), kind.is_all()) {
        (true, true) => None,
        (false, true) => Some(words()),
        (true, false) => Some(format!("type {}", describe::set(Field::DestinationKind, kind, family))),
        (false, false) => Some(format!("type {} {}", describe::set(Field::DestinationKind, kind, family), words())),
    }
}

/// What a region asks for beside addresses, ports, protocols and interfaces.
fn conditions(region: &Region, family: Family) -> Vec<String> {
    let mut rest = region.clone();
    for field in [
        Field::Protocol,
        Field::Destination,
        Field::DestinationKind,
        Field::Port,
        Field::Input,
        Field::Output,
        Field::Source,
    ] {
        rest.forget(field);
    }
    let words = describe::region(&rest, family);
    if words.is_empty() { Vec::new() } else { vec![words] }
}

/// What is decided on each way for packets that later steps would rewrite.
struct Exceptions<'a> {
    host: &'a Host,
    ways: BTreeMap<(Family, Hook), (Vec<usize>, Overlaps<'a>)>,
}

impl<'a> Exceptions<'a> {
    fn new(host: &'a Host) -> Self {
        let ways = host.view.ways.iter().map(|way| {
            let others = || way.steps.iter().enumerate().filter(|(_, step)| !matches!(step.fate, Fate::Rewritten(..)));
            let numbers = others().map(|(number, _)| number).collect();
            ((way.family, way.hook), (numbers, Overlaps::new(others().map(|(_, step)| &step.region))))
        });
        Self { host, ways: ways.collect() }
    }

    /// What is taken out before a step, in words, and whether it is sure what.
    fn of(&self, family: Family, hook: Hook, number: usize, step: &Step) -> (Vec<String>, bool) {
        let mut sure = true;
        let mut words = Vec::new();
        let Some((numbers, overlaps)) = self.ways.get(&(family, hook)) else { return (words, sure) };
        let Some(way) = self.host.view.way(family, hook) else { return (words, sure) };
        for found in overlaps.meeting(&step.region) {
            let Some(other) = numbers.get(found).filter(|other| **other < number).and_then(|at| way.steps.get(*at))
            else {
                continue;
            };
            let fate = match &other.fate {
                Fate::GoOn(to) if *to <= number => continue,
                Fate::GoOn(_) => "passes",
                Fate::Dropped => "is dropped",
                Fate::Unknown(_) => "is unknown",
                Fate::Rewritten(..) => continue,
            };
            sure &= other.region.is_known() && !matches!(other.fate, Fate::Unknown(_));
            if words.len() < MOST {
                let region = describe::region(&other.region, family);
                words.push(format!("{} {fate}", if region.is_empty() { "all" } else { &region }));
            }
        }
        (words, sure)
    }
}
