//! One packet at one hook: evaluates the base chains of the hook in order and returns their effect.

use std::cmp::Ordering;

use super::tie::is_tied;
use crate::model::Family;
use crate::ruleset::index::Entry;
use crate::ruleset::order::{Order, Placed};
use crate::ruleset::region::{CONFIRMED, Field, Packet, State, Truth};
use crate::ruleset::table::{Action, At, Chain, Hook, Kind, Rule, Ruleset, Table};
use crate::ruleset::view::{Translation, of_netmap};

pub use super::outcome::{
    AFTER_DNAT, AFTER_SNAT, BEFORE_DNAT, BEFORE_SNAT, BEFORE_TRACKING, Outcome, TRACKED_BEFORE_DNAT, Verdict, Which,
};

/// The maximum depth of jumps. nf_tables allows 16. iptables-legacy allows as many as there are chains.
const DEEPEST: usize = 256;

/// The maximum number of chains that one packet enters at a hook. A dump can contain chains that jump in circles.
const MOST: usize = 4096;

/// The maximum number of rules of a chain that [`only_drop`] reads.
const SHORT: usize = 16;

/// The priority of connection tracking: `NF_IP_PRI_CONNTRACK`. `notrack` in a later chain has no effect (measured on Linux
/// 6.18; `nft_notrack_eval` in net/netfilter/nft_ct.c, `notrack_tg` in net/netfilter/xt_CT.c).
const TRACKING: i32 = -200;

/// Evaluates the chains of a hook for a packet. The rules change the marks of the packet, but not its addresses.
///
/// For many packets, a [`Tracer`] is faster.
pub fn hook(rules: &Ruleset, packet: &mut Packet, hook: Hook, which: &Which) -> Outcome {
    Tracer::new(rules).hook(packet, hook, which)
}

/// Evaluates the chains of a ruleset for packets.
#[derive(Debug)]
pub struct Tracer<'a> {
    order: Order<'a>,
}

impl<'a> Tracer<'a> {
    /// Makes a tracer for a ruleset.
    pub fn new(rules: &'a Ruleset) -> Self {
        Self { order: Order::new(rules) }
    }

    /// Returns the rules.
    pub fn rules(&self) -> &'a Ruleset {
        self.order.rules()
    }

    /// Returns true if the hook has such chains.
    pub fn is_asked(&self, family: Family, hook: Hook, which: &Which) -> bool {
        self.order.at(family, hook, *which == Which::Nat).iter().any(|placed| which.has(placed))
    }

    /// Evaluates the chains of a hook, as the function [`hook`] does.
    pub fn hook(&self, packet: &mut Packet, hook: Hook, which: &Which) -> Outcome {
        self.led(packet, hook, which, None)
    }

    /// Evaluates the chains of a hook as if a rule did not exist.
    pub fn without(&self, packet: &mut Packet, hook: Hook, which: &Which, rule: At) -> Outcome {
        self.led(packet, hook, which, Some(rule))
    }

    fn led(&self, packet: &mut Packet, hook: Hook, which: &Which, without: Option<At>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut rest = self.order.at(packet.family, hook, *which == Which::Nat);
        while let Some(first) = rest.first() {
            let same = rest.iter().take_while(|next| next.base.priority == first.base.priority).count();
            let (group, next) = rest.split_at(same);
            rest = next;
            if !which.has(first) {
                continue;
            }
            let before = first.tied.then(|| packet.clone());
            let mut here = evaluate(group.iter(), packet, hook, without);
            if let Some(before) = before.filter(|_| group.len() > 1) {
                let again =
                    |order: &[&Placed<'_>], packet: &mut Packet| evaluate(order.iter().copied(), packet, hook, without);
                here.tied = is_tied(group, &before, (packet, &here), &again);
            }
            let ends = here.verdict != Verdict::Passes || here.rewritten.is_some();
            outcome.append(here);
            if ends {
                break;
            }
        }
        outcome
    }

    /// Evaluates one base chain of any hook and type for a packet.
    pub fn chain(&self, packet: &mut Packet, hook: Hook, table: usize, chain: usize) -> Outcome {
        let mut trace = Trace::new(hook, None, packet);
        let (at, rules) = (At { table, chain, rule: 0, case: 0 }, self.rules());
        if let Some(table) = rules.tables.get(table)
            && let Some(chain) = table.chains.get(chain)
            && let Some(base) = &chain.base
        {
            trace.base(&Placed { table_at: at.table, chain_at: at.chain, table, chain, base, tied: false });
        }
        trace.outcome
    }

    /// Returns true if the packet is dropped whatever the doubtful rules do, because none of them can accept it.
    pub fn drops_surely(&self, outcome: &Outcome) -> bool {
        outcome.dropped_by().is_some() && !outcome.tied && outcome.doubts.iter().all(|at| self.only_drops(*at))
    }

    fn only_drops(&self, at: At) -> bool {
        let Some((table, _, rule)) = self.rules().at(at) else { return false };
        rule.cases.get(at.case).is_some_and(|case| only_drop(table, &case.actions, 0))
    }
}

/// Evaluates base chains one after the other until one ends the packet or rewrites it.
fn evaluate<'p, 'r: 'p>(
    group: impl Iterator<Item = &'p Placed<'r>>,
    packet: &mut Packet,
    hook: Hook,
    without: Option<At>,
) -> Outcome {
    let mut trace = Trace::new(hook, without, packet);
    for placed in group {
        if !trace.base(placed) {
            break;
        }
    }
    trace.outcome
}

/// Returns true if actions, and the short chains that they jump to, can only drop a packet.
fn only_drop(table: &Table, actions: &[Action], depth: usize) -> bool {
    actions.iter().all(|action| match action {
        Action::Drop | Action::Reject(_) => true,
        // A return from a called chain continues in the calling chain.
        Action::Return => depth > 0,
        Action::Jump(name) if depth < SHORT => {
            let chain = table.chains.named(name).filter(|chain| chain.rules.len() <= SHORT);
            let cases = |chain: &Chain| {
                chain.rules.iter().flat_map(|rule| &rule.cases).all(|case| only_drop(table, &case.actions, depth + 1))
            };
            chain.is_some_and(cases)
        }
        _ => false,
    })
}

impl Which {
    fn has(&self, placed: &Placed<'_>) -> bool {
        match self {
            Self::Nat => true,
            Self::Filter(priorities) => priorities.contains(&placed.base.priority),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Continues after the rule or the chain.
    On,
    /// Returns to the calling chain.
    Back,
    /// Ends the base chain.
    Out,
}

/// Returns the position of each case of a list of rules.
fn all_cases(rules: &[Rule]) -> impl Iterator<Item = Entry> {
    rules.iter().enumerate().flat_map(|(number, rule)| (0..rule.cases.len()).map(move |case| (number, case)))
}

struct Trace<'p> {
    hook: Hook,
    /// The priority of the current base chain.
    priority: i32,
    /// The number of chains that the packet may still enter.
    left: usize,
    packet: &'p mut Packet,
    without: Option<At>,
    outcome: Outcome,
}

impl<'p> Trace<'p> {
    fn new(hook: Hook, without: Option<At>, packet: &'p mut Packet) -> Self {
        Self { hook, priority: 0, left: MOST, packet, without, outcome: Outcome::default() }
    }

    fn is_attached(&self) -> bool {
        let confirmed = self.packet.get(Field::Status).is_some_and(|status| status & CONFIRMED > 0);
        let late = !matches!(self.hook, Hook::Prerouting | Hook::Output);
        late || confirmed && self.packet.get(Field::State) != Some(State::Invalid.number())
    }

    /// Evaluates a base chain. Returns true if the packet continues to the next one.
    fn base(&mut self, placed: &Placed<'_>) -> bool {
        let at = At { table: placed.table_at, chain: placed.chain_at, rule: 0, case: 0 };
        self.priority = placed.base.priority;
        let routes = placed.base.kind == Kind::Route && self.hook == Hook::Output;
        let before = routes.then(|| self.packet.get(Field::Mark));
        if self.chain(placed.table, at, 0) == Flow::On && placed.base.drops {
            self.outcome.verdict = Verdict::Dropped(At { rule: placed.chain.rules.len(), ..at }, None);
        }
        self.outcome.reroutes |=
            before.is_some_and(|before| before.is_none() || before != self.packet.get(Field::Mark));
        self.outcome.rewritten.is_none() && self.outcome.verdict == Verdict::Passes
    }

    fn chain(&mut self, table: &Table, at: At, depth: usize) -> Flow {
        let Some(chain) = table.chains.get(at.chain) else { return Flow::On };
        if depth > DEEPEST || self.left == 0 {
            self.outcome.doubts.push(At { rule: chain.rules.len(), ..at });
            return Flow::On;
        }
        self.left -= 1;
        // The fields of the index are fields that no rule changes.
        let found = table.chains.index(at.chain).map(|index| index.entries(self.packet));
        let all = if found.is_none() { chain.rules.as_slice() } else { &[] };
        let mut met = None;
        for (number, case_number) in found.into_iter().flatten().chain(all_cases(all)) {
            // Only the first case that contains the packet applies.
            let Some(case) = chain.rules.get(number).and_then(|rule| rule.cases.get(case_number)) else { continue };
            if met == Some(number) {
                continue;
            }
            let at = At { rule: number, case: case_number, ..at };
            if self.without.is_some_and(|without| At { case: case_number, ..without } == at) {
                continue;
            }
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

    fn actions(&mut self, table: &Table, at: At, actions: &[Action], depth: usize) -> Flow {
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
                Action::Drop => {
                    self.outcome.verdict = Verdict::Dropped(at, None);
                    return Flow::Out;
                }
                Action::Reject(answer) => {
                    self.outcome.verdict = Verdict::Dropped(at, Some(*answer));
                    return Flow::Out;
                }
                Action::Queue => {
                    self.outcome.verdict = Verdict::Queued(at);
                    self.outcome.doubts.push(at);
                    return Flow::Out;
                }
                Action::Return => return Flow::Back,
                Action::Jump(name) | Action::Goto(name) => {
                    let Some(chain) = table.chains.position(name) else {
                        self.outcome.doubts.push(at);
                        continue;
                    };
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
                // `notrack` has no effect on a packet that has its connection already (`nft_notrack_eval` in
                // net/netfilter/nft_ct.c): after the first hook, and if the packet returns by the loopback interface.
                Action::Untracked if self.is_attached() => continue,
                Action::Untracked => {
                    match self.priority.cmp(&TRACKING) {
                        Ordering::Less => {
                            self.outcome.untracked = Some(at);
                            self.packet.put(Field::State, State::Untracked.number());
                        }
                        Ordering::Equal => self.outcome.doubts.push(at),
                        Ordering::Greater => {}
                    }
                    continue;
                }
                // The rule ends or drops the packet if no transparent socket has the address. The sockets' option is unknown.
                Action::Proxy(to) => {
                    self.outcome.proxied = Some((to.clone(), at));
                    self.outcome.doubts.push(at);
                    continue;
                }
                Action::Unknown(_) => {
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

#[cfg(test)]
mod tests;
