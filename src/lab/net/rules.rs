//! The rule set of a lab: the published ports of its containers, and its masqueraded bridges as networks.
//!
//! ```text
//! [[bridge]] masquerade = true       ─▶ [[network]]: its forwards are in its chain, `DOCKER`
//! [[container]] publish = ["8080:80"] ─▶ [[forward]] to its address
//! ```
//! This file only builds the set. `apply.rs` commits it.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::address;
use super::description::{Container, Lab};
use super::name::LabName;
use crate::model::{Forward, Listen, Network, ParseError, RuleSet, SetName, Target};

/// The rule set of one lab, named after the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The name of the set, `lab-` and the lab's name.
    pub set: SetName,
    /// The bridges with `masquerade = true`, as networks.
    pub networks: Vec<Network>,
    /// The published ports of the containers.
    pub published: Vec<Published>,
}

/// A published port with its container's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[String; 2]", into = "[String; 2]")]
pub struct Published {
    /// The address, ports and protocol on the host.
    pub listen: Listen,
    /// The container's address and ports.
    pub to: Target,
}

impl TryFrom<[String; 2]> for Published {
    type Error = ParseError;

    fn try_from([listen, to]: [String; 2]) -> Result<Self, ParseError> {
        Ok(Self { listen: listen.parse()?, to: to.parse()? })
    }
}

impl From<Published> for [String; 2] {
    fn from(published: Published) -> Self {
        [published.listen.to_string(), published.to.to_string()]
    }
}

impl Rules {
    /// Returns the rule set of a lab, or `None` if it would be empty.
    pub(super) fn for_lab(lab: &Lab) -> Option<Self> {
        let networks: Vec<Network> =
            lab.bridges.iter().filter(|bridge| bridge.masquerade).filter_map(|bridge| bridge.network()).collect();
        let ends: Vec<_> = lab.veths.iter().flat_map(|veth| &veth.ends).collect();
        let given = address::assign_addresses(&lab.bridges, &ends, &lab.containers);
        let published = lab.containers.iter().zip(given).flat_map(|(container, given)| {
            // Reading the file has already reported addresses that cannot be assigned.
            let addresses: Vec<_> = given.unwrap_or_default().into_iter().map(|(address, _)| address.ip()).collect();
            forwards(container, &addresses)
        });
        let published: Vec<_> = published.map(|forward| Published { listen: forward.listen, to: forward.to }).collect();
        let set = set_name(&lab.name)?;
        (!networks.is_empty() || !published.is_empty()).then_some(Self { set, networks, published })
    }

    /// Returns the rule set as a type of the model.
    pub(super) fn rule_set(&self) -> RuleSet {
        let forwards = self.published.iter().map(|port| Forward::new(port.listen.clone(), port.to)).collect();
        RuleSet { forwards, networks: self.networks.clone(), ..RuleSet::new(self.set.clone()) }
    }
}

/// Returns the forwards to a container with these addresses. A port published at a host address goes to the container's
/// address of the same family, any other port to all its addresses.
pub(super) fn forwards(container: &Container, addresses: &[std::net::IpAddr]) -> Vec<Forward> {
    let forwards_of = |publish: &super::description::Publish| {
        let like = publish.listen.address.map(|listen| listen.is_ipv4());
        let fits = addresses.iter().filter(|address| like.is_none_or(|v4| address.is_ipv4() == v4));
        fits.map(|address| publish.forward(*address)).collect::<Vec<_>>()
    };
    container.publish.iter().flat_map(forwards_of).collect()
}

/// Returns `lab-` with the lab's name, or with a hash of it if the name is too long.
fn set_name(lab: &LabName) -> Option<SetName> {
    let plain = format!("lab-{lab}").parse().ok();
    plain.or_else(|| format!("lab-{:016x}", xxh3_64(lab.as_str().as_bytes())).parse().ok())
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule set `{}`:", self.set)?;
        let networks = self.networks.iter().map(ToString::to_string);
        let published = self.published.iter().map(|port| format!("{} -> {}", port.listen, port.to));
        for (index, rule) in networks.chain(published).enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma} {rule}")?;
        }
        Ok(())
    }
}
