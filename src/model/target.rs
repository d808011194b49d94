//! The target of a forward: `ADDR`, `ADDR:PORT`, `ADDR:PORT-PORT`, or `:PORT` and `:PORT-PORT` for this host.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::address::invalid_host;
use super::listen::split_address;
use super::{ParseError, PortRange};

/// The target of a forward, as a user writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// The target address, or `None` for this host (a redirect). A redirect always has ports.
    pub address: Option<IpAddr>,
    /// The target ports, or `None` to keep the listen port.
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
            return Err(ParseError::new(format!("`{text}` has no target address"), help));
        }
        let ports = match ports {
            Some(ports) if ports.contains(',') => {
                return Err(ParseError::new(format!("`{text}` has a list of ports"), help));
            }
            Some(ports) => Some(ports.parse()?),
            None => None,
        };
        if let Some(address) = address {
            check_target(address, ports)?;
        }
        Ok(Self { address, ports })
    }
}

fn check_target(address: IpAddr, ports: Option<PortRange>) -> Result<(), ParseError> {
    if address.is_loopback() {
        let port = ports.map_or(80, PortRange::first);
        return Err(ParseError::new(
            format!("the target `{address}` is a loopback address, and packets cannot be forwarded to it"),
            format!("write `:{port}` for a port of this host"),
        ));
    }
    let reason = match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "is link-local, so it needs an interface",
        _ => match invalid_host(address) {
            Some(reason) => reason,
            None => return Ok(()),
        },
    };
    Err(ParseError::new(format!("the target `{address}` {reason}"), "write the address of one host"))
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
    fn invalid_targets_are_refused() {
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
