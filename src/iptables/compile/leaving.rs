//! What leaves: the sources that forwards name, 1:1 translations in both directions, source NAT, masquerades.
//!
//! ```text
//! -A PORTFWD.POSTROUTING -o lo -j RETURN
//! -A PORTFWD.POSTROUTING -m connlabel --label 119 -j PORTFWD.SOURCES
//! -A PORTFWD.POSTROUTING -m connlabel --label 120 -j MASQUERADE
//! -A PORTFWD.POSTROUTING -s 10.0.0.0/24 -m comment --comment "web: netmap" -j NETMAP --to 192.0.2.0/24
//! -A PORTFWD.POSTROUTING -s 10.0.0.0/24 -o eth0 -p tcp -m comment --comment web -j SNAT --to-source 203.0.113.5:1024-2047
//! -A PORTFWD.POSTROUTING -s 172.17.0.0/16 ! -o docker0 -m comment --comment "web: network docker0 DOCKER" -j MASQUERADE
//! ```
//! The rules of sets come in the order of their precedence ([`precedence::by_precedence`]), so the first that matches wins.
//!
//! The address that a forward names is found by its number in the connection's label, four bits at a time. A pool with ports
//! takes a rule for each protocol that iptables gives ports to, and one for all others.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::conditions::{interface, narrowed};
use crate::iptables::program::{Chain, Contents};
use crate::iptables::rule::{Match, Rule, Target, Transport};
use crate::model::egress::{Egress, OutInterface, Rewrite};
use crate::model::label::{self, MASQUERADE, SKIP_HAIRPIN, Sources};
use crate::model::precedence::{self, RuleRef};
use crate::model::rule_comment::{NETMAP, NETWORK, format_comment, format_network};
use crate::model::{Asked, Family, IfName, Netmap, Owned, Pool, Protocol};

/// What the names of the chains begin with that find the address a forward names.
pub(in crate::iptables) const SOURCES: &str = "PORTFWD.SOURCES";

/// The word in a comment that says that a rule only completes the one before it.
pub(in crate::iptables) const SAME: &str = "same";

/// How many sources a chain has before it is split.
const LEAF: usize = 16;

/// The rules about what leaves. `labelled`: whether forwards set [`MASQUERADE`].
pub(super) fn rules(asked: &Asked, family: Family, sources: &Sources, labelled: bool, nat: &mut Contents) -> Vec<Rule> {
    let mut rules = Vec::new();
    let numbered = |(label, address): (Vec<u8>, IpAddr)| Some((label::source_id(&label)?, address));
    let numbers: Vec<(u32, IpAddr)> = sources.elements(family).filter_map(numbered).collect();
    if !numbers.is_empty() {
        rules.push(Rule::jump(SOURCES).with(Match::Label { bit: SKIP_HAIRPIN, not: false }));
        by_number(numbers, label::SOURCE_ID_BITS, SOURCES, nat);
    }
    if labelled {
        rules.push(Rule::to(Target::Masquerade).with(Match::Label { bit: MASQUERADE, not: false }));
    }
    rules.extend(netmaps(asked, family, |netmap| (netmap.to, netmap.listen)));
    for (egress, written) in precedence::by_precedence(asked) {
        if egress.families().contains(&family) {
            rules.extend(of_egress(asked, &egress, written));
        }
    }
    if !rules.is_empty()
        && let Ok(lo) = IfName::try_from("lo".to_owned())
    {
        rules.insert(0, Rule { output: interface(&lo, false), ..Rule::to(Target::Return) });
    }
    rules
}

/// Fills a chain with the rules that find the address of a number, of which the lowest `bits` are left to be asked.
fn by_number(numbers: Vec<(u32, IpAddr)>, bits: u8, chain: &str, nat: &mut Contents) {
    let asks = |number: u32, range: std::ops::Range<u8>| -> Vec<Match> {
        let label = |bit| Match::Label { bit: label::label_of_id_bit(bit), not: number >> bit & 1 == 0 };
        range.rev().map(label).collect()
    };
    let mut rules = Vec::new();
    if numbers.len() <= LEAF || bits <= 4 {
        for (number, address) in numbers {
            let Some(pool) = Pool::new(address, address, None) else { continue };
            rules.push(Rule { matches: asks(number, 0..bits), ..Rule::to(Target::Snat(pool, None)) });
        }
    } else {
        let mut parts: BTreeMap<u32, Vec<(u32, IpAddr)>> = BTreeMap::new();
        for (number, address) in numbers {
            parts.entry(number >> (bits - 4) & 0xf).or_default().push((number, address));
        }
        for (part, numbers) in parts {
            let name = format!("{chain}{}{part:x}", if chain == SOURCES { "-" } else { "" });
            let matches = asks(part << (bits - 4), bits - 4..bits);
            rules.push(Rule { matches, ..Rule::jump(&name) });
            by_number(numbers, bits - 4, &name, nat);
        }
    }
    nat.chains.insert(chain.into(), Chain::from(rules));
}

/// The rules about what is sent to networks that are seen outside.
pub(super) fn inward(asked: &Asked, family: Family) -> Vec<Rule> {
    netmaps(asked, family, |netmap| (netmap.listen, netmap.to))
        .into_iter()
        .map(|rule| Rule { destination: rule.source, source: None, ..rule })
        .collect()
}

/// One rule for each 1:1 translation, the longest prefix first: from what `ends` gives to the other.
fn netmaps(asked: &Asked, family: Family, ends: impl Fn(&Netmap) -> (IpNetwork, IpNetwork)) -> Vec<Rule> {
    let of = |owned: &Owned<Netmap>| {
        let (from, to) = ends(&owned.rule);
        let remark = format_comment(&owned.set, Some(NETMAP));
        let rule = Rule { source: Some(from), ..Rule::to(Target::Netmap(to)) };
        rule.with(Match::Comment(remark.into()))
    };
    let all = asked.netmaps.iter().filter(|owned| Family::of_network(owned.rule.listen) == family);
    let mut rules: Vec<Rule> = all.map(of).collect();
    rules.sort_by_key(|rule| Reverse(rule.source.map(|source| source.prefix())));
    rules
}

fn of_egress(asked: &Asked, egress: &Egress, written: RuleRef) -> Vec<Rule> {
    let mut rule = Rule { source: narrowed(egress.from), ..Rule::default() };
    match &egress.out {
        OutInterface::Any => {}
        OutInterface::Is(out) => rule.output = interface(out, false),
        OutInterface::Not(name) => rule.output = interface(name, true),
    }
    let (remark, same) = remarks(asked, written);
    match egress.rewrite {
        Rewrite::Masquerade => {
            // Without a prefix it is about both families, and that is how it is told from the prefix of everybody.
            let everyone = (egress.from.is_some() && rule.source.is_none()).then_some(Match::Everyone);
            rule.matches.extend(everyone);
            rule.matches.extend(remark.map(Match::Comment));
            vec![Rule { target: Some(Target::Masquerade), ..rule }]
        }
        Rewrite::Snat(pool, mode) => {
            let of = |protocol, pool, remark: &Option<Arc<str>>| {
                let rule = Rule { protocol, target: Some(Target::Snat(pool, mode)), ..rule.clone() };
                Rule { matches: remark.iter().cloned().map(Match::Comment).collect(), ..rule }
            };
            if pool.ports().is_none() {
                return vec![of(None, pool, &remark)];
            }
            let mut rules = Vec::new();
            for transport in with_ports(pool.family()) {
                let remark = if rules.is_empty() { &remark } else { &same };
                rules.push(of(Some(transport), pool, remark));
            }
            let plain = Pool::new(pool.first(), pool.last(), None).unwrap_or(pool);
            rules.push(of(None, plain, &same));
            rules
        }
    }
}

/// The protocols that iptables lets SNAT choose ports for. ICMP's are its echo identifiers; of ICMPv6 it cannot.
/// Source: `parse_to` in iptables' libxt_NAT.c; measured with 1.8.9.
fn with_ports(family: Family) -> impl Iterator<Item = Transport> {
    let ports = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Dccp].map(Transport::Ports);
    ports.into_iter().chain((family == Family::Ipv4).then_some(Transport::Icmp))
}

/// The comment of the rule that stands for what was written, and that of those that complete it.
fn remarks(asked: &Asked, written: RuleRef) -> (Option<Arc<str>>, Option<Arc<str>>) {
    let of = |set, remark: Option<&str>| (format_comment(set, remark).into(), format_comment(set, Some(SAME)).into());
    let found: Option<(Arc<str>, Arc<str>)> = match written {
        RuleRef::Network(at) => {
            asked.networks.get(at).map(|owned| of(&owned.set, Some(&format_network(NETWORK, &owned.rule))))
        }
        RuleRef::Masquerade(at) => asked.masquerades.get(at).map(|owned| of(&owned.set, None)),
        RuleRef::Snat(at) => asked.snats.get(at).map(|owned| of(&owned.set, None)),
    };
    found.map_or((None, None), |(remark, same)| (Some(remark), Some(same)))
}

/// The number that a rule asks for on its way to a source, as far as it does.
pub(in crate::iptables) fn number_bits(rule: &Rule) -> u32 {
    let set = |bit: &u8| rule.matches.contains(&Match::Label { bit: label::label_of_id_bit(*bit), not: false });
    (0..label::SOURCE_ID_BITS).filter(set).map(|bit| 1 << bit).sum()
}
