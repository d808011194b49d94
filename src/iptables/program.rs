//! What the kernel is to hold, as plain data: for each family the chains that are ours, and where they are jumped to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::rule::Rule;
use crate::model::{Counter, Family};

pub use super::target::PREFIX;

/// A table of iptables(8) that we have chains in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Looks at every packet, before any filter. What it drops is dropped whatever others accept.
    Mangle,
    /// Translates addresses; sees the first packet of every connection.
    Nat,
}

impl Table {
    /// All that we use, in the order in which they are committed.
    pub const ALL: [Self; 2] = [Self::Mangle, Self::Nat];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Nat => "nat",
        }
    }
}

/// A built-in chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// All that arrives, before it is routed.
    Prerouting,
    /// What passes through.
    Forward,
    /// What this host sends.
    Output,
    /// All that leaves, after it was routed.
    Postrouting,
}

impl Hook {
    /// All built-in chains that we jump from.
    pub const ALL: [Self; 4] = [Self::Prerouting, Self::Forward, Self::Output, Self::Postrouting];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
        }
    }

    /// The chain of ours that it jumps to. The dot keeps it apart from chains that rule sets name.
    pub fn entry(self) -> String {
        format!("{PREFIX}.{}", self.name())
    }
}

/// How a built-in chain jumps to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// Whether that is its first rule: before anybody else's, as our base chains of nftables are.
    pub first: bool,
    /// How many of its rules are such a jump.
    pub times: usize,
}

impl Attached {
    /// As it should be.
    pub const ONCE: Self = Self { first: true, times: 1 };
}

/// A chain of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its rules in order; shared, because what changes of a chain is a part of it.
    pub rules: Vec<Arc<Rule>>,
    /// What they counted, in the same order, as far as it was read from a kernel.
    pub counters: Vec<Counter>,
}

impl<T: Into<Arc<Rule>>> From<Vec<T>> for Chain {
    fn from(rules: Vec<T>) -> Self {
        Self { rules: rules.into_iter().map(Into::into).collect(), counters: Vec::new() }
    }
}

impl Chain {
    /// What a rule of it counted.
    pub fn counter(&self, at: usize) -> Counter {
        self.counters.get(at).copied().unwrap_or_default()
    }
}

/// What becomes of what a built-in chain lets pass, and how much that was; not ours, but iptables-legacy sets the count to
/// zero with every change to the table unless it is said again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The built-in chain.
    pub chain: String,
    /// `ACCEPT` or `DROP`.
    pub policy: String,
    /// What it counted.
    pub counter: Counter,
}

/// What is ours of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Our chains by name.
    pub chains: BTreeMap<Arc<str>, Chain>,
    /// Where built-in chains jump to them.
    pub hooks: BTreeMap<Hook, Attached>,
    /// The policies of the built-in chains, as far as they were read from a kernel.
    pub policies: Vec<Policy>,
}

impl Contents {
    /// Whether both hold the same rules and jumps of ours; what was counted does not matter.
    pub fn says_the_same(&self, other: &Self) -> bool {
        fn rules(contents: &Contents) -> impl Iterator<Item = (&Arc<str>, &Vec<Arc<Rule>>)> {
            contents.chains.iter().map(|(name, chain)| (name, &chain.rules))
        }
        self.hooks == other.hooks && rules(self).eq(rules(other))
    }

    /// Whether nothing of ours is there.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.hooks.is_empty()
    }
}

/// What is ours of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Half {
    /// In the table `mangle`.
    pub mangle: Contents,
    /// In the table `nat`.
    pub nat: Contents,
}

impl Half {
    /// What is in a table.
    pub fn of(&self, table: Table) -> &Contents {
        match table {
            Table::Mangle => &self.mangle,
            Table::Nat => &self.nat,
        }
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, table: Table) -> &mut Contents {
        match table {
            Table::Mangle => &mut self.mangle,
            Table::Nat => &mut self.nat,
        }
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.mangle.is_empty() && self.nat.is_empty()
    }
}

/// All that is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// For IPv4.
    pub ipv4: Half,
    /// For IPv6.
    pub ipv6: Half,
}

impl Program {
    /// What is ours of a family.
    pub fn of(&self, family: Family) -> &Half {
        match family {
            Family::Ipv4 => &self.ipv4,
            Family::Ipv6 => &self.ipv6,
        }
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, family: Family) -> &mut Half {
        match family {
            Family::Ipv4 => &mut self.ipv4,
            Family::Ipv6 => &mut self.ipv6,
        }
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for family in Family::ALL {
            for table in Table::ALL {
                let contents = self.of(family).of(table);
                if contents.is_empty() {
                    continue;
                }
                writeln!(f, "{family} {}", table.name())?;
                for hook in contents.hooks.keys() {
                    writeln!(f, "  {} -> {}", hook.name(), hook.entry())?;
                }
                for (name, chain) in &contents.chains {
                    writeln!(f, "  {name}")?;
                    for rule in &chain.rules {
                        let mut text = String::new();
                        rule.put(family, &mut text);
                        writeln!(f, "   {text}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
