//! Rules that are read by a second thread while the kernel tells of those behind them.
//!
//! Of the time that it takes to read many rules half is the kernel's own, which for every 32 KiB of an answer goes through the
//! chain from its beginning (`__nf_tables_dump_rules` in net/netfilter/nf_tables_api.c). What refers to nothing can be read at
//! once; a rule that asks a set, or leads to a chain, waits for the rest.

use std::collections::HashMap;
use std::sync::mpsc;
use std::thread;

use super::dump::{self, Dump, Expr};
use super::{Numbers, family_of, reach, rule};
use crate::nft::transaction::{Connection, KernelError};
use crate::ruleset::table::Rule;

/// What a rule is, read before everything else was known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ahead {
    pub(super) rule: Rule,
    /// What is asked of its expressions besides.
    pub(super) marks: Marks,
}

/// Which tools know the expressions of a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// Whether one is of those that only iptables(8) makes.
    pub(super) compat: bool,
    /// Whether one is of those that iptables(8) has no words for.
    pub(super) native: bool,
}

impl Marks {
    pub(super) fn of<'a>(exprs: impl Iterator<Item = Expr<'a>>) -> Self {
        exprs.fold(Self::default(), |marks, expr| Self {
            compat: marks.compat || reach::is_compat(&expr),
            native: marks.native || reach::is_native(&expr),
        })
    }
}

/// How many rules are handed over at once.
const BATCH: usize = 256;

/// Asks for all rules.
pub(super) fn rules(connection: &mut Connection, dump: &mut Dump, numbers: Numbers<'_>) -> Result<(), KernelError> {
    let (hand_over, handed) = mpsc::channel::<Vec<dump::Rule>>();
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut all = Vec::new();
            for mut rules in handed {
                rules.iter_mut().for_each(|rule| read(rule, numbers));
                all.append(&mut rules);
            }
            all
        });
        let mut batch = Vec::with_capacity(BATCH);
        let told = connection.dump_all("rules", dump::GETRULE, |message| {
            batch.push(dump::rule(message)?);
            if batch.len() == BATCH {
                // Who is gone has panicked, which is passed on below.
                drop(hand_over.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))));
            }
            Some(())
        });
        drop(hand_over.send(batch));
        drop(hand_over);
        dump.rules = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        told
    })
}

/// Reads a rule that refers to nothing, and forgets its bytes.
pub(super) fn read(rule: &mut dump::Rule, numbers: Numbers<'_>) {
    let refers = |expr: Expr<'_>| match expr.name.as_str() {
        "immediate" => reach::verdict_of(&expr).is_some_and(|verdict| verdict.chain.is_some()),
        "lookup" | "dynset" | "objref" => true,
        _ => false,
    };
    let Some(family) = family_of(rule.table.0) else { return };
    if rule.exprs().any(refers) {
        return;
    }
    let nothing = HashMap::new();
    let context = rule::Context { family, names: None, sets: &[], elements: &nothing, numbers };
    let ahead = Ahead { rule: rule::read(rule, &context), marks: Marks::of(rule.exprs()) };
    rule.read(ahead);
}
