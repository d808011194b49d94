//! Names of labs and of network namespaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::ParseError;

macro_rules! name {
    ($(#[$about:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                if is_word(text, $max) {
                    return Ok(Self(text.to_owned()));
                }
                Err(ParseError::new(
                    format!("`{text}` cannot be the name of {}", $what),
                    format!("use 1 to {} letters, digits, `_`, `.` and `-`, beginning with a letter or digit", $max),
                ))
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseError;

            fn try_from(text: String) -> Result<Self, ParseError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(
    /// The name of a lab: 1 to 32 letters, digits, `_`, `.` and `-`. The first is a letter or digit, because the name
    /// is also a file name.
    LabName,
    "a lab",
    32
);

name!(
    /// The name of a network namespace or container: 1 to 64 characters of the same kind.
    ///
    /// ip-netns(8) accepts every file name. Names that look like an option or contain a path are refused here.
    NetnsName,
    "a network namespace",
    64
);

fn is_word(text: &str, max: usize) -> bool {
    text.len() <= max
        && text.chars().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_options_are_no_names() {
        for bad in ["", ".", "..", "a/b", "-n", ".red", "r d", "r\n", "ü", &"x".repeat(65)] {
            assert!(bad.parse::<NetnsName>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(33).parse::<LabName>().is_err());
        assert_eq!("v-net.0_a".parse::<LabName>().map(|name| name.to_string()), Ok("v-net.0_a".into()));
    }
}
