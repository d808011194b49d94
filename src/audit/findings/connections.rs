//! Connections that are followed, and that the rules would lead elsewhere by now.

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

/// `IPS_EXPECTED` and `IPS_DYING` in include/uapi/linux/netfilter/nf_conntrack_common.h: made for another one, whose helper
/// rewrote it, and as good as gone.
const NOT_OF_RULES: u32 = 1 | 1 << 9;

/// `IPS_SEEN_REPLY` there.
const ANSWERED: u32 = 1 << 1;

/// The most commands of one finding.
const COMMANDS: usize = 4;

pub(super) const CHECKS: &[Check] = &[Check {
    kind: Kind {
        id: "F38",
        title: "old connections go elsewhere",
        severity: Severity::Error,
        what: "Connections are followed that the rules would lead elsewhere if they began now: to the target of before, or past a forward that was made since, or by one that is gone.",
        why: "Addresses are translated as was decided for the first packet. A client that keeps its port, as those of UDP do, goes on to the old target, or gets no answer, for as long as it keeps sending.",
        fix: "conntrack -D …",
    },
    find: stale,
}];

/// What is wrong with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wrong {
    /// It goes to another target.
    Elsewhere,
    /// It is not translated, and there was an answer, or none.
    Past { answered: bool },
    /// Nothing translates it any more.
    Gone,
}

/// The forward that they are for, if any is, what is wrong, and without a forward where clients send to.
type Cause = (Option<(Family, At)>, Wrong, Option<(IpAddr, u16)>);

#[derive(Default)]
struct Group<'a> {
    count: usize,
    is_sure: bool,
    examples: Vec<&'a Tracked>,
    commands: BTreeSet<String>,
}

/// F38. A connection is sure to be one where each rule that its first packet met is understood, and none asked for what
/// nobody remembers of it, which is the interface that it came by. What is not sure is likely where that was guessed from
/// the routes, and else not said. Without facts there are no connections.
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
        // Most connections are of no forward, and need no closer look.
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

/// The first packet of a connection, as far as it can be told, and the hook that it came to first. The interface that it
/// came by is taken to be that by which answers leave.
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

/// What is wrong with a connection whose first packet would meet this now, and by which forward.
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

/// Whether a connection goes to where a rule leads; `None` where that cannot be told.
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

/// The command that ends such connections, and no others: those to the target that they should not have.
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
    format!("{protocol} {client} to {listen} is answered by {target}, status {:#x}", entry.status)
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
        Wrong::Past { answered: true } => format!("{connections} that {name} is for began before it and go past it"),
        Wrong::Past { answered: false } => {
            format!("{connections} that {name} is for go past it, and nobody answers them")
        }
        Wrong::Elsewhere | Wrong::Gone => format!("{connections} that {name} is for go to another target"),
    };
    let confidence = if group.is_sure { Confidence::Proved } else { Confidence::Likely };
    let finding = kind.found(confidence, message).at(host.place(forward.at)).seen(rule(host, forward.at));
    let finding = with_examples(finding, &[group]);
    // It is served, by whom it began with.
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
        "{} to {} {} translated, and no forward does that any more",
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

    /// Assured, answered and translated.
    const DNAT: u32 = 0x2 | 0x8 | 0x20;

    #[test]
    fn connections_to_the_target_of_before_are_counted() {
        let old = |port| Tracked {
            client: (address("198.51.100.5"), port),
            ..entry("192.0.2.1", 8080, ("172.17.0.9", 80), DNAT)
        };
        let right = entry("192.0.2.1", 8080, ("172.17.0.2", 80), DNAT);
        let found = stale(&nat(DOCKER_NAT), vec![old(1), right.clone(), old(2)]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].message, "2 connections that `8080/tcp -> 172.17.0.2:80` is for go to another target");
        assert_eq!(
            found[0].fix,
            "conntrack -D -f ipv4 -p tcp --orig-dst 192.0.2.1 --orig-port-dst 8080 --reply-src 172.17.0.9"
        );
        assert_eq!(
            (found[0].severity, found[0].confidence),
            (Severity::Error, Confidence::Likely),
            "docker0 is excepted"
        );
        assert!(stale(&nat(DOCKER_NAT), vec![right]).is_empty());
        let by_all = nat("-A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80");
        assert_eq!(stale(&by_all, vec![old(1)])[0].confidence, Confidence::Proved);
        let drops = "-A PREROUTING -m rpfilter --invert -j DROP";
        let filtered = format!("{by_all}{}", table("raw", &["PREROUTING"], drops));
        assert_eq!(stale(&filtered, vec![old(1)])[0].confidence, Confidence::Proved, "it was not dropped");
        let marks = filtered.replace("-j DROP", "-j NOTRACK");
        assert!(stale(&marks, vec![old(1)]).is_empty());
        assert!(find(&dump(&nat(DOCKER_NAT)), "F38").is_empty());
    }

    #[test]
    fn connections_that_go_past_a_forward_are_told_apart() {
        let past = |status| stale(&nat(DOCKER_NAT), vec![entry("192.0.2.1", 8080, ("192.0.2.1", 8080), status)]);
        assert!(past(0)[0].message.ends_with("go past it, and nobody answers them"), "{}", past(0)[0].message);
        assert_eq!((past(0)[0].severity, past(2)[0].severity), (Severity::Error, Severity::Warning));
        let other = entry("192.0.2.1", 22, ("192.0.2.1", 22), 2);
        let passing = entry("203.0.113.80", 8080, ("203.0.113.80", 8080), 2);
        assert!(stale(&nat(DOCKER_NAT), vec![other, passing]).is_empty());
    }

    #[test]
    fn connections_of_a_forward_that_is_gone_are_found() {
        let of_old = entry("192.0.2.1", 9000, ("172.17.0.9", 80), DNAT);
        let found = stale(&nat(DOCKER_NAT), vec![of_old.clone()]);
        assert_eq!(found[0].message, "1 connection to 192.0.2.1:9000 is translated, and no forward does that any more");
        assert_eq!((found[0].severity, found[0].confidence), (Severity::Warning, Confidence::Likely));
        assert_eq!(stale(&nat(""), vec![of_old.clone()])[0].confidence, Confidence::Proved, "no rule asks for docker0");
        assert!(stale(&nat(DOCKER_NAT), vec![Tracked { status: DNAT | 1, ..of_old.clone() }]).is_empty(), "a helper's");
        let unclear = nat(&format!("-A PREROUTING -m tomorrow -j DNAT --to-destination 172.17.0.9:80\n{DOCKER_NAT}"));
        assert!(stale(&unclear, vec![of_old]).is_empty(), "that rule may be about it");
    }

    #[test]
    fn what_this_host_sends_is_judged_by_what_it_meets() {
        let own =
            |target| Tracked { client: (address("192.0.2.1"), 50_000), ..entry("192.0.2.1", 8080, (target, 80), DNAT) };
        assert!(stale(&nat(DOCKER_NAT), vec![own("172.17.0.2")]).is_empty());
        let found = stale(&nat(DOCKER_NAT), vec![own("172.17.0.9")]);
        assert_eq!(found[0].confidence, Confidence::Proved);
    }

    #[test]
    fn ports_and_redirects_are_compared_as_they_are_chosen() {
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
