//! What is wrong with a piece of text, and what to write instead.

use std::fmt;

/// A piece of text that is not what it should be.
///
/// Prints as the sentence of what is wrong; [`ParseError::help`] says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    what: String,
    help: String,
    about: Option<&'static str>,
}

impl ParseError {
    /// Makes an error from what is wrong (lower case, no final period) and what to write instead.
    ///
    /// Control characters that came in with foreign text are made printable here, once.
    pub fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what: printable(&what.into()), help: printable(&help.into()), about: None }
    }

    /// Says which key of a rule it is about, for who knows where that is written.
    #[must_use]
    pub fn about(self, key: &'static str) -> Self {
        Self { about: Some(key), ..self }
    }

    /// The key of a rule that it is about, where it is about one of several.
    pub fn key(&self) -> Option<&'static str> {
        self.about
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

/// Whether a character shows nothing itself but changes how its surroundings are shown: control characters, line
/// separators, and those that reverse the direction of writing.
///
/// Source: Unicode TR 36, 3.1, and CVE-2021-42574, where text reads otherwise than it is.
pub fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a character shows nothing itself: [`is_hidden`], and all others that only say how text is to be laid out. Scripts
/// and emoji need some of these, so that who writes them may; but in foreign text nobody sees them.
///
/// Source: the general category Cf of Unicode 16.0, without the marks of single scripts that do show something.
pub fn is_invisible(c: char) -> bool {
    is_hidden(c)
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Replaces characters that nobody sees by their escapes, so that foreign text can neither move a terminal's cursor nor read
/// otherwise than it is.
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
    fn control_characters_become_visible() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(printable("a\u{9b}31m\u{200e}\u{feff}\u{e0041}"), "a\\u{9b}31m\\u{200e}\\u{feff}\\u{e0041}");
        assert_eq!(printable("ü\u{202e}\u{2066}\u{2028}"), "ü\\u{202e}\\u{2066}\\u{2028}");
    }
}
