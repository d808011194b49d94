//! Bridge networks and masquerades.

use std::fmt;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::address::loopback;
use super::{ChainName, Family, IfName, ParseError};

/// A Docker-style bridge network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Network {
    /// The bridge interface.
    pub name: IfName,
    /// Its subnets, at least one.
    pub subnets: Vec<IpNetwork>,
    /// Whether traffic that leaves the network by another interface takes that interface's address.
    pub masquerade: bool,
    /// The chain that the forwards into this network live in.
    pub chain: ChainName,
    /// Whether, from outside, only what a forward publishes gets in.
    pub isolate: bool,
}

/// Traffic that takes the address of the interface it leaves by. At least one of the two is given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Masquerade {
    /// Only what comes from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpNetwork>,
    /// Only what leaves here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<IfName>,
}

/// Refuses a subnet that no bridge can have: one with loopback or multicast addresses in it.
///
/// # Errors
/// Where it has.
pub fn check_subnet(subnet: IpNetwork) -> Result<(), ParseError> {
    let loopback = loopback(Family::of_network(subnet));
    let what = if subnet.contains(loopback.network()) || loopback.contains(subnet.network()) {
        "loopback"
    } else if subnet.broadcast().is_multicast() || subnet.network().is_multicast() {
        "multicast"
    } else {
        return Ok(());
    };
    Err(ParseError::new(
        format!("the subnet `{subnet}` holds {what} addresses, which no bridge has"),
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
    fn a_subnet_is_one_of_hosts() {
        for good in ["172.17.0.0/16", "fd00:17::/64", "192.0.2.7/32"] {
            assert_eq!(check_subnet(good.parse().expect(good)), Ok(()), "{good}");
        }
        for bad in ["127.0.0.0/8", "127.1.0.0/16", "0.0.0.0/0", "::1/128", "224.0.0.0/4", "239.1.0.0/16", "ff00::/8"] {
            assert!(check_subnet(bad.parse().expect(bad)).is_err(), "{bad}");
        }
    }
}
