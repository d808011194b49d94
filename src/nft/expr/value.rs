//! The attributes of expressions. libnftnl defines the attribute numbers.

use super::register::Register;

/// The value of an expression's attribute.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// A 32-bit number in host byte order.
    U32(u32),
    /// Bytes in the order of the registers.
    Bytes(Vec<u8>),
    /// The name of a chain, map or set.
    Name(String),
}

/// The attributes of an expression: pairs of a libnftnl attribute number and a value.
pub type Attributes = Vec<(u16, Value)>;

/// A reader of the attributes of an expression. Every method returns `None` if the attribute is missing.
pub trait Read {
    /// Reads a 32-bit number.
    fn number(&self, attribute: u16) -> Option<u32>;
    /// Reads the bytes of a constant or mask.
    fn bytes(&self, attribute: u16) -> Option<Vec<u8>>;
    /// Reads the name of a chain, map or set.
    fn name(&self, attribute: u16) -> Option<String>;

    /// Reads a register number. Returns `None` if the attribute is missing or the number is invalid.
    fn register(&self, attribute: u16) -> Option<Register> {
        Register::from_wire(self.number(attribute)?)
    }
}

/// Converts a libnftnl attribute number to `u16`, the parameter type of libnftnl's functions.
pub(super) const fn attribute(number: u32) -> u16 {
    assert!(number <= 0xffff, "attribute numbers are small");
    #[expect(clippy::cast_possible_truncation, reason = "checked in the line above")]
    let narrow = number as u16;
    narrow
}

/// Converts a `libc` constant to `u32`. `libc` declares some kernel constants as signed numbers.
pub(super) const fn constant(number: i32) -> u32 {
    assert!(number >= 0, "kernel constants are not negative");
    number.unsigned_abs()
}
