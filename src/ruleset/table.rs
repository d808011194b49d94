//! Rules of anybody in one normal form: tables of chains of rules, whatever tool and part of the kernel they are of, and
//! wherever they were read.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use super::index::Index;
use super::region::{Field, Region};
use crate::model::error::printable;
use crate::model::{Counter, Family};

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableFamily {
    /// `ip`: those of IPv4.
    Ip,
    /// `ip6`: those of IPv6.
    Ip6,
    /// `inet`: those of both.
    Inet,
    /// `arp`.
    Arp,
    /// `bridge`: frames that a bridge passes on.
    Bridge,
    /// `netdev`: what a device gets or sends.
    Netdev,
}

impl TableFamily {
    /// Whether packets of a family that are routed here meet its chains.
    pub fn sees(self, family: Family) -> bool {
        match self {
            Self::Ip => family == Family::Ipv4,
            Self::Ip6 => family == Family::Ipv6,
            Self::Inet => true,
            Self::Arp | Self::Bridge | Self::Netdev => false,
        }
    }

    /// Its word in nft(8).
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

/// Which tool shows and changes a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tool {
    /// nft(8).
    Nft,
    /// iptables(8) of variant nft, whose tables are tables of nf_tables.
    IptablesNft,
    /// iptables(8) of variant legacy.
    IptablesLegacy,
    /// iptables(8), of a dump that does not tell which variant.
    Iptables,
}

/// What a base chain does with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Lets through or drops.
    Filter,
    /// Translates addresses, of the first packet of each connection.
    Nat,
    /// Has packets of this host routed again where it changes them.
    Route,
}

/// A place in a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// As a device gets it.
    Ingress,
    /// All that arrives, before it is routed.
    Prerouting,
    /// What is for this host.
    Input,
    /// What passes through.
    Forward,
    /// What this host sends.
    Output,
    /// All that leaves, after it was routed.
    Postrouting,
    /// As a device sends it.
    Egress,
}

impl Hook {
    /// Its word in nft(8).
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

/// How a base chain is attached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Base {
    /// What it does.
    pub kind: Kind,
    /// Where.
    pub hook: Hook,
    /// Its place among the others there; lower runs earlier.
    pub priority: i32,
    /// Whether it drops what no rule decides.
    pub drops: bool,
    /// The devices that it is attached to, of family netdev.
    pub devices: Vec<String>,
}

/// To what an address, a port or both are rewritten. Without either both stay, or are chosen by the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rewrite {
    /// The addresses to choose from, both ends included.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// The ports to choose from, both ends included.
    pub ports: Option<(u16, u16)>,
    /// The port that becomes the first of them, and so on, one to one; without it any may be chosen.
    pub base: Option<u16>,
    /// The length of the prefix that is rewritten where the rest of the address stays (NETMAP, `prefix`).
    pub prefix: Option<u8>,
}

impl Rewrite {
    /// The port that a packet for `port` arrives at there; `None` where the kernel chooses one of several.
    ///
    /// Of a range the kernel keeps the port where it is in it, and takes the first that is free otherwise, unless the rule has
    /// a base (`nf_nat_l4proto_unique_tuple` in net/netfilter/nf_nat_core.c; measured on Linux 6.18).
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

/// What a rule does with a packet that it is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ends this base chain; those of later priorities still see the packet.
    Accept,
    /// Drops it.
    Drop,
    /// Drops it and tells the sender.
    Reject,
    /// Goes back to the chain that asked; in a base chain, does as the policy says.
    Return,
    /// Asks another chain, and goes on behind if that decides nothing.
    Jump(Arc<str>),
    /// Goes on in another chain for good.
    Goto(Arc<str>),
    /// Rewrites its destination.
    Dnat(Rewrite),
    /// Sends it to this host.
    Redirect(Rewrite),
    /// Rewrites its source.
    Snat(Rewrite),
    /// Rewrites its source to the address of the interface it leaves by.
    Masquerade(Rewrite),
    /// Rewrites the network of its destination, or where sources are rewritten that of its source.
    Netmap(Rewrite),
    /// Sets a mark: its bits under `mask` are cleared, then those of `value` are turned round.
    Mark {
        /// [`Field::Mark`] or [`Field::ConnectionMark`].
        field: Field,
        /// Which bits.
        mask: u128,
        /// Which bits are turned round: what they become, where they are under `mask`.
        value: u128,
    },
    /// Sets the mark of the packet to that of its connection, or the other way round.
    CopyMark {
        /// What is set.
        to: Field,
    },
    /// Sets a mark to something that is not known.
    MarkUnknown {
        /// What is set.
        field: Field,
    },
    /// Has the connection not followed, and so never translated.
    Untracked,
    /// Hands it to a local socket without rewriting it (TPROXY).
    Proxy,
    /// Hands it to a program, which decides (QUEUE, NFQUEUE).
    Queue,
    /// Something that may decide, and is not understood, in the words of who wrote it.
    Unknown(Arc<str>),
}

/// What a rule does with some of the packets that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Which packets.
    pub region: Region,
    /// What is done, in this order. Counters, logs and the like are not here: they decide nothing. Without any the rule
    /// only counts.
    pub actions: Box<[Action]>,
}

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// What it does, and with what: the first case that a packet is in. Rules that ask a map have as many as it has elements.
    pub cases: Vec<Case>,
    /// Its number in the kernel.
    pub handle: Option<u64>,
    /// Its line in the file that it was read from.
    pub line: Option<usize>,
    /// Its words there; of rules from the kernel there are none but what can be told from the cases.
    pub words: Option<Box<str>>,
    /// Its comment.
    pub comment: Option<Box<str>>,
    /// What it counted.
    pub counter: Option<Counter>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: Arc<str>,
    /// How it is attached; none: it is only jumped to.
    pub base: Option<Base>,
    /// Its number in the kernel, which grows with every chain of the table.
    pub handle: Option<u64>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: TableFamily,
    /// Its name.
    pub name: Arc<str>,
    /// Which tool it is of.
    pub tool: Tool,
    /// Whether no packet is asked about, because it was told to sleep.
    pub dormant: bool,
    /// Its chains.
    pub chains: Chains,
    /// Devices of its flowtables, past whose rules established connections go.
    pub flow_devices: Vec<String>,
    /// Of a table of iptables-nft the rules that iptables has no words for: the numbers of the chain and of the rule in it.
    pub native: Vec<(usize, usize)>,
}

impl Table {
    /// A table without chains.
    pub fn new(family: TableFamily, name: &str, tool: Tool) -> Self {
        let (chains, flow_devices, native) = (Chains::default(), Vec::new(), Vec::new());
        Self { family, name: name.into(), tool, dormant: false, chains, flow_devices, native }
    }
}

/// The chains of a table, in the order in which they were made where that is known.
#[derive(Debug, Clone, Default)]
pub struct Chains {
    list: Vec<Chain>,
    names: HashMap<Arc<str>, usize>,
    indexes: OnceLock<Vec<Option<Index>>>,
}

impl PartialEq for Chains {
    fn eq(&self, other: &Self) -> bool {
        self.list == other.list
    }
}

impl Eq for Chains {}

impl Chains {
    /// The chain of this number.
    pub fn get(&self, number: usize) -> Option<&Chain> {
        self.list.get(number)
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Chain> {
        self.list.iter()
    }

    /// The number of the chain of this name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// The chain of this name.
    pub fn named(&self, name: &str) -> Option<&Chain> {
        self.get(self.position(name)?)
    }

    /// The chain of this name, to be changed; made at the end where there is none.
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

    /// Changes all of them.
    pub(super) fn each(&mut self, change: impl FnMut(&mut Chain)) {
        self.indexes = OnceLock::new();
        self.list.iter_mut().for_each(change);
    }

    /// What finds the rules of the chain of this number that a packet is asked about; none of a short one.
    pub(super) fn index(&self, number: usize) -> Option<&Index> {
        self.indexes.get_or_init(|| self.list.iter().map(Index::new).collect()).get(number)?.as_ref()
    }
}

/// Something that could not be read, or is not known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", printable(&self.what), printable(&self.why))
    }
}

/// All rules that were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The tables, in the order in which they were made where that is known.
    pub tables: Vec<Table>,
    /// What is not among them.
    pub gaps: Vec<Gap>,
    /// Whether it is what iptables-save printed.
    pub saved: bool,
}

/// Where a rule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// The number of its table.
    pub table: usize,
    /// The number of its chain in the table.
    pub chain: usize,
    /// Its number in the chain.
    pub rule: usize,
    /// The number of its case.
    pub case: usize,
}

impl Ruleset {
    /// The table, the chain and the rule at a place.
    pub fn at(&self, at: At) -> Option<(&Table, &Chain, &Rule)> {
        let table = self.tables.get(at.table)?;
        let chain = table.chains.get(at.chain)?;
        Some((table, chain, chain.rules.get(at.rule)?))
    }
}

/// A number of `priority` in nft(8) and of `NF_IP_PRI_…`, by the tables of iptables(8).
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
        // The kernel has no table of this name but that of iptables-nft, which is another one.
        let family = match (self.tool, self.family) {
            (Tool::IptablesLegacy, TableFamily::Ip6) => "ip6tables-legacy",
            (Tool::IptablesLegacy, _) => "iptables-legacy",
            (_, family) => family.name(),
        };
        write!(f, "{family} {}", self.name)
    }
}
