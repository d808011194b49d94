//! Findings about the next boot, and about services that flush the rules of other programs.

use std::collections::BTreeMap;

use super::Check;
use super::context::Context;
use super::wording::{at, list};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Boot, Facts, Unit};
use crate::ruleset::host::Host;
use crate::ruleset::owner;
use crate::ruleset::table::{At, Table, Tool};

pub(super) const CHECKS: &[Check] = &[
    Check {
        kind: Kind {
            id: "F47",
            title: "rules that the next boot does not restore",
            severity: Severity::Warning,
            what: "The rules of portfwd are live, and no service restores them at boot. Or a rule-set file differs from the rules that were applied from it.",
            why: "After the next boot the forwards are missing. Or the old forwards are live, because the service restores the applied rules and not the file.",
            fix: "systemctl enable portfwd.service",
        },
        find: not_persistent,
    },
    Check {
        kind: Kind {
            id: "F48",
            title: "a service flushes the rules of others",
            severity: Severity::Warning,
            what: "A service that starts at boot runs `flush ruleset`, or loads a file with that command. No service restores the rules of other programs afterwards.",
            why: "`systemctl restart nftables` removes the rules of all programs. Most programs do not notice, and their forwards fail until the programs restart.",
            fix: "replace `flush ruleset` with commands that delete the service's own tables",
        },
        find: flushed,
    },
];

/// Programs that write their rules once and do not check them later. firewalld and kube-proxy restore their rules.
const ONCE: [&str; 8] = ["docker", "podman", "cni", "cri-o", "libvirt", "incus", "lxd", "fail2ban"];

/// F47. A missing service is likely, because a script outside of systemd may restore the rules. A changed file is proved.
/// Returns nothing on a host without systemd.
fn not_persistent(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let Some(facts) = context.facts() else { return Vec::new() };
    let mut found = Vec::new();
    let restored = |boot: &Boot| boot.units.iter().any(|unit| unit.restores);
    if facts.ours.asks && facts.boot.as_ref().is_some_and(|boot| !restored(boot)) {
        let finding = kind.found(Confidence::Likely, "no service restores the rules of portfwd at the next boot");
        found.push(finding.seen("no systemd unit that starts at boot runs `portfwd restore` or `portfwd apply`"));
    }
    let files = &facts.ours.unapplied;
    if !files.is_empty() {
        let names: Vec<String> = files.iter().map(|(path, _)| format!("`{}`", printable(path))).collect();
        let differs = if files.len() == 1 { "differs" } else { "differ" };
        let names = list(names.into_iter());
        let message = format!("{names} {differs} from the applied rules, and the next boot restores the applied rules");
        let finding = kind.found(Confidence::Proved, message);
        let finding = files
            .iter()
            .fold(finding, |finding, (path, what)| finding.seen(format!("{}: {}", printable(path), printable(what))));
        let paths: Vec<String> = files.iter().map(|(path, _)| printable(path)).collect();
        found.push(finding.mended_by(format!("portfwd apply {}", paths.join(" "))));
    }
    found
}

/// Returns the first rule of each owner whose rules are lost when a unit flushes the ruleset.
fn lost<'a>(host: &'a Host, facts: &Facts, unit: &Unit) -> BTreeMap<&'a str, At> {
    let is_back = facts.boot.as_ref().is_some_and(|boot| boot.is_put_back_after(&unit.name));
    // A service that is a part of the unit restarts with it, and restores its rules.
    let follows = |owner: &str| {
        let mut units = facts.boot.iter().flat_map(|boot| &boot.units);
        units.any(|one| one.name.starts_with(owner) && one.part_of.contains(&unit.name))
    };
    let mut lost = BTreeMap::new();
    let flushed = |table: &Table| {
        let of_nft = matches!(table.tool, Tool::Nft | Tool::IptablesNft);
        of_nft && unit.flushes.iter().any(|flush| flush.family.is_none_or(|family| family == table.family))
    };
    for (table_at, table) in host.rules.tables.iter().enumerate().filter(|(_, table)| flushed(table)) {
        for (chain_at, chain) in table.chains.iter().enumerate() {
            for rule in 0..chain.rules.len() {
                let owner = owner::of_rule(table, chain, rule);
                let is_lost = match owner {
                    "portfwd" => !is_back,
                    owner => ONCE.contains(&owner) && !follows(owner),
                };
                if is_lost {
                    lost.entry(owner).or_insert(At { table: table_at, chain: chain_at, rule, case: 0 });
                }
            }
        }
    }
    lost
}

/// F48. The loss of portfwd's rules is proved by the unit files. The loss of other rules is likely, because their programs may
/// notice it.
fn flushed(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some((facts, boot)) = context.facts().and_then(|facts| Some((facts, facts.boot.as_ref()?))) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for unit in boot.units.iter().filter(|unit| !unit.flushes.is_empty()) {
        let lost = lost(host, facts, unit);
        if lost.is_empty() {
            continue;
        }
        let name = printable(&unit.name);
        let owners = list(lost.keys().map(|owner| (*owner).to_owned()).collect::<Vec<_>>().into_iter());
        let message = format!("`{name}` flushes all rules, and no service restores the rules of {owners} afterwards");
        let confidence = if lost.contains_key("portfwd") { Confidence::Proved } else { Confidence::Likely };
        let finding = at(kind.found(confidence, message), host, lost.values().copied());
        let finding = unit.flushes.iter().fold(finding, |finding, flush| {
            let family = flush.family.map_or(String::new(), |family| format!(" {}", family.name()));
            finding.seen(format!("{}: flush ruleset{family}", printable(&flush.at)))
        });
        let fix = match lost.keys().next() {
            Some(&"portfwd") if lost.len() == 1 => {
                format!("make portfwd.service start after it and restart with it: After={name} and PartOf={name}")
            }
            _ => format!("replace `flush ruleset` with commands that delete the tables of {name}"),
        };
        found.push(finding.mended_by(fix));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::hosts::{DOCKER, find, host, none, one};
    use super::*;
    use crate::ruleset::facts::{Flush, OwnState};
    use crate::ruleset::table::TableFamily;

    fn booted(units: Vec<Unit>) -> Facts {
        Facts { boot: Some(Boot { units }), ..super::super::hosts::facts() }
    }

    fn flushing(family: Option<TableFamily>) -> Unit {
        let flushes = vec![Flush { at: "/etc/nftables.conf line 3".into(), family }];
        Unit { name: "nftables.service".into(), flushes, ..Unit::default() }
    }

    fn restoring(after: &[&str], part_of: &[&str]) -> Unit {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Unit {
            name: "portfwd.service".into(),
            after: set(after),
            part_of: set(part_of),
            restores: true,
            ..Unit::default()
        }
    }

    fn nft(text: &str) -> String {
        format!("# Generated by iptables-save v1.8.9 (nf_tables) on x\n{text}")
    }

    #[test]
    fn rules_that_no_service_restores_are_found() {
        let ours = OwnState { asks: true, ..OwnState::default() };
        let found = one("F47", "", Facts { ours: ours.clone(), ..booted(Vec::new()) });
        assert_eq!(found.confidence, Confidence::Likely);
        none("F47", "", Facts { ours: ours.clone(), ..booted(vec![restoring(&[], &[])]) });
        none("F47", "", booted(Vec::new()));
        none("F47", "", Facts { ours, ..super::super::hosts::facts() });
    }

    #[test]
    fn files_that_differ_from_the_applied_rules_are_found() {
        let ours =
            OwnState { asks: true, unapplied: vec![("/etc/x\u{9b}.toml".into(), "not there".into())], instead: None };
        let found = one("F47", "", Facts { ours, ..booted(vec![restoring(&[], &[])]) });
        assert_eq!(found.confidence, Confidence::Proved);
        assert_eq!(found.fix, "portfwd apply /etc/x\\u{9b}.toml");
    }

    #[test]
    fn services_that_flush_foreign_rules_are_found() {
        let found = one("F48", &nft(DOCKER), booted(vec![flushing(None)]));
        assert_eq!(found.confidence, Confidence::Likely);
        assert!(found.message.contains("the rules of docker afterwards"), "{}", found.message);
        assert_eq!(found.places[0].owner, "docker");
        // No finding: another family, no flush, docker's service restarts too, and tables of iptables-legacy.
        none("F48", &nft(DOCKER), booted(vec![flushing(Some(TableFamily::Inet))]));
        none("F48", &nft(DOCKER), booted(vec![restoring(&[], &[])]));
        let with = Unit { name: "docker.service".into(), restores: false, ..restoring(&[], &["nftables.service"]) };
        none("F48", &nft(DOCKER), booted(vec![flushing(None), with]));
        none(
            "F48",
            &DOCKER.replace("*filter", "# Generated by iptables-save v1.8.9 on x\n*filter"),
            booted(vec![flushing(None)]),
        );
        assert!(find(&host(&nft(DOCKER), None::<Facts>), "F48").is_empty());
    }

    #[test]
    fn own_rules_are_safe_if_the_service_restarts_portfwd() {
        let text = nft(
            "*nat\n:PREROUTING ACCEPT\n:PORTFWD -\n-A PREROUTING -j PORTFWD\n-A PORTFWD -p tcp --dport 80 -j DNAT --to-destination 10.0.0.1\nCOMMIT\n",
        );
        let name = "nftables.service";
        for (after, part_of, is) in [(&[name][..], &[name][..], false), (&[name], &[], true), (&[], &[name], true)] {
            let facts = booted(vec![flushing(None), restoring(after, part_of)]);
            let found = find(&host(&text, facts), "F48");
            assert_eq!(found.len(), usize::from(is), "{after:?} {part_of:?}");
            assert!(found.iter().all(|finding| finding.confidence == Confidence::Proved));
        }
    }
}
