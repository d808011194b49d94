//! A host as an audit sees it: its rules, what else is so on it, and the view of both.

use std::fmt;

use super::facts::Facts;
use super::owner;
use super::table::{At, Ruleset};
use super::view::View;
use crate::model::error::printable;

/// A host, or what a dump tells of one.
#[derive(Debug, Clone)]
pub struct Host {
    /// All rules.
    pub rules: Ruleset,
    /// What else is so; `None` of a dump.
    pub facts: Option<Facts>,
    /// What they make of packets.
    pub view: View,
}

impl Host {
    /// Looks at rules and facts.
    pub fn new(rules: Ruleset, facts: Option<Facts>) -> Self {
        let local = |family| facts.as_ref().map(|facts| facts.local(family)).filter(|local| !local.is_empty());
        let view = View::new(&rules, local);
        Self { rules, facts, view }
    }

    /// The place of a rule, in words.
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

/// The place of a rule, in words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Who made it: see `owner.rs`.
    pub owner: String,
    /// The table, the chain, the rule's handle or line.
    pub rule: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", printable(&self.rule), self.owner)
    }
}
