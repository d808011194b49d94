//! Compares the live and the wanted rules of a family. The changes are complete chains, or a few rules at one position
//! of a chain.

use std::collections::HashMap;
use std::sync::Arc;

use super::program::{Chain, Contents, FamilyRules, Hook, HookJump, Policy, Table};
use super::rule::Rule;
use crate::model::Counter;

/// The replacement of consecutive rules in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The name of the chain.
    pub chain: Arc<str>,
    /// The number of rules in the chain before the replaced rules.
    pub at: usize,
    /// The number of rules to delete.
    pub remove: usize,
    /// The rules to insert.
    pub insert: Vec<Arc<Rule>>,
}

/// The maximum number of rules in an [`Edit`]. An edit keeps the counters of all other rules in the chain. If portfwd
/// writes the whole chain, counts between the read and the write are lost.
const MAX_EDIT_RULES: usize = 8;

/// The changes to one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableChanges {
    /// Built-in chains that have jumps to delete, and the number of these jumps.
    pub unhook: Vec<(Hook, usize)>,
    /// Built-in chains that get a jump as their first rule.
    pub hook: Vec<Hook>,
    /// Chains that portfwd creates or writes again. Existing rules keep their counters.
    pub write: Vec<(Arc<str>, Chain)>,
    /// Chains in which a few rules change.
    pub edit: Vec<Edit>,
    /// The names of chains to delete.
    pub remove: Vec<Arc<str>>,
    /// The policies of the built-in chains, which portfwd does not change.
    pub policies: Vec<Policy>,
}

impl TableChanges {
    /// Returns true if the table does not change.
    pub fn is_empty(&self) -> bool {
        let jumps = self.unhook.is_empty() && self.hook.is_empty();
        jumps && self.write.is_empty() && self.edit.is_empty() && self.remove.is_empty()
    }
}

/// The changes to one family. The tables are in the order of the commits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes(pub Vec<(Table, TableChanges)>);

impl Changes {
    /// Returns true if no table changes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if the changes contain an [`Edit`], which depends on rule numbers.
    pub fn has_edits(&self) -> bool {
        self.0.iter().any(|(_, changes)| !changes.edit.is_empty())
    }

    /// Returns the number of rules that the changes write.
    pub fn rules(&self) -> usize {
        let rules = |changes: &TableChanges| -> usize {
            let written: usize = changes.write.iter().map(|(_, chain)| chain.rules.len()).sum();
            written + changes.edit.iter().map(|edit| edit.insert.len()).sum::<usize>()
        };
        self.0.iter().map(|(_, changes)| rules(changes)).sum()
    }
}

/// Returns the changes that turn `live` into `wanted`.
pub fn diff(live: &FamilyRules, wanted: &FamilyRules) -> Changes {
    let mut tables = Table::ALL;
    // Rules that drop packets must be present whenever forwards are present. So `mangle` changes before `nat` if rules
    // are added, and after `nat` if rules are deleted.
    if wanted.mangle.is_empty() {
        tables.reverse();
    }
    let changes = |table| (table, table_changes(live.table(table), wanted.table(table)));
    Changes(tables.into_iter().map(changes).filter(|(_, changes)| !changes.is_empty()).collect())
}

fn table_changes(live: &Contents, wanted: &Contents) -> TableChanges {
    let mut changes = TableChanges { policies: live.policies.clone(), ..TableChanges::default() };
    for hook in Hook::ALL {
        match (live.hooks.get(&hook), wanted.hooks.get(&hook)) {
            (Some(now), Some(_)) if *now == HookJump::ONCE => {}
            (Some(now), wanted) => {
                changes.unhook.push((hook, now.times));
                changes.hook.extend(wanted.map(|_| hook));
            }
            (None, Some(_)) => changes.hook.push(hook),
            (None, None) => {}
        }
    }
    let differs = |name: &Arc<str>, chain: &Chain| live.chains.get(name).is_none_or(|now| now.rules != chain.rules);
    let mut counters = OldCounters::default();
    for (name, now) in &live.chains {
        if wanted.chains.get(name).is_none_or(|wanted| now.rules != wanted.rules) {
            counters.add(name, now);
        }
        if !wanted.chains.contains_key(name) {
            changes.remove.push(Arc::clone(name));
        }
    }
    for (name, chain) in wanted.chains.iter().filter(|(name, chain)| differs(name, chain)) {
        match live.chains.get(name).and_then(|now| edit(name, &now.rules, chain)) {
            Some(edit) => changes.edit.push(edit),
            None => changes.write.push((Arc::clone(name), counters.carry_over(name, chain))),
        }
    }
    changes
}

/// Returns the change to a chain as one [`Edit`]. Returns `None` if the edit needs more than [`MAX_EDIT_RULES`] rules, or
/// if `wanted` contains counters.
fn edit(name: &Arc<str>, now: &[Arc<Rule>], wanted: &Chain) -> Option<Edit> {
    let rules = &wanted.rules;
    let before = now.iter().zip(rules).take_while(|(now, wanted)| now == wanted).count();
    let (now, rules) = (now.get(before..)?, rules.get(before..)?);
    let after = now.iter().rev().zip(rules.iter().rev()).take_while(|(now, wanted)| now == wanted).count();
    let (remove, insert) = (now.len() - after, rules.get(..rules.len() - after)?);
    let few = remove + insert.len() <= MAX_EDIT_RULES && wanted.counters.is_empty();
    few.then(|| Edit { chain: Arc::clone(name), at: before, remove, insert: insert.to_vec() })
}

/// The counters of rules in changed chains. `in_chain` finds a counter by chain and rule, `anywhere` by rule only.
#[derive(Default)]
struct OldCounters<'a> {
    in_chain: HashMap<(&'a str, &'a Rule), Counter>,
    anywhere: HashMap<&'a Rule, Counter>,
}

impl<'a> OldCounters<'a> {
    fn add(&mut self, name: &'a str, chain: &'a Chain) {
        for (index, rule) in chain.rules.iter().enumerate() {
            let counter = chain.counter(index);
            if counter != Counter::default() {
                self.in_chain.insert((name, rule), counter);
                self.anywhere.insert(rule, counter);
            }
        }
    }

    /// Returns the chain with the old counters of its rules. A counter comes from the same chain. If a rule moved, its
    /// counter comes from the previous chain.
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
            hooks: [(Hook::Prerouting, HookJump::ONCE)].into(),
            policies: Vec::new(),
        }
    }

    #[test]
    fn only_changed_chains_are_written_and_rules_keep_counters() {
        let mut live = contents(&[("PORTFWD-A", &["PORTFWD-B", "PORTFWD-C"]), ("PORTFWD-B", &[]), ("PORTFWD-C", &[])]);
        let counter = Counter { packets: 3, bytes: 4 };
        live.chains.get_mut("PORTFWD-A").expect("there").counters = vec![counter, Counter::default()];
        let many =
            ["PORTFWD-B", "PORTFWD-B", "PORTFWD-B", "PORTFWD-D", "PORTFWD-B", "PORTFWD-D", "PORTFWD-D", "PORTFWD-D"];
        let mut wanted = contents(&[("PORTFWD-A", &many), ("PORTFWD-B", &[]), ("PORTFWD-D", &[])]);
        wanted.chains.get_mut("PORTFWD-A").expect("there").rules.reverse();
        let changes = table_changes(&live, &wanted);
        let written: Vec<&str> = changes.write.iter().map(|(name, _)| &**name).collect();
        assert_eq!((written, changes.edit.len()), (vec!["PORTFWD-A", "PORTFWD-D"], 0));
        assert_eq!(changes.write[0].1.counters.iter().filter(|written| **written == counter).count(), 4);
        assert_eq!(changes.remove, ["PORTFWD-C".into()]);
        assert!(changes.hook.is_empty() && changes.unhook.is_empty());
        assert!(table_changes(&live, &live).is_empty());
    }

    #[test]
    fn a_few_changed_rules_become_an_edit() {
        let (a, b, c, d) = ("PORTFWD-A", "PORTFWD-B", "PORTFWD-C", "PORTFWD-D");
        for (now, wanted, at, remove, insert) in [
            (&[a, b, c][..], &[a, b, d, c][..], 2, 0, &[d][..]),
            (&[a, b, c], &[a, c], 1, 1, &[]),
            (&[a, b, c], &[a, d, c], 1, 1, &[d]),
            (&[], &[a], 0, 0, &[a]),
            (&[a, a], &[a], 1, 1, &[]),
        ] {
            let (live, wanted) = (contents(&[("PORTFWD-X", now)]), contents(&[("PORTFWD-X", wanted)]));
            let changes = table_changes(&live, &wanted);
            let insert = insert.iter().map(|name| Rule::jump(name).into()).collect();
            assert_eq!(changes.edit, [Edit { chain: "PORTFWD-X".into(), at, remove, insert }]);
            assert!(changes.write.is_empty());
        }
    }

    #[test]
    fn a_jump_after_a_rule_of_another_program_is_moved_to_the_top() {
        let wanted = contents(&[]);
        for (first, times) in [(false, 1), (true, 2)] {
            let mut live = wanted.clone();
            live.hooks.insert(Hook::Prerouting, HookJump { first, times });
            let changes = table_changes(&live, &wanted);
            assert_eq!((changes.unhook, changes.hook), (vec![(Hook::Prerouting, times)], vec![Hook::Prerouting]));
        }
    }

    #[test]
    fn drop_rules_are_added_first_and_deleted_last() {
        let full = FamilyRules {
            mangle: Contents {
                chains: [("PORTFWD.FORWARD".into(), vec![Rule::with_target(Target::Drop)].into())].into(),
                ..Contents::default()
            },
            nat: contents(&[]),
        };
        let order = |live: &FamilyRules, wanted: &FamilyRules| -> Vec<Table> {
            diff(live, wanted).0.into_iter().map(|(table, _)| table).collect()
        };
        assert_eq!(order(&FamilyRules::default(), &full), [Table::Mangle, Table::Nat]);
        assert_eq!(order(&full, &FamilyRules::default()), [Table::Nat, Table::Mangle]);
    }
}
