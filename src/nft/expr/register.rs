//! The registers that expressions hand values to each other in.

use std::fmt;

/// A 32-bit register word, 0 to 15, where a value begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Register(u8);

impl Register {
    /// The word with this number, 0 to 15.
    pub const fn word(number: u8) -> Self {
        Self(number & 15)
    }

    /// The word that comes `words` after this one.
    pub fn after(self, words: u8) -> Self {
        Self::word(self.0 + words)
    }

    /// The number on the wire. Source: `enum nft_registers` in include/uapi/linux/netfilter/nf_tables.h.
    pub fn to_wire(self) -> u32 {
        if self.0.is_multiple_of(4) { u32::from(self.0 / 4) + 1 } else { u32::from(self.0) + 8 }
    }

    /// The register with this number on the wire.
    pub fn from_wire(number: u32) -> Option<Self> {
        match u8::try_from(number).ok()? {
            number @ 1..=4 => Some(Self((number - 1) * 4)),
            number @ 8..=23 => Some(Self(number - 8)),
            _ => None,
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reg {}", self.to_wire())
    }
}
