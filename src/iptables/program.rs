//! A ruleset as plain data: portfwd's chains of each family, and the jumps to them from built-in chains.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::rule::Rule;
use crate::model::{Counter, Family};

pub use super::target::PREFIX;

/// A table of iptables(8) that portfwd uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Sees every packet, before the table `filter`. Rules in `filter` cannot accept a packet that was dropped here.
    Mangle,
    /// Translates addresses. The table sees only the first packet of each connection.
    Nat,
}

impl Table {
    /// All tables that portfwd uses, in the order of the commits.
    pub const ALL: [Self; 2] = [Self::Mangle, Self::Nat];

    /// Returns the table's name in iptables(8).
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
    /// Incoming packets, before the routing decision.
    Prerouting,
    /// Packets that this host forwards.
    Forward,
    /// Packets that this host sends.
    Output,
    /// Outgoing packets, after the routing decision.
    Postrouting,
}

impl Hook {
    /// All built-in chains in which portfwd adds jumps.
    pub const ALL: [Self; 4] = [Self::Prerouting, Self::Forward, Self::Output, Self::Postrouting];

    /// Returns the chain's name in iptables(8).
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
        }
    }

    /// Returns the name of portfwd's chain for this built-in chain, such as `PORTFWD.POSTROUTING`. Chain names in rule sets
    /// cannot contain a dot, so they never conflict.
    pub fn portfwd_chain(self) -> String {
        format!("{PREFIX}.{}", self.name())
    }
}

/// The jumps from a built-in chain to portfwd's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookJump {
    /// True if the jump is the first rule of the built-in chain. portfwd's nftables chains run before others, too.
    pub first: bool,
    /// The number of such jumps in the built-in chain.
    pub times: usize,
}

impl HookJump {
    /// The desired state: one jump, as the first rule.
    pub const ONCE: Self = Self { first: true, times: 1 };
}

/// One of portfwd's chains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// The rules in order. Programs share the rules that stay when the rest of a chain changes.
    pub rules: Vec<Arc<Rule>>,
    /// The counters of the rules in the same order; empty if they were not read from the kernel.
    pub counters: Vec<Counter>,
}

impl<T: Into<Arc<Rule>>> From<Vec<T>> for Chain {
    fn from(rules: Vec<T>) -> Self {
        Self { rules: rules.into_iter().map(Into::into).collect(), counters: Vec::new() }
    }
}

impl Chain {
    /// Returns the counter of the rule with this index.
    pub fn counter(&self, index: usize) -> Counter {
        self.counters.get(index).copied().unwrap_or_default()
    }
}

/// The policy of a built-in chain and its counter.
///
/// portfwd does not change policies, but must write them: iptables-legacy resets the counter with every change to the
/// table unless the input contains the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The name of the built-in chain.
    pub chain: String,
    /// `ACCEPT` or `DROP`.
    pub policy: String,
    /// The counter of packets to which the policy applied.
    pub counter: Counter,
}

/// portfwd's part of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// portfwd's chains by name.
    pub chains: BTreeMap<Arc<str>, Chain>,
    /// The jumps from built-in chains.
    pub hooks: BTreeMap<Hook, HookJump>,
    /// The policies of the built-in chains; empty if they were not read from the kernel.
    pub policies: Vec<Policy>,
}

impl Contents {
    /// Returns true if both contain the same rules and jumps. Ignores the counters.
    pub fn same_content(&self, other: &Self) -> bool {
        fn rules(contents: &Contents) -> impl Iterator<Item = (&Arc<str>, &Vec<Arc<Rule>>)> {
            contents.chains.iter().map(|(name, chain)| (name, &chain.rules))
        }
        self.hooks == other.hooks && rules(self).eq(rules(other))
    }

    /// Returns true if there is neither a chain nor a jump.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.hooks.is_empty()
    }
}

/// portfwd's rules of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FamilyRules {
    /// The part of the table `mangle`.
    pub mangle: Contents,
    /// The part of the table `nat`.
    pub nat: Contents,
}

impl FamilyRules {
    /// Returns the part of a table.
    pub fn table(&self, table: Table) -> &Contents {
        match table {
            Table::Mangle => &self.mangle,
            Table::Nat => &self.nat,
        }
    }

    /// Returns the part of a table for changes.
    pub fn table_mut(&mut self, table: Table) -> &mut Contents {
        match table {
            Table::Mangle => &mut self.mangle,
            Table::Nat => &mut self.nat,
        }
    }

    /// Returns true if both tables are empty.
    pub fn is_empty(&self) -> bool {
        self.mangle.is_empty() && self.nat.is_empty()
    }
}

/// portfwd's rules of both families.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// The rules of iptables(8).
    pub ipv4: FamilyRules,
    /// The rules of ip6tables(8).
    pub ipv6: FamilyRules,
}

impl Program {
    /// Returns the rules of a family.
    pub fn family(&self, family: Family) -> &FamilyRules {
        match family {
            Family::Ipv4 => &self.ipv4,
            Family::Ipv6 => &self.ipv6,
        }
    }

    /// Returns the rules of a family for changes.
    pub fn family_mut(&mut self, family: Family) -> &mut FamilyRules {
        match family {
            Family::Ipv4 => &mut self.ipv4,
            Family::Ipv6 => &mut self.ipv6,
        }
    }

    /// Returns true if both families are empty.
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for family in Family::ALL {
            for table in Table::ALL {
                let contents = self.family(family).table(table);
                if contents.is_empty() {
                    continue;
                }
                writeln!(f, "{family} {}", table.name())?;
                for hook in contents.hooks.keys() {
                    writeln!(f, "  {} -> {}", hook.name(), hook.portfwd_chain())?;
                }
                for (name, chain) in &contents.chains {
                    writeln!(f, "  {name}")?;
                    for rule in &chain.rules {
                        let mut text = String::new();
                        rule.write_to(family, &mut text);
                        writeln!(f, "   {text}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
