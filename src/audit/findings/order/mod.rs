//! The order of forwards (F01 to F05): forwards that lose packets to earlier rules.
//!
//! A narrower forward before a wider one of the same table is an exception, not a fault. A forward that no packet reaches has only
//! one of these findings.

mod classify;
mod reach;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use self::classify::{Class, Shadower};
pub(super) use self::classify::{OrderFault, all as judged};
use super::context::Context;
use super::{Check, wording};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::describe;
use crate::ruleset::host::Host;
use crate::ruleset::table::{At, TableFamily};
use crate::ruleset::view::{Fate, Step};

/// The findings of this family.
pub(super) const CHECKS: &[Check] = &[
    Check {
        kind: Kind {
            id: "F01",
            title: "shadowed forward",
            severity: Severity::Error,
            what: "No packet reaches the forward, because earlier rules decide all of its packets. The order follows from the \
                   priority of chains, the order of chains with the same priority, and the order of rules.",
            why: "The forward has no effect, and its port leads to another target or nowhere.",
            fix: "Remove the forward, or move it before the rules that take its packets.",
        },
        find: shadowed,
    },
    Check {
        kind: Kind {
            id: "F02",
            title: "conflicting forwards",
            severity: Severity::Error,
            what: "Two forwards with different targets match the same packets, and the later one gets only a part of its packets. A \
                   narrower forward before a wider one of the same table is an exception and is not reported.",
            why: "The order of rules, which may belong to two programs, decides which service answers.",
            fix: "Give one of them other ports, an address or an interface.",
        },
        find: |context, kind| conflicting(context, kind, Class::Conflict),
    },
    Check {
        kind: Kind {
            id: "F03",
            title: "duplicate forward",
            severity: Severity::Warning,
            what: "Earlier rules lead all packets of the forward to the same target.",
            why: "The forward has no effect now. If the earlier rule is removed, the port stays open.",
            fix: "Remove one of the two rules.",
        },
        find: |context, kind| taken(context, kind, Class::Duplicate),
    },
    Check {
        kind: Kind {
            id: "F04",
            title: "wildcard before a host address",
            severity: Severity::Warning,
            what: "A forward of all addresses takes the packets of a later forward of one address with the same ports.",
            why: "The more specific forward has no effect, because the kernel evaluates rules in order and not by specificity.",
            fix: "Move the forward of the one address before the forward of all addresses.",
        },
        find: |context, kind| taken(context, kind, Class::Wildcard),
    },
    Check {
        kind: Kind {
            id: "F05",
            title: "tie between two tables",
            severity: Severity::Error,
            what: "Forwards of two tables match the same packets, and their base chains have the same priority at the same hook.",
            why: "The kernel evaluates the chain that was registered last first. So the target depends on the start order of \
                  programs, and may change at the next boot.",
            fix: "Give one of the base chains another priority. The kernel evaluates lower priorities first.",
        },
        find: |context, kind| conflicting(context, kind, Class::Tie),
    },
];

/// F01. One more finding, of unknown confidence, lists the forwards that reached the limits of the search.
fn shadowed(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let mut found = grouped(host, kind, of_class(context, Class::Shadowed));
    let undecided: Vec<&OrderFault<'_>> = of_class(context, Class::Undecided).collect();
    if !undecided.is_empty() {
        let names = wording::list(undecided.iter().map(|judged| wording::name(&judged.forward)));
        let message = format!("unknown whether packets reach {names}: too many earlier rules match the same packets");
        let finding = kind.found(Confidence::Unknown, message).as_bad_as(Severity::Info);
        let finding = wording::at(finding, host, undecided.iter().map(|judged| judged.forward.at));
        found.push(finding.mended_by("trace one packet with `portfwd explain`"));
    }
    found
}

/// Finds F03 and F04.
fn taken(context: &Context<'_>, kind: &'static Kind, class: Class) -> Vec<Finding> {
    grouped(context.host, kind, of_class(context, class))
}

fn of_class<'o, 'a>(context: &'o Context<'a>, class: Class) -> impl Iterator<Item = &'o OrderFault<'a>> {
    context.judged().iter().filter(move |judged| judged.class == class)
}

/// Returns findings about forwards whose packets earlier rules take. Forwards that lose packets to the same rules share one
/// finding.
fn grouped<'o, 'a: 'o>(
    host: &Host,
    kind: &'static Kind,
    all: impl Iterator<Item = &'o OrderFault<'a>>,
) -> Vec<Finding> {
    let mut groups: Vec<Vec<&OrderFault<'_>>> = Vec::new();
    let mut known: HashMap<(Vec<At>, bool, Confidence), usize> = HashMap::new();
    for judged in all {
        let by = judged.by.iter().map(|taker| taker.step.at).collect();
        let at = *known.entry((by, judged.whole, judged.confidence)).or_insert(groups.len());
        match groups.get_mut(at) {
            Some(group) => group.push(judged),
            None => groups.push(vec![judged]),
        }
    }
    groups.iter().filter_map(|group| group.split_first()).map(|(first, more)| one(host, kind, first, more)).collect()
}

fn one(host: &Host, kind: &'static Kind, first: &OrderFault<'_>, more: &[&OrderFault<'_>]) -> Finding {
    let all = || std::iter::once(first).chain(more.iter().copied());
    let names: Vec<String> = all().map(|judged| wording::name(&judged.forward)).collect();
    let (names, is) = (wording::list(names.into_iter()), if more.is_empty() { "is" } else { "are" });
    // A rule of both families may still receive packets of the other family.
    let both = host.rules.at(first.forward.at).is_some_and(|(table, _, _)| table.family == TableFamily::Inet);
    let packets = match both && first.forward.to.addresses.is_none() {
        true => format!(" by packets of {}", first.forward.family),
        false => String::new(),
    };
    let by = takers(host, first);
    let message = match (first.class, first.whole) {
        (Class::Duplicate, _) => format!("{names} {is} superfluous: the earlier {by} leads to the same target"),
        (Class::Wildcard, true) => {
            format!("{names} {is} never reached{packets}: {by} of all addresses comes first")
        }
        (Class::Wildcard, false) => format!("{names} {is} reached only in part: {by} of all addresses comes first"),
        _ => format!("{names} {is} never reached{packets}: {by} comes first"),
    };
    let finding = kind.found(first.confidence, message);
    let finding = wording::at(finding, host, all().map(|judged| judged.forward.at));
    let finding = wording::at(finding, host, first.by.iter().map(|taker| taker.step.at));
    let finding = evidence(finding, host, first);
    let fix = match (first.class, more.is_empty()) {
        (Class::Wildcard, _) => format!("move it before {by}, or: {}", wording::removal(host, first.forward.at)),
        (_, true) => wording::removal(host, first.forward.at),
        (_, false) => format!("remove them, or the earlier rule: {}", removal_of_taker(host, first)),
    };
    finding.mended_by(fix)
}

fn removal_of_taker(host: &Host, judged: &OrderFault<'_>) -> String {
    judged.by.first().map_or_else(String::new, |taker| wording::removal(host, taker.step.at))
}

/// Finds F02 and F05: forwards that share packets with forwards to other targets.
fn conflicting(context: &Context<'_>, kind: &'static Kind, class: Class) -> Vec<Finding> {
    let host = context.host;
    let one = |judged: &OrderFault<'_>| {
        let (name, by) = (wording::name(&judged.forward), takers(host, judged));
        let hooks: Vec<&str> = judged.hooks.iter().map(|hook| hook.name()).collect();
        let hooks = hooks.join(" and ");
        let message = match class {
            Class::Tie => format!("{name} and {by} have the same priority at {hooks}, so the winner is undefined"),
            _ if judged.confidence == Confidence::Unknown => {
                format!("{name} may lose packets to {by}, which comes first and has a match that is not understood")
            }
            _ => format!("{name} loses a part of its packets to {by}, which comes first at {hooks}"),
        };
        let finding = kind.found(judged.confidence, message).at(host.place(judged.forward.at));
        let finding = wording::at(finding, host, judged.by.iter().map(|taker| taker.step.at));
        let mut finding = evidence(finding, host, judged);
        let owners = classify::owners(host, judged);
        if owners.len() > 1 {
            finding = finding.seen(format!("owners: {}", owners.join(", ")));
        }
        let fix = match class {
            Class::Tie => "give one of the two base chains another priority (lower comes first), or remove one forward",
            _ => "give one of them other ports, an address or an interface",
        };
        finding.mended_by(format!("{fix}; {}", wording::removal(host, judged.forward.at)))
    };
    of_class(context, class).map(one).collect()
}

/// Returns the names of the rules that take the packets of a forward.
fn takers(host: &Host, judged: &OrderFault<'_>) -> String {
    let family = judged.forward.family;
    wording::list(judged.by.iter().map(|taker| taker_in_words(host, taker, family)))
}

fn taker_in_words(host: &Host, taker: &Shadower<'_>, family: Family) -> String {
    match &taker.step.fate {
        Fate::Rewritten(translation, to) => {
            let steps = vec![(crate::ruleset::table::Hook::Prerouting, 0, taker.step)];
            wording::name(&Forward { family, at: taker.step.at, translation: *translation, to, steps })
        }
        _ => format!("`{}`", wording::rule(host, taker.step.at)),
    }
}

/// Adds the rules and their packets to a finding.
fn evidence(finding: Finding, host: &Host, judged: &OrderFault<'_>) -> Finding {
    let family = judged.forward.family;
    let packets = |step: &Step| match describe::region(&step.region, family) {
        text if text.is_empty() => "all packets".to_owned(),
        text => text,
    };
    let mut finding = finding.seen(format!("the forward: `{}`", wording::rule(host, judged.forward.at)));
    if let Some((_, _, step)) = judged.forward.steps.first() {
        finding = finding.seen(format!("its packets ({family}): {}", packets(step)));
    }
    for taker in judged.by.iter().take(wording::FEW) {
        let what = if matches!(taker.step.fate, Fate::GoOn(_)) { "lets packets skip it" } else { "decides" };
        let words = wording::rule(host, taker.step.at);
        finding = finding.seen(format!("the earlier `{words}` {what}: {}", packets(taker.step)));
    }
    finding
}
