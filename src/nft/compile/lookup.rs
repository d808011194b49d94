//! The rules that look a packet up in a map of forwards.
//!
//! For a class with address, interface and clients, of IPv4 and single ports, the rule is in nft(8):
//! ```text
//! meta nfproto ipv4 ct label set 121
//!     dnat ip to meta l4proto . th dport . ip daddr . iifname . ip saddr & 255.255.255.0 map @ip-address-interface-from24-ports
//! ```
//! Of ports in blocks, the low bits are masked. The client's address is masked before it is looked up, so nested prefixes
//! are separate maps of constant cost and never overlap in one. The label is set between the lookup and the rewriting, so
//! only on what a forward caught.
//!
//! Where some of a map's forwards ask for another source, no hairpin or loopback addresses, a rule before it takes their
//! labels from a map of the same keys:
//! ```text
//! meta nfproto ipv4 ct label set meta l4proto . th dport map @ip-ports-labels dnat ip to meta l4proto . th dport map @ip-ports
//! ```
//! Be aware: nft(8) can only print the first rule's label in front of the lookup; a table restored from that text labels
//! every connection to this host. `plan` sees the difference and `apply` mends it. nft(8) 1.0.6 prints a mask behind the
//! first field of a key, but cannot read it; nor can it read back a label that comes from a map.

use std::collections::BTreeSet;

use super::expressions::{End, FIRST, family_is, load_address, mask, set_label};
use crate::model::Protocol;
use crate::model::label::{FORWARDED, MASQUERADE};
use crate::nft::expr::{
    Bitwise, Choice, Cmp, CtSetLabel, Expr, Header, Lookup, Meta, MetaKey, Nat, Payload, Redirect, Register,
};
use crate::nft::map::{MapId, Place, Role};
use crate::nft::program::{Field, Rule};

/// The rules that ask one map: one, or for a redirect one for each protocol, because nft(8) takes `redirect to :PORT`
/// only behind a match of the protocol.
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
    if id.role == Role::Labels {
        exprs.extend(look_up(id));
        exprs.push(Expr::CtSetLabel(CtSetLabel { from: FIRST }));
    }
    let targets = id.targets();
    exprs.extend(look_up(&targets));
    if id.role != Role::Labels {
        exprs.extend(set_label(common_label(id), LABEL_SCRATCH));
    }
    exprs.push(rewrite(&targets));
    Rule { exprs, comment: None }
}

/// The labels of a map's connections that have none of their own.
fn common_label(id: &MapId) -> &'static [u8] {
    // Answers to a loopback address would never come back; what a redirect sends to this host need not.
    if id.place == Place::Outside || id.redirect { &[FORWARDED] } else { &[FORWARDED, MASQUERADE] }
}

/// Loads the key of a map, and asks it.
fn look_up(id: &MapId) -> Vec<Expr> {
    let shape = id.shape();
    let mut exprs = load_key(id, &shape.key);
    let to = (!shape.data.is_empty()).then_some(FIRST);
    exprs.push(Expr::Lookup(Lookup { map: id.to_string(), from: FIRST, to }));
    exprs
}

/// Rewrites the destination to what a map answered.
fn rewrite(id: &MapId) -> Expr {
    let data = id.shape().data;
    let has_port = data.last() == Some(&Field::Port);
    if id.redirect {
        return Expr::Redirect(Redirect { port: has_port.then_some(FIRST) });
    }
    let words = data.first().map_or(0, |address| address.words());
    let port = has_port.then(|| FIRST.after(words).into());
    Expr::Nat(Nat { source: false, family: id.class.family, address: FIRST.into(), port, choice: Choice::Plain })
}

/// Behind the data of any map, which take five words at most.
const LABEL_SCRATCH: Register = Register::word(8);

pub(super) fn load_key(id: &MapId, fields: &[Field]) -> Vec<Expr> {
    let family = id.class.family;
    let mut exprs = Vec::with_capacity(fields.len() + 1);
    let mut to = FIRST;
    let mut destination = id.keys_address();
    for field in fields {
        match field {
            Field::Ipv4 | Field::Ipv6 if destination => {
                destination = false;
                exprs.push(load_address(family, End::Destination, to));
            }
            Field::Ipv4 | Field::Ipv6 => {
                exprs.push(load_address(family, End::Source, to));
                let mask = mask(family, id.class.from.unwrap_or(u8::MAX));
                if mask.iter().any(|byte| *byte != 0xff) {
                    exprs.push(Expr::Bitwise(Bitwise { register: to, mask }));
                }
            }
            Field::Interface => exprs.push(Expr::Meta(Meta { key: MetaKey::IifName, to })),
            Field::Protocol => exprs.push(Expr::Meta(Meta { key: MetaKey::L4Proto, to })),
            Field::Port => {
                exprs.push(Expr::Payload(Payload { header: Header::Transport, offset: 2, length: 2, to }));
                if id.kind.block() > 1 {
                    let mask = (!(id.kind.block() - 1)).to_be_bytes().to_vec();
                    exprs.push(Expr::Bitwise(Bitwise { register: to, mask }));
                }
            }
        }
        to = to.after(field.words());
    }
    exprs
}
