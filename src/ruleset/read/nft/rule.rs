//! A rule, walked expression by expression with all packets at once.
//!
//! Where a map gives different things for different keys, the walk goes on in branches, one for each; each branch becomes a
//! case. What the registers hold is told by [`super::value`].

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::Numbers;
use super::dump::{self, Element, Expr, GOTO, JUMP, Verdict};
use super::reach::Elements;
use super::test::Names;
use super::value::{Byte, REGISTERS, Registers};
use crate::model::{Counter, Family};
use crate::nft::user_data;
use crate::ruleset::region::{Condition, Field, Region, family_number};
use crate::ruleset::reject::Rejection;
use crate::ruleset::table::{Action, Case, Rule, TableFamily};

/// What is around a rule.
pub(super) struct Context<'a> {
    /// The family of its table.
    pub(super) family: TableFamily,
    /// The sets of its table by their names.
    pub(super) names: Option<&'a HashMap<String, usize>>,
    /// All sets.
    pub(super) sets: &'a [dump::Set],
    /// What is in those that were read.
    pub(super) elements: &'a Elements,
    /// What rules name by their numbers.
    pub(super) numbers: Numbers<'a>,
}

impl<'a> Context<'a> {
    /// A set and what is in it, where that was read.
    pub(super) fn elements(&self, name: &str) -> Option<(&'a dump::Set, &'a [Element])> {
        let number = self.names?.get(name)?;
        Some((self.sets.get(*number)?, self.elements.get(number)?))
    }
}

/// Some of the packets on their way through a rule.
#[derive(Clone)]
pub(super) struct Branch<'a> {
    pub(super) region: Region,
    pub(super) registers: Registers,
    pub(super) actions: Vec<Action>,
    /// What marks have become in this rule.
    pub(super) marks: Vec<(Field, [Byte; 4])>,
    /// What a map was asked for last, and which key that was.
    pub(super) asked: Option<(Rc<[Byte]>, &'a [u8])>,
}

impl Branch<'_> {
    /// The same of other packets.
    pub(super) fn with(&self, region: Region) -> Self {
        Self {
            region,
            registers: self.registers.clone(),
            actions: self.actions.clone(),
            marks: self.marks.clone(),
            asked: self.asked.clone(),
        }
    }
}

/// A rule that is being walked.
pub(super) struct Walk<'a> {
    pub(super) context: &'a Context<'a>,
    /// Those that are still on their way.
    pub(super) open: Vec<Branch<'a>>,
    /// Words of what is not known.
    words: Vec<Arc<str>>,
    cases: Vec<Case>,
    /// Those that left the rule behind something that it did. They come last, because each is wider than those that went on.
    left: Vec<Case>,
    pub(super) comment: Option<Box<str>>,
    pub(super) counter: Option<Counter>,
}

/// Reads a rule.
pub(super) fn read(rule: &dump::Rule, context: &Context<'_>) -> Rule {
    let start = Branch {
        region: Region::all(),
        registers: Registers::default(),
        actions: Vec::new(),
        marks: Vec::new(),
        asked: None,
    };
    let mut walk = Walk {
        context,
        open: vec![start],
        words: vec!["something".into()],
        cases: Vec::new(),
        left: Vec::new(),
        comment: None,
        counter: None,
    };
    for expr in rule.exprs() {
        walk.expr(&expr);
    }
    let (comment, _) = user_data::read(&rule.user_data);
    let comment = (!comment.is_empty()).then(|| comment.into()).or(walk.comment);
    let mut cases = walk.cases;
    cases.extend(walk.open.into_iter().map(case));
    cases.extend(walk.left.into_iter().rev());
    Rule { cases, handle: rule.handle, comment, counter: walk.counter, ..Rule::default() }
}

fn case(branch: Branch<'_>) -> Case {
    Case { region: branch.region, actions: branch.actions.into() }
}

impl<'a> Walk<'a> {
    /// The words of what is not known, and the interfaces.
    pub(super) fn names(&self) -> Names<'_> {
        Names { links: self.context.numbers.links, words: &self.words }
    }

    /// A byte of which nothing is known but these words.
    pub(super) fn word(&mut self, words: &str) -> Byte {
        let known = self.words.iter().position(|known| **known == *words);
        let number = known.unwrap_or_else(|| {
            self.words.push(words.into());
            self.words.len() - 1
        });
        Byte::Unknown(u16::try_from(number).unwrap_or(0))
    }

    /// The words of a byte.
    pub(super) fn words_of(&self, byte: Byte) -> Option<&str> {
        match byte {
            Byte::Unknown(number) => self.words.get(usize::from(number)).map(|words| &**words),
            _ => None,
        }
    }

    /// The family of a branch's packets, where it is known.
    pub(super) fn family(&self, region: &Region) -> Option<Family> {
        match self.context.family {
            TableFamily::Ip => Some(Family::Ipv4),
            TableFamily::Ip6 => Some(Family::Ipv6),
            _ => {
                let only = region.get(Field::Family).only();
                Family::ALL.into_iter().find(|family| only == Some(family_number(*family)))
            }
        }
    }

    /// Goes on with those packets of each branch that `ask` leaves.
    pub(super) fn narrow(&mut self, ask: impl Fn(&Self, &Branch<'a>) -> Option<Region>) {
        for branch in std::mem::take(&mut self.open) {
            let region = ask(self, &branch);
            self.split(branch, region);
        }
    }

    /// Goes on with these parts of a branch.
    pub(super) fn split(&mut self, branch: Branch<'a>, regions: impl IntoIterator<Item = Region>) {
        for region in regions {
            if region == branch.region {
                // Nothing was asked, so nobody leaves.
                return self.open.push(branch);
            }
            self.open.push(branch.with(region));
        }
        self.leave(branch);
    }

    /// Whatever of a branch does not go on leaves the rule, but keeps what was done to it.
    pub(super) fn leave(&mut self, branch: Branch<'a>) {
        if !branch.actions.is_empty() {
            self.left.push(case(branch));
        }
    }

    /// Asks for something that is not known.
    pub(super) fn doubt(&mut self, words: &str) {
        let condition = Condition::Unknown(words.into());
        self.narrow(|_, branch| {
            let mut region = branch.region.clone();
            region.add_condition(condition.clone());
            Some(region)
        });
    }

    /// Does something with all that are on their way; those for which it is what ends a rule are done.
    pub(super) fn act(&mut self, action: impl Fn(&Branch<'a>) -> Option<Action>) {
        for branch in std::mem::take(&mut self.open) {
            match action(&branch) {
                Some(action) => self.did(branch, action),
                None => self.open.push(branch),
            }
        }
    }

    /// Something was done with a branch.
    pub(super) fn did(&mut self, mut branch: Branch<'a>, action: Action) {
        let ends = match &action {
            Action::Mark { .. } | Action::CopyMark { .. } | Action::MarkUnknown { .. } => false,
            Action::Untracked | Action::Proxy(_) | Action::Unknown(_) => false,
            Action::Accept | Action::Drop | Action::Reject(_) | Action::Return | Action::Queue => true,
            Action::Jump(_) | Action::Goto(_) => true,
            Action::Dnat(_) | Action::Redirect(_) | Action::Snat(_) | Action::Masquerade(_) | Action::Netmap(_) => true,
        };
        branch.actions.push(action);
        if ends { self.cases.push(case(branch)) } else { self.open.push(branch) }
    }

    /// A branch came to a verdict.
    pub(super) fn verdict(&mut self, branch: Branch<'a>, verdict: &Verdict) {
        const DROP: u32 = 0;
        const ACCEPT: u32 = 1;
        const STOLEN: u32 = 2;
        const QUEUE: u32 = 3;
        const CONTINUE: u32 = u32::MAX;
        const BREAK: u32 = (-2i32).cast_unsigned();
        const RETURN: u32 = (-5i32).cast_unsigned();
        let chain = verdict.chain.as_deref().unwrap_or_default();
        let action = match verdict.code {
            CONTINUE => return self.open.push(branch),
            BREAK => return self.leave(branch),
            DROP | STOLEN => Action::Drop,
            ACCEPT => Action::Accept,
            RETURN => Action::Return,
            JUMP => Action::Jump(chain.into()),
            GOTO => Action::Goto(chain.into()),
            // What is above says which queue: `NF_VERDICT_MASK` in include/uapi/linux/netfilter.h.
            code if code & 0xff == QUEUE => Action::Queue,
            code if code & 0xff == DROP => Action::Drop,
            code => Action::Unknown(format!("verdict {code}").into()),
        };
        self.did(branch, action);
    }

    fn expr(&mut self, expr: &Expr<'_>) {
        let known = match expr.name.as_str() {
            // What loads.
            "numgen" if expr.attributes.be_u32(2) == Some(1) => self.number_of_one(expr),
            "meta" | "ct" | "payload" | "fib" | "exthdr" | "rt" | "socket" | "osf" | "hash" | "numgen" | "xfrm"
            | "tunnel" => self.load_or_set(expr),
            "bitwise" => self.bitwise(expr.attributes),
            "byteorder" => self.byteorder(expr.attributes),
            // What asks.
            "cmp" => self.cmp(expr.attributes),
            "range" => self.range(expr.attributes),
            "lookup" => self.lookup_of(expr.attributes),
            "match" => self.compat_match(expr.attributes),
            // What does.
            "immediate" => self.immediate(expr),
            "nat" => self.nat(expr.attributes),
            "masq" | "redir" => self.nat_here(expr),
            "target" => self.compat_target(expr.attributes),
            "counter" => self.count(expr.attributes),
            "objref" => self.object(expr.attributes),
            "dynset" => self.dynset(expr.attributes),
            "reject" => {
                let code = expr.attributes.get(2).and_then(|code| code.first().copied());
                let kind = expr.attributes.be_u32(1);
                let of_ipv6 = self.context.family == TableFamily::Ip6;
                self.act(|branch| {
                    let ipv6 = of_ipv6 || branch.region.get(Field::Family).only() == Some(6);
                    Some(Action::Reject(Rejection::of_nft(kind, code, ipv6)))
                });
                Some(())
            }
            "queue" => self.done(Action::Queue),
            "notrack" => self.done(Action::Untracked),
            "tproxy" => self.proxy(expr.attributes),
            // They decide nothing.
            "log" | "last" | "dup" | "flow_offload" => Some(()),
            "limit" | "quota" => self.doubtful(&expr.name),
            "connlimit" => self.doubtful("ct count"),
            // They take the packet away, for somewhere or somebody else.
            "fwd" | "synproxy" => self.done(Action::Unknown(expr.name.as_str().into())),
            // It loads from, or asks about, a packet inside of the packet.
            "inner" => self.inner(),
            // What is to come may ask, or do, anything.
            _ => None,
        };
        if known.is_none() {
            let words = if expr.name.is_empty() { "an expression without a name" } else { &expr.name };
            self.doubt(words);
            self.forget(words);
            self.act(|_| Some(Action::Unknown(words.into())));
        }
    }

    /// `numgen inc mod 1`: of one number it is always the first, which is the offset (`nft_ng_inc_gen` and `nft_ng_random_gen`
    /// in net/netfilter/nft_numgen.c).
    fn number_of_one(&mut self, expr: &Expr<'_>) -> Option<()> {
        let (register, offset) = (expr.attributes.be_u32(1)?, expr.attributes.be_u32(4).unwrap_or(0));
        for branch in &mut self.open {
            branch.registers.put(register, offset.to_ne_bytes().map(Byte::Known));
        }
        Some(())
    }

    /// Nothing is known of any register.
    fn forget(&mut self, words: &str) {
        let unknown = self.word(words);
        for branch in &mut self.open {
            branch.registers.put(1, std::iter::repeat_n(unknown, REGISTERS));
        }
    }

    fn inner(&mut self) -> Option<()> {
        self.doubt("inner");
        self.forget("inner");
        Some(())
    }

    fn done(&mut self, action: Action) -> Option<()> {
        self.act(|_| Some(action.clone()));
        Some(())
    }

    fn doubtful(&mut self, words: &str) -> Option<()> {
        self.doubt(words);
        Some(())
    }
}
