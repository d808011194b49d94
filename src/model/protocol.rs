//! Transport protocols that have ports.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ParseError;

/// A transport protocol whose header has the destination port in bytes 2 and 3.
///
/// Text form: the name in protocols(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol, RFC 9293.
    Tcp,
    /// User Datagram Protocol, RFC 768.
    Udp,
    /// Stream Control Transmission Protocol, RFC 9260.
    Sctp,
    /// Datagram Congestion Control Protocol, RFC 4340.
    Dccp,
    /// Lightweight UDP, RFC 3828.
    Udplite,
}

impl Protocol {
    /// All protocols, in the order of all lists and output.
    pub const ALL: [Self; 5] = [Self::Tcp, Self::Udp, Self::Sctp, Self::Dccp, Self::Udplite];

    /// Returns the number in the IP header. Source: IANA, Assigned Internet Protocol Numbers.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Dccp => 33,
            Self::Sctp => 132,
            Self::Udplite => 136,
        }
    }

    /// Returns the protocol with this number, or `None` if no protocol of this type has it.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.number() == number)
    }

    /// Returns the name in protocols(5).
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Dccp => "dccp",
            Self::Udplite => "udplite",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Protocol {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == text).ok_or_else(|| {
            ParseError::new(format!("unknown protocol `{text}`"), "write `tcp`, `udp`, `sctp`, `dccp` or `udplite`")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_go_both_ways() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.to_string().parse(), Ok(protocol));
            assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
        }
        assert_eq!(Protocol::from_number(1), None);
    }
}
