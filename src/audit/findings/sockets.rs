//! Sockets of this host: what forwards hide, and what they lead to.

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
use crate::audit::overlap::Overlaps;
use crate::model::{Family, Protocol};
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Facts, Link, Listener, NextHop};
use crate::ruleset::region::{Field, Region};
use crate::ruleset::set::{Set, number_of, number_of_name};
use crate::ruleset::table::Hook;
use crate::ruleset::view::Translation;

/// Programs that hold the port of a forward only so that nobody else takes it, or serve what it does not.
const PLACEHOLDERS: [&str; 6] = ["docker-proxy", "conmon", "rootlessport", "rootlesskit", "kube-proxy", "kubelet"];

/// Programs by which a host is administered from afar.
const MANAGEMENT: [&str; 4] = ["sshd", "sshd-session", "dropbear", "tinysshd"];

/// What a port needs a helper for: the protocol, the port, and the helper's name.
const HELPERS: [(u8, u16, &str); 4] = [(6, 21, "ftp"), (17, 69, "tftp"), (6, 5060, "sip"), (17, 5060, "sip")];

/// The most ports of a forward that are asked for one by one.
const MANY: u128 = 64;

pub(super) const CHECKS: &[Check] = &[
    Check {
        kind: Kind {
            id: "F10",
            title: "nothing listens on the target",
            severity: Severity::Warning,
            what: "A forward leads to an address and port of this very host where no socket waits.",
            why: "Clients are refused.",
            fix: "start the program, or correct the port",
        },
        find: nobody,
    },
    Check {
        kind: Kind {
            id: "F21",
            title: "forward hides a program of this host",
            severity: Severity::Error,
            what: "A program of this host listens on an address and port that a forward takes before packets for it come that far.",
            why: "Other hosts reach the target and never the program, while it is reached from this host: both seem to work.",
            fix: "let one of them use another port or address",
        },
        find: hidden,
    },
    Check {
        kind: Kind {
            id: "F23",
            title: "forward takes the way to manage the host",
            severity: Severity::Error,
            what: "A forward takes the port of the ssh server, or of the very connection that the user is on.",
            why: "That connection lives on, and the next one is led to the target: nobody gets in any more.",
            fix: "remove the forward before the connection is closed, or give it an address or an interface",
        },
        find: management,
    },
    Check {
        kind: Kind {
            id: "F41",
            title: "protocol may need a helper",
            severity: Severity::Info,
            what: "A forward is of a protocol that names further addresses and ports in its packets: FTP, TFTP or SIP.",
            why: "Without a helper the connections that it names are neither let through nor rewritten, and the kernel assigns helpers only where a rule says so.",
            fix: "iptables -t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp",
        },
        find: helper,
    },
];

/// The families whose packets a listener gets.
fn families(listener: &Listener) -> impl Iterator<Item = Family> {
    let both = listener.address.is_ipv6() && listener.address.is_unspecified() && !listener.only_ipv6;
    let own = Family::of_address(listener.address);
    Family::ALL.into_iter().filter(move |family| *family == own || both)
}

/// The packets of a family that a listener waits for from other hosts; `None` where it waits for none.
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

/// Forwards, found by the packets that they take of those that arrive.
struct Takers<'f, 'a> {
    /// By family.
    parts: [(Vec<(&'f Forward<'a>, &'f Region)>, Overlaps<'f>); 2],
}

/// A forward that takes packets of a region.
struct Taken<'f, 'a> {
    forward: &'f Forward<'a>,
    confidence: Confidence,
    /// Whether it takes them of all clients.
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
            let overlaps = Overlaps::new(steps.iter().map(|(_, region)| *region));
            (steps, overlaps)
        });
        Self { parts }
    }

    /// The forwards that take packets of a region: surely where a packet of it, led through all rules, comes to them.
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
                // Another one takes it, or a rule before keeps it from it.
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

/// Whether a forward only leads packets to where they go anyway.
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

/// F21. Programs that hold ports for the very forward, as docker-proxy does, are not meant. That a rule on the way is not
/// understood makes it unknown. Of a dump no sockets are known.
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
            Confidence::Unknown => format!("{text} may take what is for {}", list(programs.iter().cloned())),
            _ => format!("{text} takes what is for {}", list(programs.iter().cloned())),
        };
        let finding = kind.found(confidence, message);
        let finding = if first.of_all { finding } else { finding.as_bad_as(Severity::Warning) };
        let finding = finding.seen(format!("listens: {}", list(programs.into_iter())));
        Some(at_all(finding, host, &[first.forward]))
    });
    found.collect()
}

/// F23. As [`hidden`], and as sure.
fn management(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let Some(facts) = context.facts() else { return Vec::new() };
    let all = context.forwards();
    let takers = Takers::new(all);
    let mut groups: BTreeMap<_, Vec<(Taken<'_, '_>, String)>> = BTreeMap::new();
    let mut found = Vec::new();
    if let Some((family, region)) = facts.ssh.and_then(|ssh| of_ssh(context, ssh)) {
        let what = "the ssh connection that you are on".to_owned();
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

/// The packets of the next connection that is like the one that the user is on.
fn of_ssh(context: &Context<'_>, (address, port): (IpAddr, u16)) -> Option<(Family, Region)> {
    let family = match address {
        IpAddr::V4(_) => Family::Ipv4,
        // That of a client of IPv4 at a socket for both.
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

/// Those packets of a region that come from where the user is, where that is known.
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

/// The sockets of a host, by protocol and port.
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

    /// Whether one serves packets of a family for an address and any of some ports; without an address those for any that
    /// `serves` says.
    fn any(&self, protocol: u8, (first, last): (u16, u16), serves: impl Fn(&Listener) -> bool) -> bool {
        let ports = self.ports.range((protocol, first)..=(protocol, last));
        ports.filter_map(|(key, ())| self.by_port.get(key)).flatten().any(|listener| serves(listener))
    }
}

/// F10. Only of TCP and UDP are the sockets known, and those only of this network namespace: a target in a container is no
/// address of this host. Where something about the host could not be read it is no more than likely.
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
                // A redirect leads to an address of the interface; from this host to the loopback address.
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
    let finding = kind.found(confidence, message).seen(format!("{} sockets wait on this host", facts.listeners.len()));
    vec![at_all(finding, host, &silent)]
}

/// The ranges of ports that packets of a forward arrive at.
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

/// F41. Whether a rule assigns a helper is in the words of a dump alone, and not in the normal form; so it is likely.
/// Kernels before 6.0 assign them by themselves where `nf_conntrack_helper` is 1.
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
            format!("{} may need the helper `{helper}`, and no rule is known to assign it", several(&forwards));
        let listen = forwards.first().and_then(|forward| forward.first_port()).unwrap_or(port);
        let protocol = Protocol::from_number(protocol).map_or("tcp", Protocol::name);
        let command = format!("iptables -t raw -A PREROUTING -p {protocol} --dport {listen} -j CT --helper {helper}");
        let finding = kind.found(Confidence::Likely, message);
        at_all(finding.mended_by(format!("modprobe nf_nat_{helper}; {command}")), host, &forwards)
    });
    found.collect()
}
