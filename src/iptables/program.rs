//! A ruleset as plain data. The ruleset contains portfwd's chains for each family, and the jumps from built-in chains
//! to these chains.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::rule::Rule;
use crate::model::{Counter, Family};

pub use super::target::PREFIX;

/// A table of iptables(8) that portfwd uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// The table `mangle`, which sees every packet before the table `filter`. Rules in `filter` cannot accept a packet
    /// that `mangle` has dropped.
    Mangle,
    /// The table `nat`, which translates addresses. The table sees only the first packet of each connection.
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

/// A built-in chain of iptables(8).
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
    /// All built-in chains to which portfwd adds jumps.
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

    /// Returns the name of portfwd's chain for a built-in chain, such as `PORTFWD.POSTROUTING`. The name has a dot,
    /// which chain names in rule sets cannot contain. So the names never conflict.
    pub fn portfwd_chain(self) -> String {
        format!("{PREFIX}.{}", self.name())
    }
}

/// The jumps from a built-in chain to portfwd's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookJump {
    /// True if the jump is the first rule of the built-in chain. As with nftables, portfwd's rules run before the rules
    /// of other programs.
    pub first: bool,
    /// The number of jumps to portfwd's chain in the built-in chain.
    pub times: usize,
}

impl HookJump {
    /// The desired state: one jump, as the first rule.
    pub const ONCE: Self = Self { first: true, times: 1 };
}

/// One of portfwd's chains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// The rules in the order of evaluation. Programs share unchanged rules in memory.
    pub rules: Vec<Arc<Rule>>,
    /// The counters of the rules, in the order of the rules. The list is empty if the counters were not read from the
    /// kernel.
    pub counters: Vec<Counter>,
}

impl<T: Into<Arc<Rule>>> From<Vec<T>> for Chain {
    fn from(rules: Vec<T>) -> Self {
        Self { rules: rules.into_iter().map(Into::into).collect(), counters: Vec::new() }
    }
}

impl Chain {
    /// Returns the counter of the rule at `index`, or zeros if the counter is unknown.
    pub fn counter(&self, index: usize) -> Counter {
        self.counters.get(index).copied().unwrap_or_default()
    }
}

/// The policy of a built-in chain and its counter.
///
/// portfwd does not change policies, but must write them for iptables-legacy. Otherwise every change to the table
/// resets the counter of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The name of the built-in chain.
    pub chain: String,
    /// `ACCEPT` or `DROP`.
    pub policy: String,
    /// The counter of packets to which the policy applied.
    pub counter: Counter,
}

/// The part of one table that belongs to portfwd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// portfwd's chains by name.
    pub chains: BTreeMap<Arc<str>, Chain>,
    /// The jumps from built-in chains to portfwd's chains.
    pub hooks: BTreeMap<Hook, HookJump>,
    /// The policies of the built-in chains; empty if they were not read from the kernel.
    pub policies: Vec<Policy>,
}

impl Contents {
    /// Returns true if both tables contain the same rules and jumps of portfwd. Ignores the counters.
    pub fn same_content(&self, other: &Self) -> bool {
        fn rules(contents: &Contents) -> impl Iterator<Item = (&Arc<str>, &Vec<Arc<Rule>>)> {
            contents.chains.iter().map(|(name, chain)| (name, &chain.rules))
        }
        self.hooks == other.hooks && rules(self).eq(rules(other))
    }

    /// Returns true if the table contains neither a chain nor a jump of portfwd.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.hooks.is_empty()
    }
}

/// portfwd's rules of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FamilyRules {
    /// portfwd's part of the table `mangle`.
    pub mangle: Contents,
    /// portfwd's part of the table `nat`.
    pub nat: Contents,
}

impl FamilyRules {
    /// Returns portfwd's part of a table.
    pub fn table(&self, table: Table) -> &Contents {
        match table {
            Table::Mangle => &self.mangle,
            Table::Nat => &self.nat,
        }
    }

    /// Returns portfwd's part of a table as a mutable reference.
    pub fn table_mut(&mut self, table: Table) -> &mut Contents {
        match table {
            Table::Mangle => &mut self.mangle,
            Table::Nat => &mut self.nat,
        }
    }

    /// Returns true if portfwd's parts of both tables are empty.
    pub fn is_empty(&self) -> bool {
        self.mangle.is_empty() && self.nat.is_empty()
    }
}

/// portfwd's rules of both families.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// The IPv4 rules, for iptables(8).
    pub ipv4: FamilyRules,
    /// The IPv6 rules, for ip6tables(8).
    pub ipv6: FamilyRules,
}

impl Program {
    /// Returns portfwd's rules of one family.
    pub fn family(&self, family: Family) -> &FamilyRules {
        match family {
            Family::Ipv4 => &self.ipv4,
            Family::Ipv6 => &self.ipv6,
        }
    }

    /// Returns portfwd's rules of one family as a mutable reference.
    pub fn family_mut(&mut self, family: Family) -> &mut FamilyRules {
        match family {
            Family::Ipv4 => &mut self.ipv4,
            Family::Ipv6 => &mut self.ipv6,
        }
    }

    /// Returns true if portfwd's rules of both families are empty.
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
                        rule.write_to(&mut text);
                        writeln!(f, "   {text}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
