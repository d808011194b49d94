//! What the target of a forward sees as the client: `keep`, `masquerade` or an address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ParseError;
use super::address::no_source;

/// What the target of a forward sees as the client's address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// The client's own.
    #[default]
    Keep,
    /// The one that this host has towards the target.
    Masquerade,
    /// This one, which should be one of this host's: answers go there.
    Address(IpAddr),
}

impl Source {
    /// Whether the target sees the client as it is.
    pub fn is_keep(&self) -> bool {
        *self == Self::Keep
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

const HELP: &str = "write `keep`, `masquerade` or an address of this host";

impl FromStr for Source {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let source = stored(text)?;
        if let Source::Address(address) = source {
            check(address, HELP)?;
        }
        Ok(source)
    }
}

/// Takes every address, also one that an earlier version took and this one does not.
fn stored(text: &str) -> Result<Source, ParseError> {
    match text {
        "keep" => Ok(Source::Keep),
        "masquerade" => Ok(Source::Masquerade),
        _ => match text.parse() {
            Ok(address) => Ok(Source::Address(address)),
            Err(_) => Err(ParseError::new(format!("`{text}` is no choice for the source"), HELP)),
        },
    }
}

/// Refuses an address that cannot be the source of what leaves this host.
pub(super) fn check(address: IpAddr, help: &str) -> Result<(), ParseError> {
    match no_source(address) {
        Some(what) => Err(ParseError::new(format!("the source `{address}` {what}"), help)),
        None => Ok(()),
    }
}

impl TryFrom<String> for Source {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        stored(&text)
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_both_ways() {
        for text in ["keep", "masquerade", "192.0.2.1", "2001:db8::1"] {
            assert_eq!(text.parse::<Source>().expect(text).to_string(), text);
        }
        for text in ["", "Keep", "client", "192.0.2.1:80"] {
            assert!(text.parse::<Source>().is_err() && Source::try_from(text.to_owned()).is_err(), "{text:?}");
        }
        for text in ["0.0.0.0", "0.0.0.1", "127.0.0.1", "::1", "239.1.1.1", "240.0.0.1", "fe80::1", "::ffff:1.2.3.4"] {
            assert!(text.parse::<Source>().is_err() && Source::try_from(text.to_owned()).is_ok(), "{text:?}");
        }
    }
}
