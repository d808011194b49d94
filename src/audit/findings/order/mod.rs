//! The order of forwards: those that others take packets from, F01 to F05.
//!
//! Be aware: a narrower forward before a wider one of the same table is an exception and no fault, and of each forward of which
//! nothing is left only the most telling of these findings is reported.

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

/// What this family looks for.
pub(super) const CHECKS: &[Check] = &[
    Check {
        kind: Kind {
            id: "F01",
            title: "shadowed forward",
            severity: Severity::Error,
            what: "No packet gets as far as the forward: rules that are asked before it decide all that it is about, by the priority \
                   of their chains, the order of chains of the same priority, and the order of rules.",
            why: "The forward does nothing, and its port leads somewhere else or nowhere.",
            fix: "Remove the forward, or move it before the rules that take its packets.",
        },
        find: shadowed,
    },
    Check {
        kind: Kind {
            id: "F02",
            title: "conflicting forwards",
            severity: Severity::Error,
            what: "Two forwards with different targets want the same packets, and each gets a part of what it asks for. A narrower \
                   forward before a wider one of the same table is taken as an exception and not reported.",
            why: "Which of two services answers depends on the order of rules that may be of two programs.",
            fix: "Give one of them other ports, an address or an interface.",
        },
        find: |context, kind| conflicting(context, kind, Class::Conflict),
    },
    Check {
        kind: Kind {
            id: "F03",
            title: "duplicate forward",
            severity: Severity::Warning,
            what: "All packets of the forward are led to the same target by rules before it.",
            why: "It does nothing now; and when one of the two is changed or removed the other one goes on working.",
            fix: "Remove one of the two rules.",
        },
        find: |context, kind| taken(context, kind, Class::Duplicate),
    },
    Check {
        kind: Kind {
            id: "F04",
            title: "wildcard before a host address",
            severity: Severity::Warning,
            what: "A forward of one address of this host stands behind one of all addresses with the same ports, which takes its \
                   packets.",
            why: "The forward that was meant for this address is not used, though it looks more specific: rules are asked in their \
                  order, and not the narrowest first.",
            fix: "Move the forward of the one address before that of all addresses.",
        },
        find: |context, kind| taken(context, kind, Class::Wildcard),
    },
    Check {
        kind: Kind {
            id: "F05",
            title: "tie between two tables",
            severity: Severity::Error,
            what: "Forwards of two tables want the same packets, and their base chains have the same priority at the same hook.",
            why: "The chain that was registered last is asked first, so which target wins depends on which program was started last, \
                  and may change with the next boot.",
            fix: "Give one of the base chains another priority: lower is asked first.",
        },
        find: |context, kind| conflicting(context, kind, Class::Tie),
    },
];

/// F01. Where it was too much to find out whether packets get to a forward that is unknown, and said once.
fn shadowed(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let mut found = grouped(host, kind, of_class(context, Class::Shadowed));
    let undecided: Vec<&OrderFault<'_>> = of_class(context, Class::Undecided).collect();
    if !undecided.is_empty() {
        let names = wording::list(undecided.iter().map(|judged| wording::name(&judged.forward)));
        let message =
            format!("whether packets get to {names} was not found out: too many rules before overlap with them");
        let finding = kind.found(Confidence::Unknown, message).as_bad_as(Severity::Info);
        let finding = wording::at(finding, host, undecided.iter().map(|judged| judged.forward.at));
        found.push(finding.mended_by("Follow one packet with `portfwd explain`."));
    }
    found
}

/// F03 and F04.
fn taken(context: &Context<'_>, kind: &'static Kind, class: Class) -> Vec<Finding> {
    grouped(context.host, kind, of_class(context, class))
}

fn of_class<'o, 'a>(context: &'o Context<'a>, class: Class) -> impl Iterator<Item = &'o OrderFault<'a>> {
    context.judged().iter().filter(move |judged| judged.class == class)
}

/// Forwards whose packets are taken by rules before. Those that lose theirs to the same rules are one finding.
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
    // Of a rule of both families only the packets of this one are known to be lost.
    let both = host.rules.at(first.forward.at).is_some_and(|(table, _, _)| table.family == TableFamily::Inet);
    let packets = match both && first.forward.to.addresses.is_none() {
        true => format!(" by packets of {}", first.forward.family),
        false => String::new(),
    };
    let by = takers(host, first);
    let message = match (first.class, first.whole) {
        (Class::Duplicate, _) => format!("{names} {is} superfluous: {by} before leads there already"),
        (Class::Wildcard, true) => {
            format!("{names} {is} never reached{packets}: {by} of all addresses is asked before")
        }
        (Class::Wildcard, false) => format!("{names} {is} reached only in part: {by} of all addresses is asked before"),
        _ => format!("{names} {is} never reached{packets}: {by} is asked before"),
    };
    let finding = kind.found(first.confidence, message);
    let finding = wording::at(finding, host, all().map(|judged| judged.forward.at));
    let finding = wording::at(finding, host, first.by.iter().map(|taker| taker.step.at));
    let finding = evidence(finding, host, first);
    let fix = match (first.class, more.is_empty()) {
        (Class::Wildcard, _) => format!("move it before {by}, or else {}", wording::removal(host, first.forward.at)),
        (_, true) => wording::removal(host, first.forward.at),
        (_, false) => format!("remove them, or what is before: {}", removal_of_taker(host, first)),
    };
    finding.mended_by(fix)
}

fn removal_of_taker(host: &Host, judged: &OrderFault<'_>) -> String {
    judged.by.first().map_or_else(String::new, |taker| wording::removal(host, taker.step.at))
}

/// F02 and F05: forwards that share packets with others that lead elsewhere.
fn conflicting(context: &Context<'_>, kind: &'static Kind, class: Class) -> Vec<Finding> {
    let host = context.host;
    let one = |judged: &OrderFault<'_>| {
        let (name, by) = (wording::name(&judged.forward), takers(host, judged));
        let hooks: Vec<&str> = judged.hooks.iter().map(|hook| hook.name()).collect();
        let hooks = hooks.join(" and ");
        let message = match class {
            Class::Tie => format!("{name} and {by} are asked at the same priority at {hooks}, and either may win"),
            _ if judged.confidence == Confidence::Unknown => {
                format!("{name} may lose packets to {by}, which is asked before: what that asks for is not understood")
            }
            _ => format!("{name} loses a part of its packets to {by}, which is asked before at {hooks}"),
        };
        let finding = kind.found(judged.confidence, message).at(host.place(judged.forward.at));
        let finding = wording::at(finding, host, judged.by.iter().map(|taker| taker.step.at));
        let mut finding = evidence(finding, host, judged);
        let owners = classify::owners(host, judged);
        if owners.len() > 1 {
            finding = finding.seen(format!("made by {}", owners.join(", ")));
        }
        let fix = match class {
            Class::Tie => {
                "give one of the two base chains another priority: lower is asked first; or remove one forward"
            }
            _ => "give one of them other ports, an address or an interface",
        };
        finding.mended_by(format!("{fix}; {}", wording::removal(host, judged.forward.at)))
    };
    of_class(context, class).map(one).collect()
}

/// What takes the packets of a forward, in words.
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

/// The packets of the forward, and the rules.
fn evidence(finding: Finding, host: &Host, judged: &OrderFault<'_>) -> Finding {
    let family = judged.forward.family;
    let packets = |step: &Step| match describe::region(&step.region, family) {
        text if text.is_empty() => "all packets".to_owned(),
        text => text,
    };
    let mut finding = finding.seen(format!("it is `{}`", wording::rule(host, judged.forward.at)));
    if let Some((_, _, step)) = judged.forward.steps.first() {
        finding = finding.seen(format!("it is about {family}: {}", packets(step)));
    }
    for taker in judged.by.iter().take(wording::FEW) {
        let what = if matches!(taker.step.fate, Fate::GoOn(_)) { "goes on behind it" } else { "decides" };
        let words = wording::rule(host, taker.step.at);
        finding = finding.seen(format!("before it `{words}` {what}: {}", packets(taker.step)));
    }
    finding
}
