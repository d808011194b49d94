//! The source address that the target of a forward sees: `keep`, `masquerade` or an address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ParseError;
use super::address::invalid_source;

/// The source address that the target of a forward sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// The client's address.
    #[default]
    Keep,
    /// The address of this host's egress interface to the target.
    Masquerade,
    /// A fixed address. This host should have it, because the target sends its answers there.
    Address(IpAddr),
}

impl Source {
    /// Returns true if the target sees the client's address.
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
        let source = from_stored(text)?;
        if let Source::Address(address) = source {
            check_source(address, HELP)?;
        }
        Ok(source)
    }
}

/// Reads a source from the state. Accepts addresses that an earlier version accepted and [`FromStr`] refuses.
fn from_stored(text: &str) -> Result<Source, ParseError> {
    match text {
        "keep" => Ok(Source::Keep),
        "masquerade" => Ok(Source::Masquerade),
        _ => match text.parse() {
            Ok(address) => Ok(Source::Address(address)),
            Err(_) => Err(ParseError::new(format!("`{text}` is not a valid source"), HELP)),
        },
    }
}

/// Returns an error if `address` cannot be the source of packets that leave this host.
pub(super) fn check_source(address: IpAddr, help: &str) -> Result<(), ParseError> {
    match invalid_source(address) {
        Some(reason) => Err(ParseError::new(format!("the source `{address}` {reason}"), help)),
        None => Ok(()),
    }
}

impl TryFrom<String> for Source {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        from_stored(&text)
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
