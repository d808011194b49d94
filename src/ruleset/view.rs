//! The symbolic walk: finds the packets that reach each NAT statement of a ruleset.
//!
//! The walk starts each base chain with the region of all packets, and each jump narrows the region. So all rules of a hook
//! become one list of steps, and the first step that contains a packet decides: [`HookPath`].

use std::sync::Arc;

use super::order::{self, Placed};
use super::region::{Field, Packet, Region, State, Truth, family_number, states};
use super::set::Set;
use super::table::{Action, At, Case, Gap, Hook, Rewrite, Ruleset, Table};
use crate::model::Family;

/// The maximum depth of jumps that portfwd follows. nf_tables allows 16 (`NFT_JUMP_STACK_SIZE` in
/// include/net/netfilter/nf_tables.h), iptables-legacy has no limit.
const DEEPEST: usize = 256;

/// The maximum number of steps of all hooks together: about 500,000 rules that two hooks evaluate. Rules beyond the maximum
/// are reported as a gap.
const MOST: usize = 2_000_000;

/// The kind of a NAT statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Translation {
    /// Rewrites the destination.
    Dnat,
    /// Rewrites the destination to this host.
    Redirect,
    /// Rewrites the source.
    Snat,
    /// Rewrites the source to the address of the egress interface.
    Masquerade,
}

impl Translation {
    /// Returns the keyword of nft(8).
    pub fn name(self) -> &'static str {
        match self {
            Self::Dnat => "dnat",
            Self::Redirect => "redirect",
            Self::Snat => "snat",
            Self::Masquerade => "masquerade",
        }
    }
}

/// Returns the translation of NETMAP at a hook.
pub(super) fn of_netmap(hook: Hook) -> Translation {
    match hook {
        Hook::Input | Hook::Postrouting => Translation::Snat,
        _ => Translation::Dnat,
    }
}

/// The effect of a step on its packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// A NAT statement rewrites an address. No later step sees the packet.
    Rewritten(Translation, Rewrite),
    /// A rule or a policy drops the packet.
    Dropped,
    /// The packet continues at the step with this index.
    GoOn(usize),
    /// The effect is unknown. The packet may continue at the next step.
    Unknown(Arc<str>),
}

/// A rule's case on the path of packets through a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The packets that reach the step and match the rule.
    pub region: Region,
    /// The effect.
    pub fate: Fate,
    /// The position of the rule.
    pub at: At,
    /// True if the order of the base chains is unknown. See [`Placed::tied`].
    pub tied: bool,
}

/// The steps of all NAT chains of one family and hook. The first step that contains a packet decides.
#[derive(Debug, Clone)]
pub struct HookPath {
    /// The address family.
    pub family: Family,
    /// One of [`HOOKS`].
    pub hook: Hook,
    /// The steps in order of evaluation.
    pub steps: Vec<Step>,
}

/// The paths of all families and hooks.
#[derive(Debug, Clone)]
pub struct View {
    /// One path for each family and hook, in the order of the packet flow.
    pub ways: Vec<HookPath>,
    /// The rules that were not walked.
    pub gaps: Vec<Gap>,
}

/// The hooks of NAT chains: the first two rewrite destinations, the others sources.
pub const HOOKS: [Hook; 4] = [Hook::Prerouting, Hook::Output, Hook::Input, Hook::Postrouting];

impl View {
    /// Walks all rules. `local` returns the host's addresses of a family, if they are known.
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

    /// Returns the path of a family through a hook.
    pub fn way(&self, family: Family, hook: Hook) -> Option<&HookPath> {
        self.ways.iter().find(|way| way.family == family && way.hook == hook)
    }
}

/// Returns the region of packets that start a connection at a hook.
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
    /// The names of the chains on the stack of jumps.
    path: Vec<Arc<str>>,
}

/// The steps whose packets leave a chain. The walk sets their next step after the chain.
#[derive(Default)]
struct Open {
    /// Steps that continue after the chain.
    returns: Vec<usize>,
    /// Steps that continue after the base chain.
    accepts: Vec<usize>,
}

impl<'a> Walk<'a> {
    fn base(&mut self, placed: Placed<'a>, region: Region) {
        let at = At { table: placed.table_at, chain: placed.chain_at, rule: usize::MAX, case: 0 };
        let mut open = Open::default();
        self.path.clear();
        self.chain(placed.table, at, &region, placed.tied, &mut open);
        if placed.base.drops {
            // The policy applies to packets without a verdict and to packets that return, but not to accepted packets.
            self.close(std::mem::take(&mut open.returns));
            self.push(Step { region, fate: Fate::Dropped, at, tied: placed.tied });
        }
        self.close(open.returns);
        self.close(open.accepts);
    }

    /// Sets the next step of `steps` to the end of the list.
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
        // Chains that jump twice to the next chain double the visits at each depth.
        let Some(left) = self.left.checked_sub(1) else { return };
        self.left = left;
        if self.path.len() > DEEPEST || self.path.contains(&chain.name) {
            let fate = Fate::Unknown(format!("jumps to {} are too deep, or a cycle", chain.name).into());
            self.push(Step { region: region.clone(), fate, at, tied });
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

    /// Replaces the address type (local, unicast) by addresses, if the host's addresses are known.
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

    /// Returns true if a rule of `chain`, at or after step `first`, rewrites or drops all packets of `region`.
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
                Action::Drop | Action::Reject(_) => Fate::Dropped,
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
                    // If the chain rewrites or drops all packets, none returns.
                    if !self.all_end(table, chain, first, &region) {
                        open.returns.extend(self.push(Step { region, fate: Fate::GoOn(usize::MAX), at, tied }));
                    }
                    return;
                }
                Action::Mark { .. } | Action::CopyMark { .. } | Action::MarkUnknown { .. } | Action::Untracked => {
                    continue;
                }
                Action::Proxy(_) => Fate::Unknown("tproxy".into()),
                Action::Queue => Fate::Unknown("queue".into()),
                Action::Unknown(words) => Fate::Unknown(Arc::clone(words)),
            };
            self.push(Step { region, fate, at, tied });
            return;
        }
    }
}

impl HookPath {
    /// Returns the index of the step that decides a packet, and whether this is certain. `None` means that no step changes
    /// the packet.
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

    /// Returns the NAT steps with their indexes.
    pub fn translations(&self) -> impl Iterator<Item = (usize, &Step, Translation, &Rewrite)> {
        self.steps.iter().enumerate().filter_map(|(number, step)| match &step.fate {
            Fate::Rewritten(translation, to) => Some((number, step, *translation, to)),
            _ => None,
        })
    }
}
