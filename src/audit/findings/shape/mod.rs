//! Faults in the shape of single rules: forwards and source rules that match more or less than they appear to.

mod duplicate_family;
mod external;
mod guard;
mod hits;
mod range;
mod source;

use std::collections::HashSet;

use super::context::Context;
use super::{Check, wording};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::host::Host;
use crate::ruleset::region::Region;
use crate::ruleset::table::Hook;
use crate::ruleset::view::{Step, Translation};

/// The findings of this family.
pub(super) const CHECKS: &[Check] = &[
    Check {
        kind: Kind {
            id: "F06",
            title: "shifted range",
            severity: Severity::Error,
            what: "A forward of a range of ports leads to a range of other ports, with nothing that tells which becomes which.",
            why: "The kernel keeps a port that is in the target's range and takes the first of it for any other. So all ports of a \
                  shifted range arrive at the first port of the target.",
            fix: "Use one element of a map for each port, as portfwd does, or with iptables `--to-destination ADDR:FIRST-LAST/BASE`.",
        },
        find: range::shifted,
    },
    Check {
        kind: Kind {
            id: "F07",
            title: "unguarded forward",
            severity: Severity::Error,
            what: "A forward asks neither for an address, nor for one of this host, nor for an interface, and the host passes packets \
                   on between interfaces.",
            why: "It also takes packets that only pass through: whoever behind this host connects to that port anywhere is led to \
                  the forward's target.",
            fix: "Ask for `fib daddr type local` (iptables: `-m addrtype --dst-type LOCAL`), an address or an interface.",
        },
        find: guard::unguarded,
    },
    Check {
        kind: Kind {
            id: "F18",
            title: "open to everybody",
            severity: Severity::Warning,
            what: "A forward takes packets from everybody for any address of this host, and the host has a global address.",
            why: "The service behind it is on the internet, whether that was meant or not, and rules for packets to this host do not \
                  see it. A forward of portfwd is a remark, because the user chose its addresses.",
            fix: "Give the forward an address, an interface or clients (`--from`), where it is not for everybody.",
        },
        find: guard::exposed,
    },
    Check {
        kind: Kind {
            id: "F20",
            title: "only one family",
            severity: Severity::Warning,
            what: "A port is forwarded for one family of addresses, while the host has a global address of the other one, where \
                   nothing is forwarded or a program of the host itself answers.",
            why: "Clients that know both addresses take either: some reach the service, others nothing, or something else. A forward \
                  of portfwd whose other family nothing answers is a remark, because the user chose its target.",
            fix: "Forward the port for the other family too, or publish no address of it.",
        },
        find: duplicate_family::lonely,
    },
    Check {
        kind: Kind {
            id: "F29",
            title: "masquerade without limit",
            severity: Severity::Warning,
            what: "A rule masquerades whatever leaves, by any interface and from any source.",
            why: "It rewrites sources where nobody wants it: of clients that a forward leads in, of packets between networks that have \
                  routes, and within the host.",
            fix: "Ask for the interface that leads out (`-o`, `oifname`), or for the network whose sources are to be hidden.",
        },
        find: source::unlimited,
    },
    Check {
        kind: Kind {
            id: "F30",
            title: "source that is not ours",
            severity: Severity::Error,
            what: "Sources are rewritten to an address that this host does not have.",
            why: "Answers to it do not come back, unless routers send them here all the same.",
            fix: "Add the address to an interface, or rewrite to one that is there (masquerade).",
        },
        find: source::foreign,
    },
    Check {
        kind: Kind {
            id: "F31",
            title: "client address lost",
            severity: Severity::Warning,
            what: "Packets of clients outside that a forward leads to its target have their source rewritten on the way.",
            why: "The target sees this host instead of its clients: logs, limits and blocks by address do not work there.",
            fix: "Limit the rule to the sources that need it: clients in the target's own network, and this host.",
        },
        find: source::lost,
    },
    Check {
        kind: Kind {
            id: "F43",
            title: "never used",
            severity: Severity::Info,
            what: "The counter of a forward is 0, and those of others of this host are not.",
            why: "It may be left over, or may never be reached.",
            fix: "Look whether anybody needs it.",
        },
        find: hits::never,
    },
];

/// Returns the forwards whose target has the family of their packets. A forward of an inet rule occurs once.
fn forwards<'o, 'a>(context: &'o Context<'a>) -> impl Iterator<Item = &'o Forward<'a>> {
    let mut known = HashSet::new();
    all(context).filter(move |forward| known.insert(forward.at))
}

/// Returns the same forwards, with one entry for each family.
fn all<'o, 'a>(context: &'o Context<'a>) -> impl Iterator<Item = &'o Forward<'a>> {
    let is_of = |forward: &&Forward<'_>| {
        forward.to.addresses.is_none_or(|(first, _)| Family::of_address(first) == forward.family)
    };
    context.rules().iter().filter(is_of)
}

/// Returns the steps that rewrite sources. A step of an inet rule occurs once.
fn sources<'a>(host: &'a Host, hooks: &'a [Hook]) -> impl Iterator<Item = (Family, &'a Step, Translation)> {
    let mut known = HashSet::new();
    let ways = host.view.ways.iter().filter(|way| hooks.contains(&way.hook));
    let all = ways.flat_map(|way| way.translations().map(|(_, step, translation, _)| (way.family, step, translation)));
    all.filter(move |(_, step, _)| known.insert(step.at))
}

/// Returns the confidence of a statement about a region. It is unknown if a condition is not understood.
fn of_region(host: &Host, region: &Region) -> Confidence {
    match (region.is_known(), region.conditions().is_empty()) {
        (false, _) => Confidence::Unknown,
        (true, false) => Confidence::Likely,
        (true, true) => wording::sure(host),
    }
}

/// Returns one finding for forwards with the same fault and reason. `message` gets their names.
fn together(
    host: &Host,
    kind: &'static Kind,
    confidence: Confidence,
    forwards: &[&Forward<'_>],
    message: impl FnOnce(&str) -> String,
) -> Finding {
    let names = wording::several(forwards);
    wording::at_all(kind.found(confidence, message(&names)), host, forwards)
}
