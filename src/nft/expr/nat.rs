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
const REDIRECT_MIN: u16 = attribute(sys::NFTNL_EXPR_REDIR_REG_PROTO_MIN);
const REDIRECT_MAX: u16 = attribute(sys::NFTNL_EXPR_REDIR_REG_PROTO_MAX);
const MASQUERADE_PORT: u16 = attribute(sys::NFTNL_EXPR_MASQ_REG_PROTO_MIN);

const SNAT: u32 = constant(libc::NFT_NAT_SNAT);
const DNAT: u32 = constant(libc::NFT_NAT_DNAT);
const IPV4: u32 = constant(libc::NFPROTO_IPV4);
const IPV6: u32 = constant(libc::NFPROTO_IPV6);

/// Rewrites the destination, or the source, to what registers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nat {
    /// Whether the source is rewritten; otherwise the destination.
    pub source: bool,
    /// The family of the address.
    pub family: Family,
    /// Where the address is.
    pub address: Register,
    /// Where the port is; none: it stays.
    pub port: Option<Register>,
}

impl Nat {
    pub(super) fn attributes(&self) -> Attributes {
        let family = match self.family {
            Family::Ipv4 => IPV4,
            Family::Ipv6 => IPV6,
        };
        let mut attributes = vec![
            (TYPE, Value::U32(if self.source { SNAT } else { DNAT })),
            (FAMILY, Value::U32(family)),
            (ADDRESS_MIN, Value::U32(self.address.to_wire())),
        ];
        attributes.extend(self.port.map(|port| (PORT_MIN, Value::U32(port.to_wire()))));
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
        let address = attributes.register(ADDRESS_MIN)?;
        let port = attributes.register(PORT_MIN);
        // The kernel reports an end for every beginning; a real range is none of ours.
        let one = |end: Option<Register>, begin: Option<Register>| end.is_none() || end == begin;
        let plain = one(attributes.register(ADDRESS_MAX), Some(address)) && one(attributes.register(PORT_MAX), port);
        plain.then_some(Self { source, family, address, port })
    }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        };
        write!(f, "nat {} {family} addr_min {}", if self.source { "snat" } else { "dnat" }, self.address)?;
        match self.port {
            Some(port) => write!(f, " proto_min {port}"),
            None => Ok(()),
        }
    }
}

/// Sends the packet to this host: to the first address of the interface it arrived by, or to the loopback address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masquerade;

impl Masquerade {
    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        attributes.register(MASQUERADE_PORT).is_none().then_some(Self)
    }
}
