//! The normal form of rules: tables, chains, rules, cases and actions. Rules of nft(8), iptables-nft and iptables-legacy
//! have the same form, read live or from a dump.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use super::index::CaseIndex;
use super::region::{Field, Region};
use super::reject::Rejection;
use crate::model::error::printable;
use crate::model::{Counter, Family};

/// The family of a table, as in nft(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableFamily {
    /// `ip`: IPv4 packets.
    Ip,
    /// `ip6`: IPv6 packets.
    Ip6,
    /// `inet`: IPv4 and IPv6 packets.
    Inet,
    /// `arp`: ARP packets.
    Arp,
    /// `bridge`: frames that a bridge forwards.
    Bridge,
    /// `netdev`: packets at the ingress or egress of a device.
    Netdev,
}

impl TableFamily {
    /// Returns true if routed packets of `family` traverse the chains of such a table.
    pub fn sees(self, family: Family) -> bool {
        match self {
            Self::Ip => family == Family::Ipv4,
            Self::Ip6 => family == Family::Ipv6,
            Self::Inet => true,
            Self::Arp | Self::Bridge | Self::Netdev => false,
        }
    }

    /// Returns the keyword of nft(8).
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Arp => "arp",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        }
    }
}

impl From<Family> for TableFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self::Ip,
            Family::Ipv6 => Self::Ip6,
        }
    }
}

/// The program that owns the syntax of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tool {
    /// nft(8).
    Nft,
    /// iptables(8), variant nft. Its tables are nf_tables tables.
    IptablesNft,
    /// iptables(8), variant legacy.
    IptablesLegacy,
    /// iptables(8), if a dump does not contain the variant.
    Iptables,
}

/// The type of a base chain, as in nft(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `filter`.
    Filter,
    /// `nat`: the kernel evaluates it for the first packet of each connection.
    Nat,
    /// `route`: the kernel routes a changed packet of this host again.
    Route,
}

/// A netfilter hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// `ingress` of a device.
    Ingress,
    /// `prerouting`: all packets that arrive, before routing.
    Prerouting,
    /// `input`: packets to this host.
    Input,
    /// `forward`: packets that this host routes to another host.
    Forward,
    /// `output`: packets of this host.
    Output,
    /// `postrouting`: all packets that leave, after routing.
    Postrouting,
    /// `egress` of a device.
    Egress,
}

impl Hook {
    /// Returns the keyword of nft(8).
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Egress => "egress",
        }
    }
}

/// The type, hook, priority and policy of a base chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Base {
    /// The type.
    pub kind: Kind,
    /// The hook.
    pub hook: Hook,
    /// The priority. The kernel evaluates chains of a hook in ascending order.
    pub priority: i32,
    /// True if the policy is `drop`.
    pub drops: bool,
    /// The devices of a chain of family netdev.
    pub devices: Vec<String>,
}

/// The new address and port of a NAT statement. If both are `None`, the kernel keeps or chooses them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rewrite {
    /// The first and last address of the range.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// The first and last port of the range.
    pub ports: Option<(u16, u16)>,
    /// The original port that maps to the first new port, for a one-to-one mapping of ports. Without a base the kernel
    /// chooses a port of the range.
    pub base: Option<u16>,
    /// The prefix length if only the network part of the address changes (NETMAP, `prefix`).
    pub prefix: Option<u8>,
}

impl Rewrite {
    /// Returns the new port of a packet to `port`. Returns `None` if the kernel chooses one of several.
    ///
    /// Without a base, the kernel keeps a port that is inside the range and otherwise takes the first free port
    /// (`nf_nat_l4proto_unique_tuple` in net/netfilter/nf_nat_core.c; measured on Linux 6.18).
    pub fn port_for(&self, port: u16) -> Option<u16> {
        match (self.ports, self.base) {
            (None, _) => Some(port),
            (Some((first, last)), _) if first == last => Some(first),
            (Some((first, last)), Some(base)) => {
                let moved = port.checked_sub(base)?.checked_add(first)?;
                (moved <= last).then_some(moved)
            }
            (Some((first, last)), None) => (first..=last).contains(&port).then_some(port),
        }
    }
}

/// A statement of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ends the base chain. Base chains with a higher priority value still see the packet.
    Accept,
    /// Drops the packet.
    Drop,
    /// Drops the packet and sends this answer to the source.
    Reject(Rejection),
    /// Returns to the calling chain. In a base chain, applies the policy.
    Return,
    /// Calls another chain, and continues after the rule if that chain gives no verdict.
    Jump(Arc<str>),
    /// Continues in another chain, without return to the rule.
    Goto(Arc<str>),
    /// Rewrites the destination.
    Dnat(Rewrite),
    /// Rewrites the destination to this host.
    Redirect(Rewrite),
    /// Rewrites the source.
    Snat(Rewrite),
    /// Rewrites the source to an address of the egress interface.
    Masquerade(Rewrite),
    /// Rewrites the network part of the destination; at input and postrouting, of the source.
    Netmap(Rewrite),
    /// Sets a mark: new = (old & !mask) ^ value.
    Mark {
        /// [`Field::Mark`] or [`Field::ConnectionMark`].
        field: Field,
        /// The bits that are cleared first.
        mask: u128,
        /// The bits that are inverted afterwards.
        value: u128,
    },
    /// Copies the connection mark to the packet mark, or the packet mark to the connection mark.
    CopyMark {
        /// The mark that is set.
        to: Field,
    },
    /// Sets a mark to an unknown value.
    MarkUnknown {
        /// The mark that is set.
        field: Field,
    },
    /// Excludes the packet from connection tracking, and so from NAT (`notrack`).
    Untracked,
    /// Assigns the packet to a local socket at this address, without a rewrite of the packet (TPROXY). The address or the
    /// port is that of the packet if it is `None`.
    Proxy(Rewrite),
    /// Passes the packet to a program, which gives the verdict (NFQUEUE).
    Queue,
    /// A statement that is not understood and may give a verdict, as text.
    Unknown(Arc<str>),
}

/// The actions of a rule for a part of its packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The packets.
    pub region: Region,
    /// The actions in order. Counters and logs are left out because they give no verdict. A rule that only counts has no
    /// action.
    pub actions: Box<[Action]>,
}

/// A rule: its cases, and how to find it in the kernel or in a dump.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// The cases. The first case that contains a packet applies. A rule with a map lookup has one case for each element.
    pub cases: Vec<Case>,
    /// The handle in the kernel.
    pub handle: Option<u64>,
    /// The line number in the dump.
    pub line: Option<usize>,
    /// The text in the dump. Rules read from the kernel have no text.
    pub words: Option<Box<str>>,
    /// The text of `comment` in nft(8), or of `-m comment` in iptables(8).
    pub comment: Option<Box<str>>,
    /// The counter, if the rule has one.
    pub counter: Option<Counter>,
}

/// A base chain, or a regular chain that rules jump to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Unique in its table.
    pub name: Arc<str>,
    /// The hook of a base chain. A regular chain has none.
    pub base: Option<Base>,
    /// The handle in the kernel. A newer chain of the same table has a higher handle.
    pub handle: Option<u64>,
    /// The rules in order of evaluation.
    pub rules: Vec<Rule>,
}

/// A table of nft(8) or iptables(8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The family.
    pub family: TableFamily,
    /// Unique in its family.
    pub name: Arc<str>,
    /// The program that owns its syntax.
    pub tool: Tool,
    /// True if the table has the flag `dormant`. The kernel evaluates no chain of a dormant table.
    pub dormant: bool,
    /// The chains in order of creation, if that is known.
    pub chains: Chains,
    /// The devices of the flowtables. Established connections through these devices bypass the rules.
    pub flow_devices: Vec<String>,
    /// The rules of an iptables-nft table that iptables cannot print: index of the chain, index of the rule.
    pub native: Vec<(usize, usize)>,
}

impl Table {
    /// Returns a table without chains.
    pub fn new(family: TableFamily, name: &str, tool: Tool) -> Self {
        let (chains, flow_devices, native) = (Chains::default(), Vec::new(), Vec::new());
        Self { family, name: name.into(), tool, dormant: false, chains, flow_devices, native }
    }
}

/// The chains of a table in order of creation, if that is known. Chains are found by name or index.
#[derive(Debug, Clone, Default)]
pub struct Chains {
    list: Vec<Chain>,
    names: HashMap<Arc<str>, usize>,
    indexes: OnceLock<Vec<Option<CaseIndex>>>,
}

impl PartialEq for Chains {
    fn eq(&self, other: &Self) -> bool {
        self.list == other.list
    }
}

impl Eq for Chains {}

impl Chains {
    /// Returns the chain with this index.
    pub fn get(&self, number: usize) -> Option<&Chain> {
        self.list.get(number)
    }

    /// Returns all chains.
    pub fn iter(&self) -> std::slice::Iter<'_, Chain> {
        self.list.iter()
    }

    /// Returns the index of the chain with this name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// Returns the chain with this name.
    pub fn named(&self, name: &str) -> Option<&Chain> {
        self.get(self.position(name)?)
    }

    /// Returns the chain with this name. Appends an empty chain if there is none.
    pub fn entry(&mut self, name: &str) -> &mut Chain {
        self.indexes = OnceLock::new();
        let number = match self.position(name) {
            Some(number) => number,
            None => {
                let name: Arc<str> = name.into();
                self.names.insert(Arc::clone(&name), self.list.len());
                self.list.push(Chain { name, base: None, handle: None, rules: Vec::new() });
                self.list.len() - 1
            }
        };
        &mut self.list[number]
    }

    /// Calls `change` for each chain.
    pub(super) fn each(&mut self, change: impl FnMut(&mut Chain)) {
        self.indexes = OnceLock::new();
        self.list.iter_mut().for_each(change);
    }

    /// Returns the index of a chain's rules. A short chain has none.
    pub(super) fn index(&self, number: usize) -> Option<&CaseIndex> {
        self.indexes.get_or_init(|| self.list.iter().map(CaseIndex::new).collect()).get(number)?.as_ref()
    }
}

/// A part of the ruleset or of the host that could not be read or understood.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    /// The object, for example `the tables of iptables-legacy`.
    pub what: String,
    /// The reason, for example a missing capability.
    pub why: String,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", printable(&self.what), printable(&self.why))
    }
}

/// All rules of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The tables in order of creation, if that is known.
    pub tables: Vec<Table>,
    /// The parts that could not be read.
    pub gaps: Vec<Gap>,
    /// True if the rules come from iptables-save.
    pub saved: bool,
}

/// The position of a case in a ruleset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// The index of the table.
    pub table: usize,
    /// The index of the chain in the table.
    pub chain: usize,
    /// The index of the rule in the chain. If it equals the number of rules, it is the policy.
    pub rule: usize,
    /// The index of the case in the rule.
    pub case: usize,
}

impl Ruleset {
    /// Returns the table, chain and rule at a position.
    pub fn at(&self, at: At) -> Option<(&Table, &Chain, &Rule)> {
        let table = self.tables.get(at.table)?;
        let chain = table.chains.get(at.chain)?;
        Some((table, chain, chain.rules.get(at.rule)?))
    }
}

/// Returns the type, hook and priority of a built-in chain of iptables(8).
///
/// Source: `enum nf_ip_hook_priorities` in include/uapi/linux/netfilter_ipv4.h, and the tables' own definitions in
/// net/ipv4/netfilter/iptable_*.c.
pub fn base_of_iptables(table: &str, chain: &str) -> Option<(Kind, Hook, i32)> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    };
    Some(match (table, hook) {
        ("raw", Hook::Prerouting | Hook::Output) => (Kind::Filter, hook, -300),
        ("mangle", Hook::Output) => (Kind::Route, hook, -150),
        ("mangle", _) => (Kind::Filter, hook, -150),
        ("nat", Hook::Prerouting | Hook::Output) => (Kind::Nat, hook, -100),
        ("nat", Hook::Input | Hook::Postrouting) => (Kind::Nat, hook, 100),
        ("filter", Hook::Input | Hook::Forward | Hook::Output) => (Kind::Filter, hook, 0),
        ("security", Hook::Input | Hook::Forward | Hook::Output) => (Kind::Filter, hook, 50),
        _ => return None,
    })
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An iptables-nft table of the same name can exist at the same time, so the text names the program.
        let family = match (self.tool, self.family) {
            (Tool::IptablesLegacy, TableFamily::Ip6) => "ip6tables-legacy",
            (Tool::IptablesLegacy, _) => "iptables-legacy",
            (_, family) => family.name(),
        };
        write!(f, "{family} {}", self.name)
    }
}
