//! Bridge networks and masquerades.

use std::fmt;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::address::loopback;
use super::{ChainName, Family, IfName, ParseError};

/// A Docker-style bridge network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Network {
    /// The name of the bridge interface.
    pub name: IfName,
    /// The subnets of the bridge, at least one.
    pub subnets: Vec<IpNetwork>,
    /// Masquerade packets from the network that leave by another interface.
    pub masquerade: bool,
    /// The chain of the forwards into this network.
    pub chain: ChainName,
    /// Drop new connections from outside to ports that no forward publishes.
    pub isolate: bool,
}

/// A rule that rewrites the source to the address of the egress interface. At least one of `from` and `out` is set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Masquerade {
    /// The source prefix, or `None` for every source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpNetwork>,
    /// The egress interface, or `None` for every interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<IfName>,
}

/// Checks that a bridge can have the subnet.
///
/// # Errors
/// If the subnet contains loopback or multicast addresses.
pub fn check_subnet(subnet: IpNetwork) -> Result<(), ParseError> {
    let loopback = loopback(Family::of_network(subnet));
    let kind = if subnet.contains(loopback.network()) || loopback.contains(subnet.network()) {
        "loopback"
    } else if subnet.broadcast().is_multicast() || subnet.network().is_multicast() {
        "multicast"
    } else {
        return Ok(());
    };
    Err(ParseError::new(
        format!("the subnet `{subnet}` contains {kind} addresses, which a bridge cannot have"),
        "write the subnet of the containers, for example `172.17.0.0/16`",
    ))
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("masquerade")?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if let Some(out) = &self.out {
            write!(f, " out {out}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "network {}", self.name)?;
        for subnet in &self.subnets {
            write!(f, " {subnet}")?;
        }
        if self.masquerade {
            f.write_str(" masquerade")?;
        }
        if self.isolate {
            f.write_str(" isolate")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_with_loopback_or_multicast_addresses_are_refused() {
        for good in ["172.17.0.0/16", "fd00:17::/64", "192.0.2.7/32"] {
            assert_eq!(check_subnet(good.parse().expect(good)), Ok(()), "{good}");
        }
        for bad in ["127.0.0.0/8", "127.1.0.0/16", "0.0.0.0/0", "::1/128", "224.0.0.0/4", "239.1.0.0/16", "ff00::/8"] {
            assert!(check_subnet(bad.parse().expect(bad)).is_err(), "{bad}");
        }
    }
}
