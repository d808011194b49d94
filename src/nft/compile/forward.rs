//! Compiles forwards to maps, chains, and rules that jump to the chains.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::clients;
use super::expressions::{AddressField, FIRST, address_in};
use super::run::{Stage, runs};
use crate::model::label::{self, Sources};
use crate::model::rule_comment::format_comment;
use crate::model::{Binding, Comment, DesiredState, Family, Protocol, SetName, SetRule, address};
use crate::nft::element;
use crate::nft::expr::{Cmp, Expr, Fib, FibResult, Verdict};
use crate::nft::map::{AddressScope, MapId};
use crate::nft::program::{Chain, Map, Program, Rule};

/// The address type of this host's own addresses. Source: `RTN_LOCAL` in include/uapi/linux/rtnetlink.h.
const RTN_LOCAL: u32 = 2;

/// The rules that jump to the chains of forwards.
#[derive(Default)]
pub(super) struct Jumps {
    /// Jumps for packets to loopback addresses. Only this host sends such packets.
    pub(super) loopback: Vec<Rule>,
    /// Jumps for packets to non-loopback addresses.
    pub(super) non_loopback: Vec<Rule>,
}

/// Adds the maps and chains of forwards to `program`. Returns the rules that jump to the chains.
pub(super) fn maps_and_chains(desired: &DesiredState, sources: &Sources, program: &mut Program) -> Jumps {
    let mut maps = Maps::default();
    for owned in &desired.bindings {
        for kind in element::kinds(&owned.rule) {
            let id = MapId::for_binding(&owned.rule, kind, desired.chain_of(&owned.rule));
            if id.scope == AddressScope::NonLoopback {
                maps.add_binding(&id, owned, label::encode(&owned.rule, sources));
                if owned.rule.loopback {
                    maps.add_binding(&id.any_loopback(), owned, label::encode_loopback(&owned.rule, sources));
                }
            } else {
                maps.add_binding(&id, owned, label::encode_loopback(&owned.rule, sources));
            }
        }
    }
    let mut ids = Vec::with_capacity(maps.by_id.len());
    for (id, (protocols, map)) in maps.by_id {
        program.maps.insert(id.to_string(), map);
        ids.push((id, protocols));
    }
    let mut jumps = Jumps::default();
    for run in runs(ids) {
        match run.stage {
            Stage::Loopback => {
                let families: BTreeSet<Family> = run.maps.iter().map(|(id, _)| id.class.family).collect();
                jumps.loopback.extend(families.into_iter().map(|family| jump_loopback(&run.name, family)));
            }
            stage => jumps.non_loopback.push(jump(&run.name, stage)),
        }
        let rules = clients::rules(&run, program);
        program.chains.insert(run.name, Chain { base: None, rules });
    }
    jumps
}

/// The maps of forwards during compilation.
#[derive(Default)]
struct Maps {
    /// The text of each comment. All elements with the same comment share one text.
    comments: HashMap<(SetName, Option<Comment>), Arc<str>>,
    /// Each map with the protocols of its elements.
    by_id: BTreeMap<MapId, (BTreeSet<Protocol>, Map)>,
}

impl Maps {
    /// Adds a binding to the map `id`. If the binding has a `label`, also adds the label to the map `id.labels()`.
    fn add_binding(&mut self, id: &MapId, owned: &SetRule<Binding>, label: Option<Vec<u8>>) {
        let remark = owned.rule.comment.as_ref();
        let text = || format_comment(&owned.set, remark.map(Comment::as_str)).into();
        let comment = self.comments.entry((owned.set.clone(), remark.cloned())).or_insert_with(text).clone();
        if let Some(label) = label {
            self.add_elements(&id.labels(), &owned.rule, &comment, &label);
        }
        self.add_elements(id, &owned.rule, &comment, &[]);
    }

    fn add_elements(&mut self, id: &MapId, rule: &Binding, comment: &Arc<str>, label: &[u8]) {
        if !self.by_id.contains_key(id) {
            let map = Map { shape: id.shape(), elements: BTreeMap::new() };
            self.by_id.insert(id.clone(), (BTreeSet::new(), map));
        }
        if let Some((protocols, map)) = self.by_id.get_mut(id) {
            map.elements.extend(element::elements(id, rule, comment, label));
            protocols.insert(rule.protocol);
        }
    }
}

/// Jumps to a chain of forwards: `fib daddr type local jump DOCKER`. If the forwards of the chain have addresses, the
/// rule has no `fib` match.
fn jump(chain: &str, stage: Stage) -> Rule {
    let mut exprs = Vec::with_capacity(3);
    if stage == Stage::Any {
        exprs.push(Expr::Fib(Fib { result: FibResult::DestinationType, to: FIRST }));
        exprs.push(Expr::Cmp(Cmp { register: FIRST, equal: true, data: RTN_LOCAL.to_ne_bytes().to_vec() }));
    }
    exprs.push(Expr::Verdict(Verdict::Jump(chain.to_owned())));
    Rule { exprs, comment: None }
}

/// Jumps to a chain of loopback forwards: `ip daddr 127.0.0.0/8 jump DOCKER-loopback`.
fn jump_loopback(chain: &str, family: Family) -> Rule {
    match_loopback(family, Verdict::Jump(chain.to_owned()))
}

/// Returns the rules `ip daddr 127.0.0.0/8 return` and `ip6 daddr ::1 return`. These rules follow the loopback forwards
/// and leave other packets to loopback addresses unchanged.
pub(super) fn return_loopback() -> [Rule; 2] {
    Family::ALL.map(|family| match_loopback(family, Verdict::Return))
}

fn match_loopback(family: Family, verdict: Verdict) -> Rule {
    let mut exprs = address_in(address::loopback(family), AddressField::Destination);
    exprs.push(Expr::Verdict(verdict));
    Rule { exprs, comment: None }
}
