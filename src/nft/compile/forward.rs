//! Forwards: the maps, the chains they live in, the jumps that lead there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::clients;
use super::expressions::{End, FIRST, address_in};
use super::run::{Stage, runs};
use crate::model::label::{self, Sources};
use crate::model::rule_comment::format_comment;
use crate::model::{Asked, Binding, Comment, Family, Owned, Protocol, SetName, address};
use crate::nft::element;
use crate::nft::expr::{Cmp, Expr, Fib, FibResult, Verdict};
use crate::nft::map::{MapId, Place};
use crate::nft::program::{Chain, Map, Program, Rule};

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
                maps.put(&id, owned, label::encode(&owned.rule, sources));
                if owned.rule.loopback {
                    maps.put(&id.at_loopback(), owned, label::encode_loopback(&owned.rule, sources));
                }
            } else {
                maps.put(&id, owned, label::encode_loopback(&owned.rule, sources));
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
        let text = || format_comment(&owned.set, remark.map(Comment::as_str)).into();
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
