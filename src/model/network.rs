//! Bridge networks and masquerades.

use std::fmt;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{ChainName, IfName};

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
