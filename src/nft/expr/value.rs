//! Attributes of expressions, as libnftnl has them.

use super::register::Register;

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// A number in 32 bits, host byte order.
    U32(u32),
    /// Bytes as the registers hold them.
    Bytes(Vec<u8>),
    /// A name.
    Name(String),
}

/// The attributes of an expression: libnftnl's number of each, and its value.
pub type Attributes = Vec<(u16, Value)>;

/// Reads the attributes of an expression; absent ones are `None`.
pub trait Read {
    /// A 32-bit number.
    fn number(&self, attribute: u16) -> Option<u32>;
    /// Bytes.
    fn bytes(&self, attribute: u16) -> Option<Vec<u8>>;
    /// A name.
    fn name(&self, attribute: u16) -> Option<String>;

    /// A register.
    fn register(&self, attribute: u16) -> Option<Register> {
        Register::from_wire(self.number(attribute)?)
    }
}

/// Narrows libnftnl's number of an attribute to the type its functions take.
pub(super) const fn attribute(number: u32) -> u16 {
    assert!(number <= 0xffff, "attribute numbers are small");
    #[expect(clippy::cast_possible_truncation, reason = "checked in the line above")]
    let narrow = number as u16;
    narrow
}

/// Reads a constant of `libc`, which gives some of them as signed numbers.
pub(super) const fn constant(number: i32) -> u32 {
    assert!(number >= 0, "kernel constants are not negative");
    number.unsigned_abs()
}
