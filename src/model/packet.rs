//! The first packet of a connection, as text: `tcp 198.51.100.7:40000 -> 192.0.2.1:8080 -i eth0`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::{Family, IfName, ParseError, Protocol};

/// The source port of a packet whose text has none: the first ephemeral port of IANA (RFC 6335).
const DEFAULT_SOURCE_PORT: u16 = 49152;

const HELP: &str = "write `tcp 198.51.100.7 -> 192.0.2.1:8080 -i eth0`; without `-i` this host sends the packet";

/// A packet that arrives at this host, or that this host sends.
///
/// Text form: `PROTO SRC[:PORT] -> DST:PORT [-i IF]`; IPv6 addresses with a port are in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Packet {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The source address and port.
    pub source: SocketAddr,
    /// The destination address and port.
    pub destination: SocketAddr,
    /// The ingress interface, or `None` if this host sends the packet.
    pub interface: Option<IfName>,
}

impl Packet {
    /// Returns the family of both addresses.
    pub fn family(&self) -> Family {
        Family::of_address(self.destination.ip())
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.protocol, self.source, self.destination)?;
        match &self.interface {
            Some(interface) => write!(f, " -i {interface}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Packet {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (ends, interface) = match words.as_slice() {
            [ends @ .., "-i", name] => (ends, Some(name.parse()?)),
            ends => (ends, None),
        };
        let [protocol, source, "->", destination] = ends else {
            return Err(ParseError::new(format!("`{text}` is not a packet"), HELP));
        };
        let source = match source.parse::<IpAddr>() {
            Ok(address) => SocketAddr::new(address, DEFAULT_SOURCE_PORT),
            Err(_) => parse_endpoint(source)?,
        };
        let destination = parse_endpoint(destination)?;
        if Family::of_address(source.ip()) != Family::of_address(destination.ip()) {
            return Err(ParseError::new(
                format!("`{source}` and `{destination}` have different address families"),
                HELP,
            ));
        }
        Ok(Self { protocol: protocol.parse()?, source, destination, interface })
    }
}

fn parse_endpoint(text: &str) -> Result<SocketAddr, ParseError> {
    match text.parse::<SocketAddr>() {
        Ok(end) if end.port() > 0 => Ok(end),
        _ => Err(ParseError::new(format!("`{text}` is not an address with a port"), HELP)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_both_ways() {
        for text in [
            "tcp 198.51.100.7:40000 -> 192.0.2.1:8080 -i eth0",
            "udp [2001:db8::7]:1 -> [2001:db8::1]:53 -i br-1",
            "sctp 127.0.0.1:9 -> 127.0.0.1:80",
        ] {
            assert_eq!(text.parse::<Packet>().expect(text).to_string(), text);
        }
        let without = "tcp 198.51.100.7 -> 192.0.2.1:8080".parse::<Packet>().expect("valid");
        assert_eq!(without.source.port(), 49152);
    }

    #[test]
    fn invalid_packets_are_refused() {
        for text in [
            "",
            "tcp",
            "tcp 198.51.100.7 192.0.2.1:80",
            "tcp 198.51.100.7 -> 192.0.2.1",
            "tcp 198.51.100.7 -> 192.0.2.1:0",
            "icmp 198.51.100.7 -> 192.0.2.1:80",
            "tcp 198.51.100.7 -> [2001:db8::1]:80",
            "tcp 198.51.100.7 -> 192.0.2.1:80 -i",
            "tcp 198.51.100.7 -> 192.0.2.1:80 -i a/b",
            "tcp 198.51.100.7 -> 192.0.2.1:80 eth0",
        ] {
            assert!(text.parse::<Packet>().is_err(), "{text:?}");
        }
    }
}
