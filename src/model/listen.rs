//! The listening side of a forward: `[ADDR:]PORTS[/PROTO[,PROTO]]`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::address::invalid_host;
use super::{ParseError, Ports, Protocol};

/// The listening side of a forward, as a user writes it.
///
/// Text form: `[ADDR:]PORTS[/PROTO[,PROTO]]`; an IPv6 address is in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listen {
    /// The listen address, or `None` for every address of this host.
    pub address: Option<IpAddr>,
    /// The listen ports as a list of ranges, in the order of the text.
    pub ports: Ports,
    /// The protocols after the slash. Empty if there are none.
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
        let (endpoint, protocols) = match text.split_once('/') {
            Some((endpoint, list)) => (endpoint, parse_protocols(list)?),
            None => (text, Vec::new()),
        };
        let (address, ports) = split_address(endpoint)?;
        let Some(ports) = ports else {
            return Err(ParseError::new(
                format!("`{text}` has no port"),
                "write `8080`, `192.0.2.1:8080` or `[2001:db8::1]:8080/udp`",
            ));
        };
        if let Some(address) = address {
            check_listen_address(address)?;
        }
        Ok(Self { address, ports: ports.parse()?, protocols })
    }
}

fn parse_protocols(list: &str) -> Result<Vec<Protocol>, ParseError> {
    let mut protocols = Vec::new();
    for name in list.split(',') {
        let protocol = name.parse()?;
        if protocols.contains(&protocol) {
            return Err(ParseError::new(format!("`{protocol}` occurs twice"), "write every protocol once"));
        }
        protocols.push(protocol);
    }
    Ok(protocols)
}

fn check_listen_address(address: IpAddr) -> Result<(), ParseError> {
    match invalid_host(address) {
        None => Ok(()),
        Some(_) if address.is_unspecified() => Err(ParseError::new(
            format!("`{address}` cannot be a listen address"),
            "remove the address to listen at every address of this host",
        )),
        Some(reason) => Err(ParseError::new(
            format!("`{address}` {reason}"),
            "write an address of this host, or remove the address",
        )),
    }
}

/// Splits `ADDR`, `ADDR:PORTS`, `:PORTS` or `PORTS` into address and ports.
///
/// Text without a dot and without a colon is ports.
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
    fn invalid_listen_texts_are_refused() {
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
