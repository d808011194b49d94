//! `bitwise`: masks a register in place.

use std::fmt;

use nftnl_sys as sys;

use super::{Attributes, Hex, Read, Register, Value, attribute};

const SREG: u16 = attribute(sys::NFTNL_EXPR_BITWISE_SREG);
const DREG: u16 = attribute(sys::NFTNL_EXPR_BITWISE_DREG);
const LENGTH: u16 = attribute(sys::NFTNL_EXPR_BITWISE_LEN);
const MASK: u16 = attribute(sys::NFTNL_EXPR_BITWISE_MASK);
const XOR: u16 = attribute(sys::NFTNL_EXPR_BITWISE_XOR);

/// Keeps the bits of `mask` in a register, and clears all other bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bitwise {
    /// The register that contains the value and receives the result.
    pub register: Register,
    /// The bits to keep. The mask and the value have the same length.
    pub mask: Vec<u8>,
}

impl Bitwise {
    pub(super) fn attributes(&self) -> Attributes {
        vec![
            (SREG, Value::U32(self.register.to_wire())),
            (DREG, Value::U32(self.register.to_wire())),
            (LENGTH, Value::U32(u32::try_from(self.mask.len()).unwrap_or(u32::MAX))),
            (MASK, Value::Bytes(self.mask.clone())),
            (XOR, Value::Bytes(vec![0; self.mask.len()])),
        ]
    }

    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        let register = attributes.register(SREG)?;
        let plain = attributes.register(DREG)? == register && attributes.bytes(XOR)?.iter().all(|byte| *byte == 0);
        if plain { Some(Self { register, mask: attributes.bytes(MASK)? }) } else { None }
    }
}

impl fmt::Display for Bitwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bitwise {0} = {0} & 0x{1}", self.register, Hex(&self.mask))
    }
}
