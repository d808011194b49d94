//! F07 and F18: forwards with too few conditions.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::addresses::{global, is_open, is_wildcard};
use super::Context;
use super::external::{self, Client};
use super::wording;
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::Facts;
use crate::ruleset::host::Host;
use crate::ruleset::region::{self, Field, LOCAL, Packet, Region};
use crate::ruleset::set::{number_of, number_of_name};
use crate::ruleset::simulate::chains::Which;
use crate::ruleset::table::Hook;
use crate::ruleset::view::Translation;

/// Forwards, grouped by severity and confidence.
type Groups<'o, 'a> = BTreeMap<(Family, Severity, Confidence), Vec<&'o Forward<'a>>>;

/// Returns the sysctl that enables forwarding for a family.
fn forwarding(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "net/ipv4/ip_forward",
        Family::Ipv6 => "net/ipv6/conf/all/forwarding",
    }
}

/// Returns true if a host forwards packets between interfaces. Returns `None` if the sysctl was not read.
fn passes_on(facts: &Facts, family: Family) -> Option<bool> {
    let links = facts.links.iter().filter(|link| !link.loopback).count();
    (links > 0).then_some(links > 1).and_then(|several| Some(several && facts.setting(forwarding(family))? != "0"))
}

/// Finds F07: a forward that also rewrites packets between other hosts.
///
/// The confidence is likely without facts or without the sysctl, because a host with forwards usually forwards packets. It
/// is unknown if the rule has a condition that is not understood.
pub(super) fn unguarded(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let mut groups = Groups::new();
    for forward in super::forwards(context) {
        let Some((_, step)) = forward.arriving().find(|(_, step)| takes_transit(&step.region, forward.family)) else {
            continue;
        };
        let passes = match &host.facts {
            Some(facts) => passes_on(facts, forward.family),
            None => None,
        };
        let sure = super::of_region(host, &step.region);
        let confidence = match (passes, sure) {
            (Some(false), _) => continue,
            (None, Confidence::Proved) => Confidence::Likely,
            (_, sure) => sure,
        };
        let confidence = match wins_transit(context, forward, &step.region) {
            Some(true) => confidence,
            Some(false) => continue,
            None => confidence.min(Confidence::Likely),
        };
        // A redirect, or a rule with a source list, may be a transparent proxy.
        let limited = !is_open(step.region.get(Field::Source), Field::Source, forward.family);
        let mild = limited || forward.translation == Translation::Redirect;
        let severity = if mild { Severity::Warning } else { kind.severity };
        groups.entry((forward.family, severity, confidence)).or_default().push(forward);
    }
    let one = |((family, severity, confidence), forwards): (_, Vec<&Forward<'_>>)| {
        let take = if forwards.len() == 1 { "takes" } else { "take" };
        let message = |names: &str| format!("{names} also {take} packets that only pass through this host");
        let finding = super::together(host, kind, confidence, &forwards, message).as_bad_as(severity);
        let setting = host.facts.as_ref().and_then(|facts| facts.setting(forwarding(family)));
        let setting = setting.map_or_else(|| "not known".to_owned(), crate::model::error::printable);
        finding.seen(format!("{} = {setting}", forwarding(family))).mended_by(guarded(host, &forwards))
    };
    groups.into_iter().map(one).collect()
}

fn guarded(host: &Host, forwards: &[&Forward<'_>]) -> String {
    let of_nft = |forward: &&Forward<'_>| {
        host.rules.at(forward.at).is_some_and(|(table, _, _)| table.tool == crate::ruleset::table::Tool::Nft)
    };
    let words = match forwards.first().is_some_and(of_nft) {
        true => "`fib daddr type local`",
        false => "`-m addrtype --dst-type LOCAL`",
    };
    format!("add {words}, an address of this host or the interface to each of these rules")
}

/// Returns true if a region has no condition on destination, address type and ingress interface.
fn takes_transit(region: &Region, family: Family) -> bool {
    is_open(region.get(Field::Destination), Field::Destination, family)
        && region.get(Field::DestinationKind).only() != Some(LOCAL)
        && is_open(region.get(Field::Input), Field::Input, family)
}

/// Returns true if the forward rewrites a packet to another host. Returns `None` if this is uncertain.
fn wins_transit(context: &Context<'_>, forward: &Forward<'_>, region: &Region) -> Option<bool> {
    let facts = context.facts()?;
    let name = |name: &str| number_of_name(name.as_bytes(), 0);
    let mut links = facts.links.iter().filter(|link| !link.loopback);
    let link = links.find(|link| region.get(Field::Input).has(name(&link.name)))?;
    let strangers: [&str; 2] = match forward.family {
        Family::Ipv4 => ["198.51.100.99", "203.0.113.99"],
        Family::Ipv6 => ["2001:db8:99::99", "3fff:99::99"],
    };
    let mut strangers = strangers.iter().filter_map(|text| text.parse::<IpAddr>().ok());
    let stranger = strangers.find(|address| region.get(Field::Destination).has(number_of(*address)))?;
    let one = |field, otherwise| match region.get(field) {
        all if all.has(otherwise) => Some(otherwise),
        some => some.first(),
    };
    let mut packet: Packet = region::packet(forward.family, Some(&link.name))
        .with(Field::Output, 0)
        .with(Field::Destination, number_of(stranger))
        .with(Field::DestinationKind, 1)
        .with(Field::SourceKind, 1);
    for (field, otherwise) in [(Field::Protocol, 6), (Field::Port, 80), (Field::SourcePort, 40_000)] {
        packet.put(field, one(field, otherwise)?);
    }
    let asker = match forward.family {
        Family::Ipv4 => 0xc633_644d,
        Family::Ipv6 => 0x2001_0db8_0077_0000_0000_0000_0000_0077,
    };
    packet.put(Field::Source, one(Field::Source, asker)?);
    let outcome = context.simulator.tracer.hook(&mut packet, Hook::Prerouting, &Which::Nat);
    let wins = outcome.rewritten.as_ref().is_some_and(|(_, _, at)| *at == forward.at);
    outcome.is_sure().then_some(wins)
}

/// Finds F18: a forward that all outside clients can use.
///
/// Returns nothing if a rule drops outside clients, and for dumps, which contain no addresses of the host. The confidence is
/// unknown if a condition is not understood.
pub(super) fn exposed(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = &host.facts else { return Vec::new() };
    let mut groups = Groups::new();
    let ways = Family::ALL.map(|family| (family, global(facts, family), Client::some(context, family)));
    for forward in super::all(context) {
        let Some((_, own, clients)) = ways.iter().find(|(family, ..)| *family == forward.family) else { continue };
        let Some((address, (_, step))) = own.first().zip(forward.arriving().find(|(_, step)| {
            let open = |field| is_open(step.region.get(field), field, forward.family);
            is_wildcard(&step.region, forward.family) && open(Field::Source) && open(Field::Input)
        })) else {
            continue;
        };
        let mut confidence = super::of_region(host, &step.region);
        // A rule may block one network, so several client networks are tried.
        let mut traces = clients.iter().filter_map(|client| {
            let packet = client.packet(forward, Some(*address))?;
            Some(context.simulator.simulate_passage(packet))
        });
        match traces.find(|trace| external::gets_in(trace, forward.at)) {
            Some(trace) if trace.is_sure() => {}
            Some(_) => confidence = confidence.min(Confidence::Likely),
            // If a condition of the forward or of an earlier rule is not understood, the forward may be open to all.
            None if confidence == Confidence::Unknown => {}
            None if clients.is_empty() => confidence = confidence.min(Confidence::Likely),
            None => continue,
        }
        let severity = if wording::is_own(host, forward.at) { Severity::Info } else { kind.severity };
        groups.entry((forward.family, severity, confidence)).or_default().push(forward);
    }
    let one = |((family, severity, confidence), forwards): (_, Vec<&Forward<'_>>)| {
        let global = global(facts, family);
        let addresses = wording::list(global.iter().map(ToString::to_string));
        let is = if forwards.len() == 1 { "is" } else { "are" };
        let message = |names: &str| format!("{names} {is} open to everybody at {addresses}");
        let mut finding = super::together(host, kind, confidence, &forwards, message).as_bad_as(severity);
        for address in global {
            finding = finding.seen(format!("global address {address}"));
        }
        let fix = "give each an address, an interface or clients: `portfwd add --from CIDR …`; of Docker publish it at an address, \
                   or drop other clients in chain DOCKER-USER";
        finding.mended_by(fix)
    };
    groups.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::addresses::is_global;
    use super::super::super::hosts::{confidences, dual, dump, facts, find, host, nat, with_nat};
    use super::*;
    use Confidence::{Likely, Proved, Unknown};

    fn rule(asks: &str) -> String {
        format!("-A PREROUTING {asks} -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:8080")
    }

    #[test]
    fn f07_a_forward_that_takes_what_passes_through() {
        let host = with_nat(&format!("{}\n{}", rule(""), rule("").replace("80 ", "81 ")));
        let all = find(&host, "F07");
        assert_eq!(all.len(), 1, "one finding of both");
        assert_eq!(
            all[0].message,
            "`80/tcp -> 172.17.0.2:8080`, `81/tcp -> 172.17.0.2:8080` also take packets that only pass through this host"
        );
        assert_eq!((all[0].confidence, all[0].severity), (Proved, Severity::Error));
        assert!(all[0].evidence.contains(&"net/ipv4/ip_forward = 1".to_owned()));
        assert_eq!(find(&with_nat(&rule("! -i docker0")), "F07").len(), 1, "other interfaces are left");
        assert_eq!(find(&with_nat(&rule("-s 10.0.0.0/8")), "F07")[0].severity, Severity::Warning);
    }

    #[test]
    fn f07_a_guard_is_a_guard() {
        for asks in ["-d 192.0.2.1", "-i eth0", "-m addrtype --dst-type LOCAL"] {
            assert!(find(&with_nat(&rule(asks)), "F07").is_empty(), "{asks}");
        }
        let jumps = "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n".to_owned()
            + &rule("").replace("PREROUTING", "DOCKER");
        assert!(find(&with_nat(&jumps), "F07").is_empty());
        let shadowed = "-A PREROUTING -m addrtype ! --dst-type LOCAL -j ACCEPT\n".to_owned() + &rule("");
        assert!(find(&with_nat(&shadowed), "F07").is_empty(), "what passes through goes on before");
        let mut still = facts();
        still.settings.insert("net/ipv4/ip_forward".into(), "0".into());
        assert!(find(&host(&nat(&rule("")), still), "F07").is_empty());
        let mut single = facts();
        single.links.retain(|link| link.name != "docker0");
        assert!(find(&host(&nat(&rule("")), single), "F07").is_empty());
    }

    #[test]
    fn f07_what_is_not_known_is_not_proved() {
        assert_eq!(confidences(&dump(&nat(&rule(""))), "F07"), [Likely]);
        assert_eq!(confidences(&with_nat(&rule("-m tomorrow")), "F07"), [Unknown]);
        let unread = Facts { settings: BTreeMap::new(), ..facts() };
        assert_eq!(confidences(&host(&nat(&rule("")), unread), "F07"), [Likely]);
    }

    #[test]
    fn f18_open_to_everybody() {
        let local = rule("-m addrtype --dst-type LOCAL");
        let all = find(&with_nat(&local), "F18");
        assert_eq!(
            all.iter().map(|it| it.message.as_str()).collect::<Vec<_>>(),
            ["`80/tcp -> 172.17.0.2:8080` is open to everybody at 192.0.2.1"]
        );
        assert_eq!(all[0].confidence, Proved);
        for asks in ["-d 192.0.2.1", "-s 10.0.0.0/8", "-i docker0"] {
            assert!(find(&with_nat(&rule(asks)), "F18").is_empty(), "{asks}");
        }
        let mut private = facts();
        private.addresses.retain(|(_, network)| !is_global(network.ip()));
        assert!(find(&host(&nat(&local), private), "F18").is_empty());
        let six =
            format!("# Generated by ip6tables-save v1\n{}", nat(&local.replace("172.17.0.2:8080", "[fd00::2]:8080")));
        assert!(find(&host(&six, facts()), "F18").is_empty(), "no address of IPv6");
        assert!(find(&host(&six, dual()), "F18")[0].message.ends_with("at 2001:db8:1::1"));
    }

    #[test]
    fn f18_what_keeps_strangers_away_is_seen() {
        let nat = nat(&rule(""));
        let filter = |rules: &str| {
            format!(
                "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:DOCKER-USER -\n-A FORWARD -j DOCKER-USER\n{rules}\nCOMMIT\n{nat}"
            )
        };
        let of = |rules: &str| confidences(&host(&filter(rules), facts()), "F18");
        assert_eq!(of("-A DOCKER-USER -j RETURN"), [Proved]);
        assert_eq!(of("-A DOCKER-USER -s 198.51.100.0/24 -j DROP"), [Proved], "others are let in");
        assert!(of("-A DOCKER-USER ! -s 10.0.0.0/8 -i eth0 -j DROP").is_empty());
        assert_eq!(of("-A DOCKER-USER -i eth0 -m tomorrow -j DROP"), [Likely]);
        assert_eq!(confidences(&with_nat(&rule("-m tomorrow")), "F18"), [Unknown]);
        assert!(find(&dump(&nat), "F18").is_empty(), "a dump does not tell of addresses");
    }
}
