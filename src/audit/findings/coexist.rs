//! Several tools on one host: both variants of iptables, rules that iptables cannot show, and rules of removed programs.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::Check;
use super::context::Context;
use super::wording::{APART, FEW, list, placed, verb};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::model::Family;
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Facts, NextHop};
use crate::ruleset::owner;
use crate::ruleset::region::{Field, Region};
use crate::ruleset::set::{Set, number_of_name};
use crate::ruleset::table::{Action, At, Hook, Table, Tool, base_of_iptables};

pub(super) const CHECKS: &[Check] = &[
    Check {
        kind: Kind {
            id: "F32",
            title: "iptables-legacy and nf_tables side by side",
            severity: Severity::Error,
            what: "Tables of iptables-legacy and chains of nf_tables have rules at the same hooks.",
            why: "Each packet traverses both, and neither tool shows the rules of the other. One may drop packets that the other accepts, and it is hard to see which of two forwards wins.",
            fix: "move all rules to one variant: update-alternatives --config iptables; iptables-legacy-save | iptables-nft-restore",
        },
        find: both_kinds,
    },
    Check {
        kind: Kind {
            id: "F33",
            title: "rules that iptables cannot show in its own table",
            severity: Severity::Error,
            what: "A table of iptables-nft contains a rule or chain from nft(8) or netlink that iptables cannot print.",
            why: "`iptables -L` and `-S` refuse the whole table, and programs that use them fail.",
            fix: "move the rule to another table: nft list table …; nft delete rule … handle …",
        },
        find: incompatible,
    },
    Check {
        kind: Kind {
            id: "F34",
            title: "ct status compared as a whole",
            severity: Severity::Warning,
            what: "A rule compares `ct status` with values instead of testing bits.",
            why: "The status of a connection always has several bits set, so it never equals a value with one bit. The rule matches nothing, or everything if negated. `nft -o` makes such sets from correct rules.",
            fix: "write `ct status dnat`, or `ct status & (dnat | snat) != 0`, without braces",
        },
        find: status_by_equality,
    },
    Check {
        kind: Kind {
            id: "F44",
            title: "rules of a removed program",
            severity: Severity::Warning,
            what: "A program's chains or table exist, but no interface and no network in its rules exists.",
            why: "Such rules still match packets. The next host with one of these addresses receives the connections.",
            fix: "remove the chains, or start the program, which creates them again",
        },
        find: orphans,
    },
];

/// Returns the families and hooks at which a table has rules or a drop policy.
fn hooks(table: &Table) -> BTreeSet<(Family, Hook)> {
    let has_rules = |table: &Table| table.chains.iter().any(|chain| !chain.rules.is_empty());
    if table.dormant || !has_rules(table) {
        return BTreeSet::new();
    }
    let bases = table
        .chains
        .iter()
        .filter(|chain| !chain.rules.is_empty() || chain.base.as_ref().is_some_and(|base| base.drops));
    let hooks = bases.filter_map(|chain| chain.base.as_ref()).map(|base| base.hook);
    let families = Family::ALL.into_iter().filter(|family| table.family.sees(*family));
    hooks.flat_map(|hook| families.clone().map(move |family| (family, hook))).collect()
}

/// F32. The confidence is unknown if the tables of iptables-legacy were not read, because empty tables are harmless. Tables of
/// nft(8) beside iptables-legacy are a warning: users of nft(8) do not expect it to show all rules.
fn both_kinds(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let tables = &host.rules.tables;
    let legacy: Vec<&Table> = tables.iter().filter(|table| table.tool == Tool::IptablesLegacy).collect();
    let new: Vec<&Table> = tables.iter().filter(|table| matches!(table.tool, Tool::Nft | Tool::IptablesNft)).collect();
    let taken: BTreeSet<(Family, Hook)> = legacy.iter().flat_map(|table| hooks(table)).collect();
    let meets = |table: &&&Table| hooks(table).iter().any(|hook| taken.contains(hook));
    let others: Vec<&Table> = new.iter().filter(meets).copied().collect();
    let name = |table: &&Table| format!("`{}`", printable(&table.to_string()));
    if !others.is_empty() {
        let at: BTreeSet<(Family, Hook)> = others.iter().flat_map(|table| hooks(table)).collect();
        let both: BTreeSet<&(Family, Hook)> = at.intersection(&taken).collect();
        let with_rules: Vec<&Table> = legacy.iter().filter(|table| !hooks(table).is_empty()).copied().collect();
        let message = format!(
            "rules of iptables-legacy ({}) and of nf_tables ({}) see the same packets",
            list(with_rules.iter().map(name)),
            list(others.iter().map(name))
        );
        let both: Vec<String> = both.into_iter().map(|(family, hook)| format!("{family} {}", hook.name())).collect();
        let finding = kind.found(Confidence::Proved, message).seen(format!("both at: {}", both.join(", ")));
        let is_iptables = others.iter().any(|table| table.tool == Tool::IptablesNft);
        return vec![if is_iptables { finding } else { finding.as_bad_as(Severity::Warning) }];
    }
    let said = host.rules.gaps.iter().find(|gap| gap.what.contains("iptables-legacy"));
    let named = host.facts.as_ref().map(|facts| &facts.legacy).filter(|named| !named.is_empty());
    let evidence = match (said, named) {
        (Some(gap), _) => format!("{}: {}", printable(&gap.what), printable(&gap.why)),
        (None, Some(named)) if legacy.is_empty() => {
            let named = named.iter().map(|(family, name)| format!("{family} {}", printable(name)));
            format!("tables of iptables-legacy: {}", list(named.collect::<Vec<_>>().into_iter()))
        }
        _ => return Vec::new(),
    };
    if new.iter().all(|table| hooks(table).is_empty()) {
        return Vec::new();
    }
    let message = "tables of iptables-legacy exist beside tables of nf_tables, but their rules were not read";
    vec![
        kind.found(Confidence::Unknown, message)
            .seen(evidence)
            .mended_by("give the output of iptables-legacy-save to the audit too"),
    ]
}

/// F33. Proved by the message of iptables-save, by a rule with expressions that iptables cannot print, or by a base chain that is
/// not built in.
fn incompatible(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let mut found = Vec::new();
    // The reader of dumps creates this gap.
    for gap in host.rules.gaps.iter().filter(|gap| gap.why.contains("iptables cannot show")) {
        let message = format!("{} contains rules that iptables cannot show", printable(&gap.what));
        found.push(kind.found(Confidence::Proved, message).seen("iptables-save: is incompatible, use 'nft' tool"));
    }
    for (table_at, table) in host.rules.tables.iter().enumerate() {
        if table.tool != Tool::IptablesNft {
            continue;
        }
        let mut places = Vec::new();
        for (chain_at, chain) in table.chains.iter().enumerate() {
            let at = At { table: table_at, chain: chain_at, rule: usize::MAX, case: 0 };
            if let Some(base) = &chain.base
                && base_of_iptables(&table.name, &chain.name) != Some((base.kind, base.hook, base.priority))
            {
                places.push(at);
            }
            let native = table.native.iter().filter(|(of, _)| *of == chain_at).map(|(_, rule)| *rule);
            places.extend(native.map(|rule| At { rule, ..at }));
        }
        if places.is_empty() {
            continue;
        }
        let message = format!(
            "table `{}` of iptables-nft contains rules or chains that iptables cannot show",
            printable(&table.to_string())
        );
        let mut finding = kind.found(Confidence::Proved, message);
        finding = placed(finding, host, places.iter().copied());
        found.push(finding);
    }
    found
}

/// F34. A comparison with 0 is correct: it matches connections without any status bit.
fn status_by_equality(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let nothing = Set::single(0);
    let mut places = Vec::new();
    for (table_at, table) in host.rules.tables.iter().enumerate() {
        for (chain_at, chain) in table.chains.iter().enumerate() {
            for (rule_at, rule) in chain.rules.iter().enumerate() {
                let asks = rule.cases.iter().position(|case| {
                    let status = case.region.get(Field::Status);
                    !status.is_all() && *status != nothing && status.not() != nothing
                });
                if let Some(case) = asks {
                    places.push(At { table: table_at, chain: chain_at, rule: rule_at, case });
                }
            }
        }
    }
    let found = |some: &[At]| {
        let message = format!(
            "{} {} `ct status` as a whole, which matches no connection",
            if some.len() == 1 { "a rule".to_owned() } else { format!("{} rules", some.len()) },
            verb(some, "compares", "compare")
        );
        let mut finding = kind.found(Confidence::Proved, message);
        finding = placed(finding, host, some.iter().copied());
        finding
    };
    match places.len() {
        0 => Vec::new(),
        1..=APART => places.chunks(1).map(found).collect(),
        _ => vec![found(&places)],
    }
}

/// The interfaces and addresses in the rules of one program.
#[derive(Default)]
struct Traces {
    places: Vec<At>,
    alive: Vec<String>,
    gone: BTreeSet<String>,
}

/// Programs with interfaces and networks of their own.
const TOOLS: [&str; 8] = ["docker", "podman", "cni", "cri-o", "incus", "lxd", "libvirt", "weave"];

/// F44. The confidence is likely. A program counts as installed if one interface or network in its rules exists. Returns nothing
/// without facts.
fn orphans(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = context.facts().filter(|facts| !facts.links.is_empty()) else { return Vec::new() };
    let links: Vec<(u128, &str)> =
        facts.links.iter().map(|link| (number_of_name(link.name.as_bytes(), 0), link.name.as_str())).collect();
    let mut tools: BTreeMap<&str, Traces> = BTreeMap::new();
    for (table_at, table) in host.rules.tables.iter().enumerate() {
        for (chain_at, chain) in table.chains.iter().enumerate() {
            let owner = owner::of_chain(table, chain);
            if !TOOLS.contains(&owner) {
                continue;
            }
            let traces = tools.entry(owner).or_default();
            for (rule_at, rule) in chain.rules.iter().enumerate() {
                for (case_at, case) in rule.cases.iter().enumerate() {
                    // If one interface or network exists, the program counts as installed.
                    if !traces.alive.is_empty() {
                        break;
                    }
                    let named = named(&case.region, &links, facts, &case.actions, context);
                    if !named.is_empty() && traces.places.len() < FEW {
                        traces.places.push(At { table: table_at, chain: chain_at, rule: rule_at, case: case_at });
                    }
                    for (name, is_there) in named {
                        if is_there {
                            traces.alive.push(name)
                        } else {
                            traces.gone.insert(name);
                        }
                    }
                }
            }
        }
    }
    let left = tools.into_iter().filter(|(_, traces)| traces.alive.is_empty() && !traces.gone.is_empty());
    let found = left.map(|(owner, traces)| {
        let gone: Vec<String> = traces.gone.into_iter().collect();
        let message = format!(
            "rules of {owner} name only interfaces and addresses that do not exist: {}",
            list(gone.into_iter())
        );
        let mut finding = kind.found(Confidence::Likely, message);
        finding = placed(finding, host, traces.places.iter().copied());
        let table = traces.places.first().and_then(|at| host.rules.tables.get(at.table));
        match table.filter(|table| owner::of_table(table) != "unknown") {
            Some(table) => finding.mended_by(format!("nft delete table {}", printable(&table.to_string()))),
            None => finding,
        }
    });
    found.collect()
}

/// Returns the interfaces and target addresses of a rule, each with true if it exists.
fn named(
    region: &Region,
    links: &[(u128, &str)],
    facts: &Facts,
    actions: &[Action],
    context: &Context<'_>,
) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let no_interface = Set::single(0);
    for field in [Field::Input, Field::Output] {
        let set = region.get(field);
        if set.is_all() || set.not() == no_interface {
            continue;
        }
        // For an exclusion, the excluded interfaces count.
        let inverse = set.not();
        let names = if inverse.ranges().len() < set.ranges().len() { &inverse } else { set };
        let there = links.iter().find(|(number, name)| names.has(*number) && *name != "lo");
        let is_lo = names.only() == Some(number_of_name(b"lo", 0));
        if !is_lo {
            found.push((format!("`{}`", crate::ruleset::describe::set(field, names, Family::Ipv4)), there.is_some()));
        }
    }
    for action in actions {
        if let Action::Dnat(to) = action
            && let Some((address, _)) = to.addresses
        {
            // The target must be on a link, and not behind a gateway.
            let is_there = match context.next_hop(address) {
                Some(NextHop::Via(_, None) | NextHop::Local) => true,
                Some(_) => false,
                None => facts.addresses.iter().any(|(_, network)| network.contains(address)),
            };
            found.push((address.to_string(), is_there));
        }
    }
    found
}
