//! What must change for a family's rules to become others: whole chains, or a few rules at one place of a chain.

use std::collections::HashMap;
use std::sync::Arc;

use super::program::{Attached, Chain, Contents, Half, Hook, Policy, Table};
use super::rule::Rule;
use crate::model::Counter;

/// A place in a chain where some rules are replaced by others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The chain.
    pub chain: Arc<str>,
    /// How many rules stand before the place.
    pub at: usize,
    /// How many rules go there.
    pub remove: usize,
    /// The rules that come there.
    pub insert: Vec<Arc<Rule>>,
}

/// Up to how many rules at one place of a chain are changed one by one. The others go on counting then, while those of a
/// chain that is written anew lose what is counted from the moment it was read.
const FEW: usize = 8;

/// What changes in one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableChanges {
    /// Jumps from built-in chains that go, and how many of each.
    pub unhook: Vec<(Hook, usize)>,
    /// Jumps from built-in chains that come, in the first place.
    pub hook: Vec<Hook>,
    /// Chains that come or become others. Rules that were there before keep what they counted.
    pub write: Vec<(Arc<str>, Chain)>,
    /// Chains of which a few rules change.
    pub edit: Vec<Edit>,
    /// Chains that go.
    pub remove: Vec<Arc<str>>,
    /// The policies of the built-in chains, which do not change.
    pub policies: Vec<Policy>,
}

impl TableChanges {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        let jumps = self.unhook.is_empty() && self.hook.is_empty();
        jumps && self.write.is_empty() && self.edit.is_empty() && self.remove.is_empty()
    }
}

/// What changes in one family: the tables in the order in which they are committed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes(pub Vec<(Table, TableChanges)>);

impl Changes {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether rules are changed by their place in a chain.
    pub fn has_edits(&self) -> bool {
        self.0.iter().any(|(_, changes)| !changes.edit.is_empty())
    }

    /// How many rules are written.
    pub fn rules(&self) -> usize {
        let of = |changes: &TableChanges| -> usize {
            let written: usize = changes.write.iter().map(|(_, chain)| chain.rules.len()).sum();
            written + changes.edit.iter().map(|edit| edit.insert.len()).sum::<usize>()
        };
        self.0.iter().map(|(_, changes)| of(changes)).sum()
    }
}

/// Compares what is there with what is wanted.
pub fn diff(live: &Half, wanted: &Half) -> Changes {
    let mut tables = Table::ALL;
    // What drops comes before what is let through, and goes after it.
    if wanted.mangle.is_empty() {
        tables.reverse();
    }
    let of = |table| (table, of_table(live.of(table), wanted.of(table)));
    Changes(tables.into_iter().map(of).filter(|(_, changes)| !changes.is_empty()).collect())
}

fn of_table(live: &Contents, wanted: &Contents) -> TableChanges {
    let mut changes = TableChanges { policies: live.policies.clone(), ..TableChanges::default() };
    for hook in Hook::ALL {
        match (live.hooks.get(&hook), wanted.hooks.get(&hook)) {
            (Some(now), Some(_)) if *now == Attached::ONCE => {}
            (Some(now), wanted) => {
                changes.unhook.push((hook, now.times));
                changes.hook.extend(wanted.map(|_| hook));
            }
            (None, Some(_)) => changes.hook.push(hook),
            (None, None) => {}
        }
    }
    let differs = |name: &Arc<str>, chain: &Chain| live.chains.get(name).is_none_or(|now| now.rules != chain.rules);
    let mut counted = Counted::default();
    for (name, now) in &live.chains {
        if wanted.chains.get(name).is_none_or(|wanted| now.rules != wanted.rules) {
            counted.add(name, now);
        }
        if !wanted.chains.contains_key(name) {
            changes.remove.push(Arc::clone(name));
        }
    }
    for (name, chain) in wanted.chains.iter().filter(|(name, chain)| differs(name, chain)) {
        match live.chains.get(name).and_then(|now| edit(name, &now.rules, chain)) {
            Some(edit) => changes.edit.push(edit),
            None => changes.write.push((Arc::clone(name), counted.carry_over(name, chain))),
        }
    }
    changes
}

/// The one place where a chain changes; `None` where there are several, or much changes, or what is wanted says what it has
/// counted.
fn edit(name: &Arc<str>, now: &[Arc<Rule>], wanted: &Chain) -> Option<Edit> {
    let rules = &wanted.rules;
    let before = now.iter().zip(rules).take_while(|(now, wanted)| now == wanted).count();
    let (now, rules) = (now.get(before..)?, rules.get(before..)?);
    let behind = now.iter().rev().zip(rules.iter().rev()).take_while(|(now, wanted)| now == wanted).count();
    let (remove, insert) = (now.len() - behind, rules.get(..rules.len() - behind)?);
    let few = remove + insert.len() <= FEW && wanted.counters.is_empty();
    few.then(|| Edit { chain: Arc::clone(name), at: before, remove, insert: insert.to_vec() })
}

/// What the rules of chains that change counted so far.
#[derive(Default)]
struct Counted<'a> {
    in_chain: HashMap<(&'a str, &'a Rule), Counter>,
    anywhere: HashMap<&'a Rule, Counter>,
}

impl<'a> Counted<'a> {
    fn add(&mut self, name: &'a str, chain: &'a Chain) {
        for (at, rule) in chain.rules.iter().enumerate().filter(|(at, _)| chain.counter(*at) != Counter::default()) {
            self.in_chain.insert((name, rule), chain.counter(at));
            self.anywhere.insert(rule, chain.counter(at));
        }
    }

    /// A chain that is written with what its rules counted: in it before, or in another one that they came from.
    fn carry_over(&self, name: &str, chain: &Chain) -> Chain {
        let counter = |rule: &Rule| {
            let found = self.in_chain.get(&(name, rule)).or_else(|| self.anywhere.get(rule));
            found.copied().unwrap_or_default()
        };
        let counters = if self.anywhere.is_empty() && chain.counters.is_empty() {
            Vec::new()
        } else if chain.counters.is_empty() {
            chain.rules.iter().map(|rule| counter(rule)).collect()
        } else {
            chain.counters.clone()
        };
        Chain { rules: chain.rules.clone(), counters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::rule::Target;

    fn contents(chains: &[(&str, &[&str])]) -> Contents {
        let chain = |jumps: &[&str]| Chain::from(jumps.iter().map(|name| Rule::jump(name)).collect::<Vec<_>>());
        Contents {
            chains: chains.iter().map(|(name, jumps)| ((*name).into(), chain(jumps))).collect(),
            hooks: [(Hook::Prerouting, Attached::ONCE)].into(),
            policies: Vec::new(),
        }
    }

    #[test]
    fn only_what_differs_is_written_and_counts_on() {
        let mut live = contents(&[("PORTFWD-A", &["PORTFWD-B", "PORTFWD-C"]), ("PORTFWD-B", &[]), ("PORTFWD-C", &[])]);
        let counter = Counter { packets: 3, bytes: 4 };
        live.chains.get_mut("PORTFWD-A").expect("there").counters = vec![counter, Counter::default()];
        let many =
            ["PORTFWD-B", "PORTFWD-B", "PORTFWD-B", "PORTFWD-D", "PORTFWD-B", "PORTFWD-D", "PORTFWD-D", "PORTFWD-D"];
        let mut wanted = contents(&[("PORTFWD-A", &many), ("PORTFWD-B", &[]), ("PORTFWD-D", &[])]);
        wanted.chains.get_mut("PORTFWD-A").expect("there").rules.reverse();
        let changes = of_table(&live, &wanted);
        let written: Vec<&str> = changes.write.iter().map(|(name, _)| &**name).collect();
        assert_eq!((written, changes.edit.len()), (vec!["PORTFWD-A", "PORTFWD-D"], 0));
        let of_b = counter;
        assert_eq!(changes.write[0].1.counters.iter().filter(|counter| **counter == of_b).count(), 4);
        assert_eq!(changes.remove, ["PORTFWD-C".into()]);
        assert!(changes.hook.is_empty() && changes.unhook.is_empty());
        assert!(of_table(&live, &live).is_empty());
    }

    #[test]
    fn a_few_rules_are_changed_in_their_place() {
        let (a, b, c, d) = ("PORTFWD-A", "PORTFWD-B", "PORTFWD-C", "PORTFWD-D");
        for (now, wanted, at, remove, insert) in [
            (&[a, b, c][..], &[a, b, d, c][..], 2, 0, &[d][..]),
            (&[a, b, c], &[a, c], 1, 1, &[]),
            (&[a, b, c], &[a, d, c], 1, 1, &[d]),
            (&[], &[a], 0, 0, &[a]),
            (&[a, a], &[a], 1, 1, &[]),
        ] {
            let (live, wanted) = (contents(&[("PORTFWD-X", now)]), contents(&[("PORTFWD-X", wanted)]));
            let changes = of_table(&live, &wanted);
            let insert = insert.iter().map(|name| Rule::jump(name).into()).collect();
            assert_eq!(changes.edit, [Edit { chain: "PORTFWD-X".into(), at, remove, insert }]);
            assert!(changes.write.is_empty());
        }
    }

    #[test]
    fn a_jump_behind_somebody_elses_is_moved() {
        let wanted = contents(&[]);
        for (first, times) in [(false, 1), (true, 2)] {
            let mut live = wanted.clone();
            live.hooks.insert(Hook::Prerouting, Attached { first, times });
            let changes = of_table(&live, &wanted);
            assert_eq!((changes.unhook, changes.hook), (vec![(Hook::Prerouting, times)], vec![Hook::Prerouting]));
        }
    }

    #[test]
    fn what_drops_comes_first_and_goes_last() {
        let full = Half {
            mangle: Contents {
                chains: [("PORTFWD.FORWARD".into(), vec![Rule::to(Target::Drop)].into())].into(),
                ..Contents::default()
            },
            nat: contents(&[]),
        };
        let order = |live: &Half, wanted: &Half| -> Vec<Table> {
            diff(live, wanted).0.into_iter().map(|(table, _)| table).collect()
        };
        assert_eq!(order(&Half::default(), &full), [Table::Mangle, Table::Nat]);
        assert_eq!(order(&full, &Half::default()), [Table::Nat, Table::Mangle]);
    }
}
