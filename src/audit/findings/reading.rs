//! Drift of portfwd's own rules, and rules that could not be read.

use std::collections::BTreeMap;

use super::Check;
use super::context::Context;
use super::wording::{list, verb};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::table::Gap;

pub(super) const CHECKS: &[Check] = &[
    Check {
        kind: Kind {
            id: "F46",
            title: "live rules differ from the desired state",
            severity: Severity::Warning,
            what: "The live rules of portfwd differ from its desired state.",
            why: "Another program changed or flushed the rules, or nothing restored them after the last boot.",
            fix: "portfwd plan, then portfwd apply",
        },
        find: drift,
    },
    Check {
        kind: Kind {
            id: "F51",
            title: "the kernel lacks a feature of nf_tables",
            severity: Severity::Info,
            what: "The kernel lacks a feature of nf_tables that portfwd needs, so portfwd uses iptables. An audit does not test other features, because tests create tables and load modules.",
            why: "iptables needs more rules, is less atomic, and lacks some features.",
            fix: "run a kernel with nf_tables, nft_nat and nft_fib, then portfwd --backend nft restore",
        },
        find: lacking,
    },
    Check {
        kind: Kind {
            id: "F52",
            title: "rules that could not be read",
            severity: Severity::Warning,
            what: "portfwd could not read or understand some rules, sets or tables.",
            why: "The rules may decide about the packets of any forward. A host without other findings may still have faults.",
            fix: "run as root in the network namespace of the host, or give a complete dump",
        },
        find: unread,
    },
];

/// F46. The caller compares the live rules with the desired state.
fn drift(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(lines) = host.facts.as_ref().map(|facts| &facts.drift).filter(|lines| !lines.is_empty()) else {
        return Vec::new();
    };
    let message =
        format!("live rules differ from the desired state in {} {}", lines.len(), verb(lines, "place", "places"));
    let finding = kind.found(Confidence::Proved, message);
    vec![lines.iter().fold(finding, |finding, line| finding.seen(printable(line)))]
}

/// F51. The state stores the reason from the last change.
fn lacking(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let Some(why) = context.facts().and_then(|facts| facts.ours.instead.as_deref()) else { return Vec::new() };
    let why = printable(why);
    vec![kind.found(Confidence::Proved, format!("portfwd does not use nf_tables: {why}")).seen(why)]
}

/// F52. One finding for each reason.
fn unread(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Gap { what, why } in host.rules.gaps.iter().chain(&host.view.gaps) {
        let all = reasons.entry(why).or_default();
        if !all.contains(&what.as_str()) {
            all.push(what);
        }
    }
    let found = reasons.into_iter().map(|(why, what)| {
        let message = format!("not read: {} ({})", list(what.iter().map(|what| printable(what))), printable(why));
        let finding = kind.found(Confidence::Unknown, message);
        what.iter().fold(finding, |finding, what| finding.seen(format!("{}: {}", printable(what), printable(why))))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::super::hosts::{dual, dump, find, host};
    use super::*;
    use crate::ruleset::facts::{Facts, OwnState};

    #[test]
    fn drift_is_reported_line_by_line() {
        let drifted = Facts { drift: vec!["- 80/tcp".into(), "+ 81/tcp\u{1b}".into()], ..dual() };
        let found = find(&host("", drifted), "F46");
        assert_eq!((found.len(), found[0].evidence.len()), (1, 2));
        assert_eq!(found[0].evidence[1], "+ 81/tcp\\u{1b}");
        assert!(find(&host("", dual()), "F46").is_empty());
        assert!(find(&dump(""), "F46").is_empty());
    }

    #[test]
    fn a_missing_kernel_feature_is_reported() {
        let lacks = |why: Option<&str>| {
            let ours = OwnState { instead: why.map(str::to_owned), ..OwnState::default() };
            find(&host("", Facts { ours, ..dual() }), "F51")
        };
        assert_eq!(lacks(Some("no nat\u{1b}"))[0].evidence, ["no nat\\u{1b}"]);
        assert_eq!(lacks(Some("x"))[0].severity, Severity::Info);
        assert!(lacks(None).is_empty() && find(&dump(""), "F51").is_empty());
    }

    #[test]
    fn unread_rules_are_grouped_by_reason() {
        let gap = |what: &str, why: &str| Gap { what: what.into(), why: why.into() };
        let gaps = vec![gap("table a", "not permitted"), gap("table b", "not permitted"), gap("set x", "too many")];
        let mut unread = host("", dual());
        unread.rules.gaps = gaps.clone();
        let found = find(&unread, "F52");
        let messages: Vec<&str> = found.iter().map(|finding| finding.message.as_str()).collect();
        assert_eq!(messages, ["not read: table a, table b (not permitted)", "not read: set x (too many)"]);
        assert!(found.iter().all(|finding| finding.severity == Severity::Warning));
        // Unread facts are no finding.
        assert!(find(&host("", Facts { gaps, ..dual() }), "F52").is_empty());
        assert!(find(&dump(""), "F52").is_empty());
    }
}
