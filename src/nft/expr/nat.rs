//! `nat`, `redir` and `masq`: what rewrites addresses.

use std::fmt;

use nftnl_sys::{self as sys, libc};

use super::{Attributes, Read, Register, Value, attribute, constant};
use crate::model::Family;

const TYPE: u16 = attribute(sys::NFTNL_EXPR_NAT_TYPE);
const FAMILY: u16 = attribute(sys::NFTNL_EXPR_NAT_FAMILY);
const ADDRESS_MIN: u16 = attribute(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN);
const ADDRESS_MAX: u16 = attribute(sys::NFTNL_EXPR_NAT_REG_ADDR_MAX);
const PORT_MIN: u16 = attribute(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN);
const PORT_MAX: u16 = attribute(sys::NFTNL_EXPR_NAT_REG_PROTO_MAX);
const FLAGS: u16 = attribute(sys::NFTNL_EXPR_NAT_FLAGS);
const REDIRECT_MIN: u16 = attribute(sys::NFTNL_EXPR_REDIR_REG_PROTO_MIN);
const REDIRECT_MAX: u16 = attribute(sys::NFTNL_EXPR_REDIR_REG_PROTO_MAX);
const MASQUERADE_PORT: u16 = attribute(sys::NFTNL_EXPR_MASQ_REG_PROTO_MIN);

const SNAT: u32 = constant(libc::NFT_NAT_SNAT);
const DNAT: u32 = constant(libc::NFT_NAT_DNAT);
const IPV4: u32 = constant(libc::NFPROTO_IPV4);
const IPV6: u32 = constant(libc::NFPROTO_IPV6);

/// What the kernel adds by itself where there is an address or a port. Source: `NF_NAT_RANGE_MAP_IPS`,
/// `NF_NAT_RANGE_PROTO_SPECIFIED` in include/uapi/linux/netfilter/nf_nat.h.
const IMPLIED: u32 = 1 | 2;

/// How an address and a port are chosen from ranges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Choice {
    /// The first that is free.
    #[default]
    Plain,
    /// `random`.
    Random,
    /// `fully-random`.
    FullyRandom,
    /// `persistent`.
    Persistent,
    /// `prefix`: only the part of the address that the ends of the range have in common is rewritten.
    Prefix,
}

impl Choice {
    const ALL: [Self; 5] = [Self::Plain, Self::Random, Self::FullyRandom, Self::Persistent, Self::Prefix];

    /// Source: `NF_NAT_RANGE_…` in include/uapi/linux/netfilter/nf_nat.h.
    fn number(self) -> u32 {
        match self {
            Self::Plain => 0,
            Self::Random => 1 << 2,
            Self::Persistent => 1 << 3,
            Self::FullyRandom => 1 << 4,
            Self::Prefix => 1 << 6,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Random => " random",
            Self::FullyRandom => " fully-random",
            Self::Persistent => " persistent",
            Self::Prefix => " prefix",
        }
    }
}

/// The registers of the two ends of a range, or of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ends {
    /// Where the lower end is.
    pub first: Register,
    /// Where the upper end is, included; none: there is but one value.
    pub last: Option<Register>,
}

impl From<Register> for Ends {
    fn from(first: Register) -> Self {
        Self { first, last: None }
    }
}

impl Ends {
    fn attributes(self, first: u16, last: u16) -> impl Iterator<Item = (u16, Value)> {
        let upper = self.last.map(|register| (last, Value::U32(register.to_wire())));
        std::iter::once((first, Value::U32(self.first.to_wire()))).chain(upper)
    }

    /// The kernel reports an upper end for every lower one, the same where none was given.
    fn read(attributes: &impl Read, first: u16, last: u16) -> Option<Self> {
        let first = attributes.register(first)?;
        Some(Self { first, last: attributes.register(last).filter(|last| *last != first) })
    }
}

/// Rewrites the destination, or the source, to what registers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nat {
    /// Whether the source is rewritten; otherwise the destination.
    pub source: bool,
    /// The family of the address.
    pub family: Family,
    /// Where the address is.
    pub address: Ends,
    /// Where the port is; none: it stays.
    pub port: Option<Ends>,
    /// How they are chosen.
    pub choice: Choice,
}

impl Nat {
    pub(super) fn attributes(&self) -> Attributes {
        let family = match self.family {
            Family::Ipv4 => IPV4,
            Family::Ipv6 => IPV6,
        };
        let mut attributes =
            vec![(TYPE, Value::U32(if self.source { SNAT } else { DNAT })), (FAMILY, Value::U32(family))];
        attributes.extend(self.address.attributes(ADDRESS_MIN, ADDRESS_MAX));
        attributes.extend(self.port.into_iter().flat_map(|port| port.attributes(PORT_MIN, PORT_MAX)));
        if self.choice != Choice::Plain {
            attributes.push((FLAGS, Value::U32(self.choice.number())));
        }
        attributes
    }

    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        let source = match attributes.number(TYPE)? {
            SNAT => true,
            DNAT => false,
            _ => return None,
        };
        let family = match attributes.number(FAMILY)? {
            IPV4 => Family::Ipv4,
            IPV6 => Family::Ipv6,
            _ => return None,
        };
        let flags = attributes.number(FLAGS).unwrap_or(0) & !IMPLIED;
        let choice = Choice::ALL.into_iter().find(|choice| choice.number() == flags)?;
        let address = Ends::read(attributes, ADDRESS_MIN, ADDRESS_MAX)?;
        let port = Ends::read(attributes, PORT_MIN, PORT_MAX);
        Some(Self { source, family, address, port, choice })
    }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        };
        write!(f, "nat {} {family}", if self.source { "snat" } else { "dnat" })?;
        for (name, ends) in [("addr", Some(self.address)), ("proto", self.port)] {
            let Some(ends) = ends else { continue };
            write!(f, " {name}_min {}", ends.first)?;
            if let Some(last) = ends.last {
                write!(f, " {name}_max {last}")?;
            }
        }
        f.write_str(self.choice.name())
    }
}

/// Sends the packet to this host: to the first address of the interface it arrived by, or to the loopback address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Redirect {
    /// Where the port is; none: it stays.
    pub port: Option<Register>,
}

impl Redirect {
    pub(super) fn attributes(&self) -> Attributes {
        self.port.map(|port| (REDIRECT_MIN, Value::U32(port.to_wire()))).into_iter().collect()
    }

    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        let port = attributes.register(REDIRECT_MIN);
        let end = attributes.register(REDIRECT_MAX);
        (end.is_none() || end == port).then_some(Self { port })
    }
}

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "redir proto_min {port}"),
            None => f.write_str("redir"),
        }
    }
}

/// Rewrites the source to the address of the interface that the packet leaves by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Masquerade;

impl Masquerade {
    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        attributes.register(MASQUERADE_PORT).is_none().then_some(Self)
    }
}
