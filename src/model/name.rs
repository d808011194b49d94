//! Names that portfwd writes to the kernel. [`FromStr`] validates the names that users write.
//!
//! `TryFrom<String>` reads names from the state and the kernel. It accepts some names that [`FromStr`] refuses: an
//! earlier version of portfwd may have stored such a name, and the state must stay readable.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ParseError;
use super::error::is_hidden;

macro_rules! text_form {
    ($name:ident, $parse:path) => {
        impl $name {
            /// Returns the name as text.
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

/// The name of a network interface: 1 to 15 bytes without slash, colon, `%` and white space. `all` and `default` are
/// invalid.
///
/// Source: `dev_valid_name` in net/core/dev.c; `IFNAMSIZ` is 16 with the closing zero; `sysctl_dev_name_is_allowed` in
/// net/ipv4/devinet.c.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(Arc<str>);
text_form!(IfName, IfName::from_stored);

impl IfName {
    /// The maximum length in bytes.
    pub const MAX_LEN: usize = 15;

    /// Returns the name as the kernel compares it: 16 bytes, padded with zeros.
    pub fn to_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (slot, byte) in bytes.iter_mut().zip(self.0.bytes()) {
            *slot = byte;
        }
        bytes
    }

    /// Reads a name from the kernel's 16 bytes, up to the first zero.
    ///
    /// # Errors
    /// If no interface can have the name.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParseError> {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let name = bytes.get(..end).unwrap_or_default();
        Self::from_stored(&String::from_utf8_lossy(name))
    }

    /// Reads a name from the state or the kernel. Accepts `all`, `default` and `%`.
    fn from_stored(text: &str) -> Result<Self, ParseError> {
        let why = if text.is_empty() {
            "it is empty"
        } else if text.len() > Self::MAX_LEN {
            "it is longer than 15 bytes"
        } else if text == "." || text == ".." {
            "the kernel does not allow it"
        } else if text.contains(['/', ':']) {
            "it contains a slash or a colon"
        } else if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            "it contains white space or a control character"
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
            "all" | "default" => {
                Err(Self::invalid(text, "the kernel uses this name for settings in /proc/sys/net/ipv4/conf"))
            }
            // `dev_alloc_name` in net/core/dev.c creates `eth0` for `eth%d`.
            _ if text.contains('%') => Err(Self::invalid(text, "the kernel uses `%` as a placeholder for a number")),
            _ => Self::from_stored(text),
        }
    }
}

/// The name of a rule set: 1 to 32 letters, digits, `_`, `.` and `-`. The first character is a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SetName(Arc<str>);
text_form!(SetName, str::parse);

impl SetName {
    /// Returns `cli`, the set that `add` and `rm` change without `--set`.
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

/// The name of a chain that contains forwards, for example `DOCKER`: 1 to 28 letters, digits, `_` and `-`. The first
/// character is a letter.
///
/// iptables(8) allows at most 28 bytes. The limit applies to both backends, so a rule set is valid for both or for
/// none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChainName(Arc<str>);
text_form!(ChainName, str::parse);

impl ChainName {
    /// Returns `DOCKER`, the default chain of forwards into a network.
    pub fn docker() -> Self {
        Self("DOCKER".into())
    }

    /// Returns `forwards`, the chain of forwards to targets outside of every network.
    pub fn forwards() -> Self {
        Self("forwards".into())
    }
}

impl FromStr for ChainName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let reserved_prefix = ["nat-", "filter-", "guard-"].iter().any(|prefix| text.starts_with(prefix));
        let reserved_suffix = ["-by-address", "-2"].iter().any(|suffix| text.ends_with(suffix));
        if !reserved_prefix
            && !reserved_suffix
            && is_valid_name(text, 28, |c| c.is_ascii_alphabetic())
            && !text.contains('.')
        {
            return Ok(Self(text.into()));
        }
        Err(ParseError::new(
            format!("`{text}` cannot be the name of a chain of forwards"),
            "use 1 to 28 letters, digits, `_` and `-`, beginning with a letter, and none of the prefixes `nat-`, `filter-`, `guard-` or endings `-by-address`, `-2` of portfwd's own chains",
        ))
    }
}

fn is_valid_name(text: &str, max_len: usize, first: impl Fn(char) -> bool) -> bool {
    text.len() <= max_len
        && text.chars().next().is_some_and(first)
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// The comment of a forward: 1 to 90 bytes without control characters, line separators and changes of text direction.
///
/// The kernel stores the comment and the set's name in the user data of the map element, which has 128 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Comment(Arc<str>);
text_form!(Comment, Comment::from_stored);

impl Comment {
    /// The maximum length in bytes.
    pub const MAX_LEN: usize = 90;

    /// Reads a comment from the state or the kernel: every text that the kernel can store and nft(8) can print.
    fn from_stored(text: &str) -> Result<Self, ParseError> {
        let what = if text.is_empty() {
            "the comment is empty".to_owned()
        } else if text.len() > Self::MAX_LEN {
            format!("the comment is {} bytes long", text.len())
        } else if text.chars().any(char::is_control) {
            "the comment contains a control character".to_owned()
        } else if text.contains('"') {
            "the comment contains a double quote, which nft(8) cannot print".to_owned()
        } else {
            return Ok(Self(text.into()));
        };
        Err(Self::invalid(what))
    }

    fn invalid(what: impl Into<String>) -> ParseError {
        ParseError::new(what, "write 1 to 90 bytes of plain text, or remove the comment")
    }
}

impl FromStr for Comment {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let comment = Self::from_stored(text)?;
        match text.chars().find(|c| is_hidden(*c)) {
            Some(hidden) => Err(Self::invalid(format!(
                "the comment contains the character {}, which changes how the text around it is shown",
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
    fn interface_names_are_valid_for_the_kernel() {
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
    fn names_of_portfwds_own_chains_are_refused() {
        assert!("DOCKER".parse::<ChainName>().is_ok());
        for bad in ["nat-prerouting", "filter-forward", "guard-x", "X-by-address", "X-2", "1st", ""] {
            assert!(bad.parse::<ChainName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_longest_comment_and_set_name_fit_into_128_bytes() {
        assert!("x".repeat(Comment::MAX_LEN).parse::<Comment>().is_ok());
        assert!("x".repeat(Comment::MAX_LEN + 1).parse::<Comment>().is_err());
        assert!(Comment::MAX_LEN + 32 + ": ".len() < 128);
    }

    #[test]
    fn names_that_are_refused_today_still_load_from_the_state() {
        for name in ["all", "default"] {
            assert!(IfName::try_from(name.to_owned()).is_ok() && IfName::from_bytes(name.as_bytes()).is_ok());
        }
        for text in ["a\u{202e}b", "a\u{2069}", "a\u{2028}b"] {
            assert!(text.parse::<Comment>().is_err() && Comment::try_from(text.to_owned()).is_ok(), "{text:?}");
        }
        assert!(["X-17", "X-loopback", "X-clients-ip"].iter().all(|name| name.parse::<ChainName>().is_ok()));
    }
}
