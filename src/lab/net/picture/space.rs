//! The data of a picture: namespaces with their links, routes, neighbours and processes.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Serialize, Serializer};

use crate::lab::net::description::Attachment;
use crate::lab::net::name::{LabName, NetnsName};
use crate::lab::net::plan::{Location, Step};

/// A lab as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Picture {
    /// Its name.
    pub lab: LabName,
    /// The name of the namespace that is its host, for `--netns`; none where it has none.
    pub host: Option<String>,
    /// Its network namespaces: the host where the lab touches it, then the others in the order in which they were made.
    pub spaces: Vec<NamespaceView>,
}

/// A network namespace, as seen from inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamespaceView {
    /// Its name; null of the host.
    #[serde(rename = "name")]
    pub location: Location,
    /// How the container is connected whose namespace it is; null where it is none's.
    pub network: Option<Attachment>,
    /// The containers that use it as their own, with `network = "host"`.
    pub containers: Vec<NetnsName>,
    /// The ports of the host that the container's file publishes, `8080:80`; what of that is not there is missing.
    pub publish: Vec<String>,
    /// Whether it is there.
    pub here: bool,
    /// Whether it sends on IPv4 packets that are not for itself.
    pub forwards_ipv4: bool,
    /// The same for IPv6.
    pub forwards_ipv6: bool,
    /// Its links, by number; of the host only those that the lab touches.
    pub links: Vec<Link>,
    /// What the main routing tables say, IPv4 first, in the kernel's order.
    pub routes: Vec<Route>,
    /// The ARP table, and its counterpart for IPv6, as ip-neigh(8) shows them.
    pub neighbours: Vec<Neighbour>,
    /// The processes in it, by number; none of the host's.
    pub processes: Vec<Process>,
    /// What `up` made here and is not there, or not as it was made.
    #[serde(serialize_with = "texts")]
    pub missing: Vec<Step>,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name, which may hold any character but `/`, `:` and blanks.
    pub name: String,
    /// `veth`, `bridge`, …, as ip-link(8) names them; null of one without a kind, such as `lo` and most hardware.
    pub kind: Option<String>,
    /// Whether packets go through.
    pub state: State,
    /// Its hardware address; null where it has none.
    pub mac: Option<Mac>,
    /// The bridge that it is a port of.
    pub bridge: Option<String>,
    /// The other end of a pair.
    pub peer: Option<Peer>,
    /// Its addresses, each with the length of its subnet, in the kernel's order.
    pub addresses: Vec<IpNetwork>,
}

impl Link {
    /// Its addresses without those that every interface makes itself from its hardware address (RFC 4291, 2.5.6).
    pub fn given_addresses(&self) -> impl Iterator<Item = &IpNetwork> {
        self.addresses.iter().filter(|address| !is_link_local(address.ip()))
    }
}

/// Whether an IPv6 address is one of a single link, fe80::/10.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Whether packets go through a link; the words are those of ip-link(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// They do.
    Up,
    /// It is up, but the other end is not, or it has none: a cable that is not plugged in.
    NoCarrier,
    /// It is switched off.
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

/// A hardware address.
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

/// The other end of a pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// A link of the lab, or of its host.
    Link {
        /// Where it is; null: the host.
        namespace: Location,
        /// Its name.
        name: String,
    },
    /// In a namespace that is not the lab's.
    Elsewhere,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// What is reached by it; all of a family for `default`.
    #[serde(serialize_with = "destination")]
    pub to: IpNetwork,
    /// `unicast`, or `unreachable`, `blackhole`, `prohibit`, …: what is refused.
    pub kind: &'static str,
    /// Whom packets are handed to; null: the receiver itself.
    pub via: Option<IpAddr>,
    /// The link that they leave by.
    pub dev: Option<String>,
    /// The address that they carry as their sender where they begin here.
    pub src: Option<IpAddr>,
}

impl Route {
    /// What is reached by it, as ip-route(8) writes it.
    pub fn destination(&self) -> String {
        match (self.to.prefix(), self.to) {
            (0, _) => "default".into(),
            (32, IpNetwork::V4(_)) | (128, IpNetwork::V6(_)) => self.to.ip().to_string(),
            _ => self.to.to_string(),
        }
    }

    /// Whether every interface has it, or may have: that of link-local addresses.
    pub(super) fn is_link_local(&self) -> bool {
        is_link_local(self.to.ip()) && self.via.is_none()
    }
}

/// An address in reach of a link, and the hardware address that it has there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    /// The address.
    pub address: IpAddr,
    /// Its hardware address; null while, or because, nobody answers for it.
    pub mac: Option<Mac>,
    /// The link.
    pub dev: String,
    /// `REACHABLE`, `STALE`, `DELAY`, `PROBE`, `INCOMPLETE`, `FAILED` or `PERMANENT`, as ip-neighbour(8) explains them.
    pub state: String,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its number here.
    pub pid: u32,
    /// Its number in its own process namespace; null where that is this one.
    pub inside: Option<u32>,
    /// Its name.
    pub name: String,
}

impl NamespaceView {
    /// Whether there is nothing to tell of it.
    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty() && self.missing.is_empty() && self.containers.is_empty() && self.here
    }

    /// What it is, in words: `host`, `namespace red`, `container web (network bridge)`.
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

    /// Which packets it sends on, in words; none where it sends on none.
    pub(super) fn forwards(&self) -> Option<&'static str> {
        match (self.forwards_ipv4, self.forwards_ipv6) {
            (true, true) => Some("forwards IPv4 and IPv6"),
            (true, false) => Some("forwards IPv4"),
            (false, true) => Some("forwards IPv6"),
            (false, false) => None,
        }
    }

    /// The routes without those that every link has.
    pub(super) fn shown_routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(|route| !route.is_link_local())
    }
}

/// The word of `docker run --network`.
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
