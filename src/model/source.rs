//! What the target of a forward sees as the client: `keep`, `masquerade` or an address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ParseError;
use super::address::no_host;

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

impl FromStr for Source {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let help = "write `keep`, `masquerade` or an address of this host";
        match text {
            "keep" => return Ok(Self::Keep),
            "masquerade" => return Ok(Self::Masquerade),
            _ => {}
        }
        let address: IpAddr =
            text.parse().map_err(|_| ParseError::new(format!("`{text}` is no choice for the source"), help))?;
        let what = if address.is_loopback() { Some("is a loopback address") } else { no_host(address) };
        match what {
            Some(what) => Err(ParseError::new(format!("the source `{address}` {what}"), help)),
            None => Ok(Self::Address(address)),
        }
    }
}

impl TryFrom<String> for Source {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
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
        for text in ["", "Keep", "client", "0.0.0.0", "127.0.0.1", "::1", "239.1.1.1", "192.0.2.1:80", "::ffff:1.2.3.4"]
        {
            assert!(text.parse::<Source>().is_err(), "{text:?}");
        }
    }
}
