//! F20: ports that are forwarded in one address family only.

use std::collections::HashMap;
use std::net::IpAddr;

use super::super::addresses::global;
use super::Context;
use super::external::Client;
use super::wording;
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::error::printable;
use crate::model::{Family, Protocol};
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Facts, Listener};
use crate::ruleset::host::Host;
use crate::ruleset::region::{Field, Region};
use crate::ruleset::set::{Set, number_of};
use crate::ruleset::table::Hook;
use crate::ruleset::view::Fate;

/// The maximum number of ports that are compared one by one.
const FEW: u128 = 1024;

/// Docker's proxy. It answers for the target of a forward, so its socket serves the other family.
const STAND_INS: [&str; 1] = ["docker-proxy"];

/// Finds F20: a forward of one family, while the host has a global address of the other family and no forward of the same
/// port.
///
/// Only forwards count that an outside client can use, at addresses other than loopback. Returns nothing without facts,
/// because the host's addresses are unknown.
pub(super) fn lonely(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = &host.facts else { return Vec::new() };
    let faced = facing(context, facts);
    let mut ranges: HashMap<(Family, u8), Vec<(u128, u128)>> = HashMap::new();
    for forward in &faced {
        for (protocol, ports) in keys(forward) {
            ranges.entry((forward.family, protocol.number())).or_default().extend(ports.ranges());
        }
    }
    let forwarded: HashMap<(Family, u8), Set> =
        ranges.into_iter().map(|(key, ranges)| (key, Set::from_ranges(ranges))).collect();
    let mut found = Vec::new();
    for family in Family::ALL {
        let other = if family == Family::Ipv4 { Family::Ipv6 } else { Family::Ipv4 };
        let own = global(facts, other);
        if own.is_empty() {
            continue;
        }
        let (mut nothing, mut answered) = (Vec::new(), Vec::new());
        for forward in faced.iter().copied().filter(|forward| forward.family == family) {
            let missing = |(protocol, ports): (Protocol, Set)| {
                let there = forwarded.get(&(other, protocol.number()));
                let missing = there.map_or_else(|| ports.clone(), |there| without(&ports, there));
                (!missing.is_empty()).then_some((protocol, missing))
            };
            let missing: Vec<(Protocol, Set)> = keys(forward).filter_map(missing).collect();
            if missing.is_empty() {
                continue;
            }
            let answers = |listener: &&Listener| {
                serves(listener, other)
                    && missing
                        .iter()
                        .any(|(protocol, ports)| listener.protocol == *protocol && ports.has(listener.port.into()))
            };
            match facts.listeners.iter().find(answers) {
                None => nothing.push(forward),
                Some(listener) if is_stand_in(listener) => {}
                Some(listener) => answered.push((forward, listener)),
            }
        }
        let confidence = if is_known(host, other) { wording::sure(host) } else { Confidence::Likely };
        let addresses = wording::list(own.iter().map(ToString::to_string));
        let (own_forwards, others): (Vec<_>, Vec<_>) =
            nothing.into_iter().partition(|forward| wording::is_own(host, forward.at));
        for (severity, nothing) in [(Severity::Info, own_forwards), (kind.severity, others)] {
            if nothing.is_empty() {
                continue;
            }
            let is = if nothing.len() == 1 { "is" } else { "are" };
            let message =
                |names: &str| format!("{names} {is} for {family} only, and this host has {addresses} as well");
            let finding = super::together(host, kind, confidence, &nothing, message).as_bad_as(severity);
            found.push(told(finding, &own, other));
        }
        for (forward, listener) in answered {
            let owner = listener.owner.as_ref().map_or_else(
                || "a program of this host".to_owned(),
                |(name, number)| format!("{} (process {number})", printable(name)),
            );
            let message = |name: &str| format!("{name} is for {family} only: clients of {other} get {owner}");
            let finding = super::together(host, kind, confidence, &[forward], message);
            let at = std::net::SocketAddr::new(listener.address, listener.port);
            found.push(told(finding.seen(format!("{owner} listens at {at}/{}", listener.protocol)), &own, other));
        }
    }
    found
}

fn told(finding: Finding, global: &[IpAddr], other: Family) -> Finding {
    let finding = global.iter().fold(finding, |finding, address| finding.seen(format!("global address {address}")));
    let to = if other == Family::Ipv6 { "[ADDR6]:PORT" } else { "ADDR4:PORT" };
    finding.mended_by(format!(
        "`portfwd add PORT {to}` for {other}, or take the address out of the names that clients ask for"
    ))
}

/// Returns the forwards that an outside client can use.
fn facing<'o, 'a>(context: &'o Context<'a>, facts: &Facts) -> Vec<&'o Forward<'a>> {
    let loopback = |address: IpAddr| address.is_loopback();
    let addresses: Vec<IpAddr> = facts.addresses.iter().map(|(_, network)| network.ip()).collect();
    let clients = Family::ALL.map(|family| (family, Client::new(context, family)));
    let faces = |forward: &Forward<'_>, region: &Region| {
        let own =
            addresses.iter().filter(|address| Family::of_address(**address) == forward.family && !loopback(**address));
        let mut at = own.filter(|address| region.get(Field::Destination).has(number_of(**address)));
        let client = clients.iter().find(|(family, _)| *family == forward.family);
        let client = client.and_then(|(_, client)| client.as_ref());
        at.next().is_some() && client.is_some_and(|client| client.is_of(region))
    };
    let all = super::all(context);
    all.filter(|forward| forward.arriving().any(|(_, step)| faces(forward, &step.region))).collect()
}

/// Returns the protocols and ports of a forward.
fn keys(forward: &Forward<'_>) -> impl Iterator<Item = (Protocol, Set)> {
    let region = forward.arriving().next().map(|(_, step)| &step.region);
    Protocol::ALL.into_iter().filter_map(move |protocol| {
        let region = region?;
        let ports = region.get(Field::Port).and(&Set::range(0, u16::MAX.into()));
        // A forward of all protocols counts as TCP and UDP.
        let asked = region.get(Field::Protocol).has(protocol.number().into());
        let usual = !region.get(Field::Protocol).is_all() || matches!(protocol, Protocol::Tcp | Protocol::Udp);
        (asked && usual).then_some((protocol, ports))
    })
}

/// Returns the ports that are not in `others`.
fn without(ports: &Set, others: &Set) -> Set {
    if ports.size() > FEW {
        return ports.minus(others);
    }
    let all = ports.ranges().iter().flat_map(|(first, last)| *first..=*last);
    Set::from_ranges(all.filter(|port| !others.has(*port)).map(|port| (port, port)))
}

/// Returns true if a socket serves outside clients of a family.
fn serves(listener: &Listener, family: Family) -> bool {
    let any = listener.address.is_unspecified() && listener.address.is_ipv6() && !listener.only_ipv6;
    !listener.address.is_loopback() && (Family::of_address(listener.address) == family || any)
}

fn is_stand_in(listener: &Listener) -> bool {
    listener.owner.as_ref().is_some_and(|(name, _)| STAND_INS.contains(&name.as_str()))
}

/// Returns true if all rules of a family were read and understood.
fn is_known(host: &Host, family: Family) -> bool {
    let way = host.view.way(family, Hook::Prerouting);
    let unknown = way.is_some_and(|way| way.steps.iter().any(|step| matches!(step.fate, Fate::Unknown(_))));
    host.rules.gaps.is_empty() && host.view.gaps.is_empty() && !unknown
}

#[cfg(test)]
mod tests {
    use super::super::super::hosts::{dual, dump, find, host, nat, with_nat};
    use super::*;
    use crate::ruleset::table::Gap;

    fn four(asks: &str) -> String {
        nat(&format!("-A PREROUTING {asks} -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2"))
    }

    fn six(port: u16) -> String {
        let rule = format!("-A PREROUTING -p tcp -m tcp --dport {port} -j DNAT --to-destination fd00::2");
        format!("# Generated by ip6tables-save v1\n{}", nat(&rule))
    }

    fn listener(address: &str, only_ipv6: bool, owner: &str) -> Facts {
        let address = address.parse().expect("an address");
        let owner = Some((owner.to_owned(), 7));
        let listener = Listener { protocol: Protocol::Tcp, address, port: 80, only_ipv6, owner };
        Facts { listeners: vec![listener], ..dual() }
    }

    #[test]
    fn f20_a_port_of_one_family() {
        let all = find(&host(&four(""), dual()), "F20");
        assert_eq!(
            all.iter().map(|it| it.message.as_str()).collect::<Vec<_>>(),
            ["`80/tcp -> 172.17.0.2` is for IPv4 only, and this host has 2001:db8:1::1 as well"]
        );
        assert_eq!(all[0].confidence, Confidence::Proved);
        let other = host(
            &format!("{}{}", four(""), six(81)).replacen("*nat", "# Generated by iptables-save v1\n*nat", 1),
            dual(),
        );
        assert_eq!(find(&other, "F20").len(), 2, "each lacks the other one");
    }

    #[test]
    fn f20_both_families_or_only_one_address_is_fine() {
        let both = format!("# Generated by iptables-save v1\n{}{}", four(""), six(80));
        assert!(find(&host(&both, dual()), "F20").is_empty());
        assert!(
            find(&with_nat("-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2"), "F20")
                .is_empty()
        );
        for asks in ["-d 127.0.0.1", "-i docker0", "-s 10.0.0.0/8"] {
            assert!(find(&host(&four(asks), dual()), "F20").is_empty(), "{asks}");
        }
        assert!(find(&host(&four(""), listener("::", true, "docker-proxy")), "F20").is_empty(), "it answers for it");
    }

    #[test]
    fn f20_something_else_answers_the_other_family() {
        for (address, only, answers) in
            [("::", true, true), ("2001:db8:1::1", true, true), ("::1", true, false), ("0.0.0.0", false, false)]
        {
            let all = find(&host(&four(""), listener(address, only, "nginx")), "F20");
            assert_eq!(all.len(), 1);
            assert_eq!(all[0].message.contains("get nginx (process 7)"), answers, "{address}: {}", all[0].message);
        }
    }

    #[test]
    fn f20_what_was_not_read_is_not_proved() {
        assert!(find(&dump(&four("")), "F20").is_empty());
        let mut host = host(&four(""), dual());
        host.rules.gaps.push(Gap { what: "table `nat` of IPv6".into(), why: "it was not read".into() });
        assert_eq!(find(&host, "F20")[0].confidence, Confidence::Likely);
    }
}
