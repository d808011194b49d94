//! What a rule looks at: a field of the packet, bits of one, several together, or something that is not understood.

use std::sync::Arc;

use super::number::{self, Kind};
use super::value::Json;
use crate::model::Family;
use crate::ruleset::region::{Condition, Field, Region};
use crate::ruleset::set::Set;
use crate::ruleset::table::TableFamily;

/// What is looked at.
#[derive(Debug, Clone, PartialEq)]
enum What {
    /// A field.
    Whole(Field, Kind),
    /// These bits of it.
    Bits(Field, Kind, u128),
    /// Something else.
    Unknown,
}

/// One thing that a rule looks at.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    what: What,
    /// The packets that have it at all: `tcp dport` is only of those of TCP. nft(8) does not print that it asks for this.
    pub of: Region,
    words: Arc<str>,
}

/// The protocols of the headers that nft(8) knows, and the family where there is but one.
const HEADERS: [(&str, u128, Option<Family>); 12] = [
    ("tcp", 6, None),
    ("udp", 17, None),
    ("sctp", 132, None),
    ("dccp", 33, None),
    ("udplite", 136, None),
    ("icmp", 1, Some(Family::Ipv4)),
    ("igmp", 2, Some(Family::Ipv4)),
    ("icmpv6", 58, Some(Family::Ipv6)),
    ("esp", 50, None),
    ("ah", 51, None),
    ("comp", 108, None),
    ("gre", 47, None),
];

/// The number of a family as a value of [`Field::Family`].
pub fn number_of(family: Family) -> u128 {
    match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 6,
    }
}

/// Narrows packets to those of a family, unless the table sees no others.
pub fn only(region: &mut Region, family: Family, table: TableFamily) {
    if table != family.into() {
        region.narrow(Field::Family, &Set::single(number_of(family)));
    }
}

/// The number that an expression is for every packet: a number of one is always the first, `numgen inc mod 1`.
pub fn constant(left: &Json<'_>) -> Option<u64> {
    let Some(("numgen", of)) = left.only() else { return None };
    let number = |key| of.get(key).and_then(Json::number);
    (number("mod") == Some(1)).then(|| number("offset").unwrap_or(0))
}

/// What an expression looks at: more than one thing where it is a concatenation.
pub fn parts(left: &Json<'_>, table: TableFamily) -> Vec<Part> {
    match left.only() {
        Some(("concat", list)) => list.list().iter().map(|one| Part::new(one, table)).collect(),
        _ => vec![Part::new(left, table)],
    }
}

impl Part {
    fn new(left: &Json<'_>, table: TableFamily) -> Self {
        let mut of = Region::all();
        let what = what(left, table, &mut of);
        Self { what, of, words: left.words() }
    }

    /// The field that it looks at.
    pub fn field(&self) -> Option<Field> {
        match self.what {
            What::Whole(field, _) | What::Bits(field, ..) => Some(field),
            What::Unknown => None,
        }
    }

    /// Lets it not be known, because the rule itself has changed it.
    pub fn forget(&mut self) {
        self.what = What::Unknown;
    }

    /// The field, and the numbers of it that a constant stands for; `None` where it is only bits of one, or not understood.
    pub fn set(&self, value: &Json<'_>) -> Option<(Field, Set)> {
        match self.what {
            What::Whole(field, kind) => Some((field, kind.set(value)?)),
            _ => None,
        }
    }

    /// Narrows packets to those of which it compares so to a constant. What cannot be told becomes a condition.
    pub fn ask(&self, region: &mut Region, operator: &str, value: &Json<'_>) {
        let asked = match self.what {
            What::Whole(field, kind) => whole(region, field, kind, operator, value),
            What::Bits(field, kind, mask) => bits(region, field, kind, mask, operator, value),
            What::Unknown => None,
        };
        if asked.is_none() {
            let operator = if operator == "==" { String::new() } else { format!("{operator} ") };
            region.add_condition(Condition::Unknown(format!("{} {operator}{}", self.words, value.words()).into()));
        }
    }
}

fn whole(region: &mut Region, field: Field, kind: Kind, operator: &str, value: &Json<'_>) -> Option<()> {
    let flags = matches!(kind, Kind::Mark | Kind::Label | Kind::Status | Kind::State);
    let ordered = matches!(kind, Kind::Address(_) | Kind::Port | Kind::Protocol | Kind::Mark | Kind::Status);
    let constant = || kind.constant(value);
    let set = match operator {
        "==" => kind.set(value)?,
        "!=" => kind.set(value)?.not(),
        "<" | "<=" | ">" | ">=" if ordered => {
            let number = constant()?;
            match operator {
                "<" => number.checked_sub(1).map_or(Set::none(), |last| Set::range(0, last)),
                "<=" => Set::range(0, number),
                ">" => number.checked_add(1).map_or(Set::none(), |first| Set::range(first, u128::MAX)),
                _ => Set::range(number, u128::MAX),
            }
        }
        "in" | "!" if flags => {
            let (flags, some) = (constant()?, operator == "in");
            if kind != Kind::State {
                region.add_condition(Condition::Bits { field, mask: flags, value: 0, not: some });
                return Some(());
            }
            number::states(|bit| (bit & flags != 0) == some)
        }
        _ => return None,
    };
    region.narrow(field, &set);
    Some(())
}

fn bits(region: &mut Region, field: Field, kind: Kind, mask: u128, operator: &str, value: &Json<'_>) -> Option<()> {
    let not = match operator {
        "==" => false,
        "!=" => true,
        _ => return None,
    };
    let value = kind.constant(value)?;
    if kind == Kind::State {
        region.narrow(field, &number::states(|bit| (bit & mask == value) != not));
        return Some(());
    }
    if let Some(within) = kind.behind_prefix(mask) {
        // The bits are the first ones, as those of a network, so that the numbers are a range.
        let set = if value & within == 0 { Set::range(value, value | within) } else { Set::none() };
        region.narrow(field, &if not { set.not() } else { set });
        return Some(());
    }
    if kind == Kind::Address(Family::Ipv6)
        && mask >= 0xffff_ffff
        && mask.checked_add(1).is_some_and(u128::is_power_of_two)
    {
        // `Region::ask` would take so many low bits to be the whole field.
        return None;
    }
    region.add_condition(Condition::Bits { field, mask, value, not });
    Some(())
}

fn what(left: &Json<'_>, table: TableFamily, of: &mut Region) -> What {
    match left.only() {
        Some(("payload", header)) => payload(header, table, of),
        Some(("meta", meta)) => self::meta(meta.text_of("key").unwrap_or_default()),
        Some(("ct", ct)) => self::ct(ct, table, of),
        Some(("fib", fib)) => self::fib(fib),
        Some(("&", Json::List(operands))) => {
            let [left, masks @ ..] = &**operands else { return What::Unknown };
            let What::Whole(field, kind) = what(left, table, of) else { return What::Unknown };
            let mask = masks.iter().try_fold(u128::MAX, |mask, one| Some(mask & kind.constant(one)?));
            match mask {
                Some(mask) if !masks.is_empty() => What::Bits(field, kind, mask),
                _ => What::Unknown,
            }
        }
        Some(("|" | "^" | "<<" | ">>", Json::List(operands))) => {
            if let Some(left) = operands.first() {
                what(left, table, of);
            }
            What::Unknown
        }
        _ => What::Unknown,
    }
}

fn payload(header: &Json<'_>, table: TableFamily, of: &mut Region) -> What {
    let (protocol, field) = match (header.text_of("protocol"), header.text_of("field")) {
        (Some(protocol), Some(field)) => (protocol, field),
        _ => {
            let number = |key| header.get(key).and_then(Json::number);
            return match (header.text_of("base"), number("offset"), number("len")) {
                (Some("th"), Some(0), Some(16)) => What::Whole(Field::SourcePort, Kind::Port),
                (Some("th"), Some(16), Some(16)) => What::Whole(Field::Port, Kind::Port),
                _ => What::Unknown,
            };
        }
    };
    let family = match protocol {
        "ip" => Some(Family::Ipv4),
        "ip6" => Some(Family::Ipv6),
        "th" => None,
        _ => {
            let Some((_, number, family)) = HEADERS.iter().find(|(name, ..)| *name == protocol) else {
                return What::Unknown;
            };
            of.narrow(Field::Protocol, &Set::single(*number));
            *family
        }
    };
    if let Some(family) = family {
        only(of, family, table);
    }
    match (protocol, field) {
        ("ip", "saddr") => What::Whole(Field::Source, Kind::Address(Family::Ipv4)),
        ("ip", "daddr") => What::Whole(Field::Destination, Kind::Address(Family::Ipv4)),
        ("ip6", "saddr") => What::Whole(Field::Source, Kind::Address(Family::Ipv6)),
        ("ip6", "daddr") => What::Whole(Field::Destination, Kind::Address(Family::Ipv6)),
        ("ip", "protocol") | ("ip6", "nexthdr") => What::Whole(Field::Protocol, Kind::Protocol),
        ("tcp" | "udp" | "sctp" | "dccp" | "udplite" | "th", "sport") => What::Whole(Field::SourcePort, Kind::Port),
        ("tcp" | "udp" | "sctp" | "dccp" | "udplite" | "th", "dport") => What::Whole(Field::Port, Kind::Port),
        _ => What::Unknown,
    }
}

fn meta(key: &str) -> What {
    match key {
        "iifname" => What::Whole(Field::Input, Kind::Name),
        "oifname" => What::Whole(Field::Output, Kind::Name),
        "iif" => What::Whole(Field::Input, Kind::Index),
        "oif" => What::Whole(Field::Output, Kind::Index),
        "nfproto" => What::Whole(Field::Family, Kind::Family),
        "protocol" => What::Whole(Field::Family, Kind::Ether),
        "l4proto" => What::Whole(Field::Protocol, Kind::Protocol),
        "mark" => What::Whole(Field::Mark, Kind::Mark),
        _ => What::Unknown,
    }
}

fn ct(ct: &Json<'_>, table: TableFamily, of: &mut Region) -> What {
    let key = ct.text_of("key").unwrap_or_default();
    // Older ones have the family apart, newer ones as a word of the key.
    let (family, key) = match key.split_once(' ') {
        Some((family, key)) => (Some(family), key),
        None => (ct.text_of("family"), key),
    };
    let family = match (family, table) {
        (Some("ip"), _) | (None, TableFamily::Ip) => Some(Family::Ipv4),
        (Some("ip6"), _) | (None, TableFamily::Ip6) => Some(Family::Ipv6),
        _ => None,
    };
    match (ct.text_of("dir"), key) {
        (None, "state") => What::Whole(Field::State, Kind::State),
        (None, "status") => What::Whole(Field::Status, Kind::Status),
        (None, "mark") => What::Whole(Field::ConnectionMark, Kind::Mark),
        (None, "label") => What::Whole(Field::Label, Kind::Label),
        (None, "direction") => What::Whole(Field::Direction, Kind::Direction),
        (Some("original"), "proto-dst") => What::Whole(Field::OriginalPort, Kind::Port),
        (Some("original"), "daddr") => match family {
            Some(family) => {
                only(of, family, table);
                What::Whole(Field::OriginalDestination, Kind::Address(family))
            }
            None => What::Unknown,
        },
        _ => What::Unknown,
    }
}

fn fib(fib: &Json<'_>) -> What {
    let flags = fib.get("flags").map(Json::list).unwrap_or_default();
    // With an interface besides, only addresses of that one are local.
    match (fib.text_of("result"), flags) {
        (Some("type"), [flag]) => match flag.text() {
            Some("daddr") => What::Whole(Field::DestinationKind, Kind::Reach),
            Some("saddr") => What::Whole(Field::SourceKind, Kind::Reach),
            _ => What::Unknown,
        },
        // nft(8) prints the flags in this order. Newer versions than 1.0.6 name the result `check`.
        (Some("oif" | "check"), [daddr, iif]) if daddr.names("daddr") && iif.names("iif") => {
            What::Whole(Field::RouteViaInput, Kind::Boolean)
        }
        _ => What::Unknown,
    }
}
