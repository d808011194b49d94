//! What is wrong with a piece of text, and what to write instead.

use std::fmt;

/// A piece of text that is not what it should be.
///
/// Prints as the sentence of what is wrong; [`ParseError::help`] says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    what: String,
    help: String,
}

impl ParseError {
    /// Makes an error from what is wrong (lower case, no final period) and what to write instead.
    ///
    /// Control characters that came in with foreign text are made printable here, once.
    pub fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what: printable(&what.into()), help: printable(&help.into()) }
    }

    /// What to write instead.
    pub fn help(&self) -> &str {
        &self.help
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ParseError {}

/// Replaces control characters by their escapes, so that foreign text cannot move a terminal's cursor.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
    }
}
