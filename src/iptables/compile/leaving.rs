//! Compiles the rules that rewrite source addresses: sources of forwards, source NAT, and masquerades. Also compiles
//! 1:1 translations in both directions.
//!
//! ```text
//! -A PORTFWD.POSTROUTING -o lo -j RETURN
//! -A PORTFWD.POSTROUTING -m connlabel --label 119 -j PORTFWD.SOURCES
//! -A PORTFWD.POSTROUTING -m connlabel --label 120 -j MASQUERADE
//! -A PORTFWD.POSTROUTING -s 10.0.0.0/24 -m comment --comment "web: netmap" -j NETMAP --to 192.0.2.0/24
//! -A PORTFWD.POSTROUTING -s 10.0.0.0/24 -o eth0 -p tcp -m comment --comment web -j SNAT --to-source 203.0.113.5:1024-2047
//! -A PORTFWD.POSTROUTING -s 172.17.0.0/16 ! -o docker0 -m comment --comment "web: network docker0 DOCKER" -j MASQUERADE
//! ```
//! The rules of rule sets are in the order of precedence ([`precedence::by_precedence`]), so the first match wins.
//!
//! The source address of a forward has an ID, which the connection's label contains. The chains below [`SOURCES`] match
//! this ID four bits at a time. A pool with ports needs one rule for each protocol with ports, and one rule for all
//! other protocols.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::conditions::{interface_match, nonzero_prefix};
use crate::iptables::program::{Chain, Contents};
use crate::iptables::rule::{Match, Rule, Target, Transport};
use crate::model::egress::{Egress, OutInterface, Rewrite};
use crate::model::label::{self, MASQUERADE, SKIP_HAIRPIN, Sources};
use crate::model::precedence::{self, RuleRef};
use crate::model::rule_comment::{NETMAP, NETWORK, format_comment, format_network};
use crate::model::{DesiredState, Family, IfName, Netmap, Pool, Protocol, SetRule};

/// The chain that rewrites the source to the address of a forward. The names of the subchains start with this name.
pub(in crate::iptables) const SOURCES: &str = "PORTFWD.SOURCES";

/// The remark of additional rules for one source NAT. The first rule has the usual remark.
pub(in crate::iptables) const SAME: &str = "same";

/// The maximum number of source addresses in one chain. A chain with more addresses is split.
const MAX_CHAIN_SOURCES: usize = 16;

/// Returns the rules of `POSTROUTING`, and adds the chains of source addresses. `labelled` is true if forwards set
/// [`MASQUERADE`].
pub(super) fn rules(
    desired: &DesiredState,
    family: Family,
    sources: &Sources,
    labelled: bool,
    nat: &mut Contents,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    let numbered = |(label, address): (Vec<u8>, IpAddr)| Some((label::source_id(&label)?, address));
    let numbers: Vec<(u32, IpAddr)> = sources.elements(family).filter_map(numbered).collect();
    if !numbers.is_empty() {
        rules.push(Rule::jump(SOURCES).with_match(Match::Label { bit: SKIP_HAIRPIN, not: false }));
        add_source_chains(numbers, label::SOURCE_ID_BITS, SOURCES, nat);
    }
    if labelled {
        rules.push(Rule::with_target(Target::Masquerade).with_match(Match::Label { bit: MASQUERADE, not: false }));
    }
    rules.extend(netmaps(desired, family, |netmap| (netmap.to, netmap.listen)));
    for (egress, written) in precedence::by_precedence(desired) {
        if egress.families().contains(&family) {
            rules.extend(egress_rules(desired, &egress, written));
        }
    }
    if !rules.is_empty()
        && let Ok(lo) = IfName::try_from("lo".to_owned())
    {
        rules.insert(0, Rule { output: interface_match(&lo, false), ..Rule::with_target(Target::Return) });
    }
    rules
}

/// Adds a chain that matches the IDs of source addresses, and the subchains of this chain. The chain matches the lowest
/// `bits` of each ID. The jumps to the chain match the higher bits.
fn add_source_chains(numbers: Vec<(u32, IpAddr)>, bits: u8, chain: &str, nat: &mut Contents) {
    let label_matches = |number: u32, range: std::ops::Range<u8>| -> Vec<Match> {
        let label = |bit| Match::Label { bit: label::label_of_id_bit(bit), not: number >> bit & 1 == 0 };
        range.rev().map(label).collect()
    };
    let mut rules = Vec::new();
    if numbers.len() <= MAX_CHAIN_SOURCES || bits <= 4 {
        for (number, address) in numbers {
            let Some(pool) = Pool::new(address, address, None) else { continue };
            rules.push(Rule { matches: label_matches(number, 0..bits), ..Rule::with_target(Target::Snat(pool, None)) });
        }
    } else {
        let mut parts: BTreeMap<u32, Vec<(u32, IpAddr)>> = BTreeMap::new();
        for (number, address) in numbers {
            parts.entry(number >> (bits - 4) & 0xf).or_default().push((number, address));
        }
        for (part, numbers) in parts {
            let name = format!("{chain}{}{part:x}", if chain == SOURCES { "-" } else { "" });
            let matches = label_matches(part << (bits - 4), bits - 4..bits);
            rules.push(Rule { matches, ..Rule::jump(&name) });
            add_source_chains(numbers, bits - 4, &name, nat);
        }
    }
    nat.chains.insert(chain.into(), Chain::from(rules));
}

/// Returns the destination NAT rules of 1:1 translations, from the published network to the real network.
pub(super) fn inward(desired: &DesiredState, family: Family) -> Vec<Rule> {
    netmaps(desired, family, |netmap| (netmap.listen, netmap.to))
        .into_iter()
        .map(|rule| Rule { destination: rule.source, source: None, ..rule })
        .collect()
}

/// Returns one rule for each 1:1 translation, the longest prefix first. `networks` returns the matched network and the
/// new network.
fn netmaps(desired: &DesiredState, family: Family, networks: impl Fn(&Netmap) -> (IpNetwork, IpNetwork)) -> Vec<Rule> {
    let netmap_rule = |owned: &SetRule<Netmap>| {
        let (from, to) = networks(&owned.rule);
        let remark = format_comment(&owned.set, Some(NETMAP));
        let rule = Rule { source: Some(from), ..Rule::with_target(Target::Netmap(to)) };
        rule.with_match(Match::Comment(remark.into()))
    };
    let all = desired.netmaps.iter().filter(|owned| Family::of_network(owned.rule.listen) == family);
    let mut rules: Vec<Rule> = all.map(netmap_rule).collect();
    rules.sort_by_key(|rule| Reverse(rule.source.map(|source| source.prefix())));
    rules
}

fn egress_rules(desired: &DesiredState, egress: &Egress, written: RuleRef) -> Vec<Rule> {
    let mut rule = Rule { source: nonzero_prefix(egress.from), ..Rule::default() };
    match &egress.out {
        OutInterface::Any => {}
        OutInterface::Is(out) => rule.output = interface_match(out, false),
        OutInterface::Not(name) => rule.output = interface_match(name, true),
    }
    let (remark, same) = remarks(desired, written);
    match egress.rewrite {
        Rewrite::Masquerade => {
            // A masquerade without a prefix applies to both families. The range of all addresses marks a masquerade with a
            // prefix of length 0, which applies to one family.
            let any_source = egress.from.filter(|_| rule.source.is_none());
            rule.matches.extend(any_source.map(|from| Match::any_source(Family::of_network(from))));
            rule.matches.extend(remark.map(Match::Comment));
            vec![Rule { target: Some(Target::Masquerade), ..rule }]
        }
        Rewrite::Snat(pool, mode) => {
            let snat_rule = |protocol, pool, remark: &Option<Arc<str>>| {
                let rule = Rule { protocol, target: Some(Target::Snat(pool, mode)), ..rule.clone() };
                Rule { matches: remark.iter().cloned().map(Match::Comment).collect(), ..rule }
            };
            if pool.ports().is_none() {
                return vec![snat_rule(None, pool, &remark)];
            }
            let mut rules = Vec::new();
            for transport in snat_port_protocols(pool.family()) {
                let remark = if rules.is_empty() { &remark } else { &same };
                rules.push(snat_rule(Some(transport), pool, remark));
            }
            let plain = Pool::new(pool.first(), pool.last(), None).unwrap_or(pool);
            rules.push(snat_rule(None, plain, &same));
            rules
        }
    }
}

/// Returns the protocols for which iptables accepts SNAT ports. For ICMP, the ports are echo identifiers. iptables
/// accepts no ports for ICMPv6. Source: `parse_to` in iptables' libxt_NAT.c; measured with iptables 1.8.9.
fn snat_port_protocols(family: Family) -> impl Iterator<Item = Transport> {
    let ports = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Dccp].map(Transport::Ports);
    ports.into_iter().chain((family == Family::Ipv4).then_some(Transport::Icmp))
}

/// Returns the comment of an egress rule, and the comment of additional rules for the same source NAT.
fn remarks(desired: &DesiredState, written: RuleRef) -> (Option<Arc<str>>, Option<Arc<str>>) {
    let both = |set, remark: Option<&str>| (format_comment(set, remark).into(), format_comment(set, Some(SAME)).into());
    let found: Option<(Arc<str>, Arc<str>)> = match written {
        RuleRef::Network(at) => {
            desired.networks.get(at).map(|owned| both(&owned.set, Some(&format_network(NETWORK, &owned.rule))))
        }
        RuleRef::Masquerade(at) => desired.masquerades.get(at).map(|owned| both(&owned.set, None)),
        RuleRef::Snat(at) => desired.snats.get(at).map(|owned| both(&owned.set, None)),
    };
    found.map_or((None, None), |(remark, same)| (Some(remark), Some(same)))
}

/// Returns the bits that must be 1 in the ID of a source address so that the rule matches.
pub(in crate::iptables) fn source_number_bits(rule: &Rule) -> u32 {
    let set = |bit: &u8| rule.matches.contains(&Match::Label { bit: label::label_of_id_bit(*bit), not: false });
    (0..label::SOURCE_ID_BITS).filter(set).map(|bit| 1 << bit).sum()
}
