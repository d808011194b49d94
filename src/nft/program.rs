//! What the kernel is to hold, as plain data: one table of chains, rules, maps and elements.
//!
//! Prints like `nft --debug=netlink`: one expression in brackets after the other, because that is what the kernel
//! really holds; `nft list table inet portfwd` shows the same as text.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Default;

use super::expr::{Expr, Hex};
use super::user_data::Span;
use crate::model::Counter;

/// The only table that is ours.
pub const TABLE: &str = "portfwd";

/// What a base chain may do with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainType {
    /// Lets through or drops.
    Filter,
    /// Translates addresses; sees the first packet of every connection.
    Nat,
}

/// The place in a packet's way that a base chain is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// How a base chain is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Base {
    /// What it may do.
    pub chain_type: ChainType,
    /// Where.
    pub hook: Hook,
    /// Its place among the others there; lower runs earlier.
    pub priority: i32,
}

/// A rule: expressions that are evaluated from first to last until one does not match.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The expressions.
    pub exprs: Vec<Expr>,
    /// Which set it belongs to and why it is there, if a set asked for it.
    pub comment: Option<String>,
}

/// A chain of rules. Base chains accept what no rule decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chain {
    /// How it is attached; none: it is only jumped to.
    pub base: Option<Base>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// The type of one field of a key or of the data of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// An interface name, filled up with zeros.
    Interface,
    /// A transport protocol's number.
    Protocol,
    /// A port, in network byte order.
    Port,
}

impl Field {
    /// All types that our maps use.
    pub const ALL: [Self; 5] = [Self::Ipv4, Self::Ipv6, Self::Interface, Self::Protocol, Self::Port];

    /// Its length in bytes.
    pub fn length(self) -> u8 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 | Self::Interface => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }

    /// How many 32-bit registers, and words of a key, it takes.
    pub fn words(self) -> u8 {
        self.length().div_ceil(4)
    }

    /// The number that nft(8) prints the type by. Source: `enum datatypes` in nftables' include/datatype.h.
    pub fn type_id(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Interface => 41,
        }
    }

    /// The type's name in nft(8).
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
            Self::Interface => "ifname",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
        }
    }
}

/// The shape of a map: what it is asked with and what it answers. Without data it is a set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The fields of a key, each padded to whole words.
    pub key: Vec<Field>,
    /// The fields of the data, each padded to whole words.
    pub data: Vec<Field>,
}

impl Shape {
    /// The length in bytes of a key or of data: of a concatenation every field is padded to whole words, a lone field
    /// is not.
    pub fn length(fields: &[Field]) -> u8 {
        match fields {
            [field] => field.length(),
            fields => fields.iter().map(|field| field.words() * 4).sum(),
        }
    }

    /// The number that stands for the types of all fields together: six bits each. Source: `concat_subtype_add` in
    /// nftables' include/datatype.h.
    pub fn type_id(fields: &[Field]) -> u32 {
        fields.iter().fold(0, |id, field| (id << 6) | field.type_id())
    }

    /// The fields that a number stands for; `None` where one is no field of ours.
    pub fn fields(mut type_id: u32) -> Option<Vec<Field>> {
        let mut fields = Vec::new();
        while type_id > 0 {
            fields.insert(0, Field::ALL.into_iter().find(|field| field.type_id() == type_id & 0x3f)?);
            type_id >>= 6;
        }
        Some(fields)
    }
}

/// The key of an element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub Box<[u8]>);

/// An element of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The answer; empty in a set.
    pub data: Box<[u8]>,
    /// The set it belongs to, and the forward's comment.
    pub comment: Arc<str>,
    /// The range of ports that it is a part of, if it is of one.
    pub span: Option<Span>,
    /// As read from the kernel; zero in what is asked.
    pub counter: Counter,
}

impl Element {
    /// Whether both say the same; what was counted does not matter.
    pub fn says_the_same(&self, other: &Self) -> bool {
        (&self.data, &self.comment, self.span) == (&other.data, &other.comment, other.span)
    }
}

/// A map with its elements. Each element has a counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Its shape.
    pub shape: Shape,
    /// Its elements.
    pub elements: BTreeMap<Key, Element>,
}

/// All that our table holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Whether the table is there at all.
    pub table: bool,
    /// Whether the table has flags, which ours never has: `dormant`, for one, means that no packet is asked about.
    pub flagged: bool,
    /// The chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// The maps by name.
    pub maps: BTreeMap<String, Map>,
}

impl Program {
    /// How many elements all maps hold together.
    pub fn element_count(&self) -> usize {
        self.maps.values().map(|map| map.elements.len()).sum()
    }

    /// A number for all of it but the elements: the table, its chains with their rules, the shapes of its maps. Programs
    /// that differ in these have different ones, but for one pair in 2^64; other builds of portfwd may count otherwise.
    pub fn layout(&self) -> u64 {
        let mut hasher = Xxh3Default::new();
        (self.table, self.flagged, &self.chains).hash(&mut hasher);
        self.maps.iter().for_each(|(name, map)| (name, &map.shape).hash(&mut hasher));
        hasher.finish()
    }
}

impl fmt::Display for ChainType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, expr) in self.exprs.iter().enumerate() {
            write!(f, "{}[ {expr} ]", if index == 0 { "" } else { " " })?;
        }
        match &self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |fields: &[Field]| fields.iter().map(|field| field.name()).collect::<Vec<_>>().join(" . ");
        write!(f, "{}", list(&self.key))?;
        if !self.data.is_empty() {
            write!(f, " : {}", list(&self.data))?;
        }
        Ok(())
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.table {
            return Ok(());
        }
        writeln!(f, "table inet {TABLE}")?;
        for (name, map) in &self.maps {
            writeln!(f, "  map {name} {}", map.shape)?;
            for (key, element) in &map.elements {
                write!(f, "    {}", Hex(&key.0))?;
                if !element.data.is_empty() {
                    write!(f, " : {}", Hex(&element.data))?;
                }
                writeln!(f, " comment \"{}\"", element.comment)?;
            }
        }
        for (name, chain) in &self.chains {
            write!(f, "  chain {name}")?;
            match chain.base {
                Some(base) => writeln!(f, " {} {} {}", base.chain_type, base.hook, base.priority)?,
                None => writeln!(f)?,
            }
            for rule in &chain.rules {
                writeln!(f, "    {rule}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::expr::Verdict;

    #[test]
    fn field_types_go_both_ways() {
        let fields = vec![Field::Ipv6, Field::Interface, Field::Ipv6, Field::Protocol, Field::Port];
        assert_eq!(Shape::fields(Shape::type_id(&fields)), Some(fields));
        assert_eq!(Shape::fields(1), None);
        assert_eq!(Shape::fields(0), Some(vec![]));
    }

    #[test]
    fn a_layout_is_all_but_the_elements() {
        let of = |change: &dyn Fn(&mut Program)| {
            let rule = Rule { exprs: vec![Expr::Verdict(Verdict::Return)], comment: None };
            let shape = Shape { key: vec![Field::Port], data: vec![Field::Ipv4] };
            let mut program = Program {
                table: true,
                chains: [("chain".to_owned(), Chain { base: None, rules: vec![rule] })].into(),
                maps: [("map".to_owned(), Map { shape, elements: BTreeMap::new() })].into(),
                ..Program::default()
            };
            change(&mut program);
            program.layout()
        };
        let same = of(&|_| {});
        let one_more = |map: &mut Map| {
            let element = Element { data: [1; 4].into(), comment: "".into(), span: None, counter: Counter::default() };
            map.elements.insert(Key([0; 2].into()), element);
        };
        assert_eq!(of(&|program| program.maps.values_mut().for_each(one_more)), same);
        let others = [
            of(&|program| program.table = false),
            of(&|program| program.flagged = true),
            of(&|program| program.chains.clear()),
            of(&|program| program.chains.values_mut().for_each(|chain| chain.rules.clear())),
            of(&|program| {
                let base = Base { chain_type: ChainType::Nat, hook: Hook::Output, priority: -100 };
                program.chains.values_mut().for_each(|chain| chain.base = Some(base));
            }),
            of(&|program| program.maps.clear()),
            of(&|program| program.maps.values_mut().for_each(|map| map.shape.data.push(Field::Port))),
            of(&|program| program.maps.values_mut().for_each(|map| map.shape.key = map.shape.data.clone())),
        ];
        for (index, other) in others.iter().enumerate() {
            assert!(*other != same && !others[..index].contains(other), "{index}");
        }
    }
}
