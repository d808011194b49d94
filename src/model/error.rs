//! The error of the text forms, and functions that make foreign text safe to print.

use std::fmt;

/// An error in the text of a rule.
///
/// [`Display`](fmt::Display) prints the message. [`ParseError::help`] returns the text that a user can write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    what: String,
    help: String,
    key: Option<&'static str>,
}

impl ParseError {
    /// Returns an error with a message (lower case, no final period) and a help text.
    ///
    /// Escapes the invisible characters of foreign text in both.
    pub fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what: printable(&what.into()), help: printable(&help.into()), key: None }
    }

    /// Adds the key of the rule that the error belongs to. The loader of files uses the key to find the location.
    #[must_use]
    pub fn with_key(self, key: &'static str) -> Self {
        Self { key: Some(key), ..self }
    }

    /// Returns the key of the rule that the error belongs to, if there is one.
    pub fn key(&self) -> Option<&'static str> {
        self.key
    }

    /// Returns the text that a user can write instead.
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

/// Returns true if a character is invisible and changes how the text around it is shown: control characters, line
/// separators and characters that reverse the direction of text.
///
/// Source: Unicode TR 36, 3.1, and CVE-2021-42574, in which such characters hide the real order of the text.
pub fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns true if a character is invisible: the characters of [`is_hidden`] and all other format characters.
///
/// Some scripts and emoji need format characters, so comments can contain them. portfwd escapes them when it prints
/// foreign text.
///
/// Source: the general category Cf of Unicode 16.0, without the visible marks of single scripts.
pub fn is_invisible(c: char) -> bool {
    is_hidden(c)
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Replaces invisible characters by their escapes. Foreign text then cannot move the cursor of a terminal and cannot
/// hide a part of itself.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_invisible(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invisible_characters_are_escaped() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(printable("a\u{9b}31m\u{200e}\u{feff}\u{e0041}"), "a\\u{9b}31m\\u{200e}\\u{feff}\\u{e0041}");
        assert_eq!(printable("ü\u{202e}\u{2066}\u{2028}"), "ü\\u{202e}\\u{2066}\\u{2028}");
    }
}
