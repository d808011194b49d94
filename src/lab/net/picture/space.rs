//! The data of a picture: namespaces with their links, routes, neighbours and processes.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Serialize, Serializer};

use crate::lab::net::description::Attachment;
use crate::lab::net::name::{LabName, NetnsName};
use crate::lab::net::plan::{Location, Step};

/// The live state of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Picture {
    /// The name of the lab.
    pub lab: LabName,
    /// The host's name for `--netns`. Null if it has none.
    pub host: Option<String>,
    /// The network namespaces: the host if the lab touches it, then the others in the order of creation.
    pub spaces: Vec<NamespaceView>,
}

/// A network namespace, as seen from inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamespaceView {
    /// The name. Null for the host.
    #[serde(rename = "name")]
    pub location: Location,
    /// The network mode of the container with this namespace. Null for other namespaces.
    pub network: Option<Attachment>,
    /// The containers on this namespace with `network = "host"`.
    pub containers: Vec<NetnsName>,
    /// The published ports from the file, such as `8080:80`. Ports that are not forwarded are in `missing`.
    pub publish: Vec<String>,
    /// True if the namespace exists.
    pub here: bool,
    /// True if the namespace forwards IPv4 packets.
    pub forwards_ipv4: bool,
    /// True if the namespace forwards IPv6 packets.
    pub forwards_ipv6: bool,
    /// The links, by index. For the host, only those that the lab touches.
    pub links: Vec<Link>,
    /// The routes of the main tables, IPv4 first, in the kernel's order.
    pub routes: Vec<Route>,
    /// The entries of the ARP table and of IPv6 neighbour discovery, as ip-neighbour(8) shows them.
    pub neighbours: Vec<Neighbour>,
    /// The processes in the namespace, by PID. Always empty for the host.
    pub processes: Vec<Process>,
    /// The steps of `up` whose object is missing or changed.
    #[serde(serialize_with = "texts")]
    pub missing: Vec<Step>,
}

/// A network interface with its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// The index in the link's namespace.
    pub index: u32,
    /// The name. It may have any character but `/`, `:` and white space.
    pub name: String,
    /// The kind, such as `veth` or `bridge`, as in ip-link(8). Null for links without a kind, such as `lo` and most
    /// hardware.
    pub kind: Option<String>,
    /// The operational state.
    pub state: State,
    /// The hardware address. Null if the link has none.
    pub mac: Option<Mac>,
    /// The bridge that the link is a port of.
    pub bridge: Option<String>,
    /// The other end, if the link is part of a veth pair.
    pub peer: Option<Peer>,
    /// The addresses with prefix lengths, in the kernel's order.
    pub addresses: Vec<IpNetwork>,
}

impl Link {
    /// Returns the addresses except IPv6 link-local ones, which the kernel assigns itself (RFC 4291, 2.5.6).
    pub fn given_addresses(&self) -> impl Iterator<Item = &IpNetwork> {
        self.addresses.iter().filter(|address| !is_link_local(address.ip()))
    }
}

/// Returns true for an IPv6 link-local address, fe80::/10.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// The operational state of a link, in the words of ip-link(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The link is up and has a carrier.
    Up,
    /// The link is up, but has no peer or a peer that is down.
    NoCarrier,
    /// The link is administratively down.
    Down,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "UP",
            Self::NoCarrier => "NO-CARRIER",
            Self::Down => "DOWN",
        })
    }
}

/// A hardware address, usually of 6 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mac(pub Vec<u8>);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.pad(&bytes.join(":"))
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The other end of a veth pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// A link of the lab or of its host.
    Link {
        /// The namespace. Null for the host.
        namespace: Location,
        /// The name of the interface.
        name: String,
    },
    /// A link in a namespace outside of the lab.
    Elsewhere,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// The destination. JSON has `default` for 0.0.0.0/0 and ::/0.
    #[serde(serialize_with = "destination")]
    pub to: IpNetwork,
    /// The route type: `unicast`, or a type that rejects packets, such as `unreachable`.
    pub kind: &'static str,
    /// The gateway. Null for a connected route.
    pub via: Option<IpAddr>,
    /// The egress link. Null for routes that reject packets.
    pub dev: Option<String>,
    /// The preferred source address for packets of this namespace.
    pub src: Option<IpAddr>,
}

impl Route {
    /// Returns the destination as ip-route(8) writes it.
    pub fn destination(&self) -> String {
        match (self.to.prefix(), self.to) {
            (0, _) => "default".into(),
            (32, IpNetwork::V4(_)) | (128, IpNetwork::V6(_)) => self.to.ip().to_string(),
            _ => self.to.to_string(),
        }
    }

    /// Returns true for a connected route to link-local addresses. Every link may have one.
    pub(super) fn is_link_local(&self) -> bool {
        is_link_local(self.to.ip()) && self.via.is_none()
    }
}

/// A neighbour: an address on a link's network, and its hardware address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    /// The IP address of the neighbour.
    pub address: IpAddr,
    /// The hardware address. Null if it is not resolved.
    pub mac: Option<Mac>,
    /// The link to the neighbour.
    pub dev: String,
    /// The state: `REACHABLE`, `STALE`, `DELAY`, `PROBE`, `INCOMPLETE`, `FAILED` or `PERMANENT`, as in ip-neighbour(8).
    pub state: String,
}

/// A process in a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// The PID in this process namespace.
    pub pid: u32,
    /// The PID in the process's own process namespace. Null if that is this one.
    pub inside: Option<u32>,
    /// The name of the program, from proc_pid_status(5).
    pub name: String,
}

impl NamespaceView {
    /// Returns true if there is nothing to show for the namespace.
    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty() && self.missing.is_empty() && self.containers.is_empty() && self.here
    }

    /// Returns the title: `host`, `namespace red`, or `container web (network bridge)`.
    pub(super) fn title(&self) -> String {
        match (&self.location.0, self.network) {
            (None, _) => "host".into(),
            (Some(name), None) => format!("namespace {name}"),
            (Some(name), Some(network)) => {
                let publish = self.publish.join(", ");
                let publish = if publish.is_empty() { publish } else { format!(", publish {publish}") };
                format!("container {name} (network {}{publish})", network_name(network))
            }
        }
    }

    /// Returns the forwarded families as text, or `None` if there are none.
    pub(super) fn forwards(&self) -> Option<&'static str> {
        match (self.forwards_ipv4, self.forwards_ipv6) {
            (true, true) => Some("forwards IPv4 and IPv6"),
            (true, false) => Some("forwards IPv4"),
            (false, true) => Some("forwards IPv6"),
            (false, false) => None,
        }
    }

    /// Returns the routes without the link-local ones.
    pub(super) fn shown_routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(|route| !route.is_link_local())
    }
}

/// Returns the word of `docker run --network`.
fn network_name(network: Attachment) -> &'static str {
    match network {
        Attachment::None => "none",
        Attachment::Host => "host",
        Attachment::Bridge => "bridge",
    }
}

fn texts<S: Serializer>(steps: &[Step], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(steps.iter().map(ToString::to_string))
}

fn destination<S: Serializer>(to: &IpNetwork, serializer: S) -> Result<S::Ok, S::Error> {
    if to.prefix() == 0 { serializer.serialize_str("default") } else { serializer.collect_str(to) }
}
