//! `cmp`: compares a register with a constant.

use std::fmt;

use nftnl_sys as sys;

use super::{Attributes, Hex, Read, Register, Value, attribute};

const SREG: u16 = attribute(sys::NFTNL_EXPR_CMP_SREG);
const OPERATOR: u16 = attribute(sys::NFTNL_EXPR_CMP_OP);
const DATA: u16 = attribute(sys::NFTNL_EXPR_CMP_DATA);

/// Matches if a register equals `data` (`==`), or if the register does not equal `data` (`!=`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cmp {
    /// The register to compare.
    pub register: Register,
    /// True for `==`, false for `!=`.
    pub equal: bool,
    /// The constant, in the same byte order as the register.
    pub data: Vec<u8>,
}

impl Cmp {
    pub(super) fn attributes(&self) -> Attributes {
        // Source: `enum nft_cmp_ops` in include/uapi/linux/netfilter/nf_tables.h.
        let operator = u32::from(!self.equal);
        vec![
            (SREG, Value::U32(self.register.to_wire())),
            (OPERATOR, Value::U32(operator)),
            (DATA, Value::Bytes(self.data.clone())),
        ]
    }

    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        let equal = match attributes.number(OPERATOR)? {
            0 => true,
            1 => false,
            _ => return None,
        };
        Some(Self { register: attributes.register(SREG)?, equal, data: attributes.bytes(DATA)? })
    }
}

impl fmt::Display for Cmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cmp {} {} 0x{}", if self.equal { "eq" } else { "neq" }, self.register, Hex(&self.data))
    }
}
