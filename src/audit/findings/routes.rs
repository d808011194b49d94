//! Bridges and routes of forwarded packets and their answers.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Check;
use super::addresses::{far, is_private};
use super::context::{Context, arriving, passing, targets};
use super::wording::{at_all, name, several};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Link, NextHop, Route};
use crate::ruleset::host::Host;
use crate::ruleset::region::{DST_NAT, DST_NAT_DONE, Field};
use crate::ruleset::set::{Set, address_of, number_of, number_of_name};
use crate::ruleset::simulate::chains::Which;
use crate::ruleset::table::Hook;

pub(super) const CHECKS: &[Check] = &[
    Check {
        kind: Kind {
            id: "F26",
            title: "clients on the target's bridge are not served",
            severity: Severity::Warning,
            what: "The clients and the target of a forward are on the same bridge. The bridge delivers the answers without the rules, or it does not send a packet back through its ingress port.",
            why: "A client drops the answer, because the answer comes from another address than the one that the client used. Or the target cannot reach itself through the forward.",
            fix: "masquerade packets from the bridge's network that leave through the bridge",
        },
        find: bridge,
    },
    Check {
        kind: Kind {
            id: "F27",
            title: "answers leave by another interface",
            severity: Severity::Warning,
            what: "Packets of a forward arrive on one interface, and the routes send the answers through another.",
            why: "Providers drop packets from foreign addresses, and stateful firewalls drop answers to packets that they did not see.",
            fix: "add a routing rule and a routing table, so that answers leave by the ingress interface of the connection (ip rule, ip route … table)",
        },
        find: asymmetric,
    },
    Check {
        kind: Kind {
            id: "F28",
            title: "reverse path filter drops clients",
            severity: Severity::Error,
            what: "Packets of a forward arrive on an interface with strict `rp_filter`, but the route to their senders uses another interface.",
            why: "The kernel drops such packets, so the target never receives them.",
            fix: "set rp_filter of the interface to 2 (loose)",
        },
        find: strict,
    },
    Check {
        kind: Kind {
            id: "F42",
            title: "egress MTU is smaller than ingress MTU",
            severity: Severity::Warning,
            what: "The egress interface of a TCP forward has a smaller MTU than its ingress interface.",
            why: "If the ICMP messages about the MTU are lost, connections start and then hang at the first large packet.",
            fix: "iptables -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        },
        find: mtu,
    },
    Check {
        kind: Kind {
            id: "F50",
            title: "policy routing",
            severity: Severity::Warning,
            what: "The host has more routing rules than the usual three, or VRFs. So the route depends on more than the destination.",
            why: "The findings about routes (F08, F27, F28, F42) use the main table, and a packet may take another route.",
            fix: "check by hand: ip rule show; ip route get TARGET from CLIENT iif INTERFACE",
        },
        find: policy_routing,
    },
];

/// F26. If the sysctl is missing, br_netfilter is probably not loaded, so the confidence is likely. Returns nothing without facts.
fn bridge(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = context.facts() else { return Vec::new() };
    let all = context.forwards();
    let mut groups: BTreeMap<(u32, Family), Vec<&Forward<'_>>> = BTreeMap::new();
    for forward in all {
        let (Some(region), Some(target)) = (arriving(forward), targets(forward).next()) else { continue };
        let Some(NextHop::Via(link, None)) = context.next_hop(target) else { continue };
        let is_bridge = link.kind.as_deref() == Some("bridge");
        if is_bridge && context.ingress(region).iter().any(|way| way.index == link.index) {
            groups.entry((link.index, forward.family)).or_default().push(forward);
        }
    }
    let mut found = Vec::new();
    for ((index, family), forwards) in groups {
        let Some(link) = facts.link(index) else { continue };
        let name = if family == Family::Ipv4 { "iptables" } else { "ip6tables" };
        let called = facts.setting(&format!("net/bridge/bridge-nf-call-{name}"));
        let read = format!("net.bridge.bridge-nf-call-{name} = {}", called.map_or("missing".into(), printable));
        let bridge = printable(&link.name);
        if called.is_none_or(|value| value == "0") {
            let fates: Vec<(Source, &Forward<'_>)> =
                forwards.iter().map(|forward| (source(context, link, forward), *forward)).collect();
            let of = |wanted: Source| {
                fates.iter().filter(|(fate, _)| *fate == wanted).map(|(_, forward)| *forward).collect()
            };
            for (fate, forwards) in [(Source::Kept, of(Source::Kept)), (Source::Unknown, of(Source::Unknown))] {
                let forwards: Vec<&Forward<'_>> = forwards;
                if forwards.is_empty() {
                    continue;
                }
                let confidence = match fate {
                    Source::Unknown => Confidence::Unknown,
                    _ if called.is_none() => Confidence::Likely,
                    _ => context.confidence(&forwards),
                };
                let message = format!(
                    "clients on `{bridge}` get the answers of {} directly from the target, and drop them",
                    several(&forwards)
                );
                found.push(at_all(kind.found(confidence, message).seen(read.clone()), host, &forwards));
            }
        } else if let Some(port) =
            facts.links.iter().find(|port| port.master == Some(index) && port.hairpin == Some(false))
        {
            let message =
                format!("the target of {} on `{bridge}` cannot reach itself through the forward", several(&forwards));
            let port = printable(&port.name);
            let finding = kind.found(Confidence::Likely, message).as_bad_as(Severity::Info);
            let finding = finding.seen(read).seen(format!("{port}: hairpin off"));
            found.push(at_all(finding.mended_by(format!("bridge link set dev {port} hairpin on")), host, &forwards));
        }
    }
    found
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Rewritten,
    Kept,
    Unknown,
}

/// Returns whether rules rewrite the source of packets from a bridge's network to a target on the same bridge.
fn source(context: &Context<'_>, link: &Link, forward: &Forward<'_>) -> Source {
    let Some(target) = targets(forward).next() else { return Source::Unknown };
    let facts = context.facts();
    let network = facts.and_then(|facts| {
        facts.addresses.iter().find(|(index, network)| *index == link.index && network.contains(target))
    });
    let Some((_, network)) = network else { return Source::Unknown };
    // Any other address of the network.
    let range = Set::network(*network).minus(&Set::address(target)).minus(&Set::address(network.ip()));
    let Some(client) = range.ranges().last().map(|(_, last)| last.saturating_sub(1)).filter(|last| range.has(*last))
    else {
        return Source::Unknown;
    };
    let Some(packet) = arriving(forward).and_then(|region| {
        context.packet(forward.family, &region.clone().with(Field::Source, &Set::single(client)), Hook::Prerouting)
    }) else {
        // The rule does not match such clients.
        return Source::Rewritten;
    };
    let bridge = number_of_name(link.name.as_bytes(), 0);
    let port = packet.get(Field::Port).and_then(|port| u16::try_from(port).ok());
    let mut passed = packet
        .with(Field::Input, bridge)
        .with(Field::Output, bridge)
        .with(Field::Destination, number_of(target))
        .with(Field::DestinationKind, 1)
        .with(Field::Status, DST_NAT | DST_NAT_DONE);
    passed.set(Field::Port, port.and_then(|port| forward.to.port_for(port)).map(u128::from));
    let outcome = context.simulator.tracer.hook(&mut passed, Hook::Postrouting, &Which::Nat);
    match (outcome.rewritten.is_some(), outcome.is_sure()) {
        (true, _) => Source::Rewritten,
        (false, true) => Source::Kept,
        (false, false) => Source::Unknown,
    }
}

/// A forward whose packets arrive on one interface and whose answers leave by another.
struct Crossing<'f, 'a> {
    forward: &'f Forward<'a>,
    entrance: &'f Link,
    /// The egress interface and the gateway of the answers. `None` if there is no route.
    exit: Option<(&'f Link, Option<IpAddr>)>,
    client: IpAddr,
}

/// Returns the forwards whose answers leave by another interface. A rule with a source list has its clients there. For other
/// rules, only remote clients count, and only if the interface has a gateway or the listen address is public.
fn crossings<'f, 'a>(context: &'f Context<'_>, all: &'f [Forward<'a>]) -> Vec<Crossing<'f, 'a>> {
    let Some(facts) = context.facts() else { return Vec::new() };
    let by_default = |route: &&Route| route.to.prefix() == 0 && route.kind == 1 && route.gateway.is_some();
    let gateways: BTreeSet<(Family, u32)> = facts
        .routes
        .iter()
        .filter(by_default)
        .filter_map(|route| Some((Family::of_network(route.to), route.output?)))
        .collect();
    let mut found = Vec::new();
    for forward in all {
        let Some(region) = arriving(forward) else { continue };
        let Some(entrance) = context.entrance(forward.family, region) else { continue };
        let sources = region.get(Field::Source);
        let client = match sources.is_all() {
            true => {
                let listen =
                    region.get(Field::Destination).only().and_then(|number| address_of(number, forward.family));
                let is_public = listen.is_some_and(|address| !is_private(address) && !address.is_loopback());
                if !is_public && !gateways.contains(&(forward.family, entrance.index)) {
                    continue;
                }
                far(forward.family)
            }
            // A negated source contains remote clients, which may use any interface.
            false if sources.has(number_of(far(forward.family))) => continue,
            false => match sources.first().and_then(|first| address_of(first.saturating_add(1), forward.family)) {
                Some(second) if sources.has(number_of(second)) => second,
                _ => match sources.first().and_then(|first| address_of(first, forward.family)) {
                    Some(first) => first,
                    None => continue,
                },
            },
        };
        let exit = match context.next_hop(client) {
            Some(NextHop::Via(link, _)) if link.index == entrance.index => continue,
            Some(NextHop::Via(link, gateway)) => Some((link, gateway)),
            Some(NextHop::Unreachable) => None,
            Some(NextHop::Local) | None => continue,
        };
        found.push(Crossing { forward, entrance, exit, client });
    }
    found
}

/// Groups crossings by ingress and egress interface.
fn by_links<'f, 'a>(crossings: &'f [Crossing<'f, 'a>]) -> Vec<Vec<&'f Crossing<'f, 'a>>> {
    let mut groups: BTreeMap<(u32, Option<u32>), Vec<&Crossing<'_, '_>>> = BTreeMap::new();
    for crossing in crossings {
        let exit = crossing.exit.map(|(link, _)| link.index);
        groups.entry((crossing.entrance.index, exit)).or_default().push(crossing);
    }
    groups.into_values().collect()
}

/// Returns the route of the answers in the syntax of ip-route(8).
fn leaving(crossing: &Crossing<'_, '_>) -> String {
    match crossing.exit {
        Some((link, Some(gateway))) => format!("{} via {gateway} dev {}", crossing.client, printable(&link.name)),
        Some((link, None)) => format!("{} dev {}", crossing.client, printable(&link.name)),
        None => format!("{}: no route", crossing.client),
    }
}

/// F27. The confidence is likely, and unknown with policy routing.
fn asymmetric(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let all = context.forwards();
    let policy = host.facts.as_ref().is_some_and(|facts| facts.policy_routing);
    let crossings = crossings(context, all);
    let found = by_links(&crossings).into_iter().filter_map(|group| {
        let first = *group.first()?;
        let forwards: Vec<&Forward<'_>> = group.iter().map(|crossing| crossing.forward).collect();
        let (text, entrance) = (several(&forwards), printable(&first.entrance.name));
        let message = match first.exit {
            Some((link, _)) => {
                format!("packets of {text} arrive on `{entrance}`, and answers leave by `{}`", printable(&link.name))
            }
            None => format!("packets of {text} arrive on `{entrance}`, and there is no route for the answers"),
        };
        let confidence = if policy { Confidence::Unknown } else { Confidence::Likely };
        Some(at_all(
            kind.found(confidence, message).seen(format!("route to a client: {}", leaving(first))),
            host,
            &forwards,
        ))
    });
    found.collect()
}

/// F28. The kernel uses the maximum of the sysctls for `all` and for the interface (`IN_DEV_RPFILTER` in
/// include/linux/inetdevice.h). IPv6 has no such sysctl.
fn strict(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = context.facts() else { return Vec::new() };
    let all = context.forwards();
    let crossings = crossings(context, all);
    let found = by_links(&crossings).into_iter().filter_map(|group| {
        let first = *group.first()?;
        let group: Vec<&Forward<'_>> = group
            .iter()
            .filter(|crossing| crossing.forward.family == Family::Ipv4)
            .map(|crossing| crossing.forward)
            .collect();
        let of = |name: &str| facts.setting(&format!("net/ipv4/conf/{name}/rp_filter"))?.parse::<u8>().ok();
        let (common, own) = (of("all"), of(&first.entrance.name));
        if group.is_empty() || common.max(own) != Some(1) {
            return None;
        }
        let entrance = printable(&first.entrance.name);
        let message = format!("the reverse path filter of `{entrance}` drops clients of {}", several(&group));
        let value = |value: Option<u8>| value.map_or("not known".to_owned(), |value| value.to_string());
        let confidence = if facts.policy_routing { Confidence::Unknown } else { Confidence::Likely };
        let finding = kind
            .found(confidence, message)
            .seen(format!("net.ipv4.conf.all.rp_filter = {}", value(common)))
            .seen(format!("net.ipv4.conf.{entrance}.rp_filter = {}", value(own)))
            .seen(format!("route to a client: {}", leaving(first)))
            .mended_by(format!("sysctl -w net.ipv4.conf.{entrance}.rp_filter=2"));
        Some(at_all(finding, host, &group))
    });
    found.collect()
}

/// F42. The confidence is unknown: the normal form of rules does not contain MSS clamping, and it is unknown whether ICMP messages
/// are lost.
fn mtu(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    if context.facts().is_none() || clamps(host) {
        return Vec::new();
    }
    let all = context.forwards();
    let mut groups: BTreeMap<_, Vec<(&Link, &Link, &Forward<'_>)>> = BTreeMap::new();
    for forward in all {
        let (Some(region), Some(target)) = (arriving(forward), targets(forward).next()) else { continue };
        if !region.get(Field::Protocol).has(6) {
            continue;
        }
        let from_afar = || match context.next_hop(far(forward.family)) {
            Some(NextHop::Via(link, _)) if context.ingress(region).iter().any(|way| way.index == link.index) => {
                Some(link)
            }
            _ => None,
        };
        let Some(entrance) = context.entrance(forward.family, region).or_else(from_afar) else { continue };
        let Some(NextHop::Via(exit, _)) = context.next_hop(target) else { continue };
        if entrance.mtu.zip(exit.mtu).is_some_and(|(entrance, exit)| exit < entrance) {
            groups.entry((entrance.index, exit.index)).or_default().push((entrance, exit, forward));
        }
    }
    let found = groups.into_values().filter_map(|group| {
        let (entrance, exit, _) = *group.first()?;
        let forwards: Vec<&Forward<'_>> = group.iter().map(|(_, _, forward)| *forward).collect();
        let size = |link: &Link| format!("{} mtu {}", printable(&link.name), link.mtu.unwrap_or_default());
        let message =
            format!("packets of {} may be too large for the egress interface: {}", several(&forwards), size(exit));
        let finding = kind.found(Confidence::Unknown, message).seen(size(entrance)).seen(size(exit));
        Some(at_all(finding.seen("portfwd does not know whether a rule clamps the MSS"), host, &forwards))
    });
    found.collect()
}

/// Returns true if a rule of an iptables dump clamps the MSS.
fn clamps(host: &Host) -> bool {
    let rules = host.rules.tables.iter().flat_map(|table| table.chains.iter()).flat_map(|chain| &chain.rules);
    rules.filter_map(|rule| rule.words.as_deref()).any(|words| words.contains("-j TCPMSS"))
}

/// F50. At most one finding, and only if a forward leads to another host.
fn policy_routing(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let Some(facts) = context.facts() else { return Vec::new() };
    let vrfs: Vec<String> = facts
        .links
        .iter()
        .filter(|link| link.kind.as_deref() == Some("vrf"))
        .map(|link| format!("`{}`", printable(&link.name)))
        .collect();
    if !facts.policy_routing && vrfs.is_empty() {
        return Vec::new();
    }
    let passing = passing(context);
    let Some(first) = passing.first() else { return Vec::new() };
    let why = match (facts.policy_routing, vrfs.is_empty()) {
        (true, true) => "`ip rule` has more than the usual three rules".to_owned(),
        (true, false) => {
            format!("`ip rule` has more than the usual three rules, and the host has VRFs: {}", vrfs.join(", "))
        }
        (false, _) => format!("the host has VRFs: {}", vrfs.join(", ")),
    };
    let target = targets(first).next().map_or_else(String::new, |target: IpAddr| target.to_string());
    let message = format!(
        "policy routing decides about the routes of packets, so findings about routes are only likely ({})",
        name(first)
    );
    let finding = kind.found(Confidence::Proved, message).seen(why);
    vec![finding.mended_by(format!("check by hand: ip rule show; ip route get {target}"))]
}
