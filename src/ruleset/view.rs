//! The view: which forwards there are and which sources are rewritten, in the order in which they win.
//!
//! Base chains are walked with the set of all packets, which each jump narrows. So a packet's way through any rules becomes
//! one list, and what is asked first in it decides: [`HookPath`].

use std::sync::Arc;

use super::order::{self, Placed};
use super::region::{Field, Packet, Region, State, Truth, family_number, states};
use super::set::Set;
use super::table::{Action, At, Case, Gap, Hook, Rewrite, Ruleset, Table};
use crate::model::Family;

/// How deep chains may ask each other. Source: `NFT_JUMP_STACK_SIZE` in include/net/netfilter/nf_tables.h.
const DEEPEST: usize = 16;

/// The most steps of all ways together: about what 500,000 rules make where two hooks ask them. What is beyond is a gap.
const MOST: usize = 2_000_000;

/// How an address is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Translation {
    /// The destination.
    Dnat,
    /// The destination, to this host.
    Redirect,
    /// The source.
    Snat,
    /// The source, to the address of the interface.
    Masquerade,
}

impl Translation {
    /// Its word in nft(8).
    pub fn name(self) -> &'static str {
        match self {
            Self::Dnat => "dnat",
            Self::Redirect => "redirect",
            Self::Snat => "snat",
            Self::Masquerade => "masquerade",
        }
    }
}

/// Which address NETMAP rewrites at a hook.
pub(super) fn of_netmap(hook: Hook) -> Translation {
    match hook {
        Hook::Input | Hook::Postrouting => Translation::Snat,
        _ => Translation::Dnat,
    }
}

/// What becomes of packets at a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// An address is rewritten, which ends the way.
    Rewritten(Translation, Rewrite),
    /// They are dropped.
    Dropped,
    /// They go on at the step of this number.
    GoOn(usize),
    /// What becomes of them is not known: they may go on behind it or not.
    Unknown(Arc<str>),
}

/// A step of a way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The packets that it is about.
    pub region: Region,
    /// What becomes of them.
    pub fate: Fate,
    /// The rule.
    pub at: At,
    /// Whether the order of its chain among others is not known: see [`Placed::tied`].
    pub tied: bool,
}

/// The way of packets of a family through the chains of a hook that translate: the first step that a packet is in decides.
#[derive(Debug, Clone)]
pub struct HookPath {
    /// The family.
    pub family: Family,
    /// The hook.
    pub hook: Hook,
    /// The steps.
    pub steps: Vec<Step>,
}

/// All ways.
#[derive(Debug, Clone)]
pub struct View {
    /// Each family and hook once, in the order in which packets meet them.
    pub ways: Vec<HookPath>,
    /// What is left out.
    pub gaps: Vec<Gap>,
}

/// The hooks at which addresses are rewritten: destinations at the first two, sources at the others.
pub const HOOKS: [Hook; 4] = [Hook::Prerouting, Hook::Output, Hook::Input, Hook::Postrouting];

impl View {
    /// Walks all rules. `local` are the addresses of this host, by family, where they are known.
    pub fn new(rules: &Ruleset, local: impl Fn(Family) -> Option<Set>) -> Self {
        let mut view = Self { ways: Vec::new(), gaps: Vec::new() };
        let mut left = MOST;
        for family in Family::ALL {
            let local = local(family);
            for hook in HOOKS {
                let mut walk = Walk { hook, local: local.as_ref(), steps: Vec::new(), left, path: Vec::new() };
                for placed in order::chains(rules, family, hook, true) {
                    walk.base(placed, start(family, hook));
                }
                if walk.left == 0 && left > 0 {
                    let what = format!("the rest of the rules of {family} at {}", hook.name());
                    view.gaps.push(Gap { what, why: format!("more than {MOST} ways lead through them") });
                }
                left = walk.left;
                view.ways.push(HookPath { family, hook, steps: walk.steps });
            }
        }
        view
    }

    /// The way of a family at a hook.
    pub fn way(&self, family: Family, hook: Hook) -> Option<&HookPath> {
        self.ways.iter().find(|way| way.family == family && way.hook == hook)
    }
}

/// The packets that are asked about at a hook: the first ones of connections.
fn start(family: Family, hook: Hook) -> Region {
    let first = Region::all().with(Field::Family, &Set::single(family_number(family)));
    let first = first.with(Field::State, &states([State::New, State::Related]));
    let first = first.with(Field::Direction, &Set::single(0));
    let nowhere = Set::single(0);
    match hook {
        Hook::Output => first.with(Field::Input, &nowhere),
        Hook::Prerouting => first.with(Field::Output, &nowhere).with(Field::Input, &nowhere.not()),
        Hook::Input => first.with(Field::Output, &nowhere),
        _ => first,
    }
}

struct Walk<'a> {
    hook: Hook,
    local: Option<&'a Set>,
    steps: Vec<Step>,
    left: usize,
    /// The chains that are being walked.
    path: Vec<Arc<str>>,
}

/// Where the packets that leave a chain go on: numbers of steps that are not known until the chain has been walked.
#[derive(Default)]
struct Open {
    /// Behind the chain.
    returns: Vec<usize>,
    /// Behind the base chain.
    accepts: Vec<usize>,
}

impl<'a> Walk<'a> {
    fn base(&mut self, placed: Placed<'a>, region: Region) {
        let at = At { table: placed.table_at, chain: placed.chain_at, rule: usize::MAX, case: 0 };
        let mut open = Open::default();
        self.path.clear();
        self.chain(placed.table, at, &region, placed.tied, &mut open);
        if placed.base.drops {
            // What no rule decides, and what goes back, meets the policy; what was accepted does not.
            self.close(std::mem::take(&mut open.returns));
            self.push(Step { region, fate: Fate::Dropped, at, tied: placed.tied });
        }
        self.close(open.returns);
        self.close(open.accepts);
    }

    /// Lets steps go on at the next one.
    fn close(&mut self, steps: Vec<usize>) {
        let next = self.steps.len();
        for step in steps {
            if let Some(Step { fate: Fate::GoOn(to), .. }) = self.steps.get_mut(step) {
                *to = next;
            }
        }
    }

    fn push(&mut self, step: Step) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        self.steps.push(step);
        Some(self.steps.len() - 1)
    }

    fn chain(&mut self, table: &'a Table, at: At, region: &Region, tied: bool, open: &mut Open) {
        let Some(chain) = table.chains.get(at.chain) else { return };
        if self.path.len() > DEEPEST || self.path.contains(&chain.name) {
            return;
        }
        self.path.push(Arc::clone(&chain.name));
        for (number, rule) in chain.rules.iter().enumerate() {
            for (case_number, case) in rule.cases.iter().enumerate() {
                if self.left == 0 {
                    break;
                }
                let at = At { rule: number, case: case_number, ..at };
                if region.meets(&case.region) {
                    let region = self.resolved(region.and(&case.region));
                    if !region.is_empty() {
                        self.case(table, at, case, region, tied, open);
                    }
                }
            }
        }
        self.path.pop();
    }

    /// Says of the kind of a destination what its address tells, where this host's addresses are known.
    fn resolved(&self, mut region: Region) -> Region {
        let Some(local) = self.local else { return region };
        for (kind, address) in [(Field::DestinationKind, Field::Destination), (Field::SourceKind, Field::Source)] {
            let kinds = region.get(kind);
            if kinds.is_all() {
                continue;
            }
            match (kinds.has(super::region::LOCAL), kinds.only()) {
                (true, Some(_)) => region.narrow(address, local),
                (false, _) => region.narrow(address, &local.not()),
                (true, None) => {}
            }
        }
        region
    }

    /// Whether a rule of a chain itself, among the steps from this one on, rewrites or drops all packets that were led there.
    fn all_end(&self, table: &Table, chain: usize, first: usize, region: &Region) -> bool {
        let ends = |step: &Step| {
            let case = || table.chains.get(chain)?.rules.get(step.at.rule)?.cases.get(step.at.case);
            step.at.chain == chain
                && matches!(step.fate, Fate::Rewritten(..) | Fate::Dropped)
                && step.region == *region
                && case().is_some_and(|case| case.region.is_known())
        };
        self.steps.iter().skip(first).any(ends)
    }

    fn case(&mut self, table: &'a Table, at: At, case: &Case, region: Region, tied: bool, open: &mut Open) {
        for action in &case.actions {
            let fate = match action {
                Action::Dnat(to) => Fate::Rewritten(Translation::Dnat, to.clone()),
                Action::Redirect(to) => Fate::Rewritten(Translation::Redirect, to.clone()),
                Action::Snat(to) => Fate::Rewritten(Translation::Snat, to.clone()),
                Action::Masquerade(to) => Fate::Rewritten(Translation::Masquerade, to.clone()),
                Action::Netmap(to) => Fate::Rewritten(of_netmap(self.hook), to.clone()),
                Action::Drop | Action::Reject => Fate::Dropped,
                Action::Accept => {
                    open.accepts.extend(self.push(Step { region, fate: Fate::GoOn(usize::MAX), at, tied }));
                    return;
                }
                Action::Return => {
                    open.returns.extend(self.push(Step { region, fate: Fate::GoOn(usize::MAX), at, tied }));
                    return;
                }
                Action::Jump(name) | Action::Goto(name) => {
                    let Some(chain) = table.chains.position(name) else { continue };
                    let to = At { chain, rule: 0, case: 0, ..at };
                    let mut within = Open::default();
                    let first = self.steps.len();
                    self.chain(table, to, &region, tied, &mut within);
                    self.close(within.returns);
                    open.accepts.extend(within.accepts);
                    if matches!(action, Action::Jump(_)) {
                        continue;
                    }
                    // Of those that were all rewritten or dropped there, none comes back.
                    if !self.all_end(table, chain, first, &region) {
                        open.returns.extend(self.push(Step { region, fate: Fate::GoOn(usize::MAX), at, tied }));
                    }
                    return;
                }
                Action::Mark { .. } | Action::CopyMark { .. } | Action::MarkUnknown { .. } | Action::Untracked => {
                    continue;
                }
                Action::Proxy => Fate::Unknown("tproxy".into()),
                Action::Queue => Fate::Unknown("queue".into()),
                Action::Unknown(words) => Fate::Unknown(Arc::clone(words)),
            };
            self.push(Step { region, fate, at, tied });
            return;
        }
    }
}

impl HookPath {
    /// The number of the step that decides about a packet, if one does, and whether that is sure. A packet that no step
    /// decides about stays as it is.
    pub fn decide(&self, packet: &Packet) -> (Option<usize>, bool) {
        let (mut at, mut sure) = (0, true);
        while let Some(step) = self.steps.get(at) {
            let next = match (step.region.has(packet), &step.fate) {
                (Truth::No, _) => at + 1,
                (Truth::Maybe, _) | (_, Fate::Unknown(_)) => {
                    sure = false;
                    at + 1
                }
                (Truth::Yes, Fate::GoOn(to)) => (*to).max(at + 1),
                (Truth::Yes, _) => return (Some(at), sure && !step.tied),
            };
            at = next;
        }
        (None, sure)
    }

    /// The steps that rewrite an address, with their numbers.
    pub fn translations(&self) -> impl Iterator<Item = (usize, &Step, Translation, &Rewrite)> {
        self.steps.iter().enumerate().filter_map(|(number, step)| match &step.fate {
            Fate::Rewritten(translation, to) => Some((number, step, *translation, to)),
            _ => None,
        })
    }
}
