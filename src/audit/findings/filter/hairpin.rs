//! F24 and F25: clients in the network of the target.

use std::collections::{BTreeMap, HashMap};

use super::super::context::Context;
use super::super::wording::{at_all, each, is_own, name, placed};
use super::clients::{Clients, is_loopback};
use crate::audit::finding::{Finding, Kind, Severity};
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::describe;
use crate::ruleset::facts::NextHop;
use crate::ruleset::region::{Field, Region};
use crate::ruleset::set::{Set, number_of};
use crate::ruleset::simulate::{End, packet_in_words};
use crate::ruleset::table::{At, Rewrite};
use crate::ruleset::view::Step;

pub(super) const MISSING: Kind = Kind {
    id: "F24",
    title: "clients in the target's own network get no answer",
    severity: Severity::Warning,
    what: "A client in the network of the target sends to the forward's address. Its packets are led to the target, and \
           their source is not rewritten.",
    why: "The target sees a neighbour and answers it directly, past this host. The client gets an answer from an address that \
          it never asked, and drops it: from outside the forward works, from inside it does not. A forward of portfwd with \
          `--no-hairpin` is a remark.",
    fix: "Rewrite the source of what goes back by the link that it came by.",
};

pub(super) const ALLOW_LIST: Kind = Kind {
    id: "F25",
    title: "inside the forward's allow-list is not asked",
    severity: Severity::Warning,
    what: "The forward takes packets only from some sources. Another rule leads the same port to the same target for clients \
           inside, and does not ask where they come from: so does NAT reflection of fw4.",
    why: "Every machine of the inner network reaches what only some addresses should.",
    fix: "Restrict the other rule in the same way, or switch reflection off for this forward (fw4: option reflection '0').",
};

/// Finds F24. The confidence is unknown if a rule on the path is not understood, because the rule may rewrite the source or
/// drop the packet. Returns nothing without facts, because the target's network is unknown.
pub(super) fn missing(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let forwards = context.forwards();
    let clients = Clients::new(context);
    let Some(facts) = &host.facts else { return Vec::new() };
    let gates: HashMap<u32, usize> =
        clients.gates.iter().enumerate().map(|(number, gate)| (gate.link.index, number)).collect();
    let mut groups: BTreeMap<(usize, Severity, Confidence), (Vec<&Forward<'_>>, String)> = BTreeMap::new();
    for forward in forwards {
        let Some(target) = forward.target() else { continue };
        let NextHop::Via(link, None) = facts.next_hop(target) else { continue };
        let Some((number, gate)) = gates.get(&link.index).and_then(|at| Some((*at, clients.gates.get(*at)?))) else {
            continue;
        };
        let Some(client) = clients.neighbour(gate, forward.family, number_of(target)) else { continue };
        let regions = forward.arriving().map(|(_, step)| &step.region);
        let regions = regions.filter(|region| !is_loopback(region, forward.family));
        let mut packets = regions.filter_map(|region| clients.packet(region, forward.family, number, Some(client)));
        let Some(packet) = packets.next() else { continue };
        let trace = clients.simulator.simulate(packet);
        let back = matches!(trace.end, End::Leaves(Some(out), None) if out.index == link.index);
        if back && trace.forwarded_by() == Some(forward.at) && trace.masqueraded_by().is_none() {
            let sample = || {
                let start = packet_in_words(&trace.start);
                format!("{start} by {0} leaves by {0} with its source", printable(&link.name))
            };
            let severity = if is_own(host, forward.at) { Severity::Info } else { kind.severity };
            let key = (number, severity, trace.confidence());
            groups.entry(key).or_insert_with(|| (Vec::new(), sample())).0.push(forward);
        }
    }
    type Group<'f, 'a> = ((usize, Severity, Confidence), (Vec<&'f Forward<'a>>, String));
    let finding = |((gate, severity, confidence), (forwards, sample)): Group<'_, '_>| {
        let gate = clients.gates.get(gate);
        let link = gate.map_or_else(String::new, |gate| printable(&gate.link.name));
        let who = each(&forwards, "does not answer", "do not answer");
        let message = format!("{who} clients on {link}, where its target is too: no rule rewrites their source");
        let finding = at_all(kind.found(confidence, message), host, &forwards).as_bad_as(severity).seen(sample);
        let finding = match confidence {
            Confidence::Unknown => finding.seen("a rule on the way that is not understood may decide otherwise"),
            _ => finding,
        };
        let network = forwards.first().and_then(|forward| {
            let network = gate?.network(forward.family, number_of(forward.target()?))?;
            Some((forward.family, describe::set(Field::Source, network, forward.family)))
        });
        match network {
            Some((family, network)) => finding.mended_by(format!(
                "{} -t nat -A POSTROUTING -s {network} -d {network} -o {link} -m conntrack --ctstate DNAT -j MASQUERADE",
                if family == Family::Ipv4 { "iptables" } else { "ip6tables" }
            )),
            None => finding,
        }
    };
    groups.into_iter().map(finding).collect()
}

/// The common properties of forwards that send the same ports to the same target.
type Same<'v> = (Family, &'v Set, &'v Set, &'v Rewrite);

fn in_common<'v>(forward: &Forward<'v>, step: &'v Step) -> Same<'v> {
    let region = &step.region;
    (forward.family, region.get(Field::Protocol), region.get(Field::Port), forward.to)
}

/// Finds F25.
///
/// Inside networks are those of interfaces without a default route. For a dump they are the private networks, and the
/// confidence is likely. The confidence is proved if a simulated client reached the target. Returns nothing if the result is
/// uncertain.
pub(super) fn allow_list(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let forwards = context.forwards();
    let clients = Clients::new(context);
    let mut same: HashMap<Same<'_>, Vec<(&Forward<'_>, &Step)>> = HashMap::new();
    let steps = || forwards.iter().flat_map(|forward| forward.arriving().map(move |(_, step)| (forward, step)));
    // Only a forward with a source list can ignore inside clients. Most hosts have no such forward.
    for (forward, step) in steps().filter(|(_, step)| !step.region.get(Field::Source).is_all()) {
        same.entry(in_common(forward, step)).or_default();
    }
    if !same.is_empty() {
        for (forward, step) in steps() {
            if let Some(steps) = same.get_mut(&in_common(forward, step)) {
                steps.push((forward, step));
            }
        }
    }
    let mut found: BTreeMap<At, (&Forward<'_>, &Forward<'_>, Set, Confidence)> = BTreeMap::new();
    for ((family, ..), steps) in same.iter().filter(|(_, steps)| steps.len() > 1) {
        let inside = inside(&clients, *family);
        // Forwards that accept all inside clients. Few hosts have many networks, so the list is short.
        let open: Vec<&(&Forward<'_>, &Step)> =
            steps.iter().filter(|(_, step)| takes_all_of(&step.region, &inside, &clients)).take(16).collect();
        for (forward, step) in steps {
            let sources = step.region.get(Field::Source);
            if sources.is_all() || takes_all_of(&step.region, &inside, &clients) {
                continue;
            }
            let other = open.iter().find_map(|(other, beside)| {
                let beyond = beside.region.get(Field::Source).minus(sources).and(&any_of(&inside));
                let confidence = (!beyond.is_empty()).then(|| reached(&clients, other, &beside.region, &beyond))??;
                Some((*other, beyond, confidence))
            });
            if let Some((other, beyond, confidence)) = other {
                found.entry(forward.at).or_insert((forward, other, beyond, confidence));
            }
        }
    }
    let mut groups: BTreeMap<(String, Confidence), Vec<(&Forward<'_>, &Forward<'_>)>> = BTreeMap::new();
    for (forward, other, beyond, confidence) in found.into_values() {
        let from = describe::set(Field::Source, &beyond, forward.family);
        groups.entry((from, confidence)).or_default().push((forward, other));
    }
    let finding = |((from, confidence), pairs): ((String, Confidence), Vec<(&Forward<'_>, &Forward<'_>)>)| {
        let forwards: Vec<&Forward<'_>> = pairs.iter().map(|(forward, _)| *forward).collect();
        let beside = pairs.first().map(|(_, other)| *other);
        let message = format!(
            "{} to all of {from}: {} leads there too and asks for no source of its list",
            each(&forwards, "is restricted, and open", "are restricted, and open"),
            beside.map_or_else(String::new, name)
        );
        placed(at_all(kind.found(confidence, message), host, &forwards), host, beside.map(|other| other.at))
    };
    groups.into_iter().map(finding).collect()
}

/// The networks inside.
fn inside(clients: &Clients<'_, '_>, family: Family) -> Vec<Set> {
    let private = match family {
        Family::Ipv4 => [(0x0a00_0000, 0x0aff_ffff), (0xac10_0000, 0xac1f_ffff), (0xc0a8_0000, 0xc0a8_ffff)].as_slice(),
        Family::Ipv6 => &[(0xfc << 120, (0xfe << 120) - 1)],
    };
    match clients.simulator.host.facts {
        None => private.iter().map(|(first, last)| Set::range(*first, *last)).collect(),
        Some(_) => {
            let inner = clients.gates.iter().filter(|gate| !gate.uplink);
            inner.flat_map(|gate| gate.all(family)).cloned().collect()
        }
    }
}

fn any_of(networks: &[Set]) -> Set {
    networks.iter().fold(Set::none(), |all, network| all.or(network))
}

/// Returns true if a region contains a whole inside network, or all sources on inside interfaces.
fn takes_all_of(region: &Region, inside: &[Set], clients: &Clients<'_, '_>) -> bool {
    let sources = region.get(Field::Source);
    if sources.is_all() {
        let mut outside = clients.gates.iter().filter(|gate| gate.uplink);
        return clients.simulator.host.facts.is_some()
            && !outside.any(|gate| region.get(Field::Input).has(gate.number));
    }
    match clients.simulator.host.facts {
        Some(_) => inside.iter().any(|network| network.size() > 1 && sources.covers(network)),
        // For a dump, the inside networks are part of the private networks.
        None => sources.size() >= 16 && any_of(inside).covers(sources),
    }
}

/// Returns the confidence that a client outside the source list reaches the target. Returns `None` if the client does not.
fn reached(clients: &Clients<'_, '_>, other: &Forward<'_>, region: &Region, beyond: &Set) -> Option<Confidence> {
    if clients.simulator.host.facts.is_none() {
        return Some(Confidence::Likely);
    }
    clients.gates.iter().enumerate().filter(|(_, gate)| !gate.uplink).find_map(|(number, gate)| {
        let address = gate.all(other.family).find(|network| network.meets(beyond))?.first()?.checked_add(1)?;
        let client = clients.neighbour(gate, other.family, address).filter(|client| beyond.has(*client))?;
        let trace = clients.simulator.simulate(clients.packet(region, other.family, number, Some(client))?);
        let there = matches!(trace.end, End::Leaves(..) | End::Arrives) && trace.forwarded_by() == Some(other.at);
        there.then(|| trace.confidence()).filter(|confidence| *confidence != Confidence::Unknown)
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::hosts::{docker, dump, facts, find, host};
    use super::*;

    const LAN: &str = "*nat\n:PREROUTING ACCEPT\n:POSTROUTING ACCEPT\n\
        -A PREROUTING -d 192.0.2.1/32 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80\nCOMMIT\n";

    #[test]
    fn a_neighbour_of_the_target_gets_no_answer() {
        let found = find(&host(LAN, facts()), "F24");
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert!(one.message.starts_with("`192.0.2.1:8080/tcp -> 172.17.0.2:80` does not answer clients on docker0"));
        assert_eq!((one.severity, one.confidence), (Severity::Warning, Confidence::Proved));
        assert_eq!(
            one.fix,
            "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 -d 172.17.0.0/16 -o docker0 -m conntrack --ctstate DNAT -j MASQUERADE"
        );
    }

    #[test]
    fn rewritten_sources_are_answered() {
        let rule = "-A POSTROUTING -s 172.17.0.0/16 -d 172.17.0.0/16 -o docker0 -j MASQUERADE\nCOMMIT";
        assert!(find(&host(&LAN.replace("COMMIT", rule), facts()), "F24").is_empty());
        assert!(find(&docker(""), "F24").is_empty(), "Docker leaves it to docker-proxy");
        assert!(find(&dump(LAN), "F24").is_empty());
        let unknown = LAN.replace("COMMIT", "-A POSTROUTING -m tomorrow -j MASQUERADE\nCOMMIT");
        assert_eq!(find(&host(&unknown, facts()), "F24")[0].confidence, Confidence::Unknown);
    }

    /// The rules of fw4 for a restricted forward with reflection.
    fn reflected(from: &str) -> String {
        format!(
            "*nat\n:PREROUTING ACCEPT\n:POSTROUTING ACCEPT\n\
             -A PREROUTING -i eth0 -s 198.51.100.0/24 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80\n\
             -A PREROUTING {from} -d 192.0.2.1/32 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80\n\
             -A POSTROUTING -s 172.17.0.0/16 -d 172.17.0.2/32 -j MASQUERADE\nCOMMIT\n"
        )
    }

    #[test]
    fn reflection_does_not_ask_for_the_list() {
        for from in ["-s 172.17.0.0/16", "-i docker0"] {
            let found = find(&host(&reflected(from), facts()), "F25");
            let [one] = found.as_slice() else { panic!("{found:?}") };
            assert!(one.message.contains("is restricted, and open to all of 172.17.0.0/16"), "{}", one.message);
            assert_eq!((one.confidence, one.places.len()), (Confidence::Proved, 2));
        }
    }

    #[test]
    fn a_second_list_is_no_fault() {
        for from in ["-s 172.17.0.9/32", "-i eth0 -s 203.0.113.0/24", "-i eth0"] {
            assert!(find(&host(&reflected(from), facts()), "F25").is_empty(), "{from}");
        }
        let other = reflected("-s 172.17.0.0/16").replacen("172.17.0.2:80", "172.17.0.3:80", 1);
        assert!(find(&host(&other, facts()), "F25").is_empty(), "another target");
    }

    #[test]
    fn of_a_dump_it_is_likely() {
        assert_eq!(find(&dump(&reflected("-s 172.17.0.0/16")), "F25")[0].confidence, Confidence::Likely);
        let unknown = reflected("-m tomorrow -s 172.17.0.0/16");
        assert!(find(&host(&unknown, facts()), "F25").is_empty(), "whether it takes them is not known");
    }
}
