//! Sysctls that forwards depend on.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use super::Check;
use super::addresses::far;
use super::context::{Context, arriving, passing, targets};
use super::wording::{at_all, list, several, verb};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Facts, Link, Listener, NextHop};
use crate::ruleset::region::{self, Field, LOCAL};
use crate::ruleset::set::{Set, number_of};
use crate::ruleset::simulate::chains::{Verdict, Which};
use crate::ruleset::table::{At, Hook};

/// The share of used entries, as a fraction, from which the table is nearly full.
const NEARLY_FULL: (u64, u64) = (9, 10);

/// The minimum lifetime of a UDP mapping in seconds. Source: RFC 4787, REQ-5.
const LEAST_STREAM: u64 = 120;

/// The default lifetime of a UDP mapping without an answer, in seconds.
const LEAST_FIRST: u64 = 30;

pub(super) const CHECKS: &[Check] = &[
    Check {
        kind: Kind {
            id: "F12",
            title: "packets are not forwarded",
            severity: Severity::Error,
            what: "Forwards lead to other hosts or containers, but IP forwarding is off for all interfaces, or for the ingress interface of the packets or answers.",
            why: "The kernel rewrites the destination and then drops the packet.",
            fix: "sysctl -w net.ipv4.ip_forward=1",
        },
        find: forwarding,
    },
    Check {
        kind: Kind {
            id: "F16",
            title: "loopback addresses are accepted from other hosts",
            severity: Severity::Warning,
            what: "`route_localnet` is on, so the kernel does not drop packets to 127.0.0.0/8 that arrive from other hosts.",
            why: "All hosts on the link can reach programs that listen only on 127.0.0.1 (CVE-2020-8558), unless a rule drops such packets.",
            fix: "iptables -t raw -I PREROUTING ! -i lo -d 127.0.0.0/8 -j DROP",
        },
        find: route_localnet,
    },
    Check {
        kind: Kind {
            id: "F22",
            title: "outgoing connections may use the port",
            severity: Severity::Info,
            what: "The listen port of a forward is in the range of ports for this host's own connections.",
            why: "The kernel may give the port to a program of this host. Packets to that program that belong to no connection then go to the target.",
            fix: "reserve the ports with `net.ipv4.ip_local_reserved_ports`",
        },
        find: ephemeral,
    },
    Check {
        kind: Kind {
            id: "F39",
            title: "connection tracking table is nearly full",
            severity: Severity::Warning,
            what: "The connection tracking table is at least 90 % full.",
            why: "If the table is full, the kernel drops the first packets of all new connections.",
            fix: "sysctl -w net.netfilter.nf_conntrack_max=…",
        },
        find: full,
    },
    Check {
        kind: Kind {
            id: "F40",
            title: "short timeouts for UDP connections",
            severity: Severity::Info,
            what: "The host has UDP forwards, and the kernel deletes idle UDP connections earlier than clients expect.",
            why: "A client that is silent for longer gets no more packets from the target, or gets another source port.",
            fix: "sysctl -w net.netfilter.nf_conntrack_udp_timeout_stream=120",
        },
        find: udp_timeout,
    },
];

/// F12. For IPv4, the sysctl of the ingress interface decides (`IN_DEV_FORWARD` in include/linux/inetdevice.h), and ip_forward sets
/// all of them. For IPv6, the common sysctl decides (`ip6_forward` in net/ipv6/ip6_output.c). An unread sysctl counts as on.
fn forwarding(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = context.facts() else { return Vec::new() };
    let passing = passing(context);
    let mut found = Vec::new();
    for (family, path) in [(Family::Ipv4, "net/ipv4/ip_forward"), (Family::Ipv6, "net/ipv6/conf/all/forwarding")] {
        let of_family: Vec<&Forward<'_>> = passing.iter().filter(|forward| forward.family == family).copied().collect();
        if of_family.is_empty() {
            continue;
        }
        let sysctl = path.replace('/', ".");
        let is_off = facts.setting(path) == Some("0");
        let some_on = |setting: &str| {
            facts.links.iter().any(|link| {
                let of = if family == Family::Ipv4 { "ipv4" } else { "ipv6" };
                facts.setting(&format!("net/{of}/conf/{}/{setting}", link.name)).is_some_and(|value| value != "0")
            })
        };
        let by_link = some_on(if family == Family::Ipv4 { "forwarding" } else { "force_forwarding" });
        if is_off && !by_link {
            let message = format!(
                "{} {} to other hosts, and {family} packets are not forwarded",
                several(&of_family),
                verb(&of_family, "leads", "lead")
            );
            let finding = kind.found(context.confidence(&of_family), message).seen(format!("{sysctl} = 0"));
            found.push(at_all(finding.mended_by(format!("sysctl -w {sysctl}=1")), host, &of_family));
        } else if family == Family::Ipv4 {
            found.extend(not_by_some(context, facts, kind, &of_family));
        }
    }
    found
}

/// Returns findings about forwards whose packets or answers arrive on an interface without forwarding.
fn not_by_some(context: &Context<'_>, facts: &Facts, kind: &'static Kind, forwards: &[&Forward<'_>]) -> Vec<Finding> {
    let off: Vec<&Link> = facts
        .links
        .iter()
        .filter(|link| facts.setting(&format!("net/ipv4/conf/{}/forwarding", link.name)) == Some("0"))
        .collect();
    let mut found = Vec::new();
    for link in off {
        let (mut always, mut sometimes) = (Vec::new(), Vec::new());
        for forward in forwards {
            let Some(region) = arriving(forward) else { continue };
            let ways_in = context.ingress(region);
            let answers = targets(forward).any(
                |target| matches!(context.next_hop(target), Some(NextHop::Via(way, _)) if way.index == link.index),
            );
            match ways_in.iter().any(|way| way.index == link.index) {
                _ if answers => always.push(*forward),
                true if ways_in.len() == 1 => always.push(*forward),
                true => sometimes.push(*forward),
                false => {}
            }
        }
        let is_sure = !always.is_empty();
        let forwards = if is_sure { always } else { sometimes };
        if forwards.is_empty() {
            continue;
        }
        let (link, confidence) = (printable(&link.name), context.confidence(&forwards));
        let message = format!(
            "packets that arrive on `{link}` are not forwarded, but {} {} this",
            several(&forwards),
            verb(&forwards, "needs", "need")
        );
        let finding = match is_sure {
            true => kind.found(confidence, message),
            // portfwd does not know whether clients use this interface.
            false => kind.found(Confidence::Likely, message).as_bad_as(Severity::Warning),
        };
        let finding = finding.seen(format!("net.ipv4.conf.{link}.forwarding = 0"));
        found.push(at_all(
            finding.mended_by(format!("sysctl -w net.ipv4.conf.{link}.forwarding=1")),
            context.host,
            &forwards,
        ));
    }
    found
}

/// F16. A remark if rules certainly drop such packets. Returns nothing without facts, because the sysctl is usually off.
fn route_localnet(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = &host.facts else { return Vec::new() };
    let of = |path: &str| {
        let name = path.strip_prefix("net/ipv4/conf/")?.strip_suffix("/route_localnet")?;
        (name != "lo").then(|| name.to_owned())
    };
    let on = facts.settings.iter().filter(|(_, value)| value.trim() != "0").filter_map(|(path, _)| of(path));
    let on: Vec<String> = on.collect();
    if on.is_empty() {
        return Vec::new();
    }
    let is_v4_loopback = |listener: &&Listener| matches!(listener.address, IpAddr::V4(four) if four.is_loopback());
    let bound: Vec<&Listener> = facts.listeners.iter().filter(is_v4_loopback).collect();
    let links: Vec<&Link> = facts
        .links
        .iter()
        .filter(|link| !link.loopback && (on.contains(&link.name) || on.iter().any(|name| name == "all")))
        .collect();
    let fates: Vec<Fate> = links.iter().map(|link| fate_of_loopback(context, link)).collect();
    let is_own = |fate: &Fate| matches!(fate, Fate::Dropped(at) if host.place(*at).owner == "portfwd");
    if !fates.is_empty() && fates.iter().all(is_own) {
        // portfwd switches the sysctl on for a forward, together with the rules of its guard.
        return Vec::new();
    }
    let all_dropped = !fates.is_empty() && fates.iter().all(|fate| matches!(fate, Fate::Dropped(_)));
    let names = list(on.iter().map(|name| format!("`{}`", printable(name))));
    let evidence = list(on.iter().map(|name| format!("net.ipv4.conf.{}.route_localnet = 1", printable(name))));
    let finding = match (bound.is_empty(), all_dropped) {
        (_, true) => {
            let message = format!("packets to 127.0.0.0/8 are accepted on {names}, and only rules drop them");
            kind.found(Confidence::Proved, message)
                .as_bad_as(Severity::Info)
                .mended_by(format!("if no forward leads to 127.0.0.1: {}", switches(&on)))
        }
        (true, false) => {
            let message = format!("packets to 127.0.0.0/8 are accepted on {names}");
            kind.found(Confidence::Proved, message)
        }
        (false, false) => {
            let programs = list(bound.iter().map(|listener| program(listener)));
            let message = format!("other hosts can reach programs on loopback addresses through {names}: {programs}");
            let is_sure = fates.contains(&Fate::Passes);
            kind.found(if is_sure { Confidence::Proved } else { Confidence::Likely }, message)
                .as_bad_as(Severity::Error)
        }
    };
    let fix = format!("{}; or, if a forward needs it: {}", switches(&on), kind.fix);
    vec![if finding.severity == Severity::Info {
        finding.seen(evidence)
    } else {
        finding.seen(evidence).mended_by(fix)
    }]
}

fn switches(on: &[String]) -> String {
    let settings: Vec<String> =
        on.iter().map(|name| format!("net.ipv4.conf.{}.route_localnet=0", printable(name))).collect();
    format!("sysctl -w {}", settings.join(" "))
}

/// Returns a listener as text, for example `sshd (1234) at 0.0.0.0:22/tcp`.
pub(super) fn program(listener: &Listener) -> String {
    let address = match listener.address {
        IpAddr::V4(four) => four.to_string(),
        IpAddr::V6(six) => format!("[{six}]"),
    };
    let at = format!("{address}:{}/{}", listener.port, listener.protocol);
    match &listener.owner {
        Some((name, number)) => format!("`{}` ({number}) at {at}", printable(name)),
        None => at,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Dropped(At),
    Passes,
    Unknown,
}

/// Returns what the filter rules do with packets from other hosts to a loopback address.
fn fate_of_loopback(context: &Context<'_>, link: &Link) -> Fate {
    let family = Family::Ipv4;
    let mut packet = region::packet(family, Some(&link.name))
        .with(Field::Source, number_of(far(family)))
        .with(Field::Destination, 0x7f00_0001)
        .with(Field::DestinationKind, LOCAL)
        .with(Field::SourceKind, 1)
        .with(Field::Output, 0);
    let mut is_sure = true;
    for hook in [Hook::Prerouting, Hook::Input] {
        let outcome = context.simulator.tracer.hook(&mut packet, hook, &Which::Filter(i32::MIN..=i32::MAX));
        is_sure &= outcome.is_sure();
        match outcome.verdict {
            Verdict::Dropped(at, ..) if is_sure => return Fate::Dropped(at),
            Verdict::Passes => {}
            _ => return Fate::Unknown,
        }
    }
    if is_sure { Fate::Passes } else { Fate::Unknown }
}

/// F22. The range applies to IPv4 and IPv6.
fn ephemeral(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = &host.facts else { return Vec::new() };
    let range = facts.setting("net/ipv4/ip_local_port_range");
    let Some(range) = range.and_then(|text| ports(&text.split_whitespace().collect::<Vec<_>>().join("-"))) else {
        return Vec::new();
    };
    let reserved = facts.setting("net/ipv4/ip_local_reserved_ports");
    let kept = reserved.and_then(ports);
    let free = range.minus(kept.as_ref().unwrap_or(&Set::none()));
    let all = context.forwards();
    let (mut clash, mut taken) = (Vec::new(), Vec::new());
    for forward in all {
        let Some(region) = forward.region() else { continue };
        let asked = region.get(Field::Port);
        if !asked.is_all() && asked.meets(&free) {
            taken.extend(asked.and(&free).ranges());
            clash.push(forward);
        }
    }
    if clash.is_empty() {
        return Vec::new();
    }
    let wanted = Set::from_ranges(taken).or(kept.as_ref().unwrap_or(&Set::none()));
    let words: Vec<String> = wanted
        .ranges()
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    let message = format!(
        "{} {} ports that this host may also use for its own connections",
        several(&clash),
        verb(&clash, "takes", "take")
    );
    let confidence = if kept.is_some() { Confidence::Proved } else { Confidence::Likely };
    let finding = kind
        .found(confidence, message)
        .seen(format!(
            "net.ipv4.ip_local_port_range = {}",
            printable(facts.setting("net/ipv4/ip_local_port_range").unwrap_or_default())
        ))
        .seen(format!("net.ipv4.ip_local_reserved_ports = {}", reserved.map_or("unknown".into(), printable)))
        .mended_by(format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", words.join(",")));
    vec![at_all(finding, host, &clash)]
}

/// Parses ports such as `80,8000-8010`.
fn ports(text: &str) -> Option<Set> {
    let mut all = Vec::new();
    for one in text.split(',').filter(|one| !one.is_empty()) {
        let (first, last) = one.split_once('-').unwrap_or((one, one));
        all.push((first.trim().parse::<u16>().ok()?.into(), last.trim().parse::<u16>().ok()?.into()));
    }
    Some(Set::from_ranges(all))
}

/// F39. A maximum of 0 means no limit (`__nf_conntrack_alloc` in net/netfilter/nf_conntrack_core.c).
fn full(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some((count, most)) = host.facts.as_ref().and_then(|facts| facts.tracked_count) else { return Vec::new() };
    let (share, of) = NEARLY_FULL;
    if most == 0 || count.saturating_mul(of) < most.saturating_mul(share) {
        return Vec::new();
    }
    let message = format!("{count} of at most {most} connections are tracked");
    let finding = kind
        .found(Confidence::Proved, message)
        .seen(format!("net.netfilter.nf_conntrack_count = {count}"))
        .seen(format!("net.netfilter.nf_conntrack_max = {most}"))
        .mended_by(format!("sysctl -w net.netfilter.nf_conntrack_max={}", most.saturating_mul(2)));
    vec![if count >= most { finding.as_bad_as(Severity::Error) } else { finding }]
}

/// F40. The confidence is likely, because rules can set other timeouts, which portfwd does not read.
fn udp_timeout(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = &host.facts else { return Vec::new() };
    let settings = [
        ("net/netfilter/nf_conntrack_udp_timeout_stream", LEAST_STREAM),
        ("net/netfilter/nf_conntrack_udp_timeout", LEAST_FIRST),
    ];
    let short: Vec<(String, u64, u64)> = settings
        .iter()
        .filter_map(|(path, least)| {
            let is = facts.setting(path)?.parse().ok()?;
            (is < *least).then(|| (path.replace('/', "."), is, *least))
        })
        .collect();
    let all = context.forwards();
    let is_udp = |forward: &&Forward<'_>| {
        let protocols = forward.region().map(|region| region.get(Field::Protocol));
        protocols.is_some_and(|protocols| !protocols.is_all() && protocols.has(17))
    };
    let forwards: Vec<&Forward<'_>> = all.iter().filter(is_udp).collect();
    if short.is_empty() || forwards.is_empty() {
        return Vec::new();
    }
    let times = list(short.iter().map(|(path, is, _)| format!("{path} = {is}")));
    let fixes: Vec<String> = short.iter().map(|(path, _, least)| format!("{path}={least}")).collect();
    let message = format!("idle connections of {} time out early: {times} (seconds)", several(&forwards));
    let finding = kind.found(Confidence::Likely, message).seen(times);
    vec![at_all(finding.mended_by(format!("sysctl -w {}", fixes.join(" "))), host, &forwards)]
}
