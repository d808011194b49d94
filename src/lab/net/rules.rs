//! The rule set of a lab: what its containers publish, and the networks of Docker's kind that its bridges are.
//!
//! ```text
//! [[bridge]] masquerade = true       ─▶ [[network]]: forwards into it live in its chain, `DOCKER`
//! [[container]] publish = ["8080:80"] ─▶ [[forward]] to its address; into a bridge that is no such network directly
//! ```
//! Pure: `apply.rs` makes it live and durable.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::address;
use super::description::{Container, Lab};
use super::name::LabName;
use crate::model::{Forward, Listen, Network, ParseError, RuleSet, SetName, Target};

/// What a lab asks of the host's rules. A set of one lab, named after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The set's name.
    pub set: SetName,
    /// The bridges that are networks of Docker's kind.
    pub networks: Vec<Network>,
    /// What containers publish.
    pub published: Vec<Published>,
}

/// A port of the host that leads to a container's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[String; 2]", into = "[String; 2]")]
pub struct Published {
    /// Where the host listens.
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
    /// Those of a lab; none where it asks nothing of the host's rules.
    pub(super) fn for_lab(lab: &Lab) -> Option<Self> {
        let networks: Vec<Network> =
            lab.bridges.iter().filter(|bridge| bridge.masquerade).filter_map(|bridge| bridge.network()).collect();
        let ends: Vec<_> = lab.veths.iter().flat_map(|veth| &veth.ends).collect();
        let given = address::assign_addresses(&lab.bridges, &ends, &lab.containers);
        let published = lab.containers.iter().zip(given).flat_map(|(container, given)| {
            // What cannot be given was reported when the file was read.
            let addresses: Vec<_> = given.unwrap_or_default().into_iter().map(|(address, _)| address.ip()).collect();
            forwards(container, &addresses)
        });
        let published: Vec<_> = published.map(|forward| Published { listen: forward.listen, to: forward.to }).collect();
        let set = set_name(&lab.name)?;
        (!networks.is_empty() || !published.is_empty()).then_some(Self { set, networks, published })
    }

    /// The same in the model.
    pub(super) fn rule_set(&self) -> RuleSet {
        let forwards = self.published.iter().map(|one| Forward::new(one.listen.clone(), one.to)).collect();
        RuleSet { forwards, networks: self.networks.clone(), ..RuleSet::new(self.set.clone()) }
    }
}

/// What a container with these addresses publishes: at an address of the host to its own of the same family, at all of them
/// to each.
pub(super) fn forwards(container: &Container, addresses: &[std::net::IpAddr]) -> Vec<Forward> {
    let of = |publish: &super::description::Publish| {
        let like = publish.listen.address.map(|listen| listen.is_ipv4());
        let fits = addresses.iter().filter(|address| like.is_none_or(|v4| address.is_ipv4() == v4));
        fits.map(|address| publish.forward(*address)).collect::<Vec<_>>()
    };
    container.publish.iter().flat_map(of).collect()
}

/// The name of a lab's set: that of the lab in it, where it fits.
fn set_name(lab: &LabName) -> Option<SetName> {
    let plain = format!("lab-{lab}").parse().ok();
    plain.or_else(|| format!("lab-{:016x}", xxh3_64(lab.as_str().as_bytes())).parse().ok())
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule set `{}`:", self.set)?;
        let networks = self.networks.iter().map(ToString::to_string);
        let published = self.published.iter().map(|one| format!("{} -> {}", one.listen, one.to));
        for (index, rule) in networks.chain(published).enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma} {rule}")?;
        }
        Ok(())
    }
}
