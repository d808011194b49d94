//! `meta load`: loads packet metadata.

use std::fmt;

use nftnl_sys::{self as sys, libc};

use super::{Attributes, Read, Register, Value, attribute, constant};

const KEY: u16 = attribute(sys::NFTNL_EXPR_META_KEY);
const DREG: u16 = attribute(sys::NFTNL_EXPR_META_DREG);

/// The packet metadata that `meta` loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MetaKey {
    /// `meta nfproto`, the family: 1 byte, with 2 for IPv4 and 10 for IPv6.
    NfProto,
    /// `meta l4proto`, the transport protocol: 1 byte.
    L4Proto,
    /// `iifname`, the name of the ingress interface: 16 bytes. A packet without an ingress interface does not match the
    /// rule.
    IifName,
    /// `oifname`, the name of the egress interface: 16 bytes. A packet without an egress interface does not match the
    /// rule.
    OifName,
}

impl MetaKey {
    const ALL: [Self; 4] = [Self::NfProto, Self::L4Proto, Self::IifName, Self::OifName];

    fn number(self) -> u32 {
        constant(match self {
            Self::IifName => libc::NFT_META_IIFNAME,
            Self::OifName => libc::NFT_META_OIFNAME,
            Self::NfProto => libc::NFT_META_NFPROTO,
            Self::L4Proto => libc::NFT_META_L4PROTO,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::NfProto => "nfproto",
            Self::L4Proto => "l4proto",
            Self::IifName => "iifname",
            Self::OifName => "oifname",
        }
    }
}

/// Loads packet metadata into a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Meta {
    /// The packet metadata to load.
    pub key: MetaKey,
    /// The first register word of the loaded metadata.
    pub to: Register,
}

impl Meta {
    pub(super) fn attributes(&self) -> Attributes {
        vec![(KEY, Value::U32(self.key.number())), (DREG, Value::U32(self.to.to_wire()))]
    }

    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        let number = attributes.number(KEY)?;
        let key = MetaKey::ALL.into_iter().find(|key| key.number() == number)?;
        Some(Self { key, to: attributes.register(DREG)? })
    }
}

impl fmt::Display for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "meta load {} => {}", self.key.name(), self.to)
    }
}
