//! What a lab is to be: the nouns of its file.
//!
//! ```toml
//! name = "red-blue"                     # default: the file's name without `.toml`
//!
//! [[namespace]]
//! name    = "red"
//! forward = false                       # true: packets are forwarded between its interfaces
//!
//! [[bridge]]
//! name       = "v-net-0"
//! kind       = "linux"                  # or "ovs"
//! namespace  = "red"                    # left out: the host
//! address    = ["192.168.15.5/24"]
//! masquerade = false                    # true: a network of Docker's kind; what leaves it takes the host's address
//! chain      = "DOCKER"                 # where the forwards into such a network live
//!
//! [[veth]]                              # two ends; where one has no namespace, it is in the host
//! ends = [
//!   { namespace = "red", name = "veth-red", address = ["192.168.15.1/24"] },
//!   { name = "veth-red-br", bridge = "v-net-0" },
//! ]
//!
//! [[route]]
//! namespace = "red"                     # left out: the host
//! to        = "default"                 # or a prefix
//! via       = "192.168.15.5"
//! dev       = "veth-red"                # left out: the interface that `via` is at
//!
//! [[container]]
//! name      = "web"
//! network   = "bridge"                  # or "none", "host"
//! bridge    = "docker0"
//! address   = "172.17.0.3"              # left out: the next free one of the bridge's subnet
//! publish   = ["8080:80"]               # [ADDR:]PORTS:PORTS[/PROTO], as `docker run -p`
//! processes = false                     # true: a process namespace of its own
//! command   = ["sleep", "infinity"]     # what runs in it, with nothing to read and nobody who reads it
//! ```
//! A value of these types is not yet sound: `check.rs` looks at how they go together.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::Serialize;

use super::name::{LabName, NetnsName};
use crate::model::{ChainName, Forward, IfName, Listen, Network, ParseError, PortRange, Target};

/// A lab. Prints as TOML that reads as the same lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lab {
    /// Its name.
    pub name: LabName,
    /// The network namespaces besides those of containers.
    #[serde(rename = "namespace", skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
    /// The bridges.
    #[serde(rename = "bridge", skip_serializing_if = "Vec::is_empty")]
    pub bridges: Vec<Bridge>,
    /// The pairs of links.
    #[serde(rename = "veth", skip_serializing_if = "Vec::is_empty")]
    pub veths: Vec<Veth>,
    /// The routes besides those that come with an address.
    #[serde(rename = "route", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// The containers, in the order in which they get addresses.
    #[serde(rename = "container", skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Container>,
}

impl fmt::Display for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// Its name, also for ip-netns(8).
    pub name: NetnsName,
    /// Whether packets are forwarded between its interfaces, IPv4 and IPv6.
    pub forward: bool,
}

/// What makes a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The kernel's own bridge.
    Linux,
    /// Open vSwitch.
    Ovs,
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bridge {
    /// The interface's name.
    pub name: IfName,
    /// What makes it.
    pub kind: Kind,
    /// Where it is; none: the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NetnsName>,
    /// The addresses of its interface, with the length of their subnets.
    #[serde(rename = "address", skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNetwork>,
    /// Whether what leaves its subnets by another interface takes that one's address.
    pub masquerade: bool,
    /// The chain that the forwards into it live in.
    pub chain: ChainName,
}

impl Bridge {
    /// The same as a network of the model; none where it is not the host's, or has no address.
    pub fn network(&self) -> Option<Network> {
        let subnet = |address: &IpNetwork| IpNetwork::new(address.network(), address.prefix()).ok();
        let mut subnets: Vec<IpNetwork> = self.addresses.iter().filter_map(subnet).collect();
        subnets.sort_unstable();
        subnets.dedup();
        (self.namespace.is_none() && !subnets.is_empty()).then(|| Network {
            name: self.name.clone(),
            subnets,
            masquerade: self.masquerade,
            chain: self.chain.clone(),
            isolate: false,
        })
    }
}

/// A pair of links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Veth {
    /// Its ends.
    pub ends: [End; 2],
}

/// An end of a pair of links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct End {
    /// Where it is; none: the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NetnsName>,
    /// The interface's name.
    pub name: IfName,
    /// Its addresses, with the length of their subnets.
    #[serde(rename = "address", skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNetwork>,
    /// The bridge that it is a port of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<IfName>,
}

impl End {
    /// Whether it is a port of a bridge.
    pub fn is_port_of(&self, bridge: &Bridge) -> bool {
        self.bridge.as_ref() == Some(&bridge.name) && self.namespace == bridge.namespace
    }
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Where; none: the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NetnsName>,
    /// What is reached by it; all of a family for `default`.
    #[serde(serialize_with = "destination")]
    pub to: IpNetwork,
    /// Whom packets are handed to.
    pub via: IpAddr,
    /// The interface; none: the one that `via` is at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<IfName>,
}

fn destination<S: serde::Serializer>(to: &IpNetwork, serializer: S) -> Result<S::Ok, S::Error> {
    if to.prefix() == 0 { serializer.serialize_str("default") } else { serializer.collect_str(to) }
}

/// How a container is connected, `docker run --network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attachment {
    /// Nothing but loopback.
    None,
    /// The host's own network.
    Host,
    /// An end of a pair at a bridge, an address of its subnet, a default route to it.
    Bridge,
}

/// A container, as far as its network goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Container {
    /// Its name; its network namespace has the same.
    pub name: NetnsName,
    /// How it is connected.
    pub network: Attachment,
    /// The bridge; there is one just where it is connected to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<IfName>,
    /// Its address; none: the next free one of the bridge's subnet. Of the bridge's other family it is always that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Ports of the host that lead to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publish>,
    /// Whether it has a process namespace of its own.
    pub processes: bool,
    /// What runs in it; none: nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
}

/// `8080:80`: ports of the host that lead to a container's, `docker run -p`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Where the host listens.
    pub listen: Listen,
    /// The container's ports.
    pub to: PortRange,
}

impl Publish {
    /// The same as a forward of the model, to a container's address.
    pub fn forward(&self, container: IpAddr) -> Forward {
        let to = Target { address: Some(container), ports: Some(self.to) };
        Forward::new(self.listen.clone(), to)
    }
}

impl FromStr for Publish {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (ports, protocol) = text.split_once('/').map_or((text, None), |(ports, protocol)| (ports, Some(protocol)));
        let Some((listen, to)) = ports.rsplit_once(':') else {
            let what = format!("`{text}` says only one of the host's and the container's ports");
            return Err(ParseError::new(what, "write both, `8080:80`"));
        };
        let listen = protocol.map_or_else(|| listen.to_owned(), |protocol| format!("{listen}/{protocol}"));
        let published = Self { listen: listen.parse()?, to: to.parse()? };
        // Whether the widths agree does not depend on the address, but on its family.
        let container = match published.listen.address {
            Some(IpAddr::V6(_)) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
            _ => IpAddr::from([192, 0, 2, 1]),
        };
        let error = published.forward(container).bindings().err();
        if let Some(error) = error {
            return Err(ParseError::new(error.to_string(), error.help()));
        }
        Ok(published)
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listen = self.listen.to_string();
        match listen.split_once('/') {
            Some((listen, protocol)) => write!(f, "{listen}:{}/{protocol}", self.to),
            None => write!(f, "{listen}:{}", self.to),
        }
    }
}

impl Serialize for Publish {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
