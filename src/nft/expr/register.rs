//! The registers through which expressions exchange values.

use std::fmt;

/// The number of a 32-bit register word, 0 to 15. A longer value starts at this word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Register(u8);

impl Register {
    /// Returns the register word with the given number, 0 to 15.
    pub const fn word32(number: u8) -> Self {
        Self(number & 15)
    }

    /// Returns the register word that is `words` words after `self`.
    pub fn after(self, words: u8) -> Self {
        Self::word32(self.0 + words)
    }

    /// Returns the register's number in netlink messages. Source: `enum nft_registers` in include/uapi/linux/netfilter/nf_tables.h.
    pub fn to_wire(self) -> u32 {
        if self.0.is_multiple_of(4) { u32::from(self.0 / 4) + 1 } else { u32::from(self.0) + 8 }
    }

    /// Returns the register with a given number in netlink messages. Returns `None` if the number is invalid, or if the
    /// number is the verdict register.
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
