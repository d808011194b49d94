//! Forwards: the maps, the chains they live in, the rules that ask them, the jumps that lead there.
//!
//! For a class with address, interface and clients, of IPv4 and single ports, the rule is in nft(8):
//! ```text
//! meta nfproto ipv4 ct label set 121
//!     dnat ip to meta l4proto . th dport . ip daddr . iifname . ip saddr & 255.255.255.0 map @ip-address-interface-from24-ports
//! ```
//! Of ports in blocks, the low bits are masked. The client's address is masked before it is looked up, so nested prefixes are separate maps of constant cost and never
//! overlap in one. The label is set between the lookup and the rewriting, so only on what a forward caught.
//!
//! Where some of a map's forwards ask for another source, no hairpin or loopback addresses, a rule before it takes their
//! labels from a map of the same keys:
//! ```text
//! meta nfproto ipv4 ct label set meta l4proto . th dport map @ip-ports-labels dnat ip to meta l4proto . th dport map @ip-ports
//! ```
//! Be aware: nft(8) can only print the first rule's label in front of the lookup; a table restored from that text labels
//! every connection to this host. `plan` sees the difference and `apply` mends it. nft(8) 1.0.6 prints a mask behind the
//! first field of a key, but cannot read it; nor can it read back a label that comes from a map.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::clients;
use super::{End, FIRST, address_in, family_is, load_address, mask, set_label};
use crate::model::label::{self, MASQUERADE, OURS, Sources};
use crate::model::rule_comment::comment;
use crate::model::{Asked, Binding, ChainName, Comment, Family, Owned, Protocol, SetName, address};
use crate::nft::element;
use crate::nft::expr::{
    Bitwise, Choice, Cmp, CtSetLabel, Expr, Fib, FibResult, Header, Lookup, Meta, MetaKey, Nat, Payload, Redirect,
    Register, Verdict,
};
use crate::nft::map::{Kind, MapId, Place, Role};
use crate::nft::program::{Chain, Field, Map, Program, Rule};

/// The routing table's word for an address of this host. Source: `RTN_LOCAL` in include/uapi/linux/rtnetlink.h.
const RTN_LOCAL: u32 = 2;

/// The rules that lead a packet through the forwards.
#[derive(Default)]
pub(super) struct Jumps {
    /// About packets to loopback addresses, which only this host sends.
    pub(super) loopback: Vec<Rule>,
    /// About all others.
    pub(super) outside: Vec<Rule>,
}

/// Adds the maps and the chains of forwards, and gives the rules that lead a packet through them.
pub(super) fn maps_and_chains(asked: &Asked, sources: &Sources, program: &mut Program) -> Jumps {
    let mut maps = Maps::default();
    for owned in &asked.bindings {
        for kind in element::kinds(&owned.rule) {
            let id = MapId::of(&owned.rule, kind, asked.chain_of(&owned.rule));
            if id.place == Place::Outside {
                maps.put(&id, owned, label::of(&owned.rule, sources));
                if owned.rule.loopback {
                    maps.put(&id.at_loopback(), owned, label::at_loopback(&owned.rule, sources));
                }
            } else {
                maps.put(&id, owned, label::at_loopback(&owned.rule, sources));
            }
        }
    }
    let mut protocols = Vec::with_capacity(maps.filled.len());
    for (id, (spoken, map)) in maps.filled {
        program.maps.insert(id.to_string(), map);
        protocols.push((id, spoken));
    }
    let mut jumps = Jumps::default();
    for run in runs(protocols) {
        match run.stage {
            Stage::Loopback => {
                let families: BTreeSet<Family> = run.maps.iter().map(|(id, _)| id.class.family).collect();
                jumps.loopback.extend(families.into_iter().map(|family| jump_loopback(&run.name, family)));
            }
            stage => jumps.outside.push(jump(&run.name, stage)),
        }
        let rules = clients::rules(&run, program);
        program.chains.insert(run.name, Chain { base: None, rules });
    }
    jumps
}

/// The maps that are being filled.
#[derive(Default)]
struct Maps {
    /// The text of every comment once, however many elements carry it.
    comments: HashMap<(SetName, Option<Comment>), Arc<str>>,
    /// The maps, each with the protocols in it.
    filled: BTreeMap<MapId, (BTreeSet<Protocol>, Map)>,
}

impl Maps {
    /// Puts a binding into a map, and its label, if it has one of its own, into the map of labels.
    fn put(&mut self, id: &MapId, owned: &Owned<Binding>, label: Option<Vec<u8>>) {
        let remark = owned.rule.comment.as_ref();
        let text = || comment(&owned.set, remark.map(Comment::as_str)).into();
        let comment = self.comments.entry((owned.set.clone(), remark.cloned())).or_insert_with(text).clone();
        if let Some(label) = label {
            self.fill(&id.labels(), &owned.rule, &comment, &label);
        }
        self.fill(id, &owned.rule, &comment, &[]);
    }

    fn fill(&mut self, id: &MapId, rule: &Binding, comment: &Arc<str>, label: &[u8]) {
        if !self.filled.contains_key(id) {
            let map = Map { shape: id.shape(), elements: BTreeMap::new() };
            self.filled.insert(id.clone(), (BTreeSet::new(), map));
        }
        if let Some((protocols, map)) = self.filled.get_mut(id) {
            map.elements.extend(element::elements(id, rule, comment, label));
            protocols.insert(rule.protocol);
        }
    }
}

/// About which packets a chain of forwards is asked, in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Loopback,
    ByAddress,
    Any,
}

impl Stage {
    fn of(id: &MapId) -> Self {
        match (id.place, id.class.address) {
            (Place::Outside, true) => Self::ByAddress,
            (Place::Outside, false) => Self::Any,
            (Place::Loopback | Place::LoopbackAt, _) => Self::Loopback,
        }
    }

    /// What the name of such a chain ends in.
    fn suffix(self) -> &'static str {
        match self {
            Self::Loopback => "-loopback",
            Self::ByAddress => "-by-address",
            Self::Any => "",
        }
    }
}

/// Maps that are asked one after the other in one chain.
pub(super) struct Run {
    /// The chain's name.
    pub(super) name: String,
    stage: Stage,
    chain: ChainName,
    /// The maps in the order of precedence, each with the protocols in it.
    pub(super) maps: Vec<(MapId, BTreeSet<Protocol>)>,
}

/// Lays the maps out in chains so that following them is following precedence.
///
/// A chain name's forwards are in one chain for each stage. Only where forwards of different chain names take turns in
/// precedence is a chain continued, in `NAME-2` and so on.
fn runs(mut maps: Vec<(MapId, BTreeSet<Protocol>)>) -> Vec<Run> {
    let level = |id: &MapId| {
        let class = id.class;
        (Stage::of(id), !class.address, !class.interface, std::cmp::Reverse(class.from), id.kind != Kind::Ports)
    };
    // Families never compete, so they share a level; within a level chains may come in any order, but a label before the
    // forwards that it belongs to.
    let rest = |id: &MapId| (id.chain.clone(), id.class.family, id.kind, id.redirect, id.place, id.role);
    maps.sort_by_cached_key(|(id, _)| (level(id), rest(id)));
    let named: BTreeSet<ChainName> = maps.iter().map(|(id, _)| id.chain.clone()).collect();
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
            let stage = Stage::of(&id);
            match runs.last_mut() {
                Some(run) if run.chain == id.chain && run.stage == stage => run.maps.push((id, protocols)),
                _ => {
                    let name = run_name(&runs, &named, &id.chain, stage);
                    runs.push(Run { name, stage, chain: id.chain.clone(), maps: vec![(id, protocols)] });
                }
            }
        }
    }
    runs
}

/// The name of the next chain of forwards: what it is, and a number where a chain has that name already, be it because a
/// set of an older program named its own so.
fn run_name(runs: &[Run], named: &BTreeSet<ChainName>, chain: &ChainName, stage: Stage) -> String {
    let base = format!("{chain}{}", stage.suffix());
    let numbered = |number: usize| if number == 1 { base.clone() } else { format!("{base}-{number}") };
    let own = |name: &str| stage == Stage::Any && name == chain.as_str();
    let taken = |name: &str| {
        runs.iter().any(|run| run.name == name) || !own(name) && named.iter().any(|other| other.as_str() == name)
    };
    (1..).map(numbered).find(|name| !taken(name)).unwrap_or(base)
}

/// `fib daddr type local jump DOCKER`; what names its address needs no such guard.
fn jump(chain: &str, stage: Stage) -> Rule {
    let mut exprs = Vec::with_capacity(3);
    if stage == Stage::Any {
        exprs.push(Expr::Fib(Fib { result: FibResult::DestinationType, to: FIRST }));
        exprs.push(Expr::Cmp(Cmp { register: FIRST, equal: true, data: RTN_LOCAL.to_ne_bytes().to_vec() }));
    }
    exprs.push(Expr::Verdict(Verdict::Jump(chain.to_owned())));
    Rule { exprs, comment: None }
}

/// `ip daddr 127.0.0.0/8 jump DOCKER-loopback`.
fn jump_loopback(chain: &str, family: Family) -> Rule {
    to_loopback(family, Verdict::Jump(chain.to_owned()))
}

/// `ip daddr 127.0.0.0/8 return`, `ip6 daddr ::1 return`: what else this host says to itself stays with it.
pub(super) fn own_loopback() -> [Rule; 2] {
    Family::ALL.map(|family| to_loopback(family, Verdict::Return))
}

fn to_loopback(family: Family, verdict: Verdict) -> Rule {
    let mut exprs = address_in(address::loopback(family), End::Destination);
    exprs.push(Expr::Verdict(verdict));
    Rule { exprs, comment: None }
}

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
    if id.place == Place::Outside || id.redirect { &[OURS] } else { &[OURS, MASQUERADE] }
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
