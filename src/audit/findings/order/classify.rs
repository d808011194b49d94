//! Which fault it is that a forward gets less than it asks for: each forward has at most one of each class, and where none of its
//! packets get to it only that one.

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

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// No packet gets to it.
    Shadowed,
    /// Part of its packets go elsewhere.
    Conflict,
    /// Its packets go where it leads anyway.
    Duplicate,
    /// It is of one address, and comes behind one of all addresses.
    Wildcard,
    /// Which of two is asked first is not known.
    Tie,
    /// Too much to find out.
    Undecided,
}

/// A forward that has a fault.
pub(in crate::audit::findings) struct OrderFault<'a> {
    /// Which.
    pub(super) class: Class,
    /// The forward.
    pub(super) forward: Forward<'a>,
    /// What takes its packets: other forwards first.
    pub(super) by: Vec<Shadower<'a>>,
    /// Whether no packet at all gets to it.
    pub(super) whole: bool,
    /// How sure that is.
    pub(super) confidence: Confidence,
    /// The hooks at which it is so.
    pub(super) hooks: Vec<Hook>,
}

/// A step that takes packets of a forward.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shadower<'a> {
    /// The step.
    pub step: &'a Step,
    /// Whether there surely is such a packet.
    pub sure: bool,
    /// Whether it leads to where the forward leads.
    same: bool,
    /// Whether it is a forward.
    pub forwards: bool,
    /// Whether it is an exception from the forward.
    exception: bool,
    /// Whether it is of all addresses of this host, and the forward of some.
    wildcard: bool,
}

/// Steps that take packets of a forward, each rule once.
#[derive(Default)]
struct Takers<'a> {
    list: Vec<Shadower<'a>>,
    known: HashMap<At, usize>,
}

/// The forwards of a host that have a fault of order.
pub(in crate::audit::findings) fn all<'a>(context: &Context<'a>) -> Vec<OrderFault<'a>> {
    let host = context.host;
    let judged = reach::all(host, context.rules()).into_iter().flat_map(|reached| judge(host, reached));
    let mut found: Vec<OrderFault<'a>> = Vec::new();
    let mut of_rule: HashMap<(At, Class), Family> = HashMap::new();
    for judged in judged {
        // A rule of both families is told of once.
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
    // OwnState are in the order that docs/precedence.md tells of.
    let ours = |at: At| host.place(at).owner == "portfwd";
    let meant = |taker: &Shadower<'_>| taker.exception || (ours(forward.at) && ours(taker.step.at));
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

/// The forwards of other tables that may be asked before it or behind.
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

/// Adds the step that takes packets of a forward, unless it is of the same rule or known already.
/// `lost` tells
/// that nothing is left at this hook, and then it is no exception.
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

/// Whether the packets of a region go to the same place by a rewrite as by a forward.
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
    // Where a packet arrives moves evenly with its port, so the ends tell of all between.
    ends.all(|port| {
        let there = |forward: &Forward<'_>| forward.to.port_for(u16::try_from(port).ok()?);
        there(forward).is_some_and(|port| there(&other) == Some(port))
    })
}

/// Whether a step of a forward is of some addresses, and a step before it is of all addresses of this host.
fn is_behind_wildcard(own: &Step, step: &Step, family: Family) -> bool {
    let region = &own.region;
    let (own, all) = (region.get(Field::Destination), step.region.get(Field::Destination));
    let of_host = step.region.get(Field::DestinationKind).only() == Some(LOCAL);
    let is_narrow =
        !is_open(own, Field::Destination, family) && region.get(Field::DestinationKind).only() != Some(LOCAL);
    is_narrow && is_wildcard(&step.region, family) && (of_host || (all.covers(own) && !own.covers(all)))
}

/// Whether a step is an exception from one of a forward behind it: it is about some of its packets only, and of the same table,
/// so whoever wrote one saw the other.
fn is_exception(own: &Step, step: &Step, family: Family) -> bool {
    let asks_more = |condition: &Condition| {
        matches!(condition, Condition::Unknown(_)) || step.region.conditions().contains(condition)
    };
    let narrow = !is_open(step.region.get(Field::Destination), Field::Destination, family);
    let (mut within, mut less) = (true, step.region.conditions().len() > own.region.conditions().len());
    for field in Field::ALL {
        let (all, some) = (own.region.get(field), step.region.get(field));
        // Of addresses that are named it matters not of what kind they are.
        within &= all.covers(some) || (field == Field::DestinationKind && narrow);
        less |= all != some;
    }
    step.at.table == own.at.table && within && less && own.region.conditions().iter().all(asks_more)
}

/// Who made the rules of a forward and of what takes its packets, each once.
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
