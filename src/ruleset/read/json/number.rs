//! Constants of expressions as numbers: addresses, ports, protocols, marks, states.

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::value::Json;
use crate::model::Family;
use crate::ruleset::region::{self, State};
use crate::ruleset::set::{self, Set};

/// What the numbers of a field stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Addresses of a family.
    Address(Family),
    /// Ports.
    Port,
    /// Transport protocols.
    Protocol,
    /// Names of interfaces.
    Name,
    /// Interfaces by number, which nft(8) prints as their names where there are some.
    Index,
    /// Marks.
    Mark,
    /// Connection labels: label 0 is the lowest bit of the highest byte.
    Label,
    /// States of connections, bits of which a connection has one.
    State,
    /// Statuses of connections, bits.
    Status,
    /// Kinds of addresses: this host, others, broadcast.
    Reach,
    /// Directions of connections.
    Direction,
    /// `exists` and `missing`, which nft -j prints as `true` and `false`.
    Boolean,
    /// Families, as nf_tables has them.
    Family,
    /// Families, as Ethernet has them.
    Ether,
}

/// The names of protocols of which nft(8) prints no number. Source: `/etc/protocols` of Debian 12.
const PROTOCOLS: [(&str, u128); 27] = [
    ("icmp", 1),
    ("igmp", 2),
    ("ipencap", 4),
    ("tcp", 6),
    ("egp", 8),
    ("igp", 9),
    ("udp", 17),
    ("ipv6", 41),
    ("ipv6-route", 43),
    ("ipv6-frag", 44),
    ("rsvp", 46),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("icmpv6", 58),
    ("ipv6-nonxt", 59),
    ("ipv6-opts", 60),
    ("ospf", 89),
    ("pim", 103),
    ("ipcomp", 108),
    ("comp", 108),
    ("vrrp", 112),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
];

/// The names of kinds of addresses in the order of `RTN_…` in include/uapi/linux/rtnetlink.h.
const ADDRESS_KINDS: [&str; 12] = [
    "unspec",
    "unicast",
    "local",
    "broadcast",
    "anycast",
    "multicast",
    "blackhole",
    "unreachable",
    "prohibit",
    "throw",
    "nat",
    "xresolve",
];

/// The names of states, with the bits of [`State`].
const STATES: [(&str, State); 5] = [
    ("invalid", State::Invalid),
    ("established", State::Established),
    ("related", State::Related),
    ("new", State::New),
    ("untracked", State::Untracked),
];

/// The names of statuses. Source: `enum ip_conntrack_status` in include/uapi/linux/netfilter/nf_conntrack_common.h.
const STATUSES: [(&str, u128); 7] = [
    ("expected", 1),
    ("seen-reply", 1 << 1),
    ("assured", 1 << 2),
    ("confirmed", 1 << 3),
    ("snat", region::SRC_NAT),
    ("dnat", region::DST_NAT),
    ("dying", 1 << 9),
];

/// The states of which the bit is so.
pub fn states(is: impl Fn(u128) -> bool) -> Set {
    region::states(State::ALL.into_iter().filter(|state| is(1 << state.number())))
}

impl Kind {
    /// How many bits a number has; `None` of what has no prefixes.
    fn bits(self) -> Option<u32> {
        match self {
            Self::Address(Family::Ipv4) | Self::Mark => Some(32),
            Self::Address(Family::Ipv6) => Some(128),
            Self::Port => Some(16),
            _ => None,
        }
    }

    /// All bits of a number.
    fn most(self) -> u128 {
        match self {
            Self::Address(Family::Ipv6) | Self::Label => u128::MAX,
            Self::Address(Family::Ipv4) | Self::Mark | Self::State | Self::Status => 0xffff_ffff,
            Self::Port => 0xffff,
            _ => 0xff,
        }
    }

    /// The bits behind those of a mask, where the mask is that of a prefix.
    pub fn behind_prefix(self, mask: u128) -> Option<u128> {
        self.bits()?;
        let behind = self.most() & !mask;
        (behind & behind.wrapping_add(1) == 0 && mask | behind == self.most()).then_some(behind)
    }

    /// The number that a constant stands for; of flags all of them together. `None` where it is none, or is too high.
    pub fn constant(self, value: &Json<'_>) -> Option<u128> {
        match value {
            Json::Number(number) => self.of_number((*number).into()),
            Json::Text(text) => self.of_text(text),
            Json::Bool(is) if self == Self::Boolean => Some((*is).into()),
            Json::List(list) => self.flags(list),
            Json::Object(_) => match value.only()? {
                ("|", Json::List(list)) => self.flags(list),
                ("elem", of) => self.constant(of.get("val")?),
                _ => None,
            },
            _ => None,
        }
    }

    fn flags(self, list: &[Json<'_>]) -> Option<u128> {
        let are_flags = matches!(self, Self::Mark | Self::Label | Self::State | Self::Status);
        (are_flags && !list.is_empty())
            .then(|| list.iter().try_fold(0, |all, one| Some(all | self.constant(one)?)))
            .flatten()
    }

    fn of_number(self, number: u128) -> Option<u128> {
        match self {
            Self::Address(_) | Self::Name | Self::Index => None,
            Self::Family => match number {
                2 => Some(4),
                10 => Some(6),
                _ => None,
            },
            Self::Ether => match number {
                0x0800 => Some(4),
                0x86dd => Some(6),
                _ => None,
            },
            Self::Direction | Self::Boolean => (number <= 1).then_some(number),
            Self::Label => (number < 128).then(|| 1 << (120 - number / 8 * 8 + number % 8)),
            _ => (number <= self.most()).then_some(number),
        }
    }

    fn of_text(self, text: &str) -> Option<u128> {
        let named = |names: &[(&str, u128)]| names.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
        match self {
            Self::Address(family) => {
                let address: IpAddr = text.parse().ok()?;
                (Family::of_address(address) == family).then(|| set::number_of(address))
            }
            // nft(8) prints the 128 bits of an element as an IPv6 address.
            Self::Label => text.parse::<Ipv6Addr>().ok().map(u128::from),
            Self::Protocol => named(&PROTOCOLS),
            Self::State => STATES.iter().find(|(name, _)| *name == text).map(|(_, state)| 1 << state.number()),
            Self::Status => named(&STATUSES),
            Self::Reach => {
                let at = ADDRESS_KINDS.iter().position(|name| *name == text)?;
                u128::try_from(at).ok()
            }
            Self::Direction => named(&[("original", 0), ("reply", 1)]),
            Self::Family => named(&[("ipv4", 4), ("ipv6", 6)]),
            Self::Ether => named(&[("ip", 4), ("ip6", 6)]),
            Self::Port | Self::Mark | Self::Name | Self::Index | Self::Boolean => None,
        }
    }

    /// The numbers that a constant, a range or a prefix stands for. `None` where that is not understood.
    pub fn set(self, value: &Json<'_>) -> Option<Set> {
        match value.only() {
            Some(("elem", of)) => return self.set(of.get("val")?),
            Some(("range", ends)) => {
                let [first, last] = ends.list() else { return None };
                let (first, last) = (self.constant(first)?, self.constant(last)?);
                return (first <= last && self != Self::State).then(|| Set::range(first, last));
            }
            Some(("prefix", of)) => return self.prefix(of),
            _ => {}
        }
        match self {
            Self::Name | Self::Index => self.interface(value.text()?),
            Self::State => {
                let bits = self.constant(value)?;
                Some(states(|bit| bit == bits))
            }
            _ => self.constant(value).map(Set::single),
        }
    }

    fn prefix(self, of: &Json<'_>) -> Option<Set> {
        let length = u32::try_from(of.get("len")?.number()?).ok()?;
        if let Self::Address(family) = self {
            let address: IpAddr = of.text_of("addr")?.parse().ok()?;
            let network = IpNetwork::new(address, u8::try_from(length).ok()?).ok()?;
            return (Family::of_address(address) == family).then(|| Set::network(network));
        }
        let first = self.constant(of.get("addr")?)?;
        let rest = self.bits()?.checked_sub(length)?;
        let within = (1u128 << rest) - 1;
        Some(Set::range(first & !within, first | within))
    }

    fn interface(self, text: &str) -> Option<Set> {
        if self == Self::Index && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // The number of an interface that was gone, or an interface with such a name: nft(8) prints both alike.
            return None;
        }
        let length = text.trim_end_matches('*').len();
        if text.is_empty() || length > 15 {
            return None;
        }
        Some(match text.strip_suffix("\\*") {
            Some(beginning) => Set::single(set::number_of_name(format!("{beginning}*").as_bytes(), 0)),
            None if self == Self::Name => Set::interface(text, '*'),
            None => Set::single(set::number_of_name(text.as_bytes(), 0)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(kind: Kind, text: &str) -> Option<Set> {
        kind.set(&serde_json::from_str(text).expect("JSON"))
    }

    #[test]
    fn constants_are_what_nft_means_by_them() {
        let v4 = Kind::Address(Family::Ipv4);
        for (kind, text, wanted) in [
            (v4, r#""10.0.0.1""#, Set::address([10, 0, 0, 1].into())),
            (v4, r#"{"prefix": {"addr": "10.0.0.0", "len": 8}}"#, Set::range(0x0a00_0000, 0x0aff_ffff)),
            (v4, r#"{"range": ["0.0.0.1", "0.0.0.9"]}"#, Set::range(1, 9)),
            (Kind::Port, r#"{"elem": {"val": 443, "comment": "x"}}"#, Set::single(443)),
            (Kind::Mark, r#"{"prefix": {"addr": 0, "len": 1}}"#, Set::range(0, 0x7fff_ffff)),
            (Kind::Mark, r#"{"|": [1, 4, 8]}"#, Set::single(13)),
            (Kind::Protocol, r#""ipv6-icmp""#, Set::single(58)),
            (Kind::State, r#""new""#, Set::single(3)),
            (Kind::State, r#"["new", "related"]"#, Set::none()),
            (Kind::Status, r#"["snat", "dnat"]"#, Set::single(0x30)),
            (Kind::Reach, r#""local""#, Set::single(region::LOCAL)),
            (Kind::Family, "10", Set::single(6)),
            (Kind::Name, r#""eth*""#, Set::interface("eth*", '*')),
            (Kind::Name, r#""\\*""#, Set::single(set::number_of_name(b"*", 0))),
            (Kind::Index, r#""lo""#, Set::interface("lo", '*')),
        ] {
            assert_eq!(set(kind, text), Some(wanted), "{kind:?} {text}");
        }
    }

    #[test]
    fn what_is_no_constant_is_not_guessed() {
        let v4 = Kind::Address(Family::Ipv4);
        for (kind, text) in [
            (v4, r#""fd00::1""#),
            (v4, r#""example.org""#),
            (v4, r#"{"prefix": {"addr": "10.0.0.0", "len": 33}}"#),
            (v4, r#"{"prefix": {"addr": "10.0.0.0", "len": -1}}"#),
            (v4, r#"{"range": ["10.0.0.2", "10.0.0.1"]}"#),
            (v4, r#"{"range": ["10.0.0.2"]}"#),
            (Kind::Port, "65536"),
            (Kind::Port, "-1"),
            (Kind::Port, "1.5"),
            (Kind::Port, r#""http""#),
            (Kind::Port, r#"{"prefix": {"addr": 1, "len": 17}}"#),
            (Kind::Mark, "4294967296"),
            (Kind::Mark, "[]"),
            (Kind::Protocol, "256"),
            (Kind::Index, r#""77""#),
            (Kind::Name, r#""a-name-that-is-far-too-long""#),
            (Kind::Family, "7"),
            (Kind::Direction, "2"),
        ] {
            assert_eq!(set(kind, text), None, "{kind:?} {text}");
        }
    }
}
