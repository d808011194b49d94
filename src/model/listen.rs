//! Where a forward listens: `[ADDR:]PORTS[/PROTO[,PROTO]]`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::address::no_host;
use super::{ParseError, Ports, Protocol};

/// The listening side of a forward, as written.
///
/// Text form: `[ADDR:]PORTS[/PROTO[,PROTO]]`; an IPv6 address is in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listen {
    /// The one address it listens at; none: every address of this host.
    pub address: Option<IpAddr>,
    /// The ports.
    pub ports: Ports,
    /// The protocols it names; empty where it names none.
    pub protocols: Vec<Protocol>,
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        write!(f, "{}", self.ports)?;
        for (index, protocol) in self.protocols.iter().enumerate() {
            write!(f, "{}{protocol}", if index == 0 { '/' } else { ',' })?;
        }
        Ok(())
    }
}

impl FromStr for Listen {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (place, protocols) = match text.split_once('/') {
            Some((place, list)) => (place, protocols(list)?),
            None => (text, Vec::new()),
        };
        let (address, ports) = split_address(place)?;
        let Some(ports) = ports else {
            return Err(ParseError::new(
                format!("`{text}` names no port"),
                "write `8080`, `192.0.2.1:8080` or `[2001:db8::1]:8080/udp`",
            ));
        };
        if let Some(address) = address {
            listenable(address)?;
        }
        Ok(Self { address, ports: ports.parse()?, protocols })
    }
}

fn protocols(list: &str) -> Result<Vec<Protocol>, ParseError> {
    let mut protocols = Vec::new();
    for name in list.split(',') {
        let protocol = name.parse()?;
        if protocols.contains(&protocol) {
            return Err(ParseError::new(format!("`{protocol}` is named twice"), "name every protocol once"));
        }
        protocols.push(protocol);
    }
    Ok(protocols)
}

fn listenable(address: IpAddr) -> Result<(), ParseError> {
    match no_host(address) {
        None => Ok(()),
        Some(_) if address.is_unspecified() => Err(ParseError::new(
            format!("`{address}` is not an address to listen at"),
            "leave the address out to listen at every address of this host",
        )),
        Some(what) => {
            Err(ParseError::new(format!("`{address}` {what}"), "write an address of this host, or leave it out"))
        }
    }
}

/// Splits `ADDR`, `ADDR:PORTS`, `:PORTS` or `PORTS` into address and ports. A text of digits, commas and hyphens alone
/// is ports.
pub(super) fn split_address(text: &str) -> Result<(Option<IpAddr>, Option<&str>), ParseError> {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, tail)) = rest.split_once(']') else {
            return Err(ParseError::new(format!("`{text}` has no closing bracket"), "write `[2001:db8::1]:80`"));
        };
        let address: Ipv6Addr = address.parse().map_err(|_| {
            ParseError::new(format!("`{address}` is not an IPv6 address"), "write an IPv6 address in the brackets")
        })?;
        return match tail.strip_prefix(':') {
            Some(ports) => Ok((Some(address.into()), Some(ports))),
            None if tail.is_empty() => Ok((Some(address.into()), None)),
            None => Err(ParseError::new(format!("`{tail}` follows the bracket"), "write `[2001:db8::1]:80`")),
        };
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((Some(address), None));
    }
    match text.matches(':').count() {
        0 if text.contains('.') => Err(not_an_address(text)),
        0 => Ok((None, Some(text))),
        1 => {
            let (address, ports) = text.split_once(':').unwrap_or((text, ""));
            if address.is_empty() {
                return Ok((None, Some(ports)));
            }
            let address = address.parse::<IpAddr>().map_err(|_| not_an_address(address))?;
            Ok((Some(address), Some(ports)))
        }
        _ => Err(ParseError::new(
            format!("`{text}` is not an address"),
            "put an IPv6 address with a port in brackets: `[2001:db8::1]:80`",
        )),
    }
}

fn not_an_address(text: &str) -> ParseError {
    ParseError::new(
        format!("`{text}` is not an IP address"),
        "write `192.0.2.1` or `2001:db8::1`; names are not resolved",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_both_ways() {
        for text in ["8080", "192.0.2.1:53/udp", "[2001:db8::1]:8000-8010/tcp,udp", "80,443/tcp"] {
            assert_eq!(text.parse::<Listen>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_listened_at_is_refused() {
        for text in [
            "",
            "/tcp",
            "8080/",
            "8080/foo",
            "8080/tcp,tcp",
            "192.0.2.1",
            "[2001:db8::1]",
            "2001:db8::1:80",
            "0.0.0.0:80",
            "[::]:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "255.255.255.255:80",
            "[::ffff:1.2.3.4]:80",
            "example.org:80",
            "192.0.2.300:80",
            "[2001:db8::1:80",
            "[2001:db8::1]80",
            "1.2.3.4:5:6",
            "80 ",
        ] {
            assert!(text.parse::<Listen>().is_err(), "{text:?}");
        }
    }
}
