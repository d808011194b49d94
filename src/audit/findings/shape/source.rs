//! F29, F30 and F31: rules that rewrite sources.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::addresses::is_open;
use super::Context;
use super::external::{self, Client};
use super::wording;
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::describe;
use crate::ruleset::facts::NextHop;
use crate::ruleset::region::{Condition, Field, LOCAL, Region};
use crate::ruleset::set::{Set, number_of, number_of_name};
use crate::ruleset::table::{At, Hook, Rewrite, Tool};
use crate::ruleset::view::{Fate, Translation};

/// Finds F29: a rule that masquerades all packets, or packets that stay inside the host. The confidence is unknown if a
/// condition is not understood.
pub(super) fn unlimited(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let mut found = Vec::new();
    for (family, step, translation) in super::sources(host, &[Hook::Postrouting]) {
        if translation != Translation::Masquerade {
            continue;
        }
        let region = &step.region;
        let open = |field| is_open(region.get(field), field, family);
        // A condition on a label or mark is a limit, because somebody sets it on purpose.
        let marked = region.conditions().iter().any(|condition| match condition {
            Condition::Unknown(words) => words.starts_with("-m connlabel --label"),
            _ => true,
        });
        let limited = !(open(Field::Output) && open(Field::Destination))
            || marked
            || [Field::Mark, Field::ConnectionMark, Field::Status, Field::OriginalDestination, Field::OriginalPort]
                .iter()
                .any(|field| !region.get(*field).is_all())
            || region.get(Field::Input).only().is_some();
        let output = region.get(Field::Output);
        // `! -o docker0` is a limit, but it includes `lo`.
        let named = !output.is_all();
        let within = output.has(number_of_name(b"lo", 0)) && region.get(Field::Source).has(loopback(family));
        let anybody = open(Field::Source) && region.get(Field::SourceKind).is_all();
        if limited || if named { !within } else { !anybody } {
            continue;
        }
        let confidence = match super::of_region(host, region) {
            Confidence::Proved if step.tied => Confidence::Likely,
            confidence => confidence,
        };
        let words = wording::rule(host, step.at);
        let message = match named {
            true => format!("`{words}` also masquerades what this host sends to itself"),
            false => format!("`{words}` masquerades whatever leaves, by any interface and from any source"),
        };
        let packets = match describe::region(region, family) {
            text if text.is_empty() => "all packets".to_owned(),
            text => text,
        };
        let finding = kind.found(confidence, message).at(host.place(step.at));
        found.push(finding.seen(format!("it is about {packets}")).mended_by(limit(context, step.at, family)));
    }
    found
}

/// Returns the text that limits a rule to the interface of the default route.
fn limit(context: &Context<'_>, at: At, family: Family) -> String {
    let (host, client) = (context.host, Client::new(context, family));
    let uplink = client.and_then(|client| client.input.map(crate::model::error::printable));
    let uplink = uplink.unwrap_or_else(|| "IF".to_owned());
    let is_nft = host.rules.at(at).is_some_and(|(table, _, _)| table.tool == Tool::Nft);
    let asked = if is_nft { format!("oifname {uplink}") } else { format!("-o {uplink}") };
    format!("put it again with `{asked}`, and then remove it: {}", wording::removal(host, at))
}

fn loopback(family: Family) -> u128 {
    match family {
        Family::Ipv4 => 0x7f00_0001,
        Family::Ipv6 => 1,
    }
}

/// Finds F30: a rule that rewrites sources to an address that this host does not have.
///
/// The confidence is proved if the address is on a link of this host, because nothing answers ARP for it. Otherwise it is
/// likely, because a router may send the address to this host. Returns nothing without facts.
pub(super) fn foreign(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = &host.facts else { return Vec::new() };
    let mut found: Vec<Finding> = Vec::new();
    // Rules with the same new source share one finding.
    let mut known: BTreeMap<(IpAddr, IpAddr, Confidence), usize> = BTreeMap::new();
    let own = |family| {
        let own = facts.addresses.iter().map(|(_, network)| network.ip());
        let own = own.filter(|address| Family::of_address(*address) == family).map(Set::address);
        own.fold(facts.local(family), |all, one| all.or(&one))
    };
    let all = Family::ALL.map(|family| (family, own(family)));
    for (family, step, translation) in super::sources(host, &[Hook::Postrouting, Hook::Input]) {
        let Fate::Rewritten(_, to) = &step.fate else { continue };
        let Some((first, last)) = to.addresses.filter(|_| translation == Translation::Snat && to.prefix.is_none())
        else {
            continue;
        };
        if Family::of_address(first) != family {
            continue;
        }
        let wanted = Set::range(number_of(first), number_of(last));
        let Some((_, own)) = all.iter().find(|(of, _)| *of == family) else { continue };
        let missing = wanted.minus(own);
        let Some(low) = missing.first().and_then(|number| crate::ruleset::set::address_of(number, family)) else {
            continue;
        };
        let words = describe::set(Field::Source, &missing, family);
        let on_link = matches!(facts.next_hop(low), NextHop::Via(_, None));
        let confidence = match (super::of_region(host, &step.region), on_link, own.is_empty()) {
            (_, _, true) => Confidence::Unknown,
            (Confidence::Proved, false, _) => Confidence::Likely,
            (confidence, _, _) => confidence,
        };
        if let Some(finding) = known.get(&(first, last, confidence)).and_then(|at| found.get_mut(*at)) {
            finding.places.push(host.place(step.at));
            continue;
        }
        known.insert((first, last, confidence), found.len());
        let target = describe::target(&Rewrite { ports: None, ..to.clone() });
        let message = format!("sources are rewritten to {target}, and {words} is no address of this host");
        let finding = kind.found(confidence, message).at(host.place(step.at));
        let finding = finding.seen(format!("`{}`", wording::rule(host, step.at)));
        let finding = finding.seen(match facts.next_hop(low) {
            NextHop::Via(link, None) => format!("{low} is on the link of {}, where nobody answers for it", link.name),
            NextHop::Via(link, Some(gateway)) => {
                format!("this host has a route to {low}: by {gateway} at {}", link.name)
            }
            _ => format!("this host has no route to {low}"),
        });
        let prefix = if family == Family::Ipv4 { 32 } else { 128 };
        let fix = format!(
            "ip address add {low}/{prefix} dev IF, or rewrite to an address that is there: {}",
            wording::removal(host, step.at)
        );
        found.push(finding.mended_by(fix));
    }
    found
}

/// Finds F31: forwards whose targets do not see the addresses of outside clients, grouped by the rule that hides them. The
/// severity is lower if the target is behind a router, because the answers may need the rewrite. The confidence is at most
/// likely for a dump.
pub(super) fn lost(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let clients = Family::ALL.map(|family| (family, Client::new(context, family)));
    let addresses: Vec<IpAddr> = match &host.facts {
        Some(facts) => facts.addresses.iter().map(|(_, network)| network.ip()).collect(),
        None => Vec::new(),
    };
    let mut groups: BTreeMap<(At, Severity, Confidence), (Translation, Vec<&Forward<'_>>)> = BTreeMap::new();
    for forward in super::all(context) {
        let Some(target) = forward.target() else { continue };
        let client = clients.iter().find(|(family, _)| *family == forward.family);
        let Some(client) = client.and_then(|(_, client)| client.as_ref()) else { continue };
        let Some((_, step)) = forward.arriving().find(|(_, step)| client.is_of(&step.region)) else { continue };
        let to = destination(&step.region, &addresses, forward.family);
        if to.is_none() && host.facts.is_some() {
            continue;
        }
        let Some(packet) = client.packet(forward, to) else { continue };
        let trace = context.simulator.simulate(packet);
        let Some((translation, at, is_sure)) = external::hidden(&trace, forward.at) else { continue };
        let confidence = if is_sure { wording::sure(host) } else { Confidence::Likely };
        let routed =
            host.facts.as_ref().is_some_and(|facts| matches!(facts.next_hop(target), NextHop::Via(_, Some(_))));
        // A rule of portfwd has this effect on purpose (`source = "masquerade"`).
        let asked = host.place(at).owner == "portfwd";
        let severity = if routed || asked { Severity::Info } else { kind.severity };
        groups.entry((at, severity, confidence)).or_insert((translation, Vec::new())).1.push(forward);
    }
    let one = |((at, severity, confidence), (translation, forwards)): (_, (Translation, Vec<&Forward<'_>>))| {
        let words = wording::rule(host, at);
        let hides = if forwards.len() == 1 { "does" } else { "do" };
        let message =
            |names: &str| format!("the target of {names} {hides} not see its clients: `{words}` rewrites their source");
        let finding =
            super::together(host, kind, confidence, &forwards, message).as_bad_as(severity).at(host.place(at));
        let finding = finding.seen(format!("a packet from outside leaves by {} of `{words}`", translation.name()));
        let fix = match severity {
            Severity::Info => {
                "the target is behind a router: where answers come back by this host anyhow, remove the rule".to_owned()
            }
            _ => format!(
                "limit it to clients in the target's network, for which alone it is needed; {}",
                wording::removal(host, at)
            ),
        };
        finding.mended_by(fix)
    };
    groups.into_iter().map(one).collect()
}

/// Returns an address of this host at which an outside client can use a forward.
fn destination(region: &Region, addresses: &[IpAddr], family: Family) -> Option<IpAddr> {
    let asked = region.get(Field::Destination);
    if !region.get(Field::DestinationKind).has(LOCAL) {
        return None;
    }
    let own = addresses.iter().filter(|address| Family::of_address(**address) == family && !address.is_loopback());
    let mut own = own.filter(|address| asked.has(number_of(**address)));
    let named = || asked.only().and_then(|number| crate::ruleset::set::address_of(number, family));
    own.next().copied().or_else(|| named().filter(|address| !address.is_loopback() && addresses.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::super::super::hosts::{confidences, dump, facts, find, host, nat, with_nat};
    use super::*;
    use Confidence::{Likely, Proved, Unknown};

    #[test]
    fn f29_a_masquerade_of_everything() {
        let all = find(&with_nat("-A POSTROUTING -j MASQUERADE"), "F29");
        assert_eq!(
            all.iter().map(|it| it.message.as_str()).collect::<Vec<_>>(),
            ["`-A POSTROUTING -j MASQUERADE` masquerades whatever leaves, by any interface and from any source"]
        );
        assert_eq!(all[0].confidence, Proved);
        assert!(
            all[0].fix.contains("`-o eth0`") && all[0].fix.contains("iptables -t nat -D POSTROUTING -j MASQUERADE")
        );
        let negative = find(&with_nat("-A POSTROUTING ! -o docker0 -j MASQUERADE"), "F29");
        assert!(negative[0].message.contains("sends to itself"), "{}", negative[0].message);
        assert_eq!(confidences(&dump(&nat("-A POSTROUTING -j MASQUERADE")), "F29"), [Likely]);
        assert_eq!(confidences(&with_nat("-A POSTROUTING -m tomorrow -j MASQUERADE"), "F29"), [Unknown]);
    }

    #[test]
    fn f29_a_limit_is_a_limit() {
        for asks in [
            "-o eth0",
            "-s 172.17.0.0/16",
            "-s 172.17.0.0/16 ! -o docker0",
            "-d 172.17.0.2/32",
            "! -o lo",
            "-m mark --mark 0x4000/0x4000",
            "-m conntrack --ctstate DNAT",
            "-s 127.0.0.0/8 -o docker0",
        ] {
            let host = with_nat(&format!("-A POSTROUTING {asks} -j MASQUERADE"));
            assert!(find(&host, "F29").is_empty(), "{asks}");
        }
    }

    #[test]
    fn f30_an_address_that_nobody_answers_for() {
        let rule = |to: &str| format!("-A POSTROUTING -o eth0 -j SNAT --to-source {to}");
        let all = find(&with_nat(&rule("192.0.2.7")), "F30");
        assert_eq!((all.len(), all[0].confidence), (1, Proved), "on the link");
        assert_eq!(all[0].message, "sources are rewritten to 192.0.2.7, and 192.0.2.7 is no address of this host");
        assert_eq!(confidences(&with_nat(&rule("203.0.113.7")), "F30"), [Likely], "it may be routed here");
        assert!(find(&with_nat(&rule("192.0.2.1-192.0.2.2")), "F30")[0].message.contains("and 192.0.2.2 is no"));
        assert!(find(&with_nat(&rule("192.0.2.1")), "F30").is_empty());
        assert!(find(&dump(&nat(&rule("192.0.2.7"))), "F30").is_empty());
        let twice = format!("{}\n{}", rule("192.0.2.7"), rule("192.0.2.7:1-9").replace("-o eth0", "-o docker0 -p tcp"));
        assert_eq!(find(&with_nat(&twice), "F30")[0].places.len(), 2, "told once");
        let asked = rule("192.0.2.7").replace("-o", "-m tomorrow -o");
        assert_eq!(confidences(&with_nat(&asked), "F30"), [Unknown]);
    }

    fn forward_and(source: &str) -> String {
        format!(
            "-A PREROUTING -d 192.0.2.1 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2\n-A POSTROUTING {source}"
        )
    }

    #[test]
    fn f31_clients_that_the_target_does_not_see() {
        for source in ["-j MASQUERADE", "-d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j SNAT --to-source 172.17.0.1"] {
            let all = find(&with_nat(&forward_and(source)), "F31");
            assert_eq!(all.len(), 1, "{source}");
            assert_eq!((all[0].confidence, all[0].severity), (Proved, Severity::Warning));
            assert!(all[0].message.starts_with("the target of `192.0.2.1:80/tcp -> 172.17.0.2` does not see"));
            assert_eq!(all[0].places.len(), 2);
        }
        let remote = forward_and("-j MASQUERADE").replace("172.17.0.2", "203.0.113.9");
        assert_eq!(find(&with_nat(&remote), "F31")[0].severity, Severity::Info, "answers would not come back");
    }

    #[test]
    fn f31_masquerade_of_others_is_fine() {
        for source in [
            "-s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE",
            "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
            "-o eth0 -j MASQUERADE",
        ] {
            assert!(find(&with_nat(&forward_and(source)), "F31").is_empty(), "{source}");
        }
        let closed = forward_and("-j MASQUERADE").replace("-d 192.0.2.1", "-d 192.0.2.1 -s 10.0.0.0/8");
        assert!(find(&with_nat(&closed), "F31").is_empty(), "nobody from outside");
    }

    #[test]
    fn f31_of_a_dump_is_likely() {
        assert_eq!(confidences(&dump(&nat(&forward_and("-j MASQUERADE"))), "F31"), [Likely]);
        assert!(find(&dump(&nat(&forward_and("-o docker0 -j MASQUERADE"))), "F31").is_empty());
        let asked = "-m tomorrow -j ACCEPT\n-A POSTROUTING -j MASQUERADE";
        assert_eq!(confidences(&host(&nat(&forward_and(asked)), facts()), "F31"), [Likely]);
    }
}
