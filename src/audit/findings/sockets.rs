//! Sockets of this host: services that forwards hide, and targets without a listener.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::Check;
use super::addresses::loopback;
use super::context::Context;
use super::settings::program;
use super::wording::{at_all, list, name, removal, several, verb};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::{Family, Protocol};
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Facts, Link, Listener, NextHop};
use crate::ruleset::index::RegionIndex;
use crate::ruleset::region::{Field, Region};
use crate::ruleset::set::{Set, number_of, number_of_name};
use crate::ruleset::table::Hook;
use crate::ruleset::view::Translation;

/// Programs that bind the port of a forward only to reserve it, or to serve other packets.
const PLACEHOLDERS: [&str; 6] = ["docker-proxy", "conmon", "rootlessport", "rootlesskit", "kube-proxy", "kubelet"];

/// Programs for remote administration.
const MANAGEMENT: [&str; 4] = ["sshd", "sshd-session", "dropbear", "tinysshd"];

/// Protocols that need a conntrack helper: protocol number, port, and name of the helper.
const HELPERS: [(u8, u16, &str); 4] = [(6, 21, "ftp"), (17, 69, "tftp"), (6, 5060, "sip"), (17, 5060, "sip")];

/// The maximum number of ports of a forward that are tried one by one.
const MANY: u128 = 64;

pub(super) const CHECKS: &[Check] = &[
    Check {
        kind: Kind {
            id: "F10",
            title: "nothing listens on the target",
            severity: Severity::Warning,
            what: "A forward leads to an address and port of this host without a listening socket.",
            why: "The kernel refuses the connections.",
            fix: "start the program, or correct the port",
        },
        find: nobody,
    },
    Check {
        kind: Kind {
            id: "F21",
            title: "forward hides a service of this host",
            severity: Severity::Error,
            what: "A program of this host listens on an address and port, but a forward rewrites the packets before they reach the program.",
            why: "Other hosts reach the target and never the program. This host still reaches the program, so both seem to work.",
            fix: "use another port or address for one of them",
        },
        find: hidden,
    },
    Check {
        kind: Kind {
            id: "F23",
            title: "forward takes the port of remote administration",
            severity: Severity::Error,
            what: "A forward takes the port of the SSH server, or of the user's own SSH connection.",
            why: "The current connection continues, but the next one goes to the target. So the user loses access.",
            fix: "remove the forward before you close the connection, or give it an address or an interface",
        },
        find: management,
    },
    Check {
        kind: Kind {
            id: "F41",
            title: "protocol may need a helper",
            severity: Severity::Info,
            what: "A forward is for FTP, TFTP or SIP, whose packets contain further addresses and ports.",
            why: "Without a conntrack helper, the kernel does not translate the further connections. The kernel assigns helpers only through rules.",
            fix: "iptables -t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp",
        },
        find: helper,
    },
];

/// Returns the families whose packets a listener receives.
fn families(listener: &Listener) -> impl Iterator<Item = Family> {
    let both = listener.address.is_ipv6() && listener.address.is_unspecified() && !listener.only_ipv6;
    let own = Family::of_address(listener.address);
    Family::ALL.into_iter().filter(move |family| *family == own || both)
}

/// Returns the packets of other hosts for a listener. Returns `None` if the listener serves only this host.
fn waits_for(context: &Context<'_>, listener: &Listener, family: Family) -> Option<Region> {
    let addresses = match (listener.address.is_unspecified(), context.local(family)) {
        (false, _) if listener.address.is_loopback() => return None,
        (false, _) => Set::address(listener.address),
        (true, Some(local)) => local.minus(&loopback(family)),
        (true, None) => Set::ALL,
    };
    let region = Region::all()
        .with(Field::Protocol, &Set::single(listener.protocol.number().into()))
        .with(Field::Port, &Set::single(listener.port.into()))
        .with(Field::Destination, &addresses)
        .with(Field::Input, &inputs_of(context, listener.address));
    (!region.is_empty()).then_some(region)
}

/// Returns the interfaces of the clients of an address: all, or those with the address.
///
/// Linux also delivers packets to the address that arrive on other interfaces, but the clients do not send such packets.
/// Clients of an address on `lo` or on a dummy interface use other interfaces.
fn inputs_of(context: &Context<'_>, address: IpAddr) -> Set {
    let Some(facts) = context.facts().filter(|_| !address.is_unspecified()) else { return Set::ALL };
    let links = facts.addresses.iter().filter(|(_, network)| network.ip() == address);
    let links: Option<Vec<&Link>> = links.map(|(link, _)| facts.link(*link)).collect();
    let has_clients = |link: &&Link| !link.loopback && link.kind.as_deref() != Some("dummy");
    match links {
        Some(links) if !links.is_empty() && links.iter().all(has_clients) => {
            let number = |link: &&Link| number_of_name(link.name.as_bytes(), 0);
            Set::from_ranges(links.iter().map(number).map(|number| (number, number)))
        }
        _ => Set::ALL,
    }
}

/// An index of forwards by the arriving packets that they match.
struct Takers<'f, 'a> {
    /// For each family, the forwards with their regions, and an index of the regions.
    parts: [(Vec<(&'f Forward<'a>, &'f Region)>, RegionIndex<'f>); 2],
}

/// A forward that takes packets of a region.
struct Taken<'f, 'a> {
    forward: &'f Forward<'a>,
    confidence: Confidence,
    /// True if the forward matches all clients.
    of_all: bool,
}

impl<'f, 'a> Takers<'f, 'a> {
    fn new(all: &'f [Forward<'a>]) -> Self {
        let parts = Family::ALL.map(|family| {
            let of_family = all.iter().filter(|forward| forward.family == family);
            let steps: Vec<(&Forward<'_>, &Region)> = of_family
                .flat_map(|forward| {
                    let arriving = forward.steps.iter().filter(|(hook, _, _)| *hook == Hook::Prerouting);
                    arriving.map(move |(_, _, step)| (forward, &step.region))
                })
                .collect();
            let overlaps = RegionIndex::new(steps.iter().map(|(_, region)| *region));
            (steps, overlaps)
        });
        Self { parts }
    }

    /// Returns the forwards that take packets of a region. Simulates one packet for each forward.
    fn of(&self, context: &Context<'_>, family: Family, region: &Region) -> Vec<Taken<'f, 'a>> {
        let [four, six] = &self.parts;
        let (steps, overlaps) = if family == Family::Ipv4 { four } else { six };
        let mut found: Vec<Taken<'f, 'a>> = Vec::new();
        for number in overlaps.meeting(region) {
            let Some((forward, taken)) = steps.get(number) else { continue };
            if found.iter().any(|known| known.forward.at == forward.at) || leads_back(forward, region) {
                continue;
            }
            let both = region.and(taken);
            let Some(packet) = context.packet(family, &both, Hook::Prerouting) else { continue };
            let outcome = context.translated(&packet, Hook::Prerouting);
            let confidence = match (&outcome.rewritten, outcome.is_sure()) {
                (Some((_, _, at)), true) if *at == forward.at => Confidence::Proved,
                (Some((_, _, at)), false) if *at == forward.at => Confidence::Likely,
                // Another forward takes the packet, or an earlier rule excludes it.
                (_, true) => continue,
                (_, false) => Confidence::Unknown,
            };
            found.push(Taken {
                forward,
                confidence,
                of_all: taken.get(Field::Source).covers(region.get(Field::Source)),
            });
        }
        found
    }
}

/// Returns true if a forward does not change the destination of the packets.
fn leads_back(forward: &Forward<'_>, region: &Region) -> bool {
    let port = region.get(Field::Port).only().and_then(|port| u16::try_from(port).ok());
    let same_port = port.is_some_and(|port| forward.to.port_for(port) == Some(port));
    let same_address = match (forward.translation, forward.target()) {
        (Translation::Redirect, _) => true,
        (_, Some(target)) => region.get(Field::Destination).has(number_of(target)),
        (_, None) => forward.to.addresses.is_none(),
    };
    same_port && same_address
}

fn is_of(listener: &Listener, names: &[&str]) -> bool {
    listener.owner.as_ref().is_some_and(|(name, _)| names.contains(&name.as_str()))
}

/// F21. Ignores programs that reserve the port for the forward, such as docker-proxy. The confidence is unknown if a rule on the
/// path is not understood. Returns nothing without facts.
fn hidden(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = context.facts() else { return Vec::new() };
    let all = context.forwards();
    let takers = Takers::new(all);
    let mut groups: BTreeMap<_, Vec<(Taken<'_, '_>, &Listener)>> = BTreeMap::new();
    for listener in &facts.listeners {
        if is_of(listener, &PLACEHOLDERS) || is_of(listener, &MANAGEMENT) {
            continue;
        }
        for family in families(listener) {
            let Some(region) = waits_for(context, listener, family) else { continue };
            for taken in takers.of(context, family, &region) {
                groups.entry((taken.forward.family, taken.forward.at)).or_default().push((taken, listener));
            }
        }
    }
    let found = groups.into_values().filter_map(|group| {
        let (first, _) = group.first()?;
        let confidence = group.iter().map(|(taken, _)| taken.confidence).max()?;
        let programs: Vec<String> = group.iter().map(|(_, listener)| program(listener)).collect();
        let text = name(first.forward);
        let message = match confidence {
            Confidence::Unknown => format!("{text} may take packets to {}", list(programs.iter().cloned())),
            _ => format!("{text} takes packets to {}", list(programs.iter().cloned())),
        };
        let finding = kind.found(confidence, message);
        let finding = if first.of_all { finding } else { finding.as_bad_as(Severity::Warning) };
        let finding = finding.seen(format!("listens: {}", list(programs.into_iter())));
        Some(at_all(finding, host, &[first.forward]))
    });
    found.collect()
}

/// F23. The confidence follows the rules of F21.
fn management(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = context.facts() else { return Vec::new() };
    let all = context.forwards();
    let takers = Takers::new(all);
    let mut groups: BTreeMap<_, Vec<(Taken<'_, '_>, String)>> = BTreeMap::new();
    let mut found = Vec::new();
    if let Some((family, region)) = facts.ssh.and_then(|ssh| of_ssh(context, ssh)) {
        let what = "your SSH connection".to_owned();
        found.extend(takers.of(context, family, &region).into_iter().map(|taken| (taken, what.clone())));
    }
    for listener in facts.listeners.iter().filter(|listener| is_of(listener, &MANAGEMENT)) {
        for family in families(listener) {
            let Some(region) = waits_for(context, listener, family) else { continue };
            let taken = takers.of(context, family, &region).into_iter();
            found.extend(taken.map(|taken| (taken, program(listener))));
        }
    }
    for (taken, what) in found {
        groups.entry((taken.forward.family, taken.forward.at)).or_default().push((taken, what));
    }
    let found = groups.into_values().filter_map(|group| {
        let (first, _) = group.first()?;
        let confidence = group.iter().map(|(taken, _)| taken.confidence).max()?;
        let mut what: Vec<String> = group.iter().map(|(_, what)| what.clone()).collect();
        what.dedup();
        let verb = if confidence == Confidence::Unknown { "may take" } else { "takes" };
        let message = format!("{} {verb} the port of {}", name(first.forward), list(what.into_iter()));
        let finding = at_all(kind.found(confidence, message), host, &[first.forward]);
        let finding = if first.of_all { finding } else { finding.as_bad_as(Severity::Warning) };
        Some(finding.mended_by(removal(host, first.forward.at)))
    });
    found.collect()
}

/// Returns the packets of a new SSH connection that is like the user's current one.
fn of_ssh(context: &Context<'_>, (address, port): (IpAddr, u16)) -> Option<(Family, Region)> {
    let family = match address {
        IpAddr::V4(_) => Family::Ipv4,
        // An IPv4 client at a socket for both families has a mapped address.
        IpAddr::V6(six) if six.to_ipv4_mapped().is_some() => return of_ssh(context, (address.to_canonical(), port)),
        IpAddr::V6(_) => Family::Ipv6,
    };
    let region = Region::all()
        .with(Field::Protocol, &Set::single(Protocol::Tcp.number().into()))
        .with(Field::Port, &Set::single(port.into()));
    let local = context.local(family).map(|local| local.minus(&loopback(family)));
    let region = match context.is_local(address) {
        Some(true) => from_client(context, region.with(Field::Destination, &Set::address(address))),
        _ => region.with(Field::Source, &Set::address(address)).with(Field::Destination, &local.unwrap_or(Set::ALL)),
    };
    (!region.is_empty()).then_some((family, region))
}

/// Returns the packets of a region that come from the user's address and interface, if they are known.
fn from_client(context: &Context<'_>, region: Region) -> Region {
    let Some(client) = context.facts().and_then(|facts| facts.ssh_client).map(|client| client.to_canonical()) else {
        return region;
    };
    let region = region.with(Field::Source, &Set::address(client));
    match context.next_hop(client) {
        Some(NextHop::Via(link, _)) => region.with(Field::Input, &Set::single(number_of_name(link.name.as_bytes(), 0))),
        _ => region,
    }
}

/// The listeners of a host by protocol and port.
struct Sockets<'a> {
    by_port: HashMap<(u8, u16), Vec<&'a Listener>>,
    ports: BTreeMap<(u8, u16), ()>,
}

impl<'a> Sockets<'a> {
    fn new(facts: &'a Facts) -> Self {
        let mut sockets = Self { by_port: HashMap::new(), ports: BTreeMap::new() };
        for listener in &facts.listeners {
            let key = (listener.protocol.number(), listener.port);
            sockets.by_port.entry(key).or_default().push(listener);
            sockets.ports.insert(key, ());
        }
        sockets
    }

    /// Returns true if a listener with a port of the range satisfies `serves`.
    fn any(&self, protocol: u8, (first, last): (u16, u16), serves: impl Fn(&Listener) -> bool) -> bool {
        let ports = self.ports.range((protocol, first)..=(protocol, last));
        ports.filter_map(|(key, ())| self.by_port.get(key)).flatten().any(|listener| serves(listener))
    }
}

/// F10. Only for TCP and UDP, because the sockets of other protocols are unknown. The confidence is at most likely if some facts
/// could not be read.
fn nobody(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = context.facts() else { return Vec::new() };
    let sockets = Sockets::new(facts);
    let all = context.forwards();
    let mut silent: Vec<&Forward<'_>> = Vec::new();
    for forward in all {
        let Some(region) = forward.region() else { continue };
        let protocols = region.get(Field::Protocol);
        let asked: Vec<u8> = [6, 17].into_iter().filter(|number| protocols.has((*number).into())).collect();
        if protocols.is_all() || protocols.size() != u128::try_from(asked.len()).unwrap_or(0) {
            continue;
        }
        let arrives = forward.arriving().next().is_some();
        let address = match (forward.translation, forward.target()) {
            (Translation::Redirect, _) => None,
            (_, Some(target)) if context.is_local(target) == Some(true) => Some(target),
            _ => continue,
        };
        let serves = |listener: &Listener| {
            let of_family = families(listener).any(|family| family == forward.family);
            let is_there = match address {
                _ if listener.address.is_unspecified() => true,
                Some(address) => listener.address == address,
                // A redirect leads to an address of the ingress interface, and for packets of this host to loopback.
                None => listener.address.is_loopback() != arrives || forward.steps.len() > 1,
            };
            of_family && is_there
        };
        let answered = asked.iter().any(|protocol| {
            ports_there(forward, region).into_iter().any(|ports| sockets.any(*protocol, ports, serves))
        });
        if !answered {
            silent.push(forward);
        }
    }
    if silent.is_empty() {
        return Vec::new();
    }
    let confidence = match (facts.gaps.is_empty(), facts.listeners.is_empty()) {
        (true, _) => context.confidence(&silent),
        (false, false) => Confidence::Likely,
        (false, true) => Confidence::Unknown,
    };
    let message = format!(
        "{} {} to {} of this host where nothing listens",
        several(&silent),
        verb(&silent, "leads", "lead"),
        verb(&silent, "a port", "ports")
    );
    let finding =
        kind.found(confidence, message).seen(format!("this host has {} listening sockets", facts.listeners.len()));
    vec![at_all(finding, host, &silent)]
}

/// Returns the ranges of new ports of a forward's packets.
fn ports_there(forward: &Forward<'_>, region: &Region) -> Vec<(u16, u16)> {
    let asked = region.get(Field::Port);
    let port = |number: u128| u16::try_from(number).unwrap_or(u16::MAX);
    match (forward.to.ports, forward.to.base) {
        (None, _) => asked.ranges().iter().map(|(first, last)| (port(*first), port(*last))).collect(),
        (Some(ports), Some(_)) if asked.size() <= MANY => {
            let each = asked.ranges().iter().flat_map(|(first, last)| *first..=*last);
            let there: Vec<(u16, u16)> =
                each.filter_map(|asked| forward.to.port_for(port(asked))).map(|port| (port, port)).collect();
            if there.is_empty() { vec![ports] } else { there }
        }
        (Some(ports), _) => vec![ports],
    }
}

/// F41. The confidence is likely, because the normal form of rules does not contain helpers. Kernels before 6.0 assign helpers
/// without rules if `nf_conntrack_helper` is 1.
fn helper(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let assigned = host.facts.as_ref().and_then(|facts| facts.setting("net/netfilter/nf_conntrack_helper"));
    if assigned == Some("1") {
        return Vec::new();
    }
    let chains = host.rules.tables.iter().flat_map(|table| table.chains.iter());
    let words: Vec<&str> = chains
        .flat_map(|chain| &chain.rules)
        .filter_map(|rule| rule.words.as_deref())
        .filter(|words| words.contains("--helper"))
        .collect();
    let is_given = |helper: &str| words.iter().any(|words| words.contains(&format!("--helper {helper}")));
    let wanted: Vec<_> = HELPERS.into_iter().filter(|(_, _, helper)| !is_given(helper)).collect();
    let all = context.forwards();
    let mut groups: BTreeMap<&str, (u8, u16, Vec<&Forward<'_>>)> = BTreeMap::new();
    for forward in all {
        let Some(region) = forward.region() else { continue };
        let (protocols, ports) = (region.get(Field::Protocol), region.get(Field::Port));
        if ports.size() > MANY {
            continue;
        }
        for (protocol, port, helper) in &wanted {
            let mut asked = ports.ranges().iter().flat_map(|(first, last)| *first..=*last);
            let leads = forward.to.ports == Some((*port, *port))
                || asked.any(|asked| u16::try_from(asked).is_ok_and(|asked| forward.to.port_for(asked) == Some(*port)));
            if !protocols.is_all() && protocols.has((*protocol).into()) && (ports.has((*port).into()) || leads) {
                let group = groups.entry(*helper).or_insert_with(|| (*protocol, *port, Vec::new()));
                if group.2.last().is_none_or(|last| last.at != forward.at || last.family != forward.family) {
                    group.2.push(forward);
                }
            }
        }
    }
    let found = groups.into_iter().map(|(helper, (protocol, port, forwards))| {
        let message =
            format!("{} may need the helper `{helper}`, and portfwd knows no rule that assigns it", several(&forwards));
        let listen = forwards.first().and_then(|forward| forward.first_port()).unwrap_or(port);
        let protocol = Protocol::from_number(protocol).map_or("tcp", Protocol::name);
        let command = format!("iptables -t raw -A PREROUTING -p {protocol} --dport {listen} -j CT --helper {helper}");
        let finding = kind.found(Confidence::Likely, message);
        at_all(finding.mended_by(format!("modprobe nf_nat_{helper}; {command}")), host, &forwards)
    });
    found.collect()
}
