//! A host: its rules, its facts, and the symbolic walk of its rules.

use std::collections::BTreeSet;
use std::fmt;

use super::facts::Facts;
use super::fold;
use super::owner;
use super::table::{At, Gap, Ruleset};
use super::view::{Fate, Step, View};
use crate::model::error::printable;

/// A live host, or a host as far as its dumps describe it.
#[derive(Debug, Clone)]
pub struct Host {
    /// The rules of all programs.
    pub rules: Ruleset,
    /// Interfaces, routes, settings and sockets. A dump has none.
    pub facts: Option<Facts>,
    /// The packets that reach each NAT statement. Its gaps include the rules of NAT chains that are not understood.
    pub view: View,
}

impl Host {
    /// Walks the rules and returns the host.
    pub fn new(mut rules: Ruleset, facts: Option<Facts>) -> Self {
        fold::fold(&mut rules);
        let local = |family| facts.as_ref().map(|facts| facts.local(family)).filter(|local| !local.is_empty());
        let view = View::new(&rules, local);
        let mut host = Self { rules, facts, view };
        let gaps = host.unknown_nat();
        host.view.gaps.extend(gaps);
        host
    }

    /// Returns the rules of NAT chains that packets reach and whose effect is unknown. They may be NAT statements, which no
    /// row of a report shows.
    fn unknown_nat(&self) -> BTreeSet<Gap> {
        let steps = self.view.ways.iter().flat_map(|way| &way.steps);
        let gap = |step: &Step| match &step.fate {
            Fate::Unknown(words) => {
                Some(Gap { what: self.place(step.at).rule, why: format!("not understood: {words}") })
            }
            _ => None,
        };
        steps.filter_map(gap).collect()
    }

    /// Returns the owner and position of a rule as text.
    pub fn place(&self, at: At) -> Place {
        let Some(table) = self.rules.tables.get(at.table) else {
            return Place { owner: "unknown".into(), rule: "a table that is gone".into() };
        };
        let Some(chain) = table.chains.get(at.chain) else {
            return Place { owner: owner::of_table(table).into(), rule: table.to_string() };
        };
        let owner = owner::of_rule(table, chain, at.rule).to_owned();
        let rule = chain.rules.get(at.rule);
        let which = match rule {
            Some(rule) => match (rule.handle, rule.line) {
                (Some(handle), _) => format!(" handle {handle}"),
                (None, Some(line)) => format!(" line {line}"),
                (None, None) => format!(" rule {}", at.rule + 1),
            },
            None => " policy".to_owned(),
        };
        Place { owner, rule: format!("{table} {}{which}", chain.name) }
    }
}

/// The owner and position of a rule, as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The program that made the rule. See `owner.rs`.
    pub owner: String,
    /// Table, chain, and the handle or line of the rule.
    pub rule: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", printable(&self.rule), self.owner)
    }
}
