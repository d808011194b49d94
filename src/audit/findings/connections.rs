//! Tracked connections that new rules would translate differently.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Check;
use super::context::Context;
use super::wording::{APART, FEW, list, name, rule};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::{Family, Protocol};
use crate::ruleset::confidence::Confidence;
use crate::ruleset::describe;
use crate::ruleset::facts::{NextHop, Tracked};
use crate::ruleset::host::Host;
use crate::ruleset::region::{self, DST_NAT, Field, LOCAL, Packet};
use crate::ruleset::set::{Set, number_of, number_of_name};
use crate::ruleset::simulate::chains::Outcome;
use crate::ruleset::table::{At, Hook, Rewrite};
use crate::ruleset::view::Translation;

/// `IPS_EXPECTED` and `IPS_DYING` in include/uapi/linux/netfilter/nf_conntrack_common.h. A helper translated an expected
/// connection, and a dying entry disappears soon.
const NOT_OF_RULES: u32 = 1 | 1 << 9;

/// `IPS_SEEN_REPLY` in the same header.
const ANSWERED: u32 = 1 << 1;

/// The maximum number of commands in one finding.
const COMMANDS: usize = 4;

pub(super) const CHECKS: &[Check] = &[Check {
    kind: Kind {
        id: "F38",
        title: "old connections keep their old target",
        severity: Severity::Error,
        what: "The rules would translate a tracked connection differently if it started now. The connection goes to an old target, started before its forward existed, or belongs to a deleted forward.",
        why: "The kernel translates all packets of a connection like the first one. A client that keeps its port, as UDP clients do, reaches the old target or gets no answer until it stops sending.",
        fix: "conntrack -D …",
    },
    find: stale,
}];

/// The fault of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wrong {
    /// The connection goes to another target.
    Elsewhere,
    /// The connection is not translated. `answered` is true if conntrack saw a reply.
    Past { answered: bool },
    /// No rule translates such a connection any more.
    Gone,
}

/// The forward of the connections, the fault, and for a deleted forward the address that clients use.
type Cause = (Option<(Family, At)>, Wrong, Option<(IpAddr, u16)>);

#[derive(Default)]
struct Group<'a> {
    count: usize,
    is_sure: bool,
    examples: Vec<&'a Tracked>,
    commands: BTreeSet<String>,
}

/// F38. conntrack does not store the ingress interface, so portfwd infers it from the routes. The confidence is likely if the
/// result depends on it. Returns nothing if a rule on the path is not understood, and without facts.
fn stale(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = context.facts() else { return Vec::new() };
    let all = context.forwards();
    let taken = |family| {
        let of_family = all.iter().filter(move |forward| forward.family == family);
        let regions = of_family.filter_map(|forward| forward.region());
        Set::from_ranges(regions.flat_map(|region| region.get(Field::Port).ranges().to_vec()))
    };
    let (four, six) = (taken(Family::Ipv4), taken(Family::Ipv6));
    let mut groups: BTreeMap<Cause, Group<'_>> = BTreeMap::new();
    for entry in &facts.tracked {
        let family = Family::of_address(entry.listen.0);
        let is_translated = u128::from(entry.status) & DST_NAT != 0;
        let ports = if family == Family::Ipv4 { &four } else { &six };
        // Most connections belong to no forward.
        if entry.status & NOT_OF_RULES != 0
            || Protocol::from_number(entry.protocol).is_none()
            || (!is_translated && !ports.has(entry.listen.1.into()))
        {
            continue;
        }
        let Some((packet, hook)) = first_packet(context, entry) else { continue };
        let outcome = context.translated(&packet, hook);
        if !outcome.is_sure() {
            continue;
        }
        let Some((wrong, at)) = judged(context, entry, &outcome) else { continue };
        let mut blind = packet.clone();
        if hook == Hook::Prerouting {
            blind.set(Field::Input, None);
        }
        let again = context.translated(&blind, hook);
        let is_sure = again.is_sure() && again.rewritten == outcome.rewritten;
        let by = at.map(|at| (family, at));
        let group = groups
            .entry((by, wrong, at.is_none().then_some(entry.listen)))
            .or_insert_with(|| Group { is_sure: true, ..Group::default() });
        group.count += 1;
        group.is_sure &= is_sure;
        if group.examples.len() < FEW {
            group.examples.push(entry);
        }
        if group.commands.len() < COMMANDS {
            group.commands.insert(command(entry));
        }
    }
    let by_place: BTreeMap<(Family, At), &Forward<'_>> =
        context.rules().iter().map(|forward| ((forward.family, forward.at), forward)).collect();
    let mut gone = Vec::new();
    let mut found = Vec::new();
    for ((by, wrong, listen), group) in groups {
        match by {
            Some(by) => found.extend(by_place.get(&by).map(|forward| of_forward(host, kind, forward, wrong, &group))),
            None => gone.push((listen, group)),
        }
    }
    if gone.len() <= APART {
        found.extend(gone.chunks(1).map(|some| of_none(kind, some)));
    } else {
        found.push(of_none(kind, &gone));
    }
    found
}

/// Returns the first packet of a connection and its first hook. The ingress interface is the egress interface of the answers.
fn first_packet(context: &Context<'_>, entry: &Tracked) -> Option<(Packet, Hook)> {
    let family = Family::of_address(entry.listen.0);
    let kind = |address: IpAddr| {
        let local = context.local(family).is_some_and(|local| local.has(number_of(address)));
        match (local || address.is_loopback(), address.is_multicast()) {
            (true, _) => LOCAL,
            (false, true) => 5,
            (false, false) => 1,
        }
    };
    let own = kind(entry.client.0) == LOCAL;
    let mut packet = region::packet(family, None)
        .with(Field::Source, number_of(entry.client.0))
        .with(Field::SourceKind, kind(entry.client.0))
        .with(Field::SourcePort, entry.client.1.into())
        .with(Field::Destination, number_of(entry.listen.0))
        .with(Field::OriginalDestination, number_of(entry.listen.0))
        .with(Field::DestinationKind, kind(entry.listen.0))
        .with(Field::Port, entry.listen.1.into())
        .with(Field::OriginalPort, entry.listen.1.into())
        .with(Field::Protocol, entry.protocol.into());
    if own {
        return Some((packet, Hook::Output));
    }
    let NextHop::Via(link, _) = context.next_hop(entry.client.0)? else { return None };
    packet.put(Field::Input, number_of_name(link.name.as_bytes(), 0));
    packet.put(Field::Output, 0);
    Some((packet, Hook::Prerouting))
}

/// Returns the fault of a connection and the forward, given what the rules do with its first packet now.
fn judged(context: &Context<'_>, entry: &Tracked, outcome: &Outcome) -> Option<(Wrong, Option<At>)> {
    let is_translated = u128::from(entry.status) & DST_NAT != 0;
    let answered = entry.status & ANSWERED != 0;
    match &outcome.rewritten {
        Some((translation, to, at)) => {
            let right = is_right(context, entry, *translation, to)?;
            let wrong = if is_translated { Wrong::Elsewhere } else { Wrong::Past { answered } };
            (!right).then_some((wrong, Some(*at)))
        }
        None => is_translated.then_some((Wrong::Gone, None)),
    }
}

/// Returns true if a connection goes to the target of a rule. Returns `None` if this is unknown.
fn is_right(context: &Context<'_>, entry: &Tracked, translation: Translation, to: &Rewrite) -> Option<bool> {
    let (address, port) = entry.target;
    let is_there = match (translation, to.addresses, to.prefix) {
        (Translation::Redirect, ..) => context.is_local(address)?,
        (_, None, _) => address == entry.listen.0,
        (_, Some((first, last)), _) => (first..=last).contains(&address),
    };
    let is_right_port = match (to.ports, to.base) {
        (None, _) => port == entry.listen.1,
        (Some((first, last)), None) => (first..=last).contains(&port),
        (Some(_), Some(_)) => to.port_for(entry.listen.1) == Some(port),
    };
    Some(is_there && is_right_port)
}

/// Returns the command that deletes the connections to the old target, and no others.
fn command(entry: &Tracked) -> String {
    let family = if entry.listen.0.is_ipv4() { "ipv4" } else { "ipv6" };
    let ((listen, port), (target, _)) = (entry.listen, entry.target);
    let protocol = describe::protocol(entry.protocol.into());
    format!("conntrack -D -f {family} -p {protocol} --orig-dst {listen} --orig-port-dst {port} --reply-src {target}")
}

fn shown(entry: &Tracked) -> String {
    let protocol = describe::protocol(entry.protocol.into());
    let at = |(address, port): (IpAddr, u16)| std::net::SocketAddr::new(address, port);
    let (client, listen, target) = (at(entry.client), at(entry.listen), at(entry.target));
    format!("{protocol} {client} to {listen} goes to {target}, status {:#x}", entry.status)
}

fn with_examples(mut finding: Finding, groups: &[&Group<'_>]) -> Finding {
    for entry in groups.iter().flat_map(|group| &group.examples).take(FEW) {
        finding = finding.seen(shown(entry));
    }
    let commands: BTreeSet<&String> = groups.iter().flat_map(|group| &group.commands).collect();
    let commands: Vec<&str> = commands.into_iter().take(COMMANDS).map(String::as_str).collect();
    finding.mended_by(commands.join("; "))
}

fn of_forward(host: &Host, kind: &'static Kind, forward: &Forward<'_>, wrong: Wrong, group: &Group<'_>) -> Finding {
    let connections = counted(group.count);
    let name = name(forward);
    let message = match wrong {
        Wrong::Past { answered: true } => format!("{connections} of {name} started before the forward and bypass it"),
        Wrong::Past { answered: false } => {
            format!("{connections} of {name} bypass the forward, and get no answer")
        }
        Wrong::Elsewhere | Wrong::Gone => format!("{connections} of {name} go to another target"),
    };
    let confidence = if group.is_sure { Confidence::Proved } else { Confidence::Likely };
    let finding = kind.found(confidence, message).at(host.place(forward.at)).seen(rule(host, forward.at));
    let finding = with_examples(finding, &[group]);
    // The old target still answers.
    if wrong == (Wrong::Past { answered: true }) { finding.as_bad_as(Severity::Warning) } else { finding }
}

fn of_none(kind: &'static Kind, gone: &[(Option<(IpAddr, u16)>, Group<'_>)]) -> Finding {
    let count = gone.iter().map(|(_, group)| group.count).sum();
    let listens = gone
        .iter()
        .filter_map(|(listen, _)| *listen)
        .map(|(address, port)| std::net::SocketAddr::new(address, port).to_string());
    let listens: Vec<String> = listens.collect();
    let message = format!(
        "{} to {} {} translated by a forward that does not exist any more",
        counted(count),
        list(listens.into_iter()),
        if count == 1 { "is" } else { "are" }
    );
    let is_sure = gone.iter().all(|(_, group)| group.is_sure);
    let confidence = if is_sure { Confidence::Proved } else { Confidence::Likely };
    let groups: Vec<&Group<'_>> = gone.iter().map(|(_, group)| group).collect();
    with_examples(kind.found(confidence, message).as_bad_as(Severity::Warning), &groups)
}

fn counted(count: usize) -> String {
    if count == 1 { "1 connection".to_owned() } else { format!("{count} connections") }
}

#[cfg(test)]
mod tests {
    use super::super::hosts::{DOCKER_NAT, address, dual, dump, find, host, nat, table};
    use super::*;
    use crate::ruleset::facts::Facts;

    fn entry(listen: &str, port: u16, target: (&str, u16), status: u32) -> Tracked {
        Tracked {
            protocol: 6,
            client: (address("198.51.100.5"), 50_000),
            listen: (address(listen), port),
            target: (address(target.0), target.1),
            status,
        }
    }

    fn stale(text: &str, tracked: Vec<Tracked>) -> Vec<Finding> {
        find(&host(text, Facts { tracked, ..dual() }), "F38")
    }

    /// `IPS_SEEN_REPLY`, `IPS_CONFIRMED` and `IPS_DST_NAT`.
    const DNAT: u32 = 0x2 | 0x8 | 0x20;

    #[test]
    fn connections_to_the_old_target_are_counted() {
        let old = |port| Tracked {
            client: (address("198.51.100.5"), port),
            ..entry("192.0.2.1", 8080, ("172.17.0.9", 80), DNAT)
        };
        let right = entry("192.0.2.1", 8080, ("172.17.0.2", 80), DNAT);
        let found = stale(&nat(DOCKER_NAT), vec![old(1), right.clone(), old(2)]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].message, "2 connections of `8080/tcp -> 172.17.0.2:80` go to another target");
        assert_eq!(
            found[0].fix,
            "conntrack -D -f ipv4 -p tcp --orig-dst 192.0.2.1 --orig-port-dst 8080 --reply-src 172.17.0.9"
        );
        assert_eq!(
            (found[0].severity, found[0].confidence),
            (Severity::Error, Confidence::Likely),
            "the rule excludes docker0"
        );
        assert!(stale(&nat(DOCKER_NAT), vec![right]).is_empty());
        let by_all = nat("-A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80");
        assert_eq!(stale(&by_all, vec![old(1)])[0].confidence, Confidence::Proved);
        let drops = "-A PREROUTING -m rpfilter --invert -j DROP";
        let filtered = format!("{by_all}{}", table("raw", &["PREROUTING"], drops));
        assert_eq!(
            stale(&filtered, vec![old(1)])[0].confidence,
            Confidence::Proved,
            "the rule did not drop the connection"
        );
        let marks = filtered.replace("-j DROP", "-j NOTRACK");
        assert!(stale(&marks, vec![old(1)]).is_empty());
        assert!(find(&dump(&nat(DOCKER_NAT)), "F38").is_empty());
    }

    #[test]
    fn connections_that_bypass_a_forward_are_distinguished() {
        let past = |status| stale(&nat(DOCKER_NAT), vec![entry("192.0.2.1", 8080, ("192.0.2.1", 8080), status)]);
        assert!(past(0)[0].message.ends_with("bypass the forward, and get no answer"), "{}", past(0)[0].message);
        assert_eq!((past(0)[0].severity, past(2)[0].severity), (Severity::Error, Severity::Warning));
        let other = entry("192.0.2.1", 22, ("192.0.2.1", 22), 2);
        let passing = entry("203.0.113.80", 8080, ("203.0.113.80", 8080), 2);
        assert!(stale(&nat(DOCKER_NAT), vec![other, passing]).is_empty());
    }

    #[test]
    fn connections_of_a_deleted_forward_are_found() {
        let of_old = entry("192.0.2.1", 9000, ("172.17.0.9", 80), DNAT);
        let found = stale(&nat(DOCKER_NAT), vec![of_old.clone()]);
        assert_eq!(
            found[0].message,
            "1 connection to 192.0.2.1:9000 is translated by a forward that does not exist any more"
        );
        assert_eq!((found[0].severity, found[0].confidence), (Severity::Warning, Confidence::Likely));
        assert_eq!(stale(&nat(""), vec![of_old.clone()])[0].confidence, Confidence::Proved, "no rule matches docker0");
        assert!(stale(&nat(DOCKER_NAT), vec![Tracked { status: DNAT | 1, ..of_old.clone() }]).is_empty(), "a helper's");
        let unclear = nat(&format!("-A PREROUTING -m tomorrow -j DNAT --to-destination 172.17.0.9:80\n{DOCKER_NAT}"));
        assert!(stale(&unclear, vec![of_old]).is_empty(), "the rule may match the connection");
    }

    #[test]
    fn connections_of_this_host_are_compared_at_output() {
        let own =
            |target| Tracked { client: (address("192.0.2.1"), 50_000), ..entry("192.0.2.1", 8080, (target, 80), DNAT) };
        assert!(stale(&nat(DOCKER_NAT), vec![own("172.17.0.2")]).is_empty());
        let found = stale(&nat(DOCKER_NAT), vec![own("172.17.0.9")]);
        assert_eq!(found[0].confidence, Confidence::Proved);
    }

    #[test]
    fn ports_and_redirects_are_compared() {
        let range = nat("-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2-172.17.0.4:80-90");
        assert!(stale(&range, vec![entry("192.0.2.1", 80, ("172.17.0.3", 85), DNAT)]).is_empty());
        assert_eq!(stale(&range, vec![entry("192.0.2.1", 80, ("172.17.0.3", 91), DNAT)]).len(), 1);
        let shifted = nat("-A PREROUTING -p tcp -m tcp --dport 80:90 -j DNAT --to-destination 172.17.0.2:8080-8090/80");
        for (port, count) in [(8085, 0), (8086, 1), (8091, 1)] {
            assert_eq!(stale(&shifted, vec![entry("192.0.2.1", 85, ("172.17.0.2", port), DNAT)]).len(), count);
        }
        let redirect = nat("-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 3128");
        assert!(stale(&redirect, vec![entry("192.0.2.1", 80, ("192.0.2.1", 3128), DNAT)]).is_empty());
        assert_eq!(stale(&redirect, vec![entry("192.0.2.1", 80, ("172.17.0.3", 3128), DNAT)]).len(), 1);
    }
}
