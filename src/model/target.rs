//! Where a forward leads: `ADDR`, `ADDR:PORT`, `ADDR:PORT-PORT` or `:PORT`, `:PORT-PORT` for this host.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::address::no_host;
use super::listen::split_address;
use super::{ParseError, PortRange};

/// The receiving side of a forward, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// The address; none: this host itself (a redirect), and then there are ports.
    pub address: Option<IpAddr>,
    /// The ports; none: the port that was asked for is kept.
    pub ports: Option<PortRange>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.ports) {
            (Some(address), None) => write!(f, "{address}"),
            (Some(IpAddr::V4(address)), Some(ports)) => write!(f, "{address}:{ports}"),
            (Some(IpAddr::V6(address)), Some(ports)) => write!(f, "[{address}]:{ports}"),
            (None, Some(ports)) => write!(f, ":{ports}"),
            (None, None) => f.write_str(":"),
        }
    }
}

impl FromStr for Target {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let help = "write `172.17.0.3`, `172.17.0.3:80`, `[fd00::3]:80-89` or, for this host, `:80`";
        let (address, ports) = split_address(text)?;
        if address.is_none() && !text.starts_with(':') {
            return Err(ParseError::new(format!("`{text}` names no target address"), help));
        }
        let ports = match ports {
            Some(ports) if ports.contains(',') => {
                return Err(ParseError::new(format!("`{text}` names a list of ports"), help));
            }
            Some(ports) => Some(ports.parse()?),
            None => None,
        };
        if let Some(address) = address {
            reachable(address, ports)?;
        }
        Ok(Self { address, ports })
    }
}

fn reachable(address: IpAddr, ports: Option<PortRange>) -> Result<(), ParseError> {
    if address.is_loopback() {
        let port = ports.map_or(80, PortRange::first);
        return Err(ParseError::new(
            format!("a packet cannot be sent on to the loopback address `{address}`"),
            format!("write `:{port}` for a port of this host"),
        ));
    }
    let what = match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "is link-local, which means nothing without an interface",
        _ => match no_host(address) {
            Some(what) => what,
            None => return Ok(()),
        },
    };
    Err(ParseError::new(format!("the target `{address}` {what}"), "write the address of one host"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_both_ways() {
        for text in ["172.17.0.3", "172.17.0.3:80", "172.17.0.3:80-89", "fd00::3", "[fd00::3]:80", ":80", ":80-89"] {
            assert_eq!(text.parse::<Target>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_cannot_receive_is_refused() {
        for text in [
            "",
            ":",
            "80",
            "0.0.0.0:80",
            "[::]:80",
            "239.1.1.1:80",
            "255.255.255.255",
            "127.0.0.1:80",
            "[::1]:80",
            "[fe80::1]:80",
            "::ffff:1.2.3.4",
            "172.17.0.3:0",
            "172.17.0.3:80,81",
            "172.17.0.3:90-80",
            "web:80",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
        assert_eq!(
            "127.0.0.1:443".parse::<Target>().expect_err("loopback").help(),
            "write `:443` for a port of this host"
        );
    }
}
