//! The description of a lab: the tables of its file as types.
//!
//! ```toml
//! name = "red-blue"                     # default: the file name without `.toml`
//!
//! [[namespace]]
//! name    = "red"
//! forward = false                       # true: forwards packets between its interfaces
//!
//! [[bridge]]
//! name       = "v-net-0"
//! kind       = "linux"                  # or "ovs"
//! namespace  = "red"                    # default: the host
//! address    = ["192.168.15.5/24"]
//! masquerade = false                    # true: packets that leave the subnet get the host's address
//! chain      = "DOCKER"                 # the chain of the forwards into this network
//!
//! [[veth]]                              # two ends; without `namespace` an end is in the host
//! ends = [
//!   { namespace = "red", name = "veth-red", address = ["192.168.15.1/24"] },
//!   { name = "veth-red-br", bridge = "v-net-0" },
//! ]
//!
//! [[route]]
//! namespace = "red"                     # default: the host
//! to        = "default"                 # or a prefix
//! via       = "192.168.15.5"
//! dev       = "veth-red"                # default: the interface on the gateway's subnet
//!
//! [[container]]
//! name      = "web"
//! network   = "bridge"                  # or "none", "host"
//! bridge    = "docker0"
//! address   = "172.17.0.3"              # default: the next free address of the bridge's subnet
//! publish   = ["8080:80"]               # [ADDR:]PORTS:PORTS[/PROTO], as `docker run -p`
//! processes = false                     # true: a process namespace of its own
//! command   = ["sleep", "infinity"]     # standard input and output are /dev/null
//! ```
//! These types do not check each other. See `check.rs`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::Serialize;

use super::name::{LabName, NetnsName};
use crate::model::{ChainName, Forward, IfName, Listen, Network, ParseError, PortRange, Target};

/// A lab. Its `Display` form is TOML that reads as the same lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lab {
    /// The lab's name: the key `name`, or the file's stem.
    pub name: LabName,
    /// The network namespaces, except those of containers.
    #[serde(rename = "namespace", skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
    /// The bridges, as `[[bridge]]` lists them.
    #[serde(rename = "bridge", skip_serializing_if = "Vec::is_empty")]
    pub bridges: Vec<Bridge>,
    /// The veth pairs, except those of containers.
    #[serde(rename = "veth", skip_serializing_if = "Vec::is_empty")]
    pub veths: Vec<Veth>,
    /// The routes, except those that the kernel adds with an address.
    #[serde(rename = "route", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// The containers, in the order of address assignment.
    #[serde(rename = "container", skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Container>,
}

impl fmt::Display for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// A network namespace of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// The name in /run/netns, as ip-netns(8) shows it.
    pub name: NetnsName,
    /// True if the namespace forwards IPv4 and IPv6 packets between its interfaces.
    pub forward: bool,
}

/// The implementation of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The Linux bridge of the kernel.
    Linux,
    /// A bridge of Open vSwitch.
    Ovs,
}

/// A bridge with its interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bridge {
    /// The name of the bridge interface.
    pub name: IfName,
    /// The implementation: Linux or Open vSwitch.
    pub kind: Kind,
    /// The namespace. `None` means the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NetnsName>,
    /// The addresses of the bridge interface, with prefix lengths.
    #[serde(rename = "address", skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNetwork>,
    /// True if packets from the bridge's subnets that leave by another interface get the host's address.
    pub masquerade: bool,
    /// The chain for the forwards into this network.
    pub chain: ChainName,
}

impl Bridge {
    /// Returns the bridge as a network of the model. Returns `None` if the bridge is not in the host or has no address.
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

/// A veth pair: two joined interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Veth {
    /// The two ends, in the order of the file.
    pub ends: [End; 2],
}

/// An end of a veth pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct End {
    /// The namespace. `None` means the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NetnsName>,
    /// The name of the interface.
    pub name: IfName,
    /// The addresses of the interface, with prefix lengths.
    #[serde(rename = "address", skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNetwork>,
    /// The bridge that this end is a port of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<IfName>,
}

impl End {
    /// Returns true if this end is a port of the bridge.
    pub fn is_port_of(&self, bridge: &Bridge) -> bool {
        self.bridge.as_ref() == Some(&bridge.name) && self.namespace == bridge.namespace
    }
}

/// A static route of a namespace or of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// The namespace. `None` means the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NetnsName>,
    /// The destination prefix. The file writes `default` for 0.0.0.0/0 and ::/0.
    #[serde(serialize_with = "destination")]
    pub to: IpNetwork,
    /// The gateway's address.
    pub via: IpAddr,
    /// The egress interface. `None` means the interface on the gateway's subnet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<IfName>,
}

fn destination<S: serde::Serializer>(to: &IpNetwork, serializer: S) -> Result<S::Ok, S::Error> {
    if to.prefix() == 0 { serializer.serialize_str("default") } else { serializer.collect_str(to) }
}

/// The network mode of a container, as in `docker run --network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attachment {
    /// Only the loopback interface.
    None,
    /// The network namespace of the host.
    Host,
    /// A veth pair to a bridge, an address of its subnet, and a default route through the bridge.
    Bridge,
}

/// A container: a network namespace and the processes in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Container {
    /// The name of the container and of its network namespace.
    pub name: NetnsName,
    /// The network mode, as in `docker run --network`.
    pub network: Attachment,
    /// The bridge. `Some` only in the mode `bridge`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<IfName>,
    /// The configured address. `None` means the next free address of the bridge's subnet. In the bridge's other family
    /// the address is always the next free one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The host ports that are forwarded to the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publish>,
    /// True if the container has a process namespace of its own.
    pub processes: bool,
    /// The command. Empty if the container runs none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
}

/// A published port such as `8080:80`: ports of the host that are forwarded to a container, as in `docker run -p`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The address, ports and protocol on the host.
    pub listen: Listen,
    /// The ports of the container.
    pub to: PortRange,
}

impl Publish {
    /// Returns the forward of the model to a container's address.
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
            let what = format!("`{text}` has only one of two ports");
            return Err(ParseError::new(what, "write the host's and the container's port, `8080:80`"));
        };
        let listen = protocol.map_or_else(|| listen.to_owned(), |protocol| format!("{listen}/{protocol}"));
        let published = Self { listen: listen.parse()?, to: to.parse()? };
        // The check for equal widths needs a target of the right family, but not the real address.
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
