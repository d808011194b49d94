//! F13 and F36: forwards that a filter drops, before or after NAT.

use std::collections::{BTreeMap, BTreeSet};

use super::super::context::Context;
use super::super::wording::{at_all, each, placed};
use super::clients::{Clients, Drop, DropAnalysis};
use super::suggest_accept::suggest_accept;
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::host::Host;
use crate::ruleset::owner;
use crate::ruleset::region::{DST_NAT, DST_NAT_DONE, Field, packet};
use crate::ruleset::set::number_of;
use crate::ruleset::simulate::chains::{Verdict, Which};
use crate::ruleset::simulate::packet_in_words;
use crate::ruleset::table::{At, Hook};
use crate::ruleset::view::Translation;

pub(super) const FORWARD_DROPS: Kind = Kind {
    id: "F13",
    title: "a filter drops the forward",
    severity: Severity::Error,
    what: "Packets for the forward are rewritten, and then a rule or the policy of a chain drops them.",
    why: "Clients see a port that does not answer. To accept them in one chain is not enough: every base chain of every \
          table has to let them through.",
    fix: "Accept what was forwarded in the chain that drops it, in front of the rule that does.",
};

pub(super) const BEFORE_NAT: Kind = Kind {
    id: "F36",
    title: "the forward's packets are dropped before NAT",
    severity: Severity::Error,
    what: "A chain that is asked before destinations are rewritten drops packets for the forward's address and port.",
    why: "The forward never sees them. Rules of raw and mangle, of netdev chains and XDP programs are easily overlooked, \
          because what a port forward needs is looked for in nat and filter.",
    fix: "Remove the rule, or leave the forward's port out of it.",
};

/// The indexes of the forwards with one cause.
#[derive(Default)]
pub(super) struct Group {
    forwards: Vec<usize>,
    links: BTreeSet<String>,
    sample: String,
    hook: Option<Hook>,
}

/// A cause: the rule that drops, the confidence, and whether it affects all ingress interfaces.
type Cause = (At, Confidence, bool);

/// Forwards by cause.
pub(super) type Groups = BTreeMap<Cause, Group>;

/// Finds F13.
///
/// The severity is error if all ingress interfaces are closed, and warning if only some uplinks are. The confidence is
/// unknown if a rule that is not understood may accept the packets first. Without facts, finds only drops on every
/// interface, with confidence likely.
pub(super) fn behind_nat(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let guessed = if host.facts.is_none() { guessed(context) } else { Groups::new() };
    let groups = if host.facts.is_some() { &context.surveys().behind_nat } else { &guessed };
    let finding = |(&(at, confidence, all), group): (&Cause, &Group)| {
        let forwards = context.numbered(&group.forwards);
        let hook = group.hook.unwrap_or(Hook::Forward);
        let links = by_links(group, all, host.facts.is_some());
        let message = format!(
            "{}{links} at hook {} by {}",
            each(&forwards, "is dropped", "are dropped"),
            hook.name(),
            host.place(at)
        );
        let fix = forwards.first().map_or_else(String::new, |first| {
            let owner = firewall(host, at);
            let fix = suggest_accept(host, at, &owner, hook, first);
            if forwards.len() > 1 { format!("{fix}  (and the same for the others)") } else { fix }
        });
        let finding = kind.found(confidence, message).mended_by(fix);
        severe(placed(at_all(finding, host, &forwards), host, [at]), group, all, confidence)
    };
    groups.iter().map(finding).collect()
}

/// Finds F36. If a program or an ingress chain sees the packets of an interface first, the confidence is unknown, unless the
/// chain's rules show the verdict.
pub(super) fn before_nat(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let (host, groups) = (context.host, &context.surveys().before_nat);
    let mut found: Vec<Finding> = groups
        .iter()
        .map(|(&(at, confidence, all), group)| {
            let forwards = context.numbered(&group.forwards);
            let message = format!(
                "{}{} before NAT by {}",
                each(&forwards, "is dropped", "are dropped"),
                by_links(group, all, true),
                host.place(at)
            );
            let finding = kind.found(confidence, message);
            severe(placed(at_all(finding, host, &forwards), host, [at]), group, all, confidence)
        })
        .collect();
    found.extend(unseen(context, kind));
    found
}

fn severe(finding: Finding, group: &Group, all: bool, confidence: Confidence) -> Finding {
    let finding = match group.sample.as_str() {
        "" => finding,
        sample => finding.seen(sample),
    };
    let finding = match confidence {
        Confidence::Unknown => finding.seen("a rule before that is not understood may accept it"),
        _ => finding,
    };
    if all && confidence != Confidence::Unknown { finding } else { finding.as_bad_as(Severity::Warning) }
}

fn by_links(group: &Group, all: bool, known: bool) -> String {
    let links: Vec<String> = group.links.iter().take(5).map(|link| printable(link)).collect();
    match (known, all) {
        (false, _) => String::new(),
        (true, true) => format!(", by whatever interface clients come ({}),", links.join(", ")),
        (true, false) => format!(" for clients by {}", links.join(", ")),
    }
}

/// Adds the results of a forward's clients, before or after NAT.
pub(super) fn add(
    groups: &mut Groups,
    clients: &Clients<'_, '_>,
    number: usize,
    drop_analysis: &DropAnalysis<'_>,
    before: bool,
) {
    let all = drop_analysis.passed.is_empty();
    let uplink = |gate: &usize| clients.gates.get(*gate).is_some_and(|gate| gate.uplink);
    let dropped =
        drop_analysis.dropped.iter().filter(|(gate, drop, _)| drop.before_nat == before && (all || uplink(gate)));
    let mut first: Option<Drop> = None;
    for (gate, drop, trace) in dropped {
        let drop = *first.get_or_insert(*drop);
        let group = groups.entry((drop.at, drop.confidence, all)).or_default();
        if group.forwards.last() != Some(&number) {
            group.forwards.push(number);
        }
        if let Some(gate) = clients.gates.get(*gate)
            && !group.links.contains(&gate.link.name)
        {
            group.links.insert(gate.link.name.clone());
        }
        if group.sample.is_empty() {
            group.sample = format!("{} by {}", packet_in_words(&trace.start), links_name(clients, *gate));
            group.hook = Some(drop.hook);
        }
    }
}

fn links_name(clients: &Clients<'_, '_>, gate: usize) -> String {
    clients.gates.get(gate).map_or_else(String::new, |gate| printable(&gate.link.name))
}

/// A dump shows only drops that do not depend on interfaces.
fn guessed(context: &Context<'_>) -> Groups {
    let tracer = &context.simulator.tracer;
    let mut groups = Groups::new();
    for (number, forward) in context.forwards().iter().enumerate() {
        let Some(region) = forward.arriving().next().map(|(_, step)| &step.region) else { continue };
        let mut first = packet(forward.family, None);
        super::clients::asked(&mut first, region);
        first.set(Field::Input, None);
        first.set(Field::Source, region.get(Field::Source).only());
        first.put(Field::Status, DST_NAT | DST_NAT_DONE);
        let hook = if forward.translation == Translation::Redirect { Hook::Input } else { Hook::Forward };
        first.set(Field::Destination, forward.target().map(number_of));
        let port = first.get(Field::Port).and_then(|port| u16::try_from(port).ok());
        first.set(Field::Port, port.and_then(|port| forward.to.port_for(port)).map(u128::from));
        if hook == Hook::Forward && forward.target().is_none_or(|target| target.is_loopback()) {
            continue;
        }
        let outcome = tracer.hook(&mut first, hook, &Which::Filter(i32::MIN..=i32::MAX));
        if let Verdict::Dropped(at, _) = outcome.verdict
            && tracer.drops_surely(&outcome)
        {
            let group = groups.entry((at, Confidence::Likely, true)).or_default();
            group.forwards.push(number);
            group.hook = Some(hook);
        }
    }
    groups
}

/// Interfaces whose packets a program or an ingress chain sees first.
fn unseen(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let (host, clients) = (context.host, Clients::new(context));
    let mut found = Vec::new();
    let gates = clients.gates.iter().enumerate();
    for (number, gate) in gates.filter(|(_, gate)| clients.simulator.is_seen_before(gate.number)) {
        let chains = ingress(host, &gate.link.name);
        let program = host.facts.iter().flat_map(|facts| &facts.programs).any(|name| *name == gate.link.name);
        let mut groups: BTreeMap<(Option<At>, Confidence), Vec<&Forward<'_>>> = BTreeMap::new();
        for forward in context.forwards() {
            let mut packets = forward
                .arriving()
                .filter(|(_, step)| !super::clients::is_loopback(&step.region, forward.family))
                .filter_map(|(_, step)| clients.packet(&step.region, forward.family, number, None));
            let Some(packet) = packets.next() else { continue };
            let outcomes = chains.iter().map(|(table, chain)| {
                clients.simulator.tracer.chain(&mut packet.clone(), Hook::Ingress, *table, *chain)
            });
            let (mut dropped, mut doubted) = (None, program.then_some(None));
            for outcome in outcomes {
                match outcome.verdict {
                    Verdict::Dropped(at, _) if clients.simulator.tracer.drops_surely(&outcome) => dropped = Some(at),
                    Verdict::Dropped(at, _) => doubted = Some(Some(at)),
                    _ => doubted = outcome.doubts.first().map(|at| Some(*at)).or(doubted),
                }
            }
            // At ingress, fewer properties of a packet are known than later.
            match (dropped, doubted) {
                (Some(at), _) => groups.entry((Some(at), Confidence::Likely)).or_default().push(forward),
                (None, Some(at)) => groups.entry((at, Confidence::Unknown)).or_default().push(forward),
                (None, None) => {}
            }
        }
        let link = printable(&gate.link.name);
        for ((at, confidence), forwards) in groups {
            let message = match (at, confidence) {
                (Some(at), Confidence::Likely) => {
                    let who = each(&forwards, "is dropped", "are dropped");
                    format!("{who} as {link} gets them, by {}", host.place(at))
                }
                (Some(at), _) => {
                    let who = each(&forwards, "is", "are");
                    format!("cannot prove that {who} not dropped as {link} gets them, by {}", host.place(at))
                }
                (None, _) => {
                    let who = each(&forwards, "is", "are");
                    format!("cannot prove that {who} not dropped by the program (XDP) of {link}")
                }
            };
            let finding = placed(at_all(kind.found(confidence, message), host, &forwards), host, at);
            let finding = if program { finding.seen(format!("{link} has an XDP program")) } else { finding };
            found.push(match confidence {
                Confidence::Unknown => finding.as_bad_as(Severity::Warning).mended_by(format!(
                    "look at what sees packets of {link} first: nft list ruleset netdev; ip link show dev {link}"
                )),
                _ => finding,
            });
        }
    }
    found
}

/// Returns the ingress chains of a device as indexes of table and chain.
fn ingress(host: &Host, device: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (table_at, table) in host.rules.tables.iter().enumerate().filter(|(_, table)| !table.dormant) {
        for (chain_at, chain) in table.chains.iter().enumerate() {
            let base = chain.base.as_ref().filter(|base| base.hook == Hook::Ingress);
            if base.is_some_and(|base| base.devices.iter().any(|name| name == device)) {
                found.push((table_at, chain_at));
            }
        }
    }
    found
}

/// Returns the firewall of a rule. If the rule's own chain has no known owner, a calling or called chain may have one.
pub(super) fn firewall(host: &Host, at: At) -> String {
    let owner = host.place(at).owner;
    let Some(table) = host.rules.tables.get(at.table).filter(|_| matches!(owner.as_str(), "user" | "unknown")) else {
        return owner;
    };
    // A firewall sets the policies of built-in chains if its own chains are in the same table.
    let beside = table.chains.iter().map(|chain| owner::of_chain(table, chain));
    beside.into_iter().find(|owner| matches!(*owner, "ufw" | "firewalld")).map_or(owner, str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::super::hosts::{DOCKER, docker, dump, facts, find, host, link, own, route};
    use super::*;

    /// The rules of Docker without the accept rule.
    fn closed(more: &str) -> String {
        DOCKER.replace("--dport 80 -j ACCEPT", "--dport 81 -j ACCEPT") + more
    }

    #[test]
    fn a_policy_that_drops_is_found() {
        let found = find(&host(&closed(""), facts()), "F13");
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(
            one.message,
            "`8080/tcp -> 172.17.0.2:80` is dropped, by whatever interface clients come (eth0), at hook forward by \
             ip filter FORWARD policy (user)"
        );
        assert_eq!((one.severity, one.confidence), (Severity::Error, Confidence::Proved));
        assert_eq!(
            one.fix,
            "iptables -t filter -I FORWARD -d 172.17.0.2 -p tcp --dport 80 -m conntrack --ctstate DNAT -j ACCEPT"
        );
        assert_eq!(one.places.len(), 2);
    }

    #[test]
    fn what_is_accepted_is_fine() {
        assert!(find(&docker(""), "F13").is_empty() && find(&docker(""), "F36").is_empty());
        // The rule matches the port before the rewrite.
        let more = "*mangle\n:FORWARD ACCEPT\n-A FORWARD -m conntrack --ctorigdstport 8081 -j DROP\nCOMMIT\n";
        assert!(find(&docker(more), "F13").is_empty());
        assert_eq!(find(&docker(&more.replace("8081", "8080")), "F13").len(), 1);
    }

    #[test]
    fn what_is_not_understood_makes_it_unknown() {
        let rules = closed("").replace("-A FORWARD -o docker0 -j DOCKER", "-A FORWARD -m tomorrow -j ACCEPT");
        let found = find(&host(&rules, facts()), "F13");
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((one.severity, one.confidence), (Severity::Warning, Confidence::Unknown));
        // Another possible drop does not change the result.
        let rules = closed("").replace("-A FORWARD -o docker0 -j DOCKER", "-A FORWARD -m tomorrow -j DROP");
        assert_eq!(find(&host(&rules, facts()), "F13")[0].confidence, Confidence::Proved);
    }

    #[test]
    fn a_dump_tells_only_what_no_interface_decides() {
        assert!(find(&dump(&closed("")), "F13").is_empty(), "an interface decides");
        let rules = "*nat\n:PREROUTING ACCEPT\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2\nCOMMIT\n\
                     *filter\n:FORWARD DROP\nCOMMIT\n";
        let found = find(&dump(rules), "F13");
        assert_eq!(found.iter().map(|one| one.confidence).collect::<Vec<_>>(), [Confidence::Likely]);
    }

    #[test]
    fn one_uplink_of_two_is_a_warning() {
        let mut two = facts();
        two.links.push(link(4, "eth1", None));
        two.addresses.push((4, "198.51.100.1/24".parse().expect("a network")));
        two.routes.push(own("198.51.100.1/32", 4));
        two.routes.push(route("0.0.0.0/0", 4, Some("198.51.100.254")));
        let raw = "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -i eth1 -p tcp --dport 8080 -j DROP\nCOMMIT\n";
        let some = host(&format!("{}{raw}", DOCKER), two);
        let found = find(&some, "F36");
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert!(one.message.contains("for clients by eth1 before NAT by ip raw PREROUTING line"), "{}", one.message);
        assert_eq!((one.severity, one.confidence), (Severity::Warning, Confidence::Proved));
        assert!(find(&some, "F13").is_empty());
    }

    #[test]
    fn many_of_one_cause_are_one() {
        let more: String = (0..9)
            .map(|port| format!("-A PREROUTING -p tcp --dport 90{port} -j DNAT --to-destination 172.17.0.9:{port}1\n"))
            .collect();
        let rules = closed("").replace("-A POSTROUTING", &format!("{more}-A POSTROUTING"));
        let found = find(&host(&rules, facts()), "F13");
        assert_eq!(found.len(), 1);
        assert!(
            found[0].message.starts_with("10 forwards (`8080/tcp") || found[0].message.starts_with("10 forwards (`900")
        );
    }

    #[test]
    fn raw_drops_and_programs_are_told_apart() {
        let raw = "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -p tcp --dport 8080 -j DROP\nCOMMIT\n";
        let found = find(&docker(raw), "F36");
        assert_eq!(
            found.iter().map(|one| (one.severity, one.confidence)).collect::<Vec<_>>(),
            [(Severity::Error, Confidence::Proved)]
        );
        let mut seen = facts();
        seen.programs.push("eth0".into());
        let found = find(&host(DOCKER, seen), "F36");
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(one.confidence, Confidence::Unknown);
        assert!(one.message.starts_with("cannot prove that `8080/tcp -> 172.17.0.2:80` is not dropped by the program"));
    }

    #[test]
    fn an_ingress_chain_is_asked() {
        use crate::ruleset::region::Region;
        use crate::ruleset::set::Set;
        use crate::ruleset::table::{Action, Base, Case, Kind as ChainKind, Rule, Table, TableFamily, Tool};
        for (port, count) in [(8080, 1), (8081, 0)] {
            let mut rules = docker("").rules;
            let mut table = Table::new(TableFamily::Netdev, "guard", Tool::Nft);
            let chain = table.chains.entry("in");
            let devices = vec!["eth0".to_owned()];
            chain.base =
                Some(Base { kind: ChainKind::Filter, hook: Hook::Ingress, priority: 0, drops: false, devices });
            let region = Region::all().with(Field::Port, &Set::single(port));
            let cases = vec![Case { region, actions: [Action::Drop].into() }];
            chain.rules.push(Rule { cases, handle: Some(3), ..Rule::default() });
            rules.tables.push(table);
            let found = find(&Host::new(rules, Some(facts())), "F36");
            assert_eq!(found.len(), count, "{found:?}");
            assert!(found.iter().all(|one| one.confidence == Confidence::Likely));
        }
    }
}
