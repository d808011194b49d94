//! F15 and F17: paths to a target that bypass its forward.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::super::context::Context;
use super::super::wording::{at_all, each};
use super::clients::{Clients, asked, is_loopback};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::NextHop;
use crate::ruleset::region::{Field, Region, packet};
use crate::ruleset::set::{Set, number_of};
use crate::ruleset::simulate::chains::{BEFORE_DNAT, Verdict, Which};
use crate::ruleset::simulate::{End, packet_in_words};
use crate::ruleset::table::Hook;

pub(super) const LOOPBACK: Kind = Kind {
    id: "F15",
    title: "a forward of a loopback address can be reached from outside",
    severity: Severity::Error,
    what: "The forward listens at an address of 127.0.0.0/8, its rule takes packets that arrive by other interfaces than lo, \
           and no rule drops them before.",
    why: "A neighbour on the link can send packets for 127.0.0.1 to this host. The kernel refuses loopback addresses only when \
          it routes, and by then the rule has rewritten them: route_localnet need not be on for it (measured on Linux 6.18; \
          only a target on a loopback address needs it). What was meant for this host alone is open to the neighbourhood.",
    fix: "iptables -t raw -I PREROUTING -d 127.0.0.0/8 ! -i lo -j DROP",
};

pub(super) const DIRECT: Kind = Kind {
    id: "F17",
    title: "the target can be reached beside its forward",
    severity: Severity::Warning,
    what: "Packets for the target's own address and port that arrive by another interface pass this host: no rule drops them.",
    why: "Whoever can route packets to this host, a neighbour on the link for one, reaches the target without the forward: \
          past the addresses, sources and interfaces that it is restricted to.",
    fix: "Drop what is for the target and comes by other interfaces before NAT, as Docker 28 does in table raw.",
};

/// Finds F15. The confidence is likely for a dump if no interface matters, and unknown if an earlier rule is not understood.
pub(super) fn loopback(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let forwards = context.forwards();
    let clients = Clients::new(context);
    let mut groups: BTreeMap<(String, Confidence), (Vec<&Forward<'_>>, String)> = BTreeMap::new();
    for forward in forwards {
        // The kernel drops such IPv6 packets before any hook.
        let mut steps = forward.arriving().filter(|_| forward.family == Family::Ipv4);
        let Some((_, step)) = steps.find(|(_, step)| is_loopback(&step.region, forward.family)) else { continue };
        if host.facts.is_none() {
            if let Some(sample) = of_dump(&clients, &step.region, forward.family) {
                groups.entry((String::new(), Confidence::Likely)).or_insert((Vec::new(), sample)).0.push(forward);
            }
            continue;
        }
        for (number, gate) in clients.gates.iter().enumerate() {
            let Some(packet) = clients.packet(&step.region, forward.family, number, None) else { continue };
            let trace = clients.simulator.simulate_passage(packet);
            if trace.forwarded_by() != Some(forward.at) || !matches!(trace.end, End::Leaves(..) | End::Arrives) {
                continue;
            }
            let key = (gate.link.name.clone(), trace.confidence());
            let sample =
                || format!("no rule drops {} by {}", packet_in_words(&trace.start), printable(&gate.link.name));
            groups.entry(key).or_insert_with(|| (Vec::new(), sample())).0.push(forward);
        }
    }
    let finding = |((link, confidence), (forwards, sample)): ((String, Confidence), (Vec<&Forward<'_>>, String))| {
        let by = if link.is_empty() { "interfaces other than lo".into() } else { printable(&link) };
        let who = each(&forwards, "is meant for this host, and open", "are meant for this host, and open");
        let finding = kind.found(confidence, format!("{who} to neighbours that come by {by}"));
        at_all(finding, host, &forwards).seen(sample)
    };
    groups.into_iter().map(finding).collect()
}

/// Returns true if no rule drops packets to a loopback address on any interface. Used for hosts of which only the rules are
/// known.
fn of_dump(clients: &Clients<'_, '_>, region: &Region, family: Family) -> Option<String> {
    let lo = Set::from_ranges([(0, 0)]).or(&Set::interface("lo", '*'));
    if region.get(Field::Input).minus(&lo).is_empty() {
        return None;
    }
    let mut first = packet(family, None);
    asked(&mut first, region);
    first.set(Field::Input, None);
    first.set(Field::Destination, region.get(Field::Destination).first());
    let outcome = clients.simulator.tracer.hook(&mut first, Hook::Prerouting, &Which::Filter(BEFORE_DNAT));
    let open = outcome.is_sure() && outcome.verdict == Verdict::Passes && outcome.untracked.is_none();
    open.then(|| "no rule before NAT drops packets for loopback addresses".to_owned())
}

/// A target and the interface to it.
type Target = (Family, IpAddr, u16, u8);

/// Finds F17. For each target, clients that no forward accepts are tried first, because their access is the fault. The
/// confidence is unknown only for such clients. Returns nothing without facts, because the interface to the target is
/// unknown.
pub(super) fn direct(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let forwards = context.forwards();
    let clients = Clients::new(context);
    let Some(facts) = &host.facts else { return Vec::new() };
    let mut targets: HashMap<Target, Vec<&Forward<'_>>> = HashMap::new();
    let mut order: Vec<Target> = Vec::new();
    for forward in forwards {
        let port = forward.first_port().or(Some(80)).and_then(|port| forward.to.port_for(port));
        let (Some(address), Some(port), Some(protocol)) = (forward.target(), port, forward.protocol()) else {
            continue;
        };
        let of_target = targets.entry((forward.family, address, port, protocol)).or_insert_with_key(|key| {
            order.push(*key);
            Vec::new()
        });
        of_target.push(forward);
    }
    type Cause = (bool, String, String, Confidence);
    let mut groups: BTreeMap<Cause, (Vec<&Forward<'_>>, String)> = BTreeMap::new();
    for key in order {
        let (family, address, port, protocol) = key;
        let Some(of_target) = targets.get(&key) else { continue };
        let NextHop::Via(link, _) = facts.next_hop(address) else { continue };
        for (number, gate) in clients.gates.iter().enumerate() {
            if gate.link.index == link.index || !(gate.uplink || gate.link.kind.is_none()) {
                continue;
            }
            // Returns a client that no forward accepts, or else any client.
            let anybody = Region::all();
            let Some(mut packet) = clients.packet(&anybody, family, number, None) else { continue };
            packet.put(Field::Protocol, protocol.into());
            let restricted = of_target.iter().all(|forward| {
                let takes = |step: &Region| {
                    let open = step.get(Field::Input).has(gate.number) && !is_loopback(step, family);
                    open && packet.get(Field::Source).is_some_and(|from| step.get(Field::Source).has(from))
                };
                !forward.arriving().any(|(_, step)| takes(&step.region))
            });
            packet.put(Field::Destination, number_of(address));
            packet.put(Field::Port, port.into());
            let trace = clients.simulator.simulate_passage(packet);
            let there = matches!(trace.end, End::Leaves(Some(out), _) if out.index == link.index);
            let confidence = trace.confidence();
            if !there || trace.forwarded_by().is_some() || confidence == Confidence::Unknown && !restricted {
                continue;
            }
            let cause = (restricted, gate.link.name.clone(), link.name.clone(), confidence);
            let sample = || format!("{} passes to {}", packet_in_words(&trace.start), printable(&link.name));
            let (group, _) = groups.entry(cause).or_insert_with(|| (Vec::new(), sample()));
            group.extend(of_target.iter().copied());
            break;
        }
    }
    let finding = |((restricted, by, link, confidence), (forwards, sample)): (Cause, (Vec<&Forward<'_>>, String))| {
        let who = match restricted {
            true => {
                each(&forwards, "is restricted, and its target is open", "are restricted, and their targets are open")
            }
            false => each(&forwards, "has a target that is open", "have targets that are open"),
        };
        let message = format!("{who} to whoever routes packets for it to {}", printable(&by));
        let finding = at_all(kind.found(confidence, message), host, &forwards).seen(sample);
        let finding = match confidence {
            Confidence::Unknown => finding.seen("a rule that is not understood may drop it"),
            _ => finding,
        };
        finding.mended_by(forwards.first().map_or_else(String::new, |first| closed(first, &link)))
    };
    groups.into_iter().map(finding).collect()
}

/// Returns the command that closes the direct path to a target.
fn closed(forward: &Forward<'_>, link: &str) -> String {
    let program = if forward.family == Family::Ipv4 { "iptables" } else { "ip6tables" };
    let target = forward.target().map_or_else(|| "TARGET".to_owned(), |target| target.to_string());
    format!("{program} -t raw -I PREROUTING -d {target} ! -i {} -j DROP", printable(link))
}

#[cfg(test)]
mod tests {
    use super::super::super::hosts::{DOCKER, docker, dump, facts, find, host};
    use super::*;

    fn bound() -> String {
        DOCKER.replace("-A DOCKER ! -i docker0 -p", "-A DOCKER -d 127.0.0.1/32 ! -i docker0 -p")
    }

    const GUARD: &str = "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -d 127.0.0.0/8 ! -i lo -j DROP\nCOMMIT\n";

    #[test]
    fn a_loopback_address_is_no_guard() {
        let found = find(&host(&bound(), facts()), "F15");
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(
            one.message,
            "`127.0.0.1:8080/tcp -> 172.17.0.2:80` is meant for this host, and open to neighbours that come by eth0"
        );
        assert_eq!((one.severity, one.confidence), (Severity::Error, Confidence::Proved));
        assert!(find(&host(&format!("{}{GUARD}", bound()), facts()), "F15").is_empty());
        assert!(find(&docker(""), "F15").is_empty(), "open to all is another matter");
        let unknown = GUARD.replace("! -i lo", "-m tomorrow");
        let found = find(&host(&format!("{}{unknown}", bound()), facts()), "F15");
        assert_eq!(found[0].confidence, Confidence::Unknown);
    }

    #[test]
    fn a_dump_tells_of_loopback_addresses_as_well() {
        assert_eq!(find(&dump(&bound()), "F15")[0].confidence, Confidence::Likely);
        assert!(find(&dump(&format!("{}{GUARD}", bound())), "F15").is_empty());
        let own = bound().replace("! -i docker0 -p", "-i lo -p");
        assert!(find(&dump(&own), "F15").is_empty());
    }

    #[test]
    fn only_a_loopback_target_needs_route_localnet() {
        let rules = bound().replace("172.17.0.2:80", "127.0.0.1:80");
        assert!(find(&host(&rules, facts()), "F15").is_empty());
        let mut on = facts();
        on.settings.insert("net/ipv4/conf/eth0/route_localnet".into(), "1".into());
        assert_eq!(find(&host(&rules, on), "F15").len(), 1);
    }

    #[test]
    fn a_target_beside_its_forward_is_found() {
        let found = find(&docker(""), "F17");
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(
            one.message,
            "`8080/tcp -> 172.17.0.2:80` has a target that is open to whoever routes packets for it to eth0"
        );
        assert_eq!((one.severity, one.confidence), (Severity::Warning, Confidence::Proved));
        assert_eq!(one.fix, "iptables -t raw -I PREROUTING -d 172.17.0.2 ! -i docker0 -j DROP");
        let raw = "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP\nCOMMIT\n";
        assert!(find(&docker(raw), "F17").is_empty(), "so Docker 28 does it");
        assert!(find(&dump(DOCKER), "F17").is_empty());
    }

    #[test]
    fn restrictions_are_worth_nothing_there() {
        let rules = DOCKER.replace("-A DOCKER ! -i docker0 -p", "-A DOCKER ! -i docker0 -s 198.51.100.0/24 -p");
        let found = find(&host(&rules, facts()), "F17");
        assert!(found[0].message.contains("is restricted, and its target is open"), "{found:?}");
        let unknown = "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -d 172.17.0.2/32 -m tomorrow -j DROP\nCOMMIT\n";
        let doubtful = find(&host(&format!("{rules}{unknown}"), facts()), "F17");
        assert_eq!(doubtful[0].confidence, Confidence::Unknown);
        assert!(find(&docker(unknown), "F17").is_empty());
    }
}
