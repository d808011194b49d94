//! F14 and F19: forwards that pass only because of another program's rule, and forwards that bypass the host's firewall.

use std::collections::{BTreeMap, HashMap};

use super::super::context::Context;
use super::super::wording::{at_all, each, placed, rule};
use super::clients::DropAnalysis;
use super::dropped::firewall;
use super::suggest_accept::suggest_accept;
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::host::Host;
use crate::ruleset::region::{Condition, DST_NAT, Field, Packet, Region};
use crate::ruleset::simulate::chains::{Verdict, Which};
use crate::ruleset::simulate::{End, PacketTrace, Part, packet_in_words};
use crate::ruleset::table::{At, Hook};

pub(super) const BLANKET: Kind = Kind {
    id: "F14",
    title: "only another tool's blanket accept lets the forward through",
    severity: Severity::Warning,
    what: "The chain that filters would drop the forward's packets, were it not for a rule of another tool that accepts \
           everything whose destination was rewritten (`ct status dnat accept`).",
    why: "When that tool is stopped, reloaded with other settings or replaced, the forward stops working, and nothing of \
          the forward itself has changed. The same rule lets every other forward through, wanted or not.",
    fix: "Give the forward a rule of its own that accepts it.",
};

pub(super) const BYPASS: Kind = Kind {
    id: "F19",
    title: "the forward goes past the firewall of the host",
    severity: Severity::Error,
    what: "The rules for packets to this host would drop the forward's port, but its packets are rewritten before, and \
           then they are no longer for this host: they meet hook forward and never hook input.",
    why: "Who has closed a port with ufw, firewalld or rules of hook input believes that it is closed. It is open.",
    fix: "Restrict the forward itself: by its address or sources, or by a rule at hook forward that asks for the original port.",
};

/// All chains of a hook except NAT chains.
fn all() -> Which {
    Which::Filter(i32::MIN..=i32::MAX)
}

/// Forwards that pass only because of one blanket accept. The key is the accepting rule, the rule that would otherwise drop,
/// and the confidence.
#[derive(Default)]
pub(super) struct Blankets {
    groups: BTreeMap<(At, At, Confidence), Vec<usize>>,
    /// True if the rules accept all forwarded packets.
    known: HashMap<At, bool>,
}

impl Blankets {
    /// Adds the results of a forward's clients on one interface.
    pub fn add(
        &mut self,
        context: &Context<'_>,
        number: usize,
        forward: &Forward<'_>,
        drop_analysis: &DropAnalysis<'_>,
    ) {
        let (host, tracer) = (context.host, &context.simulator.tracer);
        let Some((_, trace)) = drop_analysis.passed.first() else { return };
        let hook = if trace.end == End::Arrives { Hook::Input } else { Hook::Forward };
        let Some(outcome) = trace.at(hook, Part::Filter) else { return };
        for at in &outcome.accepted {
            let is_blanket = *self.known.entry(*at).or_insert_with(|| is_blanket(host, *at));
            if !is_blanket || is_same_owner(host, *at, forward.at) {
                continue;
            }
            let without = tracer.without(&mut at_hook(trace), hook, &all(), *at);
            if let Verdict::Dropped(dropped, _) = without.verdict {
                let sure = tracer.drops_surely(&without);
                let confidence = if sure { trace.confidence() } else { Confidence::Unknown };
                self.groups.entry((*at, dropped, confidence)).or_default().push(number);
            }
        }
    }
}

/// Finds F14. Returns nothing without facts, because the accepting rule depends on interfaces.
pub(super) fn blanket(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let finding = |(&(accepts, drops, confidence), numbers): (&(At, At, Confidence), &Vec<usize>)| {
        let forwards = context.numbered(numbers);
        let who = each(&forwards, "comes", "come");
        let place = host.place(accepts);
        let message = format!(
            "{who} through only because {} accepts all that was forwarded; {} would drop it otherwise",
            place,
            host.place(drops)
        );
        let found = placed(at_all(kind.found(confidence, message), host, &forwards), host, [accepts, drops]);
        let first = forwards.first();
        found.mended_by(first.map_or_else(String::new, |forward| {
            suggest_accept(host, drops, &firewall(host, drops), Hook::Forward, forward)
        }))
    };
    context.surveys().blankets.groups.iter().map(finding).collect()
}

/// Returns the packet as the filters after routing see it: with the new destination and the original source.
fn at_hook(trace: &PacketTrace<'_>) -> Packet {
    let mut packet = trace.packet.clone();
    for field in [Field::Source, Field::SourcePort, Field::SourceKind] {
        packet.set(field, trace.start.get(field));
    }
    packet
}

/// Returns true if a rule accepts all forwarded packets without other conditions.
fn is_blanket(host: &Host, at: At) -> bool {
    let case = host.rules.at(at).and_then(|(_, _, rule)| rule.cases.get(at.case));
    case.is_some_and(|case| asks_only_for_dnat(&case.region))
}

fn asks_only_for_dnat(region: &Region) -> bool {
    let open =
        |field: &Field| matches!(field, Field::State | Field::Direction | Field::Status) || region.get(*field).is_all();
    let of_status = |condition: &Condition| matches!(condition, Condition::Bits { field: Field::Status, mask, .. } if mask & DST_NAT != 0);
    let asked = !region.conditions().is_empty() || !region.get(Field::Status).is_all();
    asked && Field::ALL.iter().all(open) && region.conditions().iter().all(of_status)
}

/// Returns true if two rules have the same owner. The owner `user` may write rules for all forwards.
fn is_same_owner(host: &Host, accepts: At, forward: At) -> bool {
    let owner = host.place(accepts).owner;
    matches!(owner.as_str(), "user" | "unknown") || owner == host.place(forward).owner
}

/// Forwards that bypass a firewall. The key is the rule that would drop them, the severity and the confidence.
#[derive(Default)]
pub(super) struct Bypasses {
    groups: BTreeMap<(At, Severity, Confidence), (Vec<usize>, String)>,
    /// Whose rules those are.
    owners: HashMap<At, String>,
}

impl Bypasses {
    /// Adds the results of a forward's clients, with the forward and without it.
    pub fn add(
        &mut self,
        context: &Context<'_>,
        number: usize,
        forward: &Forward<'_>,
        drop_analysis: &DropAnalysis<'_>,
    ) {
        let (host, tracer) = (context.host, &context.simulator.tracer);
        for (_, trace) in &drop_analysis.passed {
            if !matches!(trace.end, End::Leaves(..))
                || context.simulator.is_local(forward.family, destination(trace)) != Some(true)
            {
                continue;
            }
            let mut packet = trace.start.clone();
            packet.put(Field::Output, 0);
            let outcome = tracer.hook(&mut packet, Hook::Input, &all());
            let Verdict::Dropped(at, _) = outcome.verdict else { continue };
            let owner = self.owners.entry(at).or_insert_with(|| firewall(host, at));
            let Some(severity) = severity(host, at, owner, &host.place(forward.at).owner) else { continue };
            let sure = tracer.drops_surely(&outcome);
            let confidence = if sure { trace.confidence() } else { Confidence::Unknown };
            let accepted = trace.at(Hook::Forward, Part::Filter).and_then(|outcome| outcome.accepted.last().copied());
            // Docker accepts each forward with a rule of its own. The finding shows one of these rules.
            let (group, sample) = self.groups.entry((at, severity, confidence)).or_default();
            if group.is_empty() {
                let by = accepted.map_or_else(
                    || "no rule of hook forward drops it".to_owned(),
                    |at| format!("accepted at hook forward by {}: {}", host.place(at), rule(host, at)),
                );
                *sample = format!("{}: {by}", packet_in_words(&trace.start));
            }
            group.push(number);
            break;
        }
    }
}

/// Finds F19.
///
/// The severity is error if ufw, firewalld or a rule for the same port would drop the packets. It is warning for a policy or
/// a general rule of another owner. A firewall's own forwards are intended. So are forwards and filters that a user wrote by
/// hand, unless the filter names the port. The confidence is unknown if a rule on the path is not understood. Returns
/// nothing without facts, because the packets at hook input are unknown.
pub(super) fn bypass(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let (host, bypasses) = (context.host, &context.surveys().bypasses);
    type Group<'b> = (&'b (At, Severity, Confidence), &'b (Vec<usize>, String));
    let finding = |(&(at, severity, confidence), (numbers, sample)): Group<'_>| {
        let forwards = context.numbered(numbers);
        let owner = bypasses.owners.get(&at).map_or("unknown", String::as_str);
        let named = if matches!(owner, "user" | "unknown") { String::new() } else { format!(" of {owner}") };
        let message = format!(
            "{} past the firewall{named}: {} would drop it at hook input",
            each(&forwards, "goes", "go"),
            host.place(at)
        );
        let found = placed(at_all(kind.found(confidence, message).as_bad_as(severity), host, &forwards), host, [at]);
        let found = match confidence {
            Confidence::Unknown => found.seen(sample).seen("a rule that is not understood may decide otherwise"),
            _ => found.seen(sample),
        };
        found.mended_by(restriction(host, forwards.first().copied()))
    };
    bypasses.groups.iter().map(finding).collect()
}

fn destination(trace: &PacketTrace<'_>) -> u128 {
    trace.start.get(Field::Destination).unwrap_or_default()
}

/// Returns the severity for a forward that bypasses this rule. Returns `None` if the bypass is intended.
fn severity(host: &Host, drops: At, firewall: &str, forwarder: &str) -> Option<Severity> {
    let case = host.rules.at(drops).and_then(|(_, _, rule)| rule.cases.get(drops.case));
    let names_port = case.is_some_and(|case| case.region.get(Field::Port).size() <= 1024);
    let by_hand = |owner: &str| matches!(owner, "user" | "unknown");
    match (firewall == forwarder || by_hand(firewall) && by_hand(forwarder), names_port, firewall) {
        (_, true, _) => Some(Severity::Error),
        (true, false, _) => None,
        (false, false, "ufw" | "firewalld") => Some(Severity::Error),
        (false, false, _) => Some(Severity::Warning),
    }
}

/// Returns the text that explains how to close the forward to clients that the firewall blocks.
fn restriction(host: &Host, forward: Option<&Forward<'_>>) -> String {
    let Some(forward) = forward else { return String::new() };
    let port = forward.first_port().map_or_else(|| "PORT".to_owned(), |port| port.to_string());
    match host.place(forward.at).owner.as_str() {
        "docker" => format!(
            "publish it at one address only (127.0.0.1:{port}:…), or: iptables -I DOCKER-USER -p tcp -m conntrack \
             --ctorigdstport {port} --ctdir ORIGINAL ! -s ALLOWED -j DROP"
        ),
        "portfwd" => "restrict it with `from` or `interface` in its rule file, then portfwd apply".into(),
        _ => format!("accept only who may at hook forward: … ct original proto-dst {port} ip saddr != ALLOWED drop"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::hosts::{DOCKER, docker, dump, facts, find, host};
    use super::*;
    use crate::ruleset::reject::Rejection;
    use crate::ruleset::table::{Action, Base, Case, Kind as ChainKind, Rule, Ruleset, Table, TableFamily, Tool};

    /// A firewalld table that accepts forwarded packets and drops all others.
    fn firewalld(mut rules: Ruleset, name: &str, asks: &[Condition]) -> Ruleset {
        let mut table = Table::new(TableFamily::Inet, name, Tool::Nft);
        let chain = table.chains.entry("filter_FORWARD");
        let hook = Hook::Forward;
        chain.base = Some(Base { kind: ChainKind::Filter, hook, priority: 10, drops: false, devices: Vec::new() });
        let mut region = Region::all();
        asks.iter().for_each(|condition| region.add_condition(condition.clone()));
        for (region, action) in [(region, Action::Accept), (Region::all(), Action::Reject(Rejection::TcpReset))] {
            chain.rules.push(Rule { cases: vec![Case { region, actions: [action].into() }], ..Rule::default() });
        }
        rules.tables.push(table);
        rules
    }

    fn dnat() -> Condition {
        Condition::Bits { field: Field::Status, mask: DST_NAT, value: 0, not: true }
    }

    #[test]
    fn leave_of_another_tool_is_found() {
        let rules = || docker("").rules;
        let some = Host::new(firewalld(rules(), "firewalld", &[dnat()]), Some(facts()));
        let found = find(&some, "F14");
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert!(one.message.starts_with(
            "`8080/tcp -> 172.17.0.2:80` comes through only because inet firewalld filter_FORWARD rule 1 (firewalld)"
        ));
        assert_eq!(one.confidence, Confidence::Proved);
        // A bypass between rules of the user is intended.
        let by_hand = Host::new(firewalld(rules(), "mine", &[dnat()]), Some(facts()));
        assert!(find(&by_hand, "F14").is_empty());
        let unknown = Condition::Unknown("tomorrow".into());
        let unknown = Host::new(firewalld(rules(), "firewalld", &[dnat(), unknown]), Some(facts()));
        assert!(find(&unknown, "F14").is_empty(), "then it is F13 that says what is not known");
        assert_eq!(find(&unknown, "F13")[0].confidence, Confidence::Unknown);
    }

    const UFW: &str = "*filter\n:INPUT DROP\n:ufw-user-input -\n-A INPUT -j ufw-user-input\n\
                       -A ufw-user-input -p tcp --dport 22 -j ACCEPT\nCOMMIT\n";

    #[test]
    fn ports_that_ufw_closes_are_open() {
        let some = docker(UFW);
        let found = find(&some, "F19");
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(
            one.message,
            "`8080/tcp -> 172.17.0.2:80` goes past the firewall of ufw: ip filter INPUT policy (user) would drop it at hook input"
        );
        assert_eq!((one.severity, one.confidence), (Severity::Error, Confidence::Proved));
        assert!(one.evidence.iter().any(|line| line.contains("accepted at hook forward by ip filter DOCKER")));
        let open = UFW.replace("--dport 22", "--dport 8080");
        assert!(find(&docker(&open), "F19").is_empty());
        let unknown = UFW.replace("-p tcp --dport 22", "-m tomorrow");
        assert_eq!(find(&docker(&unknown), "F19")[0].confidence, Confidence::Unknown);
        let dump = dump(&format!("{DOCKER}{UFW}"));
        assert!(find(&dump, "F19").is_empty());
    }

    #[test]
    fn who_writes_both_by_hand_means_it() {
        let nat =
            "*nat\n:PREROUTING ACCEPT\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2\nCOMMIT\n";
        let policy = "*filter\n:INPUT DROP\nCOMMIT\n";
        let rule = "*filter\n:INPUT ACCEPT\n-A INPUT -p tcp --dport 80 -j DROP\nCOMMIT\n";
        for (filter, count) in [(policy, 0), (rule, 1)] {
            let found = find(&host(&format!("{nat}{filter}"), facts()), "F19");
            assert_eq!(found.len(), count, "{found:?}");
        }
        assert_eq!(find(&docker(policy), "F19")[0].severity, Severity::Warning, "Docker's is of somebody else");
    }
}
