//! Prints bytes as hexadecimal text.

use std::fmt;

/// Bytes that print as hexadecimal digits, with a space after every 4 bytes.
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if index > 0 && index % 4 == 0 { " " } else { "" })?;
        }
        Ok(())
    }
}
