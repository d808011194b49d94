//! Compiles the rules that rewrite source addresses: sources of forwards, 1:1 translations, source NAT, and
//! masquerades.
//!
//! ```text
//! chain nat-postrouting {
//!     oifname "lo" return
//!     meta nfproto ipv4 snat ip to ct label & … map @sources-ip
//!     ct label 120 masquerade
//!     ip saddr 10.0.0.0/24 snat ip prefix to 192.0.2.0/24 comment "web: netmap"
//!     ip saddr 10.0.0.0/24 oifname "eth0" snat ip to 203.0.113.5-203.0.113.9:1024-2047 fully-random comment "web"
//!     ip saddr 172.17.0.0/16 oifname != "docker0" masquerade comment "web: network docker0 DOCKER"
//!     oifname "eth0" masquerade comment "web"
//! }
//! ```
//! The rules of rule sets are in the order of precedence ([`precedence::by_precedence`]), so the first match wins. The
//! comment of a rule contains the name of the rule set. For a network, the comment also contains the network's name and
//! chain. Packets that stay on this host are not changed.
//!
//! Be aware: the ports of a pool also limit ICMP echo identifiers. nft(8) prints a rule with such a pool, but can read
//! the rule back only after a match of a protocol with ports.

use super::expressions::{AddressField, FIRST, address_in, family_is, has_label, interface_is, name_is, octets};
use super::netmap;
use crate::model::egress::{Egress, OutInterface, Rewrite};
use crate::model::label::{self, MASQUERADE, Sources};
use crate::model::precedence::{self, RuleRef};
use crate::model::rule_comment::{self, NETWORK};
use crate::model::{Counter, DesiredState, Family, Mode, Network, Pool, SetName};
use crate::nft::expr::{
    self, Bitwise, Ct, CtKey, Expr, Immediate, Lookup, Masquerade, MetaKey, Nat, NatFlag, RegisterRange, Verdict,
};
use crate::nft::map;
use crate::nft::program::{Element, Field, Key, Map, Program, Rule, Shape};

/// Returns the postrouting rules, and adds the maps of source addresses to `program`. `labelled` is true if forwards
/// set [`MASQUERADE`].
pub(super) fn rules(desired: &DesiredState, sources: &Sources, labelled: bool, program: &mut Program) -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in Family::ALL {
        if let Some(map) = sources_map(sources, family) {
            program.maps.insert(sources_name(family).into(), map);
            rules.push(snat_from_label(family));
        }
    }
    if labelled {
        rules.push(masquerade_by_label());
    }
    rules.extend(netmap::outward(desired));
    rules.extend(
        precedence::by_precedence(desired).iter().map(|(egress, written)| egress_rule(desired, egress, *written)),
    );
    if !rules.is_empty() {
        rules.insert(0, return_loopback());
    }
    rules
}

/// Returns the name of a map of source addresses. The keys of the map are IDs, which connection labels contain.
pub(in crate::nft) fn sources_name(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "sources-ip",
        Family::Ipv6 => "sources-ip6",
    }
}

/// Returns the key and data types of the map with the name [`sources_name`].
pub(in crate::nft) fn sources_shape(family: Family) -> Shape {
    let address = match family {
        Family::Ipv4 => Field::Ipv4,
        Family::Ipv6 => Field::Ipv6,
    };
    Shape { key: vec![map::LABEL], data: vec![address] }
}

fn sources_map(sources: &Sources, family: Family) -> Option<Map> {
    let element = |(label, address): (Vec<u8>, std::net::IpAddr)| {
        let data = octets(address).into();
        let element = Element { data, comment: "".into(), span: None, counter: Counter::default() };
        (Key(label.into()), element)
    };
    let elements: std::collections::BTreeMap<_, _> = sources.elements(family).map(element).collect();
    (!elements.is_empty()).then(|| Map { shape: sources_shape(family), elements })
}

/// Rewrites the source to the address of a forward: `meta nfproto ipv4 snat ip to ct label & … map @sources-ip`.
fn snat_from_label(family: Family) -> Rule {
    let mut exprs = family_is(family).to_vec();
    exprs.push(Expr::Ct(Ct { key: CtKey::Label, to: FIRST }));
    exprs.push(Expr::Bitwise(Bitwise { register: FIRST, mask: label::source_id_mask() }));
    exprs.push(Expr::Lookup(Lookup { map: sources_name(family).into(), from: FIRST, to: Some(FIRST) }));
    exprs.push(Expr::Nat(Nat { source: true, family, address: FIRST.into(), port: None, flag: NatFlag::None }));
    Rule { exprs, comment: None }
}

/// Masquerades connections with the label: `ct label 120 masquerade`.
fn masquerade_by_label() -> Rule {
    let mut exprs = has_label(MASQUERADE).to_vec();
    exprs.push(Expr::Masquerade(Masquerade));
    Rule { exprs, comment: None }
}

/// Keeps the source of packets that stay on this host: `oifname "lo" return`.
fn return_loopback() -> Rule {
    let mut exprs = name_is(MetaKey::OifName, true, *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0").to_vec();
    exprs.push(Expr::Verdict(Verdict::Return));
    Rule { exprs, comment: None }
}

fn egress_rule(desired: &DesiredState, egress: &Egress, written: RuleRef) -> Rule {
    let mut exprs = egress.from.map(|from| address_in(from, AddressField::Source)).unwrap_or_default();
    if let Rewrite::Snat(pool, _) = egress.rewrite
        && egress.from.is_none()
    {
        exprs.extend(family_is(pool.family()));
    }
    match &egress.out {
        OutInterface::Any => {}
        OutInterface::Is(out) => exprs.extend(interface_is(MetaKey::OifName, true, out)),
        OutInterface::Not(name) => exprs.extend(interface_is(MetaKey::OifName, false, name)),
    }
    match egress.rewrite {
        Rewrite::Masquerade => exprs.push(Expr::Masquerade(expr::Masquerade)),
        Rewrite::Snat(pool, mode) => exprs.extend(snat(pool, mode)),
    }
    Rule { exprs, comment: egress_comment(desired, written) }
}

fn egress_comment(desired: &DesiredState, written: RuleRef) -> Option<String> {
    let network_comment = |set: &SetName, network: &Network| {
        rule_comment::format_comment(set, Some(&rule_comment::format_network(NETWORK, network)))
    };
    match written {
        RuleRef::Network(at) => desired.networks.get(at).map(|owned| network_comment(&owned.set, &owned.rule)),
        RuleRef::Masquerade(at) => {
            desired.masquerades.get(at).map(|owned| rule_comment::format_comment(&owned.set, None))
        }
        RuleRef::Snat(at) => desired.snats.get(at).map(|owned| rule_comment::format_comment(&owned.set, None)),
    }
}

fn snat(pool: Pool, mode: Option<Mode>) -> Vec<Expr> {
    let last = (pool.first() != pool.last()).then(|| octets(pool.last()));
    let address = octets(pool.first());
    let mut next = FIRST;
    let mut load = |exprs: &mut Vec<Expr>, data: Vec<u8>| {
        let to = next;
        next = to.after(if data.len() > 4 { 4 } else { 1 });
        exprs.push(Expr::Immediate(Immediate { to, data }));
        to
    };
    let mut exprs = Vec::new();
    let first = load(&mut exprs, address);
    let last = last.map(|last| load(&mut exprs, last));
    let port = pool.ports().map(|ports| {
        let first = load(&mut exprs, ports.first().to_be_bytes().to_vec());
        let last = (!ports.is_single()).then(|| load(&mut exprs, ports.last().to_be_bytes().to_vec()));
        RegisterRange { first, last }
    });
    let flag = match mode {
        None => NatFlag::None,
        Some(Mode::Random) => NatFlag::Random,
        Some(Mode::FullyRandom) => NatFlag::FullyRandom,
        Some(Mode::Persistent) => NatFlag::Persistent,
    };
    let address = RegisterRange { first, last };
    exprs.push(Expr::Nat(Nat { source: true, family: pool.family(), address, port, flag }));
    exprs
}
