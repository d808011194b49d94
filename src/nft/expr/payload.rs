//! `payload load`: loads a header field.

use std::fmt;

use nftnl_sys as sys;

use super::{Attributes, Read, Register, Value, attribute};

const DREG: u16 = attribute(sys::NFTNL_EXPR_PAYLOAD_DREG);
const BASE: u16 = attribute(sys::NFTNL_EXPR_PAYLOAD_BASE);
const OFFSET: u16 = attribute(sys::NFTNL_EXPR_PAYLOAD_OFFSET);
const LENGTH: u16 = attribute(sys::NFTNL_EXPR_PAYLOAD_LEN);

/// The packet header that contains a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Header {
    /// The IPv4 or IPv6 header.
    Network,
    /// The header of the transport protocol, for example TCP. A packet without a transport header does not match the
    /// rule.
    Transport,
}

/// Loads a part of a header into registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Payload {
    /// The header that contains the field.
    pub header: Header,
    /// The offset of the field from the start of the header, in bytes.
    pub offset: u32,
    /// The length of the field in bytes.
    pub length: u32,
    /// The first register word of the loaded field.
    pub to: Register,
}

impl Payload {
    pub(super) fn attributes(&self) -> Attributes {
        // Source: `enum nft_payload_bases` in include/uapi/linux/netfilter/nf_tables.h.
        let base = match self.header {
            Header::Network => 1,
            Header::Transport => 2,
        };
        vec![
            (DREG, Value::U32(self.to.to_wire())),
            (BASE, Value::U32(base)),
            (OFFSET, Value::U32(self.offset)),
            (LENGTH, Value::U32(self.length)),
        ]
    }

    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        let header = match attributes.number(BASE)? {
            1 => Header::Network,
            2 => Header::Transport,
            _ => return None,
        };
        let (offset, length) = (attributes.number(OFFSET)?, attributes.number(LENGTH)?);
        Some(Self { header, offset, length, to: attributes.register(DREG)? })
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = match self.header {
            Header::Network => "network",
            Header::Transport => "transport",
        };
        write!(f, "payload load {}b @ {header} header + {} => {}", self.length, self.offset, self.to)
    }
}
