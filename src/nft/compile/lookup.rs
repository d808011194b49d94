//! Compiles the rules that look up packets in the maps of forwards.
//!
//! As nft(8) text, the rule for single IPv4 ports with address, interface and client prefix is:
//! ```text
//! meta nfproto ipv4 ct label set 121
//!     dnat ip to meta l4proto . th dport . ip daddr . iifname . ip saddr & 255.255.255.0 map @ip-address-interface-from24-ports
//! ```
//! If a map contains port blocks, the rule masks the low bits of the port. If a map contains client prefixes, the rule
//! masks the client's address before the lookup. Prefixes of different lengths are in different maps, so the keys of
//! one map never overlap. The rule sets the label only after a successful lookup, so only connections of forwards get
//! the label.
//!
//! A forward needs more labels if it has its own source, no hairpin NAT, or loopback listeners. An additional rule
//! before the usual rule sets these labels from a map with the same keys:
//! ```text
//! meta nfproto ipv4 ct label set meta l4proto . th dport map @ip-ports-labels dnat ip to meta l4proto . th dport map @ip-ports
//! ```
//! Be aware: nft(8) prints `ct label set` before the lookup. A table that is restored from this text labels every
//! connection to this host. `plan` shows this difference, and `apply` repairs the table. nft(8) 1.0.6 cannot read two
//! parts of its own output: a mask after the first field of a key, and a label that is set from a map.

use std::collections::BTreeSet;

use super::expressions::{AddressField, FIRST, family_is, load_address, mask, set_label};
use crate::model::Protocol;
use crate::model::label::{FORWARDED, MASQUERADE};
use crate::nft::expr::{
    Bitwise, Cmp, CtSetLabel, Expr, Header, Lookup, Meta, MetaKey, Nat, NatFlag, Payload, Redirect, Register,
};
use crate::nft::map::{AddressScope, MapId, MapRole};
use crate::nft::program::{Field, Rule};

/// Returns the rules that look up one map. A map of redirects has one rule for each protocol, because nft(8) accepts
/// `redirect to :PORT` only after a protocol match. Every other map has one rule.
pub(super) fn rules(id: &MapId, protocols: &BTreeSet<Protocol>) -> Vec<Rule> {
    if id.redirect {
        return protocols.iter().map(|protocol| rule(id, Some(*protocol))).collect();
    }
    vec![rule(id, None)]
}

fn rule(id: &MapId, protocol: Option<Protocol>) -> Rule {
    let family = id.class.family;
    let mut exprs = family_is(family).to_vec();
    if let Some(protocol) = protocol {
        exprs.push(Expr::Meta(Meta { key: MetaKey::L4Proto, to: FIRST }));
        exprs.push(Expr::Cmp(Cmp { register: FIRST, equal: true, data: vec![protocol.number()] }));
    }
    if id.role == MapRole::Labels {
        exprs.extend(lookup_exprs(id));
        exprs.push(Expr::CtSetLabel(CtSetLabel { from: FIRST }));
    }
    let targets = id.targets();
    exprs.extend(lookup_exprs(&targets));
    if id.role != MapRole::Labels {
        exprs.extend(set_label(common_label(id), LABEL_SCRATCH));
    }
    exprs.push(rewrite(&targets));
    Rule { exprs, comment: None }
}

/// Returns the labels for connections that have no element in a map of labels.
fn common_label(id: &MapId) -> &'static [u8] {
    // Loopback connections to another host are masqueraded, because the other host cannot reply to a loopback address.
    // Redirected connections stay on this host.
    if id.scope == AddressScope::NonLoopback || id.redirect { &[FORWARDED] } else { &[FORWARDED, MASQUERADE] }
}

/// Returns the expressions that load the key of a map and look up the map.
fn lookup_exprs(id: &MapId) -> Vec<Expr> {
    let shape = id.shape();
    let mut exprs = load_key(id, &shape.key);
    let to = (!shape.data.is_empty()).then_some(FIRST);
    exprs.push(Expr::Lookup(Lookup { map: id.to_string(), from: FIRST, to }));
    exprs
}

/// Returns the expression that rewrites the destination to the map's data.
fn rewrite(id: &MapId) -> Expr {
    let data = id.shape().data;
    let has_port = data.last() == Some(&Field::Port);
    if id.redirect {
        return Expr::Redirect(Redirect { port: has_port.then_some(FIRST) });
    }
    let words = data.first().map_or(0, |address| address.words());
    let port = has_port.then(|| FIRST.after(words).into());
    Expr::Nat(Nat { source: false, family: id.class.family, address: FIRST.into(), port, flag: NatFlag::None })
}

/// The first register for labels. The data of a map use at most the first five register words, so labels do not
/// overwrite the data.
const LABEL_SCRATCH: Register = Register::word32(8);

pub(super) fn load_key(id: &MapId, fields: &[Field]) -> Vec<Expr> {
    let family = id.class.family;
    let mut exprs = Vec::with_capacity(fields.len() + 1);
    let mut to = FIRST;
    let mut destination = id.keys_address();
    for field in fields {
        match field {
            Field::Ipv4 | Field::Ipv6 if destination => {
                destination = false;
                exprs.push(load_address(family, AddressField::Destination, to));
            }
            Field::Ipv4 | Field::Ipv6 => {
                exprs.push(load_address(family, AddressField::Source, to));
                let mask = mask(family, id.class.from.unwrap_or(u8::MAX));
                if mask.iter().any(|byte| *byte != 0xff) {
                    exprs.push(Expr::Bitwise(Bitwise { register: to, mask }));
                }
            }
            Field::Interface => exprs.push(Expr::Meta(Meta { key: MetaKey::IifName, to })),
            Field::Protocol => exprs.push(Expr::Meta(Meta { key: MetaKey::L4Proto, to })),
            Field::Port => {
                exprs.push(Expr::Payload(Payload { header: Header::Transport, offset: 2, length: 2, to }));
                if id.kind.ports_per_key() > 1 {
                    let mask = (!(id.kind.ports_per_key() - 1)).to_be_bytes().to_vec();
                    exprs.push(Expr::Bitwise(Bitwise { register: to, mask }));
                }
            }
        }
        to = to.after(field.words());
    }
    exprs
}
