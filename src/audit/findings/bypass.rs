//! Connections that bypass the rules: without connection tracking, or in a flowtable.

use std::collections::{BTreeMap, HashSet};

use super::Check;
use super::context::{Context, targets};
use super::wording::{at_all, list, removal, rule, several};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Link, NextHop};
use crate::ruleset::host::Host;
use crate::ruleset::index::RegionIndex;
use crate::ruleset::region::{Field, Region};
use crate::ruleset::set::{Set, number_of_name};
use crate::ruleset::simulate::chains::Which;
use crate::ruleset::table::{Action, At, Hook, Table};

/// The priorities before connection tracking. Source: `NF_IP_PRI_CONNTRACK` in include/uapi/linux/netfilter_ipv4.h.
const BEFORE_TRACKING: std::ops::RangeInclusive<i32> = i32::MIN..=-201;

pub(super) const CHECKS: &[Check] = &[
    Check {
        kind: Kind {
            id: "F35",
            title: "packets without connection tracking",
            severity: Severity::Error,
            what: "A rule before connection tracking excludes packets of a forward (notrack).",
            why: "NAT needs connection tracking, so the forward never sees such packets.",
            fix: "remove the notrack rule, or exclude the forward's packets from it",
        },
        find: untracked,
    },
    Check {
        kind: Kind {
            id: "F37",
            title: "connections may bypass the rules (flowtable)",
            severity: Severity::Warning,
            what: "A flowtable contains the ingress and egress interfaces of a forward.",
            why: "No rule sees the packets of a connection in a flowtable: counters stop, and new rules do not stop the connection.",
            fix: "remove the devices from the flowtable; or note that changes affect only new connections (conntrack -D deletes old ones)",
        },
        find: flowtable,
    },
];

/// F35. Simulates two packets of each forward in the chains before connection tracking: one that the notrack rule matches, and a
/// usual one. The confidence is likely if a rule on the path is not understood, and unknown if it is the notrack rule.
fn untracked(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let rules = notracks(host);
    if rules.is_empty() {
        return Vec::new();
    }
    let chains = host.rules.tables.iter().flat_map(|table| table.chains.iter()).filter(|chain| !chain.rules.is_empty());
    let bases = chains.filter_map(|chain| chain.base.as_ref());
    let early: HashSet<Hook> =
        bases.filter(|base| BEFORE_TRACKING.contains(&base.priority)).map(|base| base.hook).collect();
    let all = context.forwards();
    let mut groups: BTreeMap<(At, Confidence), (bool, Vec<&Forward<'_>>)> = BTreeMap::new();
    for family in Family::ALL {
        let of_family: Vec<&Forward<'_>> = all.iter().filter(|forward| forward.family == family).collect();
        let steps: Vec<(&Forward<'_>, Hook, &Region)> = of_family
            .iter()
            .flat_map(|forward| forward.steps.iter().map(|(hook, _, step)| (*forward, *hook, &step.region)))
            .filter(|(_, hook, _)| early.contains(hook))
            .collect();
        let overlaps = RegionIndex::new(steps.iter().map(|(_, _, region)| *region));
        let mut known: HashSet<(usize, At)> = HashSet::new();
        for (at, region) in &rules {
            for number in overlaps.meeting(region) {
                let Some((forward, hook, taken)) = steps.get(number) else { continue };
                if known.contains(&(number, *at)) {
                    continue;
                }
                // A jump to the notrack rule may exclude the common packet, so a usual packet of the forward is tried too.
                let packets = [Some(taken.and(region)), None].into_iter();
                let packets = packets.filter_map(|both| context.packet(family, both.as_ref().unwrap_or(taken), *hook));
                for mut raw in packets {
                    raw.set(Field::State, None);
                    let outcome = context.simulator.tracer.hook(&mut raw, *hook, &Which::Filter(BEFORE_TRACKING));
                    let confidence = match (outcome.untracked, outcome.doubts.contains(at)) {
                        (Some(by), _) if by == *at && !outcome.is_sure() => Confidence::Likely,
                        (Some(by), _) if by == *at && host.facts.is_none() => Confidence::Likely,
                        (Some(by), _) if by == *at => Confidence::Proved,
                        (None, true) => Confidence::Unknown,
                        _ => continue,
                    };
                    if known.insert((number, *at)) {
                        let group = groups.entry((*at, confidence)).or_insert((true, Vec::new()));
                        group.0 &= region.covers(taken);
                        if !group.1.iter().rev().take(2).any(|last| last.at == forward.at) {
                            group.1.push(*forward);
                        }
                    }
                    break;
                }
            }
        }
    }
    let found = groups.into_iter().map(|((at, confidence), (whole, forwards))| {
        let of = if whole { "packets" } else { "some packets" };
        let have = if confidence == Confidence::Unknown { "may have" } else { "have" };
        let message = format!("{of} of {} {have} no connection tracking, so NAT ignores them", several(&forwards));
        let finding = kind.found(confidence, message).seen(rule(host, at));
        let finding = at_all(finding, host, &forwards).at(host.place(at));
        finding.mended_by(removal(host, at))
    });
    found.collect()
}

/// Returns the notrack rules before connection tracking, with their regions.
fn notracks(host: &Host) -> Vec<(At, Region)> {
    let mut found = Vec::new();
    for (table_at, table) in host.rules.tables.iter().enumerate().filter(|(_, table)| !table.dormant) {
        let is_early = |table: &Table| {
            let bases = table.chains.iter().filter_map(|chain| chain.base.as_ref());
            bases.into_iter().any(|base| BEFORE_TRACKING.contains(&base.priority))
        };
        if !is_early(table) {
            continue;
        }
        for (chain_at, chain) in table.chains.iter().enumerate() {
            for (rule_at, rule) in chain.rules.iter().enumerate() {
                for (case_at, case) in rule.cases.iter().enumerate() {
                    if case.actions.contains(&Action::Untracked) {
                        let at = At { table: table_at, chain: chain_at, rule: rule_at, case: case_at };
                        found.push((at, case.region.clone()));
                    }
                }
            }
        }
    }
    found
}

/// F37. The check ignores which rule adds connections to the flowtable, so the confidence is likely. Without facts it is unknown,
/// because only the interfaces in the rules are known.
fn flowtable(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let all = context.forwards();
    let mut found = Vec::new();
    for table in host.rules.tables.iter().filter(|table| !table.dormant && !table.flow_devices.is_empty()) {
        let devices: HashSet<&str> = table.flow_devices.iter().map(String::as_str).collect();
        let numbers = Set::from_ranges(devices.iter().map(|name| {
            let number = number_of_name(name.as_bytes(), 0);
            (number, number)
        }));
        let has = |link: &Link| {
            let ports = context.facts().map(|facts| facts.links.as_slice()).unwrap_or_default();
            devices.contains(link.name.as_str())
                || ports.iter().any(|port| port.master == Some(link.index) && devices.contains(port.name.as_str()))
        };
        let is_in = |forward: &&Forward<'_>| {
            let Some((_, step)) = forward.arriving().next() else { return false };
            if !table.family.sees(forward.family) {
                return false;
            }
            match context.facts() {
                None => numbers.covers(step.region.get(Field::Input)),
                Some(_) => {
                    let out = targets(forward).any(|target| match context.next_hop(target) {
                        Some(NextHop::Via(link, _)) => has(link),
                        _ => false,
                    });
                    out && context.ingress(&step.region).iter().any(|link| has(link))
                }
            }
        };
        let forwards: Vec<&Forward<'_>> = all.iter().filter(is_in).collect();
        if forwards.is_empty() {
            continue;
        }
        let confidence = if context.facts().is_some() { Confidence::Likely } else { Confidence::Unknown };
        let name = printable(&table.to_string());
        let message =
            format!("connections of {} may bypass the rules through a flowtable of `{name}`", several(&forwards));
        let devices = list(table.flow_devices.iter().map(|device| printable(device)));
        found.push(at_all(kind.found(confidence, message).seen(format!("its devices: {devices}")), host, &forwards));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::hosts::{DOCKER_NAT, dual, dump, find, host, nat, rules, table};
    use super::*;
    use crate::ruleset::facts::Facts;
    use crate::ruleset::table::{TableFamily, Tool};

    #[test]
    fn packets_without_tracking_are_not_translated() {
        let raw = |rule: &str| format!("{}{}", nat(DOCKER_NAT), table("raw", &["PREROUTING", "OUTPUT"], rule));
        let found = find(&host(&raw("-A PREROUTING -p tcp --dport 8080 -j CT --notrack"), dual()), "F35");
        assert_eq!((found.len(), found[0].confidence), (1, Confidence::Proved));
        assert!(
            found[0].message.starts_with("packets of `8080/tcp -> 172.17.0.2:80` have no connection tracking"),
            "{}",
            found[0].message
        );
        assert_eq!(found[0].fix, "iptables -t raw -D PREROUTING -p tcp --dport 8080 -j CT --notrack");
        let some = find(&host(&raw("-A PREROUTING -s 10.0.0.0/8 -j NOTRACK"), dual()), "F35");
        assert!(some[0].message.starts_with("some packets of"), "{}", some[0].message);
        for fine in [
            "-A PREROUTING -p tcp --dport 8081 -j NOTRACK",
            "-A PREROUTING -i lo -j NOTRACK",
            "-A PREROUTING -i docker0 -j NOTRACK",
            "-A PREROUTING -j ACCEPT\n-A PREROUTING -j NOTRACK",
        ] {
            assert!(find(&host(&raw(fine), dual()), "F35").is_empty(), "{fine}");
        }
        let unclear = raw("-A PREROUTING -p tcp --dport 8080 -m tomorrow -j NOTRACK");
        assert_eq!(find(&host(&unclear, dual()), "F35")[0].confidence, Confidence::Unknown);
        let plain = raw("-A PREROUTING -p tcp --dport 8080 -j NOTRACK");
        assert_eq!(find(&dump(&plain), "F35")[0].confidence, Confidence::Likely);
        let own = find(&host(&raw("-A OUTPUT -p tcp --dport 8080 -j NOTRACK"), dual()), "F35");
        assert_eq!(own.len(), 1, "packets of this host have no connection tracking either");
    }

    #[test]
    fn a_flowtable_of_both_ways_is_told() {
        let with = |devices: &[&str], facts: Option<Facts>, text: &str| {
            let mut rules = rules(text);
            let mut table = Table::new(TableFamily::Ip, "mine", Tool::Nft);
            table.flow_devices = devices.iter().map(|name| (*name).to_owned()).collect();
            rules.tables.push(table);
            find(&Host::new(rules, facts), "F37")
        };
        let found = with(&["eth0", "docker0"], Some(dual()), &nat(DOCKER_NAT));
        assert_eq!((found.len(), found[0].confidence), (1, Confidence::Likely));
        assert_eq!(with(&["eth0", "veth1"], Some(dual()), &nat(DOCKER_NAT)).len(), 1, "a port of the bridge");
        assert!(with(&["eth0"], Some(dual()), &nat(DOCKER_NAT)).is_empty());
        assert!(with(&["eth0", "docker0"], None, &nat(DOCKER_NAT)).is_empty());
        let named = nat("-A PREROUTING -i eth0 -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2");
        assert_eq!(with(&["eth0", "docker0"], None, &named)[0].confidence, Confidence::Unknown);
    }
}
