//! Classifies forwards that receive fewer packets than they match. A forward has at most one fault of each class. A forward that no
//! packet reaches has one fault only.

use std::collections::HashMap;

use super::super::addresses::{is_open, is_wildcard};
use super::super::context::Context;
use super::super::wording;
use super::reach::{self, Cut, Reached};
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::host::Host;
use crate::ruleset::owner;
use crate::ruleset::region::{Condition, Field, LOCAL, Region};
use crate::ruleset::table::{At, Hook, Rewrite};
use crate::ruleset::view::{Fate, HookPath, Step, Translation};

/// A class of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// No packet reaches the forward.
    Shadowed,
    /// A part of the packets goes to another target.
    Conflict,
    /// All packets go to the same target without the forward.
    Duplicate,
    /// A forward of one address comes after a forward of all addresses.
    Wildcard,
    /// The order of two forwards is unknown.
    Tie,
    /// The search reached its limits.
    Undecided,
}

/// A forward with a fault.
pub(in crate::audit::findings) struct OrderFault<'a> {
    pub(super) class: Class,
    pub(super) forward: Forward<'a>,
    /// The steps that take its packets, forwards first.
    pub(super) by: Vec<Shadower<'a>>,
    /// True if no packet reaches the forward.
    pub(super) whole: bool,
    pub(super) confidence: Confidence,
    /// The hooks with the fault.
    pub(super) hooks: Vec<Hook>,
}

/// A step that takes packets of a forward.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shadower<'a> {
    pub step: &'a Step,
    /// True if such a packet certainly exists.
    pub sure: bool,
    /// True if the step leads to the forward's target.
    same: bool,
    /// True if the step is a forward.
    pub forwards: bool,
    /// True if the step is an exception from the forward.
    exception: bool,
    /// True if the step matches all addresses of this host, and the forward only some.
    wildcard: bool,
}

/// The steps that take packets of a forward, each rule once.
#[derive(Default)]
struct Takers<'a> {
    list: Vec<Shadower<'a>>,
    known: HashMap<At, usize>,
}

/// Returns the forwards of a host with a fault of order.
pub(in crate::audit::findings) fn all<'a>(context: &Context<'a>) -> Vec<OrderFault<'a>> {
    let host = context.host;
    let judged = reach::all(host, context.rules()).into_iter().flat_map(|reached| judge(host, reached));
    let mut found: Vec<OrderFault<'a>> = Vec::new();
    let mut of_rule: HashMap<(At, Class), Family> = HashMap::new();
    for judged in judged {
        // A rule of both families is reported once.
        let family = *of_rule.entry((judged.forward.at, judged.class)).or_insert(judged.forward.family);
        if family == judged.forward.family {
            found.push(judged);
        }
    }
    found
}

fn judge<'a>(host: &'a Host, reached: Reached<'_, 'a>) -> Vec<OrderFault<'a>> {
    let Reached { forward, steps } = reached;
    if forward.to.addresses.is_some_and(|(first, _)| Family::of_address(first) != forward.family) {
        return Vec::new();
    }
    let undecided = steps.iter().any(|(_, _, reach)| reach.too_much);
    let everywhere = steps.len() == forward.steps.len();
    let known_local = host.facts.as_ref().is_some_and(|facts| !facts.local(forward.family).is_empty());
    let none = everywhere && steps.iter().all(|(_, _, reach)| reach.none);
    let none_local = everywhere && !known_local && steps.iter().all(|(_, _, reach)| reach.none || reach.none_local);
    let foreign = steps.iter().any(|(_, _, reach)| reach.foreign);
    let nothing_at = |hook: Hook| {
        let all = forward.steps.iter().filter(|(at, _, _)| *at == hook).count();
        steps.iter().filter(|(way, _, reach)| way.hook == hook && reach.none).count() == all
    };
    let mut by = Takers::default();
    for (way, at, reach) in &steps {
        let lost = nothing_at(way.hook);
        for cut in &reach.cuts {
            takes(forward, way, *at, *cut, lost, &mut by);
        }
    }
    let mut by = by.list;
    by.sort_by_key(|taker| !taker.forwards);
    let hooks = steps.iter().filter(|(_, _, reach)| !reach.cuts.is_empty()).map(|(way, _, _)| way.hook).collect();
    let found = |class, by, whole, confidence| OrderFault {
        class,
        forward: forward.clone(),
        by,
        whole,
        confidence,
        hooks: unique(&hooks),
    };
    if none || none_local {
        let confidence = if none && !foreign { wording::sure(host) } else { Confidence::Likely };
        let class = if by.iter().all(|taker| taker.same) {
            Class::Duplicate
        } else if by.iter().all(|taker| taker.same || (taker.forwards && taker.wildcard)) {
            Class::Wildcard
        } else {
            Class::Shadowed
        };
        return vec![found(class, by, true, confidence)];
    }
    if undecided {
        return vec![found(Class::Undecided, Vec::new(), false, Confidence::Unknown)];
    }
    let mut judged = Vec::new();
    let others: Vec<Shadower<'a>> = by.into_iter().filter(|taker| taker.forwards && !taker.same).collect();
    let (behind, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|taker| taker.wildcard);
    // The forwards of portfwd follow the precedence of docs/precedence.md.
    let own = |at: At| wording::is_own(host, at);
    let meant = |taker: &Shadower<'_>| taker.exception || (own(forward.at) && own(taker.step.at));
    let others: Vec<_> = others.into_iter().filter(|taker| !meant(taker)).collect();
    for (class, by) in [(Class::Wildcard, behind), (Class::Conflict, others)] {
        if !by.is_empty() {
            let sure = by.iter().any(|taker| taker.sure);
            let confidence = if sure { wording::sure(host) } else { Confidence::Unknown };
            judged.push(found(class, by, false, confidence));
        }
    }
    judged.extend(tie(host, forward, &steps));
    judged
}

/// Returns the fault with forwards of other tables at the same priority.
fn tie<'a>(
    host: &Host,
    forward: &Forward<'a>,
    steps: &[(&'a HookPath, usize, reach::Reach)],
) -> Option<OrderFault<'a>> {
    let (mut by, mut hooks, mut is_known) = (Takers::default(), Vec::new(), false);
    let known = |step: &Step| step.region.conditions().is_empty();
    for (way, at, reach) in steps {
        is_known |= !reach.ties.is_empty() && way.steps.get(*at).is_some_and(known);
        for number in &reach.ties {
            let before = by.list.len();
            takes(forward, way, *at, Cut { step: *number, sure: true }, false, &mut by);
            if by.list.len() > before {
                hooks.push(way.hook);
            }
        }
    }
    let mut by = by.list;
    by.retain(|taker| !taker.same);
    if by.is_empty() {
        return None;
    }
    let sure = is_known && by.iter().any(|taker| known(taker.step));
    let confidence = if sure { wording::sure(host) } else { Confidence::Unknown };
    let hooks = unique(&hooks);
    Some(OrderFault { class: Class::Tie, forward: forward.clone(), by, whole: false, confidence, hooks })
}

fn unique(hooks: &Vec<Hook>) -> Vec<Hook> {
    let mut all: Vec<Hook> = Vec::new();
    for hook in hooks {
        if !all.contains(hook) {
            all.push(*hook);
        }
    }
    all
}

/// Adds a step that takes packets of a forward, unless it belongs to the same rule. If `lost` is true, no packet reaches the
/// forward at this hook, so the step is no exception.
fn takes<'a>(forward: &Forward<'a>, way: &'a HookPath, at: usize, cut: Cut, lost: bool, by: &mut Takers<'a>) {
    let Some((step, own)) = way.steps.get(cut.step).zip(way.steps.get(at)) else { return };
    if step.at == forward.at {
        return;
    }
    let exception = !lost && is_exception(own, step, forward.family);
    let wildcard = is_behind_wildcard(own, step, forward.family);
    if let Some(known) = by.known.get(&step.at).and_then(|at| by.list.get_mut(*at)) {
        known.sure |= cut.sure;
        known.exception &= exception;
        known.wildcard &= wildcard;
        return;
    }
    let same = match &step.fate {
        Fate::Rewritten(translation, to) => is_same(forward, &own.region.and(&step.region), *translation, to),
        _ => false,
    };
    by.known.insert(step.at, by.list.len());
    by.list.push(Shadower {
        step,
        sure: cut.sure,
        same,
        forwards: matches!(step.fate, Fate::Rewritten(..)),
        exception,
        wildcard,
    });
}

/// Returns true if a rewrite leads the packets of a region to the forward's target.
fn is_same(forward: &Forward<'_>, region: &Region, translation: Translation, to: &Rewrite) -> bool {
    if translation != forward.translation {
        return false;
    }
    if to == forward.to {
        return true;
    }
    if to.addresses != forward.to.addresses || to.prefix != forward.to.prefix {
        return false;
    }
    let other = Forward { family: forward.family, at: forward.at, translation, to, steps: Vec::new() };
    let mut ends = region.get(Field::Port).ranges().iter().flat_map(|(first, last)| [*first, *last]);
    // The new port grows with the old port, so the first and the last port are enough.
    ends.all(|port| {
        let there = |forward: &Forward<'_>| forward.to.port_for(u16::try_from(port).ok()?);
        there(forward).is_some_and(|port| there(&other) == Some(port))
    })
}

/// Returns true if a forward's step matches some addresses, and an earlier step matches all addresses of this host.
fn is_behind_wildcard(own: &Step, step: &Step, family: Family) -> bool {
    let region = &own.region;
    let (own, all) = (region.get(Field::Destination), step.region.get(Field::Destination));
    let of_host = step.region.get(Field::DestinationKind).only() == Some(LOCAL);
    let is_narrow =
        !is_open(own, Field::Destination, family) && region.get(Field::DestinationKind).only() != Some(LOCAL);
    is_narrow && is_wildcard(&step.region, family) && (of_host || (all.covers(own) && !own.covers(all)))
}

/// Returns true if a step is an exception from a later forward of the same table: it matches only some of the forward's packets.
fn is_exception(own: &Step, step: &Step, family: Family) -> bool {
    let asks_more = |condition: &Condition| {
        matches!(condition, Condition::Unknown(_)) || step.region.conditions().contains(condition)
    };
    let narrow = !is_open(step.region.get(Field::Destination), Field::Destination, family);
    let (mut within, mut less) = (true, step.region.conditions().len() > own.region.conditions().len());
    for field in Field::ALL {
        let (all, some) = (own.region.get(field), step.region.get(field));
        // The address type of a listed address does not matter.
        within &= all.covers(some) || (field == Field::DestinationKind && narrow);
        less |= all != some;
    }
    step.at.table == own.at.table && within && less && own.region.conditions().iter().all(asks_more)
}

/// Returns the owners of a forward and of the rules that take its packets, each once.
pub(super) fn owners(host: &Host, judged: &OrderFault<'_>) -> Vec<&'static str> {
    let ats = std::iter::once(judged.forward.at).chain(judged.by.iter().map(|taker| taker.step.at));
    let mut all: Vec<&'static str> = Vec::new();
    for at in ats {
        if let Some((table, chain, _)) = host.rules.at(at) {
            let owner = owner::of_rule(table, chain, at.rule);
            if !all.contains(&owner) {
                all.push(owner);
            }
        }
    }
    all
}
