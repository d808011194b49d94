//! Forwards: the maps, the chains they live in, the rules that ask them, the jumps that lead there.
//!
//! For a class with address, interface and clients, of IPv4 and single ports, the rule is in nft(8):
//! ```text
//! meta nfproto ipv4 ct label set 121
//!     dnat ip to meta l4proto . th dport . ip daddr . iifname . ip saddr & 255.255.255.0 map @ip-address-interface-from24-ports
//! ```
//! The client's address is masked before it is looked up, so nested prefixes are separate maps of constant cost and never
//! overlap in one. The label is set between the lookup and the rewriting, so only on what a forward caught.
//! Be aware: nft(8) can only print that label in front of the lookup; a table restored from that text labels
//! every connection to this host. `plan` sees the difference and `apply` mends it. nft(8) 1.0.6 prints a mask behind the
//! first field of a key, but cannot read it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{End, FIRST, LABEL_OURS, address_in, family_is, load_address, mask, set_label};
use crate::model::{Asked, ChainName, Comment, Owned, Protocol, SetName};
use crate::nft::expr::{
    Bitwise, Cmp, Expr, Fib, FibResult, Header, Lookup, Meta, MetaKey, Nat, Payload, Redirect, Register, Verdict,
};
use crate::nft::map::{self, MapId};
use crate::nft::program::{Chain, Element, Field, Key, Map, Program, Rule};

/// The routing table's word for an address of this host. Source: `RTN_LOCAL` in include/uapi/linux/rtnetlink.h.
const RTN_LOCAL: u32 = 2;

/// Adds the maps and the chains of forwards, and gives the rules that lead a packet through them.
pub(super) fn maps_and_chains(asked: &Asked, program: &mut Program) -> Vec<Rule> {
    let mut protocols: BTreeMap<MapId, BTreeSet<Protocol>> = BTreeMap::new();
    let mut comments = Comments::default();
    for owned in &asked.bindings {
        let id = MapId::of(&owned.rule, asked.chain_of(&owned.rule));
        let map = (program.maps.entry(id.to_string()))
            .or_insert_with(|| Map { shape: id.shape(), elements: BTreeMap::new() });
        map.elements.extend(elements(owned, &mut comments));
        protocols.entry(id).or_default().insert(owned.rule.protocol);
    }
    let mut jumps = Vec::new();
    for run in runs(protocols.into_iter().collect()) {
        let rules = run.maps.iter().flat_map(|(id, protocols)| rules(id, protocols)).collect();
        jumps.push(jump(&run.name, run.by_address));
        program.chains.insert(run.name, Chain { base: None, rules });
    }
    jumps
}

/// The elements of one forward's atom; all that is sent when it is added to a table that has its map.
fn elements(owned: &Owned<crate::model::Binding>, comments: &mut Comments) -> Vec<(Key, Element)> {
    map::elements(&owned.rule, &comments.of(&owned.set, owned.rule.comment.as_ref()))
}

/// The text of every comment once, however many elements carry it.
#[derive(Default)]
struct Comments(HashMap<(SetName, Option<Comment>), Arc<str>>);

impl Comments {
    fn of(&mut self, set: &SetName, remark: Option<&Comment>) -> Arc<str> {
        let text = || map::comment(set, remark.map(Comment::as_str)).into();
        Arc::clone(self.0.entry((set.clone(), remark.cloned())).or_insert_with(text))
    }
}

/// Maps that are asked one after the other in one chain.
struct Run {
    name: String,
    by_address: bool,
    chain: ChainName,
    maps: Vec<(MapId, BTreeSet<Protocol>)>,
}

/// Lays the maps out in chains so that following them is following precedence.
///
/// A chain name's forwards are in one chain for those with an address and one for those without. Only where forwards of
/// different chain names take turns in precedence is a chain continued, in `NAME-2` and so on.
fn runs(mut maps: Vec<(MapId, BTreeSet<Protocol>)>) -> Vec<Run> {
    // Families never compete, so they share a level; within a level chains may come in any order.
    maps.sort_by_key(|(id, _)| {
        let class = id.class;
        (
            !class.address,
            !class.interface,
            std::cmp::Reverse(class.from),
            id.chain.clone(),
            class.family,
            id.kind,
            id.redirect,
        )
    });
    let level = |id: &MapId| (id.class.address, id.class.interface, id.class.from);
    let mut runs: Vec<Run> = Vec::new();
    while let Some((first, _)) = maps.first() {
        let end = maps.iter().position(|(id, _)| level(id) != level(first)).unwrap_or(maps.len());
        let mut now: Vec<_> = maps.drain(..end).collect();
        // What continues the last run goes first.
        if let Some(last) = runs.last() {
            let chain = last.chain.clone();
            now.sort_by_key(|(id, _)| id.chain != chain);
        }
        for (id, protocols) in now {
            let by_address = id.class.address;
            match runs.last_mut() {
                Some(run) if run.chain == id.chain && run.by_address == by_address => run.maps.push((id, protocols)),
                _ => {
                    let name = run_name(&runs, &id.chain, by_address);
                    runs.push(Run { name, by_address, chain: id.chain.clone(), maps: vec![(id, protocols)] });
                }
            }
        }
    }
    runs
}

fn run_name(runs: &[Run], chain: &ChainName, by_address: bool) -> String {
    let before = runs.iter().filter(|run| run.chain == *chain && run.by_address == by_address).count();
    let base = if by_address { format!("{chain}-by-address") } else { chain.to_string() };
    if before == 0 { base } else { format!("{base}-{}", before + 1) }
}

/// `fib daddr type local jump DOCKER`; what names its address needs no such guard.
fn jump(chain: &str, by_address: bool) -> Rule {
    let mut exprs = Vec::with_capacity(3);
    if !by_address {
        exprs.push(Expr::Fib(Fib { result: FibResult::DestinationType, to: FIRST }));
        exprs.push(Expr::Cmp(Cmp { register: FIRST, equal: true, data: RTN_LOCAL.to_ne_bytes().to_vec() }));
    }
    exprs.push(Expr::Verdict(Verdict::Jump(chain.to_owned())));
    Rule { exprs, comment: None }
}

/// `ip daddr 127.0.0.0/8 return`, `ip6 daddr ::1 return`: what this host says to itself stays with it.
pub(super) fn own_loopback() -> [Rule; 2] {
    let networks = [
        ipnetwork::Ipv4Network::new(std::net::Ipv4Addr::new(127, 0, 0, 0), 8).map(ipnetwork::IpNetwork::V4),
        ipnetwork::Ipv6Network::new(std::net::Ipv6Addr::LOCALHOST, 128).map(ipnetwork::IpNetwork::V6),
    ];
    networks.map(|network| {
        let mut exprs = address_in(network.expect("both lengths fit their family"), End::Destination);
        exprs.push(Expr::Verdict(Verdict::Return));
        Rule { exprs, comment: None }
    })
}

/// The rules that ask one map: one, or for a redirect one for each protocol, because nft(8) takes `redirect to :PORT`
/// only behind a match of the protocol.
fn rules(id: &MapId, protocols: &BTreeSet<Protocol>) -> Vec<Rule> {
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
    let shape = id.shape();
    exprs.extend(load_key(id, &shape.key));
    let has_data = !shape.data.is_empty();
    exprs.push(Expr::Lookup(Lookup { map: id.to_string(), from: FIRST, to: has_data.then_some(FIRST) }));
    exprs.extend(set_label(LABEL_OURS, LABEL_SCRATCH));
    let has_port = shape.data.last() == Some(&Field::Port);
    exprs.push(if id.redirect {
        Expr::Redirect(Redirect { port: has_port.then_some(FIRST) })
    } else {
        let words = shape.data.first().map_or(0, |address| address.words());
        Expr::Nat(Nat { source: false, family, address: FIRST, port: has_port.then(|| FIRST.after(words)) })
    });
    Rule { exprs, comment: None }
}

/// Behind the data of any map, which take five words at most.
const LABEL_SCRATCH: Register = Register::word(8);

fn load_key(id: &MapId, fields: &[Field]) -> Vec<Expr> {
    let family = id.class.family;
    let mut exprs = Vec::with_capacity(fields.len() + 1);
    let mut to = FIRST;
    let mut destination = id.class.address;
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
            Field::Port => exprs.push(Expr::Payload(Payload { header: Header::Transport, offset: 2, length: 2, to })),
        }
        to = to.after(field.words());
    }
    exprs
}
