//! Names that end up in the kernel: validated once, at the door for what somebody writes, [`FromStr`].
//!
//! What is from_stored or in a kernel comes in by `TryFrom<String>`, which refuses only what cannot be represented: a name that
//! an earlier version took must not make its whole state unreadable.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ParseError;
use super::error::is_hidden;

macro_rules! text_form {
    ($name:ident, $parse:path) => {
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = ParseError;
            fn try_from(text: String) -> Result<Self, ParseError> {
                $parse(&text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }
    };
}

/// The name of a network interface: 1 to 15 bytes, none of them a slash, a colon, `%` or white space; neither `all` nor
/// `default`.
///
/// Source: `dev_valid_name` in net/core/dev.c; `IFNAMSIZ` is 16 with the closing zero; `sysctl_dev_name_is_allowed` in
/// net/ipv4/devinet.c.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(Arc<str>);
text_form!(IfName, IfName::from_stored);

impl IfName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 15;

    /// The name as the kernel compares it: 16 bytes, filled up with zeros.
    pub fn to_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (slot, byte) in bytes.iter_mut().zip(self.0.bytes()) {
            *slot = byte;
        }
        bytes
    }

    /// The name in 16 bytes as the kernel gives them.
    ///
    /// # Errors
    /// Where they are not a name that an interface could have.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParseError> {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let name = bytes.get(..end).unwrap_or_default();
        Self::from_stored(&String::from_utf8_lossy(name))
    }

    /// Takes what fits into a name.
    fn from_stored(text: &str) -> Result<Self, ParseError> {
        let why = if text.is_empty() {
            "it is empty"
        } else if text.len() > Self::MAX_LEN {
            "it is longer than 15 bytes"
        } else if text == "." || text == ".." {
            "the kernel does not allow it"
        } else if text.contains(['/', ':']) {
            "it holds a slash or a colon"
        } else if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            "it holds white space or a control character"
        } else {
            return Ok(Self(text.into()));
        };
        Err(Self::invalid(text, why))
    }

    fn invalid(text: &str, why: &str) -> ParseError {
        let help = "write an interface as `ip link` shows it, for example `eth0`";
        ParseError::new(format!("`{text}` cannot be an interface name: {why}"), help)
    }
}

impl FromStr for IfName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "all" | "default" => Err(Self::invalid(
                text,
                "the kernel keeps that name for the settings of interfaces, in /proc/sys/net/ipv4/conf",
            )),
            // `dev_alloc_name` in net/core/dev.c: `eth%d` makes `eth0`.
            _ if text.contains('%') => {
                Err(Self::invalid(text, "the kernel puts a number in the place of what follows `%`"))
            }
            _ => Self::from_stored(text),
        }
    }
}

/// The name of a rule set: 1 to 32 letters, digits, `_`, `.` and `-`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SetName(Arc<str>);
text_form!(SetName, str::parse);

impl SetName {
    /// The set that `add` and `rm` work on when none is named.
    pub fn cli() -> Self {
        Self("cli".into())
    }
}

impl FromStr for SetName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if is_valid_name(text, 32, |c| c.is_ascii_alphanumeric()) {
            return Ok(Self(text.into()));
        }
        Err(ParseError::new(
            format!("`{text}` cannot be the name of a rule set"),
            "use 1 to 32 letters, digits, `_`, `.` and `-`, beginning with a letter or digit",
        ))
    }
}

/// The name of a chain that forwards live in, for example `DOCKER`: 1 to 28 letters, digits, `_` and `-`,
/// beginning with a letter.
///
/// 28 is what iptables(8) allows, so that a rule set means the same to both backends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChainName(Arc<str>);
text_form!(ChainName, str::parse);

impl ChainName {
    /// Where the forwards into a network live unless it says otherwise.
    pub fn docker() -> Self {
        Self("DOCKER".into())
    }

    /// Where forwards to targets in no declared network live.
    pub fn forwards() -> Self {
        Self("forwards".into())
    }
}

impl FromStr for ChainName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let ours = ["nat-", "filter-", "guard-"].iter().any(|prefix| text.starts_with(prefix));
        let tail = ["-by-address", "-2"].iter().any(|suffix| text.ends_with(suffix));
        if !ours && !tail && is_valid_name(text, 28, |c| c.is_ascii_alphabetic()) && !text.contains('.') {
            return Ok(Self(text.into()));
        }
        Err(ParseError::new(
            format!("`{text}` cannot be the name of a chain of forwards"),
            "use 1 to 28 letters, digits, `_` and `-`, beginning with a letter, and none of our own prefixes `nat-`, `filter-`, `guard-` or endings `-by-address`, `-2`",
        ))
    }
}

fn is_valid_name(text: &str, most: usize, first: impl Fn(char) -> bool) -> bool {
    text.len() <= most
        && text.chars().next().is_some_and(first)
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// A remark on a forward: 1 to 90 bytes without control characters, line separators and changes of direction.
///
/// The kernel keeps it with the map element, in 128 bytes of user data together with the set's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Comment(Arc<str>);
text_form!(Comment, Comment::from_stored);

impl Comment {
    /// The longest comment, in bytes.
    pub const MAX_LEN: usize = 90;

    /// Takes what the kernel can keep and nft(8) can print.
    fn from_stored(text: &str) -> Result<Self, ParseError> {
        let what = if text.is_empty() {
            "the comment is empty".to_owned()
        } else if text.len() > Self::MAX_LEN {
            format!("the comment is {} bytes long", text.len())
        } else if text.chars().any(char::is_control) {
            "the comment holds a control character".to_owned()
        } else if text.contains('"') {
            "the comment holds a double quote, which nft(8) cannot print".to_owned()
        } else {
            return Ok(Self(text.into()));
        };
        Err(Self::invalid(what))
    }

    fn invalid(what: impl Into<String>) -> ParseError {
        ParseError::new(what, "write 1 to 90 bytes of plain text, or leave the comment out")
    }
}

impl FromStr for Comment {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let comment = Self::from_stored(text)?;
        match text.chars().find(|c| is_hidden(*c)) {
            Some(hidden) => Err(Self::invalid(format!(
                "the comment holds the character {}, which changes how text around it is shown",
                hidden.escape_default()
            ))),
            None => Ok(comment),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_what_the_kernel_takes() {
        for good in ["eth0", "br-4f2a", "wg.1", "a", "fifteen-bytes-x"] {
            let name: IfName = good.parse().expect(good);
            assert_eq!(IfName::from_bytes(&name.to_bytes()), Ok(name));
        }
        for bad in ["", ".", "..", "a/b", "eth0:1", "two words", "sixteen-bytes-xx", "tab\t", "all", "default", "eth%d"]
        {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn chains_of_our_own_cannot_be_taken() {
        assert!("DOCKER".parse::<ChainName>().is_ok());
        for bad in ["nat-prerouting", "filter-forward", "guard-x", "X-by-address", "X-2", "1st", ""] {
            assert!(bad.parse::<ChainName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_comment_fits_with_the_longest_set_name_into_128_bytes() {
        assert!("x".repeat(Comment::MAX_LEN).parse::<Comment>().is_ok());
        assert!("x".repeat(Comment::MAX_LEN + 1).parse::<Comment>().is_err());
        assert!(Comment::MAX_LEN + 32 + ": ".len() < 128);
    }

    #[test]
    fn what_was_stored_before_a_name_was_refused_still_loads() {
        for name in ["all", "default"] {
            assert!(IfName::try_from(name.to_owned()).is_ok() && IfName::from_bytes(name.as_bytes()).is_ok());
        }
        for text in ["a\u{202e}b", "a\u{2069}", "a\u{2028}b"] {
            assert!(text.parse::<Comment>().is_err() && Comment::try_from(text.to_owned()).is_ok(), "{text:?}");
        }
        assert!(["X-17", "X-loopback", "X-clients-ip"].iter().all(|name| name.parse::<ChainName>().is_ok()));
    }
}
