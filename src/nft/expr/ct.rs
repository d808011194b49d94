//! `ct`: loads the conntrack state or labels, and sets labels.
//!
//! Labels are 128 bits of a connection. The connection keeps its labels from the first packet on. portfwd does not use
//! packet or connection marks, because marks affect routing and many programs use marks.

use std::fmt;

use nftnl_sys::{self as sys, libc};

use super::{Attributes, Read, Register, Value, attribute, constant};

const KEY: u16 = attribute(sys::NFTNL_EXPR_CT_KEY);
const DREG: u16 = attribute(sys::NFTNL_EXPR_CT_DREG);
const SREG: u16 = attribute(sys::NFTNL_EXPR_CT_SREG);

const STATE: u32 = constant(libc::NFT_CT_STATE);
const LABELS: u32 = constant(libc::NFT_CT_LABELS);

/// A property of a connection that `ct` loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CtKey {
    /// The conntrack state as a bit mask: 4 bytes in host byte order.
    State,
    /// All labels of a connection: 16 bytes.
    Label,
}

impl CtKey {
    fn number(self) -> u32 {
        match self {
            Self::State => STATE,
            Self::Label => LABELS,
        }
    }
}

/// Loads a property of the connection into a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ct {
    /// The property to load.
    pub key: CtKey,
    /// The first register word of the loaded property.
    pub to: Register,
}

impl Ct {
    pub(super) fn attributes(&self) -> Attributes {
        vec![(KEY, Value::U32(self.key.number())), (DREG, Value::U32(self.to.to_wire()))]
    }

    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        let number = attributes.number(KEY)?;
        let key = [CtKey::State, CtKey::Label].into_iter().find(|key| key.number() == number)?;
        Some(Self { key, to: attributes.register(DREG)? })
    }
}

impl fmt::Display for Ct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match self.key {
            CtKey::State => "state",
            CtKey::Label => "label",
        };
        write!(f, "ct load {key} => {}", self.to)
    }
}

/// Sets connection labels from a bit mask of 16 bytes. Labels whose bits are 0 stay unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CtSetLabel {
    /// The first register word of the bit mask.
    pub from: Register,
}

impl CtSetLabel {
    pub(super) fn attributes(&self) -> Attributes {
        vec![(KEY, Value::U32(LABELS)), (SREG, Value::U32(self.from.to_wire()))]
    }

    pub(super) fn read(attributes: &impl Read) -> Option<Self> {
        (attributes.number(KEY)? == LABELS).then_some(Self { from: attributes.register(SREG)? })
    }
}

impl fmt::Display for CtSetLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ct set label with {}", self.from)
    }
}
