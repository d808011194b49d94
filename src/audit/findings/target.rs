//! Targets of forwards: unreachable, silent or loopback targets, and rules with missing interfaces.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::Check;
use super::addresses::is_private;
use super::context::{Context, targets};
use super::wording::{at_all, by_cause, list, placed, several, verb};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Facts, NextHop};
use crate::ruleset::region::Field;
use crate::ruleset::set::{Set, name_of, number_of_name};
use crate::ruleset::table::{self, Action, At, Case, Table};

pub(super) const CHECKS: &[Check] = &[
    Check {
        kind: Kind {
            id: "F08",
            title: "target cannot be reached",
            severity: Severity::Error,
            what: "This host has no route to the target of a forward, or only the default route although the target is a private address.",
            why: "Clients get the error `no route to host`, or the packets go to a gateway that does not know the address. Usually the network of a container or tunnel is missing.",
            fix: "bring up the target's link, add a route to the target, or remove the forward",
        },
        find: unroutable,
    },
    Check {
        kind: Kind {
            id: "F09",
            title: "target does not answer",
            severity: Severity::Warning,
            what: "The target of a forward, or the gateway to it, did not answer the last ARP or neighbour request.",
            why: "Clients get no answer until that host answers.",
            fix: "start the target, or correct its address",
        },
        find: dead,
    },
    Check {
        kind: Kind {
            id: "F11",
            title: "forward from other hosts to loopback",
            severity: Severity::Error,
            what: "A forward leads packets of other hosts to 127.0.0.0/8 or ::1.",
            why: "The kernel drops packets of other hosts to 127.0.0.0/8 unless `route_localnet` of the ingress interface is on. The kernel always drops such packets to ::1 (measured on Linux 6.18).",
            fix: "use a redirect, which leads to an address of the ingress interface, and let the program listen on that address",
        },
        find: loopback,
    },
    Check {
        kind: Kind {
            id: "F49",
            title: "rule waits for an interface",
            severity: Severity::Info,
            what: "A NAT rule matches an interface that does not exist now. This is normal for an interface that comes up later, for example `ppp0`. If the rule excludes the interface (`! -i`), the severity is warning.",
            why: "The rule matches no packet until the interface exists. A rule that excludes a missing interface matches more packets than intended.",
            fix: "bring up the interface, or correct the name in the rule",
        },
        find: nameless,
    },
];

/// The reason that a target is unreachable, in the order of the report.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Unroutable {
    Nowhere(IpAddr),
    Down(IpAddr, String),
    /// The interface, the gateway, and true if the gateway probably does not know the target.
    Default(String, IpAddr, bool),
}

/// The destinations of all routes except default routes, indexed by prefix length.
struct Networks {
    lengths: BTreeSet<u8>,
    all: HashSet<IpNetwork>,
}

impl Networks {
    fn new(facts: &Facts) -> Self {
        let routed = facts.routes.iter().filter(|route| route.to.prefix() > 0);
        let all: HashSet<IpNetwork> =
            routed.filter_map(|route| IpNetwork::new(route.to.network(), route.to.prefix()).ok()).collect();
        Self { lengths: all.iter().map(|network| network.prefix()).collect(), all }
    }

    fn has(&self, address: IpAddr) -> bool {
        let within = |length: &u8| IpNetwork::new(address, *length).ok().map(|network| network.network());
        self.lengths.iter().any(|length| {
            let network = within(length).and_then(|network| IpNetwork::new(network, *length).ok());
            network.is_some_and(|network| self.all.contains(&network))
        })
    }
}

/// F08. Returns nothing without facts. The confidence is likely with policy routing. A gateway probably knows a target in its own
/// private block. But targets of container engines are always on a link, so their forwards are reported.
fn unroutable(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = context.facts() else { return Vec::new() };
    let networks = Networks::new(facts);
    let all = context.forwards();
    let mut groups: BTreeMap<Unroutable, Vec<&Forward<'_>>> = BTreeMap::new();
    for forward in all {
        for target in targets(forward) {
            let why = match context.next_hop(target) {
                None | Some(NextHop::Local) => continue,
                Some(NextHop::Unreachable) => Unroutable::Nowhere(target),
                Some(NextHop::Via(link, _)) if !link.up => Unroutable::Down(target, link.name.clone()),
                Some(NextHop::Via(link, Some(gateway))) if is_private(target) && !networks.has(target) => {
                    let on_link = is_of_engine(&host.place(forward.at).owner);
                    if !on_link && same_block(target, gateway) {
                        continue;
                    }
                    Unroutable::Default(link.name.clone(), gateway, on_link || !is_private(gateway))
                }
                Some(NextHop::Via(..)) => continue,
            };
            groups.entry(why).or_default().push(forward);
            break;
        }
    }
    let all_of = |groups: &[(Unroutable, Vec<&Forward<'_>>)]| {
        let forwards: Vec<&Forward<'_>> = groups.iter().flat_map(|(_, forwards)| forwards).copied().collect();
        let why = list(groups.iter().map(|(why, _)| match why {
            Unroutable::Nowhere(target) => format!("this host has no route to {target}"),
            Unroutable::Down(target, link) => format!("{target} is on `{}`, which is down", printable(link)),
            Unroutable::Default(link, gateway, _) => {
                format!(
                    "the only route to the private address is the default route via {gateway} dev {}",
                    printable(link)
                )
            }
        }));
        let confidence = match facts.policy_routing {
            true => Confidence::Likely,
            false => context.confidence(&forwards),
        };
        let text = |verb: &str| format!("{} {verb}: {why}", several(&forwards));
        let is_default = groups.iter().all(|(why, _)| matches!(why, Unroutable::Default(..)));
        let is_sure = groups.iter().any(|(why, _)| matches!(why, Unroutable::Default(.., true)));
        let finding = match (is_default, is_sure) {
            (false, _) => kind.found(confidence, text(verb(&forwards, "cannot be reached", "cannot be reached"))),
            (true, true) => kind
                .found(Confidence::Likely, text("may not be reached"))
                .as_bad_as(Severity::Warning)
                .mended_by("bring up the target's network, or remove the forward"),
            (true, false) => kind.found(Confidence::Unknown, text("may not be reached")).as_bad_as(Severity::Warning),
        };
        at_all(finding.seen(why.clone()), host, &forwards)
    };
    let (lost, by_default): (BTreeMap<_, _>, BTreeMap<_, _>) =
        groups.into_iter().partition(|(why, _)| !matches!(why, Unroutable::Default(..)));
    let mut found = by_cause(lost, all_of);
    found.extend(by_cause(by_default, all_of));
    found
}

/// Returns true if rules of this owner lead to containers or guests of this host.
fn is_of_engine(owner: &str) -> bool {
    matches!(owner, "docker" | "podman" | "cni" | "cri-o" | "incus" | "lxd" | "libvirt")
}

/// Returns true if two addresses are in the same private block. A network may route a block as a whole.
fn same_block(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let block = |octets: [u8; 4]| match octets {
                [10, ..] => 10,
                [172, second, ..] if second & 0xf0 == 16 => 172,
                [192, 168, ..] => 192,
                [100, second, ..] if second & 0xc0 == 64 => 100,
                _ => 0,
            };
            block(a.octets()) != 0 && block(a.octets()) == block(b.octets())
        }
        // The link-local address of an IPv6 router does not identify its networks.
        (IpAddr::V6(a), IpAddr::V6(b)) => a.is_unique_local() && (b.is_unique_local() || b.is_unicast_link_local()),
        _ => false,
    }
}

/// F09. The confidence is likely, because an entry of the neighbour table may be older than the target.
fn dead(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = context.facts() else { return Vec::new() };
    let failed: HashSet<(IpAddr, u32)> = facts
        .neighbours
        .iter()
        .filter(|neighbour| neighbour.failed)
        .map(|neighbour| (neighbour.address, neighbour.link))
        .collect();
    let all = context.forwards();
    let mut groups: BTreeMap<(IpAddr, &str), Vec<&Forward<'_>>> = BTreeMap::new();
    for forward in all {
        for target in targets(forward) {
            if let Some(NextHop::Via(link, gateway)) = context.next_hop(target) {
                let next = gateway.unwrap_or(target);
                if failed.contains(&(next, link.index)) {
                    groups.entry((next, link.name.as_str())).or_default().push(forward);
                    break;
                }
            }
        }
    }
    by_cause(groups, |groups| {
        let forwards: Vec<&Forward<'_>> = groups.iter().flat_map(|(_, forwards)| forwards).copied().collect();
        let hosts = list(groups.iter().map(|((next, link), _)| format!("{next} on `{}`", printable(link))));
        let message = format!(
            "{} {} to a host that does not answer: {hosts}",
            several(&forwards),
            verb(&forwards, "leads", "lead")
        );
        let finding = kind.found(Confidence::Likely, message).seen(format!("neighbour FAILED: {hosts}"));
        at_all(finding, host, &forwards)
    })
}

/// F11. Without facts the confidence is likely, because the sysctl is usually off.
fn loopback(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let all = context.forwards();
    // The family, the interfaces without route_localnet, and true if other interfaces have it.
    let mut groups: BTreeMap<(Family, Vec<String>, bool), Vec<&Forward<'_>>> = BTreeMap::new();
    for forward in all {
        let Some((_, step)) = forward.arriving().next() else { continue };
        let inputs = step.region.get(Field::Input);
        let only_own = inputs.only() == Some(number_of_name(b"lo", 0));
        if only_own || !forward.target().is_some_and(|target| target.is_loopback()) {
            continue;
        }
        if forward.family == Family::Ipv6 {
            groups.entry((Family::Ipv6, Vec::new(), false)).or_default().push(forward);
            continue;
        }
        let on = |of: &str| {
            let value = context.facts()?.setting(&format!("net/ipv4/conf/{of}/route_localnet"))?;
            Some(value != "0")
        };
        if on("all") == Some(true) {
            continue;
        }
        let links = context.ingress(&step.region);
        let off: Vec<String> =
            links.iter().filter(|link| on(&link.name) != Some(true)).map(|link| link.name.clone()).collect();
        let some = off.len() < links.len();
        // If the links are known, the ingress interfaces decide.
        if !off.is_empty() || context.facts().is_none() {
            groups.entry((Family::Ipv4, off, some)).or_default().push(forward);
        }
    }
    let found = groups.iter().map(|((family, off, some), forwards)| {
        let interfaces = list(off.iter().map(|name| format!("`{}`", printable(name))));
        let text = format!(
            "{} {} packets of other hosts to a loopback address",
            several(forwards),
            verb(forwards, "leads", "lead")
        );
        let finding = match (family, off.is_empty()) {
            (Family::Ipv6, _) => kind
                .found(context.confidence(forwards), format!("{text}, and the kernel always drops such packets"))
                .seen("IPv6 has no `route_localnet`"),
            (_, true) => kind.found(
                Confidence::Likely,
                format!("{text}, and the kernel drops such packets unless `route_localnet` is on, which is unknown"),
            ),
            (_, false) => {
                let path = |name: &String| format!("net.ipv4.conf.{}.route_localnet = 0", printable(name));
                let is_read = off.iter().all(|name| {
                    let path = format!("net/ipv4/conf/{name}/route_localnet");
                    context.facts().is_some_and(|facts| facts.setting(&path).is_some())
                });
                let confidence = if is_read && !some { context.confidence(forwards) } else { Confidence::Likely };
                let finding = kind
                    .found(confidence, format!("{text}, and the kernel drops such packets on {interfaces}"))
                    .seen(list(off.iter().map(path)));
                if *some { finding.as_bad_as(Severity::Warning) } else { finding }
            }
        };
        at_all(finding, host, forwards)
    });
    found.collect()
}

/// Returns the chains of a table that a NAT base chain calls and that lead to a NAT statement.
fn translating(table: &Table) -> BTreeSet<usize> {
    let is_nat = |chain: &table::Chain| chain.base.as_ref().is_some_and(|base| base.kind == table::Kind::Nat);
    let mut open: Vec<usize> =
        table.chains.iter().enumerate().filter(|(_, chain)| is_nat(chain)).map(|(number, _)| number).collect();
    let mut reached: BTreeSet<usize> = open.iter().copied().collect();
    let mut callers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut translates: Vec<usize> = Vec::new();
    while let Some(number) = open.pop() {
        let Some(chain) = table.chains.get(number) else { continue };
        for action in chain.rules.iter().flat_map(|rule| &rule.cases).flat_map(|case| case.actions.iter()) {
            match action {
                Action::Jump(name) | Action::Goto(name) => {
                    let Some(next) = table.chains.position(name) else { continue };
                    callers.entry(next).or_default().push(number);
                    if reached.insert(next) {
                        open.push(next);
                    }
                }
                action if is_translation(action) => translates.push(number),
                _ => {}
            }
        }
    }
    let mut found = BTreeSet::new();
    while let Some(chain) = translates.pop() {
        if found.insert(chain) {
            translates.extend(callers.get(&chain).into_iter().flatten());
        }
    }
    found
}

/// Returns true if an action may rewrite an address.
fn is_translation(action: &Action) -> bool {
    use Action::{Dnat, Masquerade, Netmap, Redirect, Snat, Unknown};
    matches!(action, Dnat(_) | Redirect(_) | Snat(_) | Masquerade(_) | Netmap(_) | Unknown(_))
}

/// Returns true if a case rewrites an address, or calls a chain that does.
fn leads_to_translation(table: &Table, translating: &BTreeSet<usize>, case: &Case) -> bool {
    case.actions.iter().any(|action| match action {
        Action::Jump(name) | Action::Goto(name) => {
            table.chains.position(name).is_some_and(|chain| translating.contains(&chain))
        }
        action => is_translation(action),
    })
}

/// Returns the single numbers of a set, without ranges.
fn literals(set: &Set) -> impl Iterator<Item = u128> {
    set.ranges().iter().filter(|(first, last)| first == last && *first != 0).map(|(first, _)| *first)
}

/// F49. Needs the links of a live host. A rule that excludes a missing interface still works, so the finding is a warning,
/// and likely: the user may want that.
fn nameless(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = host.facts.as_ref().filter(|facts| !facts.links.is_empty()) else { return Vec::new() };
    let links: HashSet<u128> = facts.links.iter().map(|link| number_of_name(link.name.as_bytes(), 0)).collect();
    let mut unknown: BTreeMap<(bool, u128), Vec<At>> = BTreeMap::new();
    // Many rules share few sets of interfaces.
    let mut seen: HashMap<Set, Vec<(bool, u128)>> = HashMap::new();
    for (table_at, table) in host.rules.tables.iter().enumerate().filter(|(_, table)| !table.dormant) {
        let translating = translating(table);
        for chain_at in translating.iter().copied() {
            let rules = table.chains.get(chain_at).map(|chain| chain.rules.as_slice()).unwrap_or_default();
            for (rule_at, rule) in rules.iter().enumerate() {
                for (case_at, case) in rule.cases.iter().enumerate() {
                    if !leads_to_translation(table, &translating, case) {
                        continue;
                    }
                    for field in [Field::Input, Field::Output] {
                        let set = case.region.get(field);
                        if set.is_all() {
                            continue;
                        }
                        let missing = seen.entry(set.clone()).or_insert_with(|| {
                            let gone = |number: &u128| !links.contains(number);
                            let named = literals(set).filter(gone).map(|number| (false, number));
                            named.chain(literals(&set.not()).filter(gone).map(|number| (true, number))).collect()
                        });
                        let at = At { table: table_at, chain: chain_at, rule: rule_at, case: case_at };
                        for key in missing.iter() {
                            let places = unknown.entry(*key).or_default();
                            if places.last().is_none_or(|last| At { case: 0, ..*last } != At { case: 0, ..at }) {
                                places.push(at);
                            }
                        }
                    }
                }
            }
        }
    }
    by_cause(unknown, |groups| {
        let names = list(groups.iter().map(|((_, number), _)| format!("`{}`", printable(&name_of(*number)))));
        let places: Vec<At> = groups.iter().flat_map(|(_, places)| places).copied().collect();
        let excepts = groups.iter().all(|((excepts, _), _)| *excepts);
        let rules = format!("{} {}", places.len(), verb(&places, "rule", "rules"));
        let finding = match excepts {
            true => {
                let exclude = verb(&places, "excludes", "exclude");
                let message = format!("{rules} {exclude} {names}, and there is no such interface");
                kind.found(Confidence::Likely, message).as_bad_as(Severity::Warning)
            }
            false => {
                let message = format!("{rules} {} for {names}: no such interface now", verb(&places, "waits", "wait"));
                kind.found(Confidence::Proved, message)
            }
        };
        placed(finding, host, places.iter().copied())
    })
}
