//! `nat`, `redir` and `masq`: the NAT expressions.

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

/// Flags that the kernel sets by itself if a rule has an address or a port. Source: `NF_NAT_RANGE_MAP_IPS` and
/// `NF_NAT_RANGE_PROTO_SPECIFIED` in include/uapi/linux/netfilter/nf_nat.h.
const IMPLIED: u32 = 1 | 2;

/// A NAT flag of nft(8). The flag determines how the kernel selects an address and a port from ranges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum NatFlag {
    /// No flag: the kernel selects the first free address and port.
    #[default]
    None,
    /// `random`.
    Random,
    /// `fully-random`.
    FullyRandom,
    /// `persistent`.
    Persistent,
    /// `prefix`: the kernel rewrites only the bits that both ends of the address range have in common.
    Prefix,
}

impl NatFlag {
    const ALL: [Self; 5] = [Self::None, Self::Random, Self::FullyRandom, Self::Persistent, Self::Prefix];

    /// Returns the kernel's number for the flag. Source: `NF_NAT_RANGE_…` in include/uapi/linux/netfilter/nf_nat.h.
    fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Random => 1 << 2,
            Self::Persistent => 1 << 3,
            Self::FullyRandom => 1 << 4,
            Self::Prefix => 1 << 6,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Random => " random",
            Self::FullyRandom => " fully-random",
            Self::Persistent => " persistent",
            Self::Prefix => " prefix",
        }
    }
}

/// The registers that contain the two ends of a range, or a single value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegisterRange {
    /// The register with the lower end.
    pub first: Register,
    /// The register with the upper end, inclusive; `None` for a single value.
    pub last: Option<Register>,
}

impl From<Register> for RegisterRange {
    fn from(first: Register) -> Self {
        Self { first, last: None }
    }
}

impl RegisterRange {
    fn attributes(self, first: u16, last: u16) -> impl Iterator<Item = (u16, Value)> {
        let upper = self.last.map(|register| (last, Value::U32(register.to_wire())));
        std::iter::once((first, Value::U32(self.first.to_wire()))).chain(upper)
    }

    /// Reads a range. For a single value, the kernel reports one register as the lower and the upper end.
    fn read(attributes: &impl Read, first: u16, last: u16) -> Option<Self> {
        let first = attributes.register(first)?;
        Some(Self { first, last: attributes.register(last).filter(|last| *last != first) })
    }
}

/// Rewrites the source or the destination of a packet. The new address and port are in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nat {
    /// True for source NAT, false for destination NAT.
    pub source: bool,
    /// The family of the new address.
    pub family: Family,
    /// The registers with the new address or range of addresses.
    pub address: RegisterRange,
    /// The registers with the new port or range of ports; `None` keeps the port.
    pub port: Option<RegisterRange>,
    /// The flag for the selection from ranges.
    pub flag: NatFlag,
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
        if self.flag != NatFlag::None {
            attributes.push((FLAGS, Value::U32(self.flag.number())));
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
        let flag = NatFlag::ALL.into_iter().find(|flag| flag.number() == flags)?;
        let address = RegisterRange::read(attributes, ADDRESS_MIN, ADDRESS_MAX)?;
        let port = RegisterRange::read(attributes, PORT_MIN, PORT_MAX);
        Some(Self { source, family, address, port, flag })
    }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        };
        write!(f, "nat {} {family}", if self.source { "snat" } else { "dnat" })?;
        for (name, range) in [("addr", Some(self.address)), ("proto", self.port)] {
            let Some(range) = range else { continue };
            write!(f, " {name}_min {}", range.first)?;
            if let Some(last) = range.last {
                write!(f, " {name}_max {last}")?;
            }
        }
        f.write_str(self.flag.name())
    }
}

/// Rewrites the destination to this host. The new address is the first address of the ingress interface. For packets
/// from this host, the new address is the loopback address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Redirect {
    /// The register with the new port; `None` keeps the port.
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

/// Rewrites the source to the address of the egress interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Masquerade;

impl Masquerade {
    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        attributes.register(MASQUERADE_PORT).is_none().then_some(Self)
    }
}
