//! `ct`: what connection tracking knows, and labels that we set.
//!
//! Labels are 128 bits that a connection carries from its first packet on. We use two of them rather than bits of the
//! packet or connection mark, because marks steer routing and everybody fights over them.

use std::fmt;

use nftnl_sys::{self as sys, libc};

use super::{Attributes, Read, Register, Value, attribute, constant};

const KEY: u16 = attribute(sys::NFTNL_EXPR_CT_KEY);
const DREG: u16 = attribute(sys::NFTNL_EXPR_CT_DREG);
const SREG: u16 = attribute(sys::NFTNL_EXPR_CT_SREG);

const STATE: u32 = constant(libc::NFT_CT_STATE);
const LABELS: u32 = constant(libc::NFT_CT_LABELS);

/// What is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CtKey {
    /// One bit for each state: 4 bytes, host byte order.
    State,
    /// The labels: 16 bytes.
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

/// Loads `key` into `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ct {
    /// What.
    pub key: CtKey,
    /// Where to.
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

/// Sets the labels whose bits are in 16 bytes from `from` on; the others stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CtSetLabel {
    /// Where the bits are.
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
