//! One packet on its way through rules: what each hook does with it.

use std::cmp::Ordering;
use std::ops::RangeInclusive;

use crate::model::Family;
use crate::ruleset::index::{Candidates, Entry};
use crate::ruleset::order::{Order, Placed};
use crate::ruleset::region::{Field, Packet, State, Truth};
use crate::ruleset::table::{Action, At, Chain, Hook, Rewrite, Rule, Ruleset, Table};
use crate::ruleset::view::{Translation, of_netmap};

/// How deep chains may ask each other.
const DEEPEST: usize = 16;

/// How many rules a chain may have that is looked through for what it may do.
const SHORT: usize = 16;

/// What becomes of a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    #[default]
    Passes,
    /// A rule, or a base chain's policy, drops it: then the rule's number is that behind the last.
    Dropped(At),
    /// A program decides.
    Queued(At),
}

/// What a hook does with a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

/// The priority at which connections begin to be followed: `NF_IP_PRI_CONNTRACK`. A rule that is asked later can no longer keep
/// one from it (measured on Linux 6.18; `nft_notrack_eval` in net/netfilter/nft_ct.c, `notrack_tg` in net/netfilter/xt_CT.c).
const TRACKING: i32 = -200;

/// Of those before destinations are rewritten the ones that are asked before connections are followed, at −200: to them the
/// state of every packet is invalid (measured on Linux 6.18; `nft_ct_get_eval` in net/netfilter/nft_ct.c).
pub const BEFORE_TRACKING: RangeInclusive<i32> = i32::MIN..=-201;

/// The rest of those before destinations are rewritten.
pub const TRACKED_BEFORE_DNAT: RangeInclusive<i32> = -200..=-101;

/// Those that are asked before sources are rewritten: `NF_IP_PRI_NAT_SRC` is 100.
pub const BEFORE_SNAT: RangeInclusive<i32> = i32::MIN..=99;

/// Those that are asked after that.
pub const AFTER_SNAT: RangeInclusive<i32> = 100..=i32::MAX;

/// Leads a packet through the chains of a hook. It comes out with the marks that rules gave it; its addresses are not
/// rewritten yet.
///
/// Who leads many packets makes a [`Tracer`].
pub fn hook(rules: &Ruleset, packet: &mut Packet, hook: Hook, which: &Which) -> Outcome {
    Tracer::new(rules).hook(packet, hook, which)
}

/// Leads packets through rules.
#[derive(Debug)]
pub struct Tracer<'a> {
    order: Order<'a>,
}

impl<'a> Tracer<'a> {
    /// Through these rules.
    pub fn new(rules: &'a Ruleset) -> Self {
        Self { order: Order::new(rules) }
    }

    /// The rules.
    pub fn rules(&self) -> &'a Ruleset {
        self.order.rules()
    }

    /// Whether there are chains at a hook for it to be led through.
    pub fn is_asked(&self, family: Family, hook: Hook, which: &Which) -> bool {
        self.order.at(family, hook, *which == Which::Nat).iter().any(|placed| which.has(placed))
    }

    /// Leads a packet through the chains of a hook, as [`hook`] does.
    pub fn hook(&self, packet: &mut Packet, hook: Hook, which: &Which) -> Outcome {
        self.led(packet, hook, which, None)
    }

    /// What the chains of a hook would do if there were not this rule.
    pub fn without(&self, packet: &mut Packet, hook: Hook, which: &Which, rule: At) -> Outcome {
        self.led(packet, hook, which, Some(rule))
    }

    fn led(&self, packet: &mut Packet, hook: Hook, which: &Which, without: Option<At>) -> Outcome {
        let mut trace = Trace { hook, priority: 0, without, outcome: Outcome::default(), packet };
        for placed in self.order.at(trace.packet.family, hook, *which == Which::Nat) {
            if which.has(placed) && !trace.base(placed) {
                break;
            }
        }
        trace.outcome
    }

    /// Leads a packet through one chain of whatever hook and kind, which is taken to be a base chain.
    pub fn chain(&self, packet: &mut Packet, hook: Hook, table: usize, chain: usize) -> Outcome {
        let mut trace = Trace { hook, priority: 0, without: None, outcome: Outcome::default(), packet };
        let (at, rules) = (At { table, chain, rule: 0, case: 0 }, self.rules());
        if let Some(table) = rules.tables.get(table)
            && let Some(chain) = table.chains.get(chain)
            && let Some(base) = &chain.base
        {
            trace.base(&Placed { table_at: at.table, chain_at: at.chain, table, chain, base, tied: false });
        }
        trace.outcome
    }

    /// Whether what an outcome drops is dropped whatever the rules do of which nothing is sure: none of them can let it go.
    pub fn drops_surely(&self, outcome: &Outcome) -> bool {
        matches!(outcome.verdict, Verdict::Dropped(_)) && outcome.doubts.iter().all(|at| self.only_drops(*at))
    }

    fn only_drops(&self, at: At) -> bool {
        let Some((table, _, rule)) = self.rules().at(at) else { return false };
        rule.cases.get(at.case).is_some_and(|case| only_drop(table, &case.actions, 0))
    }
}

/// Whether actions, and chains that they jump to where those are short, can do nothing with a packet but drop it.
fn only_drop(table: &Table, actions: &[Action], depth: usize) -> bool {
    actions.iter().all(|action| match action {
        Action::Drop | Action::Reject => true,
        // To go back from a chain is to go on in the one that asked.
        Action::Return => depth > 0,
        Action::Jump(name) if depth < DEEPEST => {
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
    /// On behind the rule, or the chain.
    On,
    /// Back to the chain that asked.
    Back,
    /// Behind the base chain, or nowhere.
    Out,
}

/// The cases that a chain asks a packet about.
enum Entries<'a> {
    Found(Candidates<'a>),
    All { rules: &'a [Rule], next: Entry },
}

impl Iterator for Entries<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        match self {
            Self::Found(found) => found.next(),
            Self::All { rules, next } => {
                while rules.get(next.0)?.cases.len() <= next.1 {
                    *next = (next.0 + 1, 0);
                }
                let this = *next;
                next.1 += 1;
                Some(this)
            }
        }
    }
}

struct Trace<'p> {
    hook: Hook,
    /// That of the base chain it is in.
    priority: i32,
    packet: &'p mut Packet,
    without: Option<At>,
    outcome: Outcome,
}

impl Trace<'_> {
    /// Leads the packet through a base chain, and says whether it goes on to the next.
    fn base(&mut self, placed: &Placed<'_>) -> bool {
        let at = At { table: placed.table_at, chain: placed.chain_at, rule: 0, case: 0 };
        self.priority = placed.base.priority;
        let before = placed.tied.then(|| self.packet.clone());
        if self.chain(placed.table, at, 0) == Flow::On && placed.base.drops {
            self.outcome.verdict = Verdict::Dropped(At { rule: placed.chain.rules.len(), ..at });
        }
        let translated = self.outcome.rewritten.is_some();
        // Which of two chains drops a packet makes no difference to it; what one sets, the other may ask for.
        self.outcome.tied |= before.is_some_and(|before| translated || before != *self.packet);
        !translated && self.outcome.verdict == Verdict::Passes
    }

    fn chain(&mut self, table: &Table, at: At, depth: usize) -> Flow {
        let Some(chain) = table.chains.get(at.chain).filter(|_| depth <= DEEPEST) else { return Flow::On };
        // Only what is asked before any rule can change decides where to look: rules set marks, not ports.
        let entries = match table.chains.index(at.chain).map(|index| index.entries(self.packet)) {
            Some(found) => Entries::Found(found),
            None => Entries::All { rules: &chain.rules, next: (0, 0) },
        };
        let mut met = None;
        for (number, case_number) in entries {
            // The first case that it is in is the only one of a rule.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::read::save;
    use crate::ruleset::region::packet;
    use crate::ruleset::table::Ruleset;

    fn rules(text: &str) -> Ruleset {
        save::parse(&format!("*filter\n:FORWARD DROP\n:LATER -\n{text}COMMIT\n"), None).expect("a dump")
    }

    fn forward(rules: &Ruleset) -> Outcome {
        let mut packet = packet(Family::Ipv4, Some("eth0")).with(Field::Protocol, 6).with(Field::Port, 80);
        hook(rules, &mut packet, Hook::Forward, &Which::Filter(AFTER_DNAT))
    }

    #[test]
    fn only_what_may_let_go_makes_a_drop_unsure() {
        for (text, sure) in [
            ("", true),
            ("-A FORWARD -m tomorrow -j DROP\n", true),
            ("-A FORWARD -m tomorrow -j LATER\n-A LATER -p udp -j RETURN\n-A LATER -j DROP\n", true),
            ("-A FORWARD -m tomorrow -j LATER\n-A LATER -p tcp -j ACCEPT\n", false),
            ("-A FORWARD -m tomorrow -j ACCEPT\n", false),
            ("-A FORWARD -m tomorrow -j RETURN\n", false),
        ] {
            let rules = rules(text);
            let outcome = forward(&rules);
            assert!(matches!(outcome.verdict, Verdict::Dropped(_)), "{text}");
            assert_eq!(Tracer::new(&rules).drops_surely(&outcome), sure, "{text}");
        }
    }

    #[test]
    fn without_a_rule_the_others_decide() {
        let rules = rules("-A FORWARD -p tcp -j ACCEPT\n");
        let accepted = forward(&rules).accepted;
        let mut packet = packet(Family::Ipv4, Some("eth0")).with(Field::Protocol, 6);
        let which = Which::Filter(AFTER_DNAT);
        let without = Tracer::new(&rules).without(&mut packet, Hook::Forward, &which, accepted[0]);
        assert!(matches!(without.verdict, Verdict::Dropped(_)));
    }

    #[test]
    fn a_mark_that_one_of_two_of_the_same_priority_sets_is_not_sure() {
        let of = |rule: &str| {
            let text = format!("*filter\n:FORWARD ACCEPT\n:LATER -\n-A FORWARD {rule}\nCOMMIT\n");
            save::parse(&text, None).expect("a dump").tables
        };
        for (rule, sure) in [("-j MARK --set-xmark 0x2/0x2", false), ("-p tcp --dport 80 -j LATER", true)] {
            let mut both = Ruleset { tables: of(rule), ..Ruleset::default() };
            both.tables.extend(of("-m mark --mark 0x2/0x2 -j ACCEPT"));
            let mut packet = packet(Family::Ipv4, Some("eth0")).with(Field::Protocol, 6).with(Field::Port, 80);
            packet.put(Field::Mark, 0);
            let outcome = hook(&both, &mut packet, Hook::Forward, &Which::Filter(AFTER_DNAT));
            assert_eq!(outcome.is_sure(), sure, "{rule}: {outcome:?}");
        }
    }

    #[test]
    fn an_index_changes_nothing() {
        let many: String = (0..100).map(|port| format!("-A FORWARD -p tcp --dport {port} -j LATER\n")).collect();
        let rules = rules(&format!("{many}-A LATER -p tcp --dport 80 -j ACCEPT\n"));
        assert_eq!(forward(&rules).accepted.len(), 1);
        let chains = &rules.tables[0].chains;
        assert!(chains.index(chains.position("FORWARD").expect("there")).is_some());
    }
}
