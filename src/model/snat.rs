//! Source NAT: packets that leave this host get a new source address and optionally a new source port.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::address::reserved_in_range;
use super::{Family, IfName, ParseError, PortRange, source};

const HELP: &str = "write `203.0.113.5`, `203.0.113.5-203.0.113.9`, `203.0.113.5:1024-2047`, `2001:db8::5` or \
     `[2001:db8::5-2001:db8::9]:1024-2047`";

/// The source addresses and ports that the kernel can choose for a connection.
///
/// Text form: `ADDR` or `ADDR-ADDR`, then optionally `:PORT-PORT`; IPv6 with ports is in brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pool {
    first: IpAddr,
    last: IpAddr,
    ports: Option<PortRange>,
}

impl Pool {
    /// Returns the pool from `first` to `last`, both included, or `None` if it is reversed or the families differ.
    pub fn new(first: IpAddr, last: IpAddr, ports: Option<PortRange>) -> Option<Self> {
        (Family::of_address(first) == Family::of_address(last) && first <= last).then_some(Self { first, last, ports })
    }

    /// Returns the lowest address.
    pub fn first(self) -> IpAddr {
        self.first
    }

    /// Returns the highest address, which is part of the pool.
    pub fn last(self) -> IpAddr {
        self.last
    }

    /// Returns the source ports, or `None` to keep the client's port if it is free.
    pub fn ports(self) -> Option<PortRange> {
        self.ports
    }

    /// Returns the family of the addresses.
    pub fn family(self) -> Family {
        Family::of_address(self.first)
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let brackets = self.ports.is_some() && self.family() == Family::Ipv6;
        let (open, close) = if brackets { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}", self.first)?;
        if self.first != self.last {
            write!(f, "-{}", self.last)?;
        }
        f.write_str(close)?;
        match self.ports {
            Some(ports) => write!(f, ":{ports}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Pool {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let pool = Self::from_stored(text)?;
        source::check_source(pool.first, HELP)?;
        source::check_source(pool.last, HELP)?;
        match reserved_in_range(pool.first, pool.last) {
            Some(name) => Err(ParseError::new(
                format!("the pool `{}-{}` contains {name}", pool.first, pool.last),
                "write addresses that a host can have, from the lowest to the highest",
            )),
            None => Ok(pool),
        }
    }
}

impl Pool {
    /// Reads a pool from the state. Accepts addresses that an earlier version accepted and [`FromStr`] refuses.
    fn from_stored(text: &str) -> Result<Self, ParseError> {
        let (addresses, ports) = match text.strip_prefix('[') {
            Some(rest) => {
                let (addresses, tail) = rest
                    .split_once(']')
                    .ok_or_else(|| ParseError::new(format!("`{text}` has no closing bracket"), HELP))?;
                match tail.strip_prefix(':') {
                    Some(ports) => (addresses, Some(ports)),
                    None if tail.is_empty() => (addresses, None),
                    None => return Err(ParseError::new(format!("`{tail}` follows the bracket"), HELP)),
                }
            }
            None if text.matches(':').count() == 1 => {
                text.split_once(':').map_or((text, None), |(addresses, ports)| (addresses, Some(ports)))
            }
            None => (text, None),
        };
        let (first, last) = addresses.split_once('-').unwrap_or((addresses, addresses));
        let ports = ports.map(str::parse).transpose()?;
        let address = |text: &str| -> Result<IpAddr, ParseError> {
            text.parse().map_err(|_| ParseError::new(format!("`{text}` is not an IP address"), HELP))
        };
        let (first, last) = (address(first)?, address(last)?);
        if Family::of_address(first) != Family::of_address(last) {
            return Err(ParseError::new(format!("`{first}` and `{last}` have different address families"), HELP));
        }
        Self::new(first, last, ports).ok_or_else(|| {
            let help = format!("write the lower address first: `{last}-{first}`");
            ParseError::new(format!("the pool `{first}-{last}` is reversed"), help)
        })
    }
}

impl TryFrom<String> for Pool {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        Self::from_stored(&text)
    }
}

impl From<Pool> for String {
    fn from(pool: Pool) -> Self {
        pool.to_string()
    }
}

/// The way in which the kernel chooses from a [`Pool`]. Source: nft(8), NAT STATEMENTS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Choose the source port by a hash with a random part.
    Random,
    /// Choose the source port at random.
    FullyRandom,
    /// Choose the same address for every connection of a client.
    Persistent,
}

impl Mode {
    /// All modes, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Random, Self::FullyRandom, Self::Persistent];

    /// Returns the name in nft(8).
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::FullyRandom => "fully-random",
            Self::Persistent => "persistent",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let help = "write `random`, `fully-random` or `persistent`, or remove `mode`";
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| ParseError::new(format!("`{text}` is not a mode"), help))
    }
}

/// A rule that rewrites the source to an address of a pool. In a file, at least one of `from` and `out` is set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Snat {
    /// The source prefix, or `None` for every source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpNetwork>,
    /// The egress interface, or `None` for every interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<IfName>,
    /// The new source addresses and ports.
    pub to: Pool,
    /// The way in which the kernel chooses from the pool, or `None` for its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

impl Snat {
    /// Returns the canonical form, without the prefixes `0.0.0.0/0` and `::/0`. The pool already determines the family.
    pub fn canonical(mut self) -> Self {
        self.from = self.from.filter(|from| from.prefix() > 0);
        self
    }

    /// Checks that the source prefix and the pool fit together.
    ///
    /// # Errors
    /// If the families of `from` and `to` differ.
    pub fn check(&self) -> Result<(), ParseError> {
        match self.from {
            Some(from) if Family::of_network(from) != self.to.family() => {
                let (source, pool) = (Family::of_network(from), self.to.family());
                let help = "give both the same address family; NAT does not translate between them";
                Err(ParseError::new(format!("`{from}` is {source} but `{}` is {pool}", self.to), help))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Snat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("snat")?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if let Some(out) = &self.out {
            write!(f, " out {out}")?;
        }
        write!(f, " to {}", self.to)?;
        match self.mode {
            Some(mode) => write!(f, " {mode}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_go_both_ways() {
        for text in [
            "203.0.113.5",
            "203.0.113.5-203.0.113.9",
            "203.0.113.5:1024-2047",
            "203.0.113.5-203.0.113.9:1024-2047",
            "2001:db8::5",
            "2001:db8::5-2001:db8::9",
            "[2001:db8::5]:1024-2047",
            "[2001:db8::5-2001:db8::9]:1024-2047",
        ] {
            assert_eq!(text.parse::<Pool>().expect(text).to_string(), text);
        }
        assert_eq!("[2001:db8::5]".parse::<Pool>().map(|pool| pool.to_string()), Ok("2001:db8::5".into()));
    }

    #[test]
    fn invalid_pools_are_named() {
        for (text, what) in [
            ("", "`` is not an IP address"),
            ("203.0.113.9-203.0.113.5", "the pool `203.0.113.9-203.0.113.5` is reversed"),
            ("203.0.113.5-2001:db8::5", "`203.0.113.5` and `2001:db8::5` have different address families"),
            ("[203.0.113.5-2001:db8::5]", "`203.0.113.5` and `2001:db8::5` have different address families"),
            ("203.0.113.5:2047-1024", "the range `2047-1024` is reversed"),
            ("0.0.0.0", "the source `0.0.0.0` is the unspecified address"),
            ("127.0.0.1", "the source `127.0.0.1` is a loopback address"),
            ("126.0.0.1-128.0.0.1", "the pool `126.0.0.1-128.0.0.1` contains loopback addresses"),
            ("203.0.113.5-250.0.0.1", "the source `250.0.0.1` is in 240.0.0.0/4, which is reserved (RFC 6890)"),
            ("fe80::1", "the source `fe80::1` is link-local, so it needs an interface"),
            ("2001:db8::5-fec0::1", "the pool `2001:db8::5-fec0::1` contains link-local addresses"),
            ("[2001:db8::5", "`[2001:db8::5` has no closing bracket"),
            ("[2001:db8::5]1", "`1` follows the bracket"),
            ("203.0.113.5:", "`` is not a port"),
        ] {
            assert_eq!(text.parse::<Pool>().expect_err(text).to_string(), what, "{text}");
        }
    }

    #[test]
    fn modes_go_both_ways() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("Random".parse::<Mode>().is_err());
    }
}
