//! One packet on its way through rules: what each hook does with it.

use std::ops::RangeInclusive;

use super::index::Entry;
use super::order;
use super::region::{Field, Packet, State, Truth};
use super::ruleset::{Action, At, Hook, Rewrite, Ruleset, Table};
use super::view::{Translation, of_netmap};

/// How deep chains may ask each other.
const DEEPEST: usize = 16;

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Passes,
    /// A rule, or a base chain's policy, drops it: then the rule's number is that behind the last.
    Dropped(At),
    /// A program decides.
    Queued(At),
}

/// What a hook does with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What becomes of it.
    pub verdict: Verdict,
    /// The rules on its way that accepted it, by which a base chain was left.
    pub accepted: Vec<At>,
    /// How it was rewritten, and by which rule.
    pub rewritten: Option<(Translation, Rewrite, At)>,
    /// Whether its connection is not followed, and by which rule.
    pub untracked: Option<At>,
    /// The rules of which it is not known whether they are about it, or what they do. Without any the rest is sure.
    pub doubts: Vec<At>,
    /// Whether which of two chains of the same priority is asked first mattered.
    pub tied: bool,
}

impl Outcome {
    /// Whether all of it is sure.
    pub fn is_sure(&self) -> bool {
        self.doubts.is_empty() && !self.tied
    }
}

/// Which chains of a hook are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// Those that translate addresses.
    Nat,
    /// The others of these priorities.
    Filter(RangeInclusive<i32>),
}

/// Those that are asked before destinations are rewritten: `NF_IP_PRI_NAT_DST` is −100.
pub const BEFORE_DNAT: RangeInclusive<i32> = i32::MIN..=-101;

/// Those that are asked after that.
pub const AFTER_DNAT: RangeInclusive<i32> = -100..=i32::MAX;

/// Leads a packet through the chains of a hook. It comes out with the marks that rules gave it; its addresses are not
/// rewritten yet.
pub fn hook(rules: &Ruleset, packet: &mut Packet, hook: Hook, which: &Which) -> Outcome {
    let outcome = Outcome {
        verdict: Verdict::Passes,
        accepted: Vec::new(),
        rewritten: None,
        untracked: None,
        doubts: Vec::new(),
        tied: false,
    };
    let chains = order::chains(rules, packet.family, hook, *which == Which::Nat);
    let mut trace = Trace { hook, packet, outcome };
    for placed in chains {
        if matches!(which, Which::Filter(priorities) if !priorities.contains(&placed.base.priority)) {
            continue;
        }
        let at = At { table: placed.table_at, chain: placed.chain_at, rule: 0, case: 0 };
        if trace.chain(placed.table, at, 0) == Flow::On && placed.base.drops {
            trace.outcome.verdict = Verdict::Dropped(At { rule: placed.chain.rules.len(), ..at });
        }
        let translated = trace.outcome.rewritten.is_some();
        if translated || trace.outcome.verdict != Verdict::Passes {
            // Which of two chains drops a packet makes no difference to it.
            trace.outcome.tied = placed.tied && translated;
            break;
        }
    }
    trace.outcome
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// On behind the rule, or the chain.
    On,
    /// Back to the chain that asked.
    Back,
    /// Behind the base chain, or nowhere.
    Out,
}

struct Trace<'a> {
    hook: Hook,
    packet: &'a mut Packet,
    outcome: Outcome,
}

impl<'a> Trace<'a> {
    fn chain(&mut self, table: &'a Table, at: At, depth: usize) -> Flow {
        let Some(chain) = table.chains.get(at.chain).filter(|_| depth <= DEEPEST) else { return Flow::On };
        let found = table.chains.index(at.chain).and_then(|index| index.entries(self.packet));
        let all = || {
            let rules = chain.rules.iter().enumerate();
            rules.flat_map(|(number, rule)| (0..rule.cases.len()).map(move |case| (number, case)))
        };
        // Only what is asked before any rule can change decides where to look: rules set marks, not ports.
        let entries: Box<dyn Iterator<Item = Entry>> = match found {
            Some(found) => Box::new(found.into_iter()),
            None => Box::new(all()),
        };
        let mut met = None;
        for (number, case_number) in entries {
            // The first case that it is in is the only one of a rule.
            let Some(case) = chain.rules.get(number).and_then(|rule| rule.cases.get(case_number)) else { continue };
            if met == Some(number) {
                continue;
            }
            let at = At { rule: number, case: case_number, ..at };
            match case.region.has(self.packet) {
                Truth::No => continue,
                Truth::Maybe => {
                    if !case.actions.is_empty() {
                        self.outcome.doubts.push(at);
                    }
                    continue;
                }
                Truth::Yes => met = Some(number),
            }
            match self.actions(table, at, &case.actions, depth) {
                Flow::On => {}
                Flow::Back => return Flow::On,
                Flow::Out => return Flow::Out,
            }
        }
        Flow::On
    }

    fn actions(&mut self, table: &'a Table, at: At, actions: &'a [Action], depth: usize) -> Flow {
        for action in actions {
            let rewritten = match action {
                Action::Dnat(to) => (Translation::Dnat, to),
                Action::Redirect(to) => (Translation::Redirect, to),
                Action::Snat(to) => (Translation::Snat, to),
                Action::Masquerade(to) => (Translation::Masquerade, to),
                Action::Netmap(to) => (of_netmap(self.hook), to),
                Action::Accept => {
                    self.outcome.accepted.push(at);
                    return Flow::Out;
                }
                Action::Drop | Action::Reject => {
                    self.outcome.verdict = Verdict::Dropped(at);
                    return Flow::Out;
                }
                Action::Queue => {
                    self.outcome.verdict = Verdict::Queued(at);
                    self.outcome.doubts.push(at);
                    return Flow::Out;
                }
                Action::Return => return Flow::Back,
                Action::Jump(name) | Action::Goto(name) => {
                    let Some(chain) = table.chains.position(name) else { continue };
                    let flow = self.chain(table, At { chain, rule: 0, case: 0, ..at }, depth + 1);
                    match (flow, action) {
                        (Flow::Out, _) => return Flow::Out,
                        (_, Action::Goto(_)) => return Flow::Back,
                        _ => continue,
                    }
                }
                Action::Mark { field, mask, value } => {
                    let before = self.packet.get(*field);
                    self.packet.set(*field, before.map(|before| (before & !mask) ^ value));
                    continue;
                }
                Action::CopyMark { to } => {
                    let from = if *to == Field::Mark { Field::ConnectionMark } else { Field::Mark };
                    let mark = self.packet.get(from);
                    self.packet.set(*to, mark);
                    continue;
                }
                Action::MarkUnknown { field } => {
                    self.packet.set(*field, None);
                    continue;
                }
                Action::Untracked => {
                    self.outcome.untracked = Some(at);
                    self.packet.put(Field::State, State::Untracked.number());
                    continue;
                }
                Action::Proxy | Action::Unknown(_) => {
                    self.outcome.doubts.push(at);
                    continue;
                }
            };
            let (translation, to) = rewritten;
            self.outcome.rewritten = Some((translation, to.clone(), at));
            return Flow::Out;
        }
        Flow::On
    }
}
