//! What the next boot, or the restart of a service, makes of the rules that are there now.

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
            title: "rules that the next boot does not bring back",
            severity: Severity::Warning,
            what: "Our own rules are live, and no service that is started at boot puts them back; or a file of a rule set says something else than what was applied from it.",
            why: "After the next boot the forwards are gone; or they are still those of before, because what is put back is what was applied and not what the file says.",
            fix: "systemctl enable portfwd.service",
        },
        find: not_persistent,
    },
    Check {
        kind: Kind {
            id: "F48",
            title: "a service flushes the rules of others",
            severity: Severity::Warning,
            what: "A service that is started at boot, or a file that it loads, says `flush ruleset`, and nothing puts back what is not its own whenever it is started, reloaded or stopped.",
            why: "`systemctl restart nftables` removes the rules of all programs at once. Most of them do not notice, and their forwards are dead until they are restarted.",
            fix: "delete the service's own tables in the place of `flush ruleset`",
        },
        find: flushed,
    },
];

/// Programs that write rules once and do not look at them again. Those of firewalld and kube-proxy are written anew by a
/// reload or by themselves.
const ONCE: [&str; 8] = ["docker", "podman", "cni", "cri-o", "libvirt", "incus", "lxd", "fail2ban"];

/// F47. Somebody else than systemd may put the rules back, a script of the network's for one, so that it is likely; what a file
/// says is sure. Without systemd nothing is known, and nothing is said.
fn not_persistent(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let Some(facts) = context.facts() else { return Vec::new() };
    let mut found = Vec::new();
    let restored = |boot: &Boot| boot.units.iter().any(|unit| unit.restores);
    if facts.ours.asks && facts.boot.as_ref().is_some_and(|boot| !restored(boot)) {
        let finding = kind.found(Confidence::Likely, "no service puts our rules back at the next boot");
        found
            .push(finding.seen("no unit of systemd that is started at boot runs `portfwd restore` or `portfwd apply`"));
    }
    let files = &facts.ours.unapplied;
    if !files.is_empty() {
        let names: Vec<String> = files.iter().map(|(path, _)| format!("`{}`", printable(path))).collect();
        let does = if files.len() == 1 { "is" } else { "are" };
        let message =
            format!("{} {does} not as applied, and the next boot brings back what was", list(names.into_iter()));
        let finding = kind.found(Confidence::Proved, message);
        let finding = files
            .iter()
            .fold(finding, |finding, (path, what)| finding.seen(format!("{}: {}", printable(path), printable(what))));
        let paths: Vec<String> = files.iter().map(|(path, _)| printable(path)).collect();
        found.push(finding.mended_by(format!("portfwd apply {}", paths.join(" "))));
    }
    found
}

/// The first rule of each owner that a unit flushes.
fn lost<'a>(host: &'a Host, facts: &Facts, unit: &Unit) -> BTreeMap<&'a str, At> {
    let is_back = facts.boot.as_ref().is_some_and(|boot| boot.is_put_back_after(&unit.name));
    // Docker's own service may be told to come behind, too.
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

/// F48. That ours are lost is sure: it says so in the files. Of others it is likely, as they may notice.
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
        let message = format!("`{name}` flushes all rules, and nothing puts those of {owners} back when it did");
        let confidence = if lost.contains_key("portfwd") { Confidence::Proved } else { Confidence::Likely };
        let finding = at(kind.found(confidence, message), host, lost.values().copied());
        let finding = unit.flushes.iter().fold(finding, |finding, flush| {
            let family = flush.family.map_or(String::new(), |family| format!(" {}", family.name()));
            finding.seen(format!("{}: flush ruleset{family}", printable(&flush.at)))
        });
        let fix = match lost.keys().next() {
            Some(&"portfwd") if lost.len() == 1 => {
                format!("start portfwd.service behind it, and again with it: After={name} and PartOf={name}")
            }
            _ => format!("delete the tables of {name} by their names in the place of `flush ruleset`"),
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
    fn rules_that_no_service_puts_back_are_told() {
        let ours = OwnState { asks: true, ..OwnState::default() };
        let found = one("F47", "", Facts { ours: ours.clone(), ..booted(Vec::new()) });
        assert_eq!(found.confidence, Confidence::Likely);
        none("F47", "", Facts { ours: ours.clone(), ..booted(vec![restoring(&[], &[])]) });
        none("F47", "", booted(Vec::new()));
        none("F47", "", Facts { ours, ..super::super::hosts::facts() });
    }

    #[test]
    fn files_that_are_not_as_applied_are_told() {
        let ours =
            OwnState { asks: true, unapplied: vec![("/etc/x\u{9b}.toml".into(), "not there".into())], instead: None };
        let found = one("F47", "", Facts { ours, ..booted(vec![restoring(&[], &[])]) });
        assert_eq!(found.confidence, Confidence::Proved);
        assert_eq!(found.fix, "portfwd apply /etc/x\\u{9b}.toml");
    }

    #[test]
    fn who_flushes_the_rules_of_others_is_told() {
        let found = one("F48", &nft(DOCKER), booted(vec![flushing(None)]));
        assert_eq!(found.confidence, Confidence::Likely);
        assert!(found.message.contains("those of docker back"), "{}", found.message);
        assert_eq!(found.places[0].owner, "docker");
        // Of other tables; where nobody flushes; where docker's service is started with it; and legacy tables are no rules of nft.
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
    fn our_own_rules_are_safe_behind_the_service_and_with_it() {
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
