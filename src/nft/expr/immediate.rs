//! `immediate`: loads a constant or a verdict.

use std::fmt;

use nftnl_sys::{self as sys, libc};

use super::{Attributes, Hex, Read, Register, Value, attribute};

const DREG: u16 = attribute(sys::NFTNL_EXPR_IMM_DREG);
const DATA: u16 = attribute(sys::NFTNL_EXPR_IMM_DATA);
const VERDICT: u16 = attribute(sys::NFTNL_EXPR_IMM_VERDICT);
const CHAIN: u16 = attribute(sys::NFTNL_EXPR_IMM_CHAIN);

/// The register for verdicts. Source: `NFT_REG_VERDICT` in include/uapi/linux/netfilter/nf_tables.h.
const VERDICT_REGISTER: u32 = 0;

/// Loads a constant into registers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Immediate {
    /// The first register word of the constant.
    pub to: Register,
    /// The constant, in the byte order of the registers.
    pub data: Vec<u8>,
}

impl Immediate {
    pub(super) fn attributes(&self) -> Attributes {
        vec![(DREG, Value::U32(self.to.to_wire())), (DATA, Value::Bytes(self.data.clone()))]
    }

    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        Some(Self { to: attributes.register(DREG)?, data: attributes.bytes(DATA)? })
    }
}

impl fmt::Display for Immediate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "immediate {} 0x{}", self.to, Hex(&self.data))
    }
}

/// A verdict statement of nft(8).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Drops the packet.
    Drop,
    /// Ends the evaluation of the base chain and accepts the packet.
    Accept,
    /// Returns to the calling chain and continues after the jump.
    Return,
    /// Jumps to another chain. If no rule of that chain gives a verdict, the kernel returns to the calling chain.
    Jump(String),
}

impl Verdict {
    fn number(&self) -> i32 {
        match self {
            Self::Drop => libc::NF_DROP,
            Self::Accept => libc::NF_ACCEPT,
            Self::Return => libc::NFT_RETURN,
            Self::Jump(_) => libc::NFT_JUMP,
        }
    }

    pub(super) fn attributes(&self) -> Attributes {
        let mut attributes = vec![
            (DREG, Value::U32(VERDICT_REGISTER)),
            (VERDICT, Value::U32(u32::from_ne_bytes(self.number().to_ne_bytes()))),
        ];
        if let Self::Jump(chain) = self {
            attributes.push((CHAIN, Value::Name(chain.clone())));
        }
        attributes
    }

    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        if attributes.number(DREG)? != VERDICT_REGISTER {
            return None;
        }
        let number = i32::from_ne_bytes(attributes.number(VERDICT)?.to_ne_bytes());
        let chain = attributes.name(CHAIN);
        match (number, chain) {
            (libc::NF_DROP, None) => Some(Self::Drop),
            (libc::NF_ACCEPT, None) => Some(Self::Accept),
            (libc::NFT_RETURN, None) => Some(Self::Return),
            (libc::NFT_JUMP, Some(chain)) => Some(Self::Jump(chain)),
            _ => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop => f.write_str("immediate reg 0 drop"),
            Self::Accept => f.write_str("immediate reg 0 accept"),
            Self::Return => f.write_str("immediate reg 0 return"),
            Self::Jump(chain) => write!(f, "immediate reg 0 jump -> {chain}"),
        }
    }
}
