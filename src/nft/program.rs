//! A ruleset as plain data: one table with chains, rules, maps and elements.
//!
//! `Display` prints a program like `nft --debug=netlink`, with each expression in brackets. The kernel stores rules in
//! this form. `nft list table inet portfwd` prints the same rules as text.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Default;

use super::expr::{Expr, Hex};
use super::user_data::Span;
use crate::model::Counter;

/// The name of portfwd's only nftables table. The family of the table is `inet`.
pub const TABLE: &str = "portfwd";

/// The type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainType {
    /// `type filter`: accepts or drops packets.
    Filter,
    /// `type nat`: translates addresses. The chain sees only the first packet of each connection.
    Nat,
}

/// The netfilter hook of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// The type, hook and priority of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Base {
    /// The chain type: `filter` or `nat`.
    pub chain_type: ChainType,
    /// The hook that the chain is registered at.
    pub hook: Hook,
    /// The netfilter hook priority. Chains with lower priorities run earlier.
    pub priority: i32,
}

/// A rule: expressions that the kernel evaluates in order until one does not match.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The expressions in the order of evaluation.
    pub exprs: Vec<Expr>,
    /// The name of the rule set that the rule belongs to, and a remark. `None` if the rule belongs to no rule set.
    pub comment: Option<String>,
}

/// A chain of rules. The policy of base chains is `accept`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chain {
    /// The type, hook and priority of a base chain. `None` for a regular chain, which rules jump to.
    pub base: Option<Base>,
    /// The rules in the order of evaluation.
    pub rules: Vec<Rule>,
}

/// The data type of one field in a map's key or data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// An interface name, padded with zeros to 16 bytes.
    Interface,
    /// The number of a transport protocol.
    Protocol,
    /// A port in network byte order.
    Port,
}

impl Field {
    /// All field types that portfwd's maps use.
    pub const ALL: [Self; 5] = [Self::Ipv4, Self::Ipv6, Self::Interface, Self::Protocol, Self::Port];

    /// Returns the length of the field in bytes, without padding.
    pub fn length(self) -> u8 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 | Self::Interface => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }

    /// Returns the number of 32-bit words that the field occupies in registers and in a concatenated key.
    pub fn words(self) -> u8 {
        self.length().div_ceil(4)
    }

    /// Returns nft(8)'s number for the data type. Source: `enum datatypes` in nftables' include/datatype.h.
    pub fn type_id(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Interface => 41,
        }
    }

    /// Returns nft(8)'s name for the data type.
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

/// The key and data types of a map. A shape without data describes a set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The fields of a key.
    pub key: Vec<Field>,
    /// The fields of the data.
    pub data: Vec<Field>,
}

impl Shape {
    /// Returns the length of a key or of data in bytes. The kernel pads each field of a concatenation to whole 32-bit
    /// words, but does not pad a single field.
    pub fn length(fields: &[Field]) -> u8 {
        match fields {
            [field] => field.length(),
            fields => fields.iter().map(|field| field.words() * 4).sum(),
        }
    }

    /// Returns the type number of a concatenation. Each field has six bits. Source: `concat_subtype_add` in nftables'
    /// include/datatype.h.
    pub fn type_id(fields: &[Field]) -> u32 {
        fields.iter().fold(0, |id, field| (id << 6) | field.type_id())
    }

    /// Splits the type number of a concatenation into fields. Returns `None` if portfwd does not use one of the types.
    pub fn fields(mut type_id: u32) -> Option<Vec<Field>> {
        let mut fields = Vec::new();
        while type_id > 0 {
            fields.insert(0, Field::ALL.into_iter().find(|field| field.type_id() == type_id & 0x3f)?);
            type_id >>= 6;
        }
        Some(fields)
    }
}

/// The key of a map element, as the kernel stores it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub Box<[u8]>);

/// A map element without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The data of the element; empty in a set.
    pub data: Box<[u8]>,
    /// The name of the rule set and the forward's comment.
    pub comment: Arc<str>,
    /// The port range that the element is a part of. `None` for a single port.
    pub span: Option<Span>,
    /// The counter that the kernel reported; zero in a compiled program.
    pub counter: Counter,
}

impl Element {
    /// Returns true if both elements have the same data, comment and range. Ignores the counters.
    pub fn same_content(&self, other: &Self) -> bool {
        (&self.data, &self.comment, self.span) == (&other.data, &other.comment, other.span)
    }
}

/// A map and its elements. Each element has a counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// The key and data types.
    pub shape: Shape,
    /// The elements by key.
    pub elements: BTreeMap<Key, Element>,
}

/// The contents of table `inet portfwd`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// True if the table exists.
    pub table: bool,
    /// True if the table has flags. portfwd sets no flags.
    pub flagged: bool,
    /// True if the table has the flag `dormant`. No packet traverses such a table.
    pub dormant: bool,
    /// The chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// The maps by name.
    pub maps: BTreeMap<String, Map>,
}

impl Program {
    /// Returns the number of elements in all maps.
    pub fn element_count(&self) -> usize {
        self.maps.values().map(|map| map.elements.len()).sum()
    }

    /// Returns a hash of the table, its chains and rules, and the shapes of its maps. The elements of the maps do not
    /// affect the hash.
    ///
    /// Two different layouts have the same hash with probability 2^-64. Another build of portfwd may return another
    /// hash.
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
    fn fields_round_trip_through_type_numbers() {
        let fields = vec![Field::Ipv6, Field::Interface, Field::Ipv6, Field::Protocol, Field::Port];
        assert_eq!(Shape::fields(Shape::type_id(&fields)), Some(fields));
        assert_eq!(Shape::fields(1), None);
        assert_eq!(Shape::fields(0), Some(vec![]));
    }

    #[test]
    fn layout_hash_depends_on_everything_except_elements() {
        let layout_after = |change: &dyn Fn(&mut Program)| {
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
        let same = layout_after(&|_| {});
        let add_element = |map: &mut Map| {
            let element = Element { data: [1; 4].into(), comment: "".into(), span: None, counter: Counter::default() };
            map.elements.insert(Key([0; 2].into()), element);
        };
        assert_eq!(layout_after(&|program| program.maps.values_mut().for_each(add_element)), same);
        let others = [
            layout_after(&|program| program.table = false),
            layout_after(&|program| program.flagged = true),
            layout_after(&|program| program.chains.clear()),
            layout_after(&|program| program.chains.values_mut().for_each(|chain| chain.rules.clear())),
            layout_after(&|program| {
                let base = Base { chain_type: ChainType::Nat, hook: Hook::Output, priority: -100 };
                program.chains.values_mut().for_each(|chain| chain.base = Some(base));
            }),
            layout_after(&|program| program.maps.clear()),
            layout_after(&|program| program.maps.values_mut().for_each(|map| map.shape.data.push(Field::Port))),
            layout_after(&|program| program.maps.values_mut().for_each(|map| map.shape.key = map.shape.data.clone())),
        ];
        for (index, other) in others.iter().enumerate() {
            assert!(*other != same && !others[..index].contains(other), "{index}");
        }
    }
}
