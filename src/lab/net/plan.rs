//! A description to the steps that make it, in order; each has its own undoing. Pure: nothing is made here.
//!
//! ```text
//! namespaces ─▶ switches ─▶ bridges ─▶ pairs ─▶ ports ─▶ addresses ─▶ up ─▶ routes ─▶ rules ─▶ processes
//!                                                                                  down: the same way back
//! ```
//! Two descriptions are compared by their steps: what is in both stays, what is in one alone is made or taken back. So an
//! address that changes is one address less and one more, and the link that has it stays.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::address;
use super::description::{Attachment, Container, End, Kind, Lab};
use super::name::NetnsName;
use super::process::Process;
use super::rules::Rules;
use crate::model::{IfName, SetName};

/// Where something is: in a network namespace of the lab, or in the host, which is the namespace of who made the lab.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Location(pub Option<NetnsName>);

impl Location {
    /// The host.
    pub const HOST: Self = Self(None);
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(name) => write!(f, "`{name}`"),
            None => f.write_str("the host"),
        }
    }
}

/// What a step needs, and another may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A network namespace.
    Namespace(NetnsName),
    /// An interface.
    Link(Location, IfName),
    /// A route of the host.
    Route(IpNetwork, IpAddr, Option<IfName>),
    /// A rule set.
    Rules(SetName),
}

/// One thing to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// A network namespace with a name, its `lo` up. Undone: the name goes, and with it the namespace.
    Namespace(NetnsName),
    /// A container that is on the host's network. There is nothing to be made, or undone.
    Host(NetnsName),
    /// Packets are forwarded in a namespace. Undone: they are not.
    Forward(NetnsName),
    /// A Linux bridge. Undone: removed.
    Bridge(Location, IfName),
    /// A bridge of Open vSwitch in the host. Undone: removed.
    OvsBridge(IfName),
    /// A pair of links. Undone: removed, both ends at once.
    Veth([(Location, IfName); 2]),
    /// A link is a port of a bridge. Undone: it is none.
    Join(Location, IfName, IfName),
    /// A link of the host is a port of a bridge of Open vSwitch. Undone: it is none.
    OvsPort(IfName, IfName),
    /// The kernel computes the checksums of what a link sends, for those who take it from the other end by a socket. Undone
    /// with the link.
    Checksums(Location, IfName),
    /// A link has an address. Undone: it has not.
    Address(Location, IfName, IpNetwork),
    /// A link is up. Undone with the link.
    Up(Location, IfName),
    /// A route. Undone: removed.
    Route(Location, IpNetwork, IpAddr, Option<IfName>),
    /// A rule set in the host. Undone: removed, and no other.
    Rules(Rules),
    /// What runs in a container. Undone: ended, with all that it has started.
    Process(Process),
}

impl Step {
    /// Whether this is gone when the other one is taken back, or must be made again when that is.
    pub fn depends_on(&self, base: &Self) -> bool {
        let links = match base {
            Self::Namespace(name) => {
                return self != base && self.locations().any(|location| location.0.as_ref() == Some(name));
            }
            Self::Bridge(location, name) => vec![(location, name)],
            Self::OvsBridge(name) => vec![(&Location::HOST, name)],
            Self::Veth(ends) => ends.iter().map(|(location, name)| (location, name)).collect(),
            _ => return false,
        };
        let at = |location: &Location, names: &[&IfName]| {
            links.iter().any(|(s, name)| *s == location && names.contains(name))
        };
        match self {
            Self::Join(location, port, bridge) => at(location, &[port, bridge]),
            Self::OvsPort(port, bridge) => at(&Location::HOST, &[port, bridge]),
            Self::Address(location, link, _) | Self::Up(location, link) | Self::Checksums(location, link) => {
                at(location, &[link])
            }
            Self::Route(location, _, _, Some(dev)) => at(location, &[dev]),
            // By which interface it leaves is not known beforehand.
            Self::Route(location, _, _, None) => links.iter().any(|(s, _)| *s == location),
            Self::Namespace(_) | Self::Host(_) | Self::Forward(_) | Self::Bridge(..) | Self::OvsBridge(_) => false,
            Self::Veth(_) | Self::Rules(_) | Self::Process(_) => false,
        }
    }

    /// Whether the kernel may take this back together with the other one: routes that are reached by an address, and with the
    /// first address of a link the others of its subnet.
    pub fn removed_with(&self, gone: &Self) -> bool {
        let Self::Address(location, link, address) = gone else { return false };
        match self {
            Self::Route(at, _, _, dev) => at == location && dev.as_ref().is_none_or(|dev| dev == link),
            Self::Address(at, of, other) => at == location && of == link && other != address,
            _ => false,
        }
    }

    /// Where it is: one place, two for a pair of links.
    pub fn locations(&self) -> impl Iterator<Item = Location> {
        let of_namespace = |name: &NetnsName| Location(Some(name.clone()));
        let (first, second) = match self {
            Self::Namespace(name) | Self::Forward(name) => (of_namespace(name), None),
            Self::Veth([(one, _), (other, _)]) => (one.clone(), Some(other.clone())),
            Self::Process(process) if !process.host => (of_namespace(&process.name), None),
            Self::Host(_) | Self::OvsBridge(_) | Self::OvsPort(..) | Self::Rules(_) | Self::Process(_) => {
                (Location::HOST, None)
            }
            Self::Bridge(location, _)
            | Self::Join(location, ..)
            | Self::Address(location, ..)
            | Self::Up(location, _)
            | Self::Checksums(location, _)
            | Self::Route(location, ..) => (location.clone(), None),
        };
        [Some(first), second].into_iter().flatten()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => write!(f, "namespace `{name}`"),
            Self::Host(name) => write!(f, "container `{name}` on the host's network"),
            Self::Forward(name) => write!(f, "forwarding in `{name}`"),
            Self::Bridge(location, name) => write!(f, "bridge `{name}` in {location}"),
            Self::OvsBridge(name) => write!(f, "Open vSwitch bridge `{name}` in the host"),
            Self::OvsPort(port, bridge) => write!(f, "port `{port}` of the Open vSwitch bridge `{bridge}`"),
            Self::Rules(rules) => rules.fmt(f),
            Self::Process(Process { name, pid_namespace, command, .. }) => {
                let what = if *pid_namespace { "process 1 of its own" } else { "process" };
                write!(f, "{what} in `{name}`")?;
                if command.is_empty() { Ok(()) } else { write!(f, ": {}", command.join(" ")) }
            }
            Self::Veth([(location, name), (there, peer)]) => {
                write!(f, "veth `{name}` in {location} -- `{peer}` in {there}")
            }
            Self::Join(location, port, bridge) => write!(f, "port `{port}` of `{bridge}` in {location}"),
            Self::Checksums(location, link) => write!(f, "checksums by the kernel for `{link}` in {location}"),
            Self::Address(location, link, address) => write!(f, "address {address} of `{link}` in {location}"),
            Self::Up(location, link) => write!(f, "`{link}` up in {location}"),
            Self::Route(location, to, via, dev) => {
                match to.prefix() {
                    0 => write!(f, "route default via {via}")?,
                    _ => write!(f, "route {to} via {via}")?,
                }
                if let Some(dev) = dev {
                    write!(f, " dev `{dev}`")?;
                }
                write!(f, " in {location}")
            }
        }
    }
}

/// The steps that make a lab, in order.
pub fn steps(lab: &Lab) -> Vec<Step> {
    let (ports, container_routes) = containers(lab);
    let pairs = || lab.veths.iter().map(|veth| &veth.ends).chain(&ports);
    let ends = || pairs().flatten();
    let own = lab.containers.iter().filter(|container| container.network != Attachment::Host);
    let names = lab.namespaces.iter().map(|namespace| &namespace.name).chain(own.map(|container| &container.name));
    let mut steps: Vec<Step> = names.cloned().map(Step::Namespace).collect();
    let host = lab.containers.iter().filter(|container| container.network == Attachment::Host);
    steps.extend(host.map(|container| Step::Host(container.name.clone())));
    let forwarding = lab.namespaces.iter().filter(|namespace| namespace.forward);
    steps.extend(forwarding.map(|namespace| Step::Forward(namespace.name.clone())));
    steps.extend(lab.bridges.iter().map(|bridge| match bridge.kind {
        Kind::Linux => Step::Bridge(Location(bridge.namespace.clone()), bridge.name.clone()),
        Kind::Ovs => Step::OvsBridge(bridge.name.clone()),
    }));
    let place = |end: &End| (Location(end.namespace.clone()), end.name.clone());
    steps.extend(pairs().map(|ends| Step::Veth(ends.each_ref().map(place))));
    let is_ovs = |end: &End| lab.bridges.iter().any(|bridge| bridge.kind == Kind::Ovs && end.is_port_of(bridge));
    steps.extend(ends().filter_map(|end| {
        let (location, name) = place(end);
        let bridge = end.bridge.clone()?;
        Some(if is_ovs(end) { Step::OvsPort(name, bridge) } else { Step::Join(location, name, bridge) })
    }));
    // A bridge in a process takes packets from the kernel before anything has computed their checksums.
    steps.extend(pairs().flat_map(|[one, other]| [(one, other), (other, one)]).filter_map(|(port, peer)| {
        let (location, name) = place(peer);
        is_ovs(port).then_some(Step::Checksums(location, name))
    }));
    let bridges =
        lab.bridges.iter().map(|bridge| (Location(bridge.namespace.clone()), &bridge.name, &bridge.addresses));
    let links = ends().map(|end| (Location(end.namespace.clone()), &end.name, &end.addresses));
    let links: Vec<_> = bridges.chain(links).collect();
    for (location, name, addresses) in &links {
        steps.extend(addresses.iter().map(|address| Step::Address(location.clone(), (*name).clone(), *address)));
    }
    steps.extend(links.iter().map(|(location, name, _)| Step::Up(location.clone(), (*name).clone())));
    let routes = lab.routes.iter().map(|route| {
        let location = Location(route.namespace.clone());
        Step::Route(location, route.to, route.via, route.dev.clone())
    });
    steps.extend(routes.chain(container_routes));
    steps.extend(Rules::for_lab(lab).map(Step::Rules));
    steps.extend(lab.containers.iter().filter_map(process));
    steps
}

/// What runs in a container; none where nothing is to.
fn process(container: &Container) -> Option<Step> {
    let Container { name, network, processes, command, .. } = container;
    let host = *network == Attachment::Host;
    let process = Process { name: name.clone(), host, pid_namespace: *processes, command: command.clone() };
    (*processes || !command.is_empty()).then_some(Step::Process(process))
}

/// What connects containers to their bridges: a pair of links each, and a default route.
fn containers(lab: &Lab) -> (Vec<[End; 2]>, Vec<Step>) {
    let ends: Vec<&End> = lab.veths.iter().flat_map(|veth| &veth.ends).collect();
    let given = address::assign_addresses(&lab.bridges, &ends, &lab.containers);
    let (mut pairs, mut routes) = (Vec::new(), Vec::new());
    for (container, given) in lab.containers.iter().zip(given) {
        let Some((bridge, inside)) = container.bridge.clone().zip(inside_name()) else { continue };
        // What cannot be given was reported when the file was read.
        let given = given.unwrap_or_default();
        let namespace = Some(container.name.clone());
        let addresses = given.iter().map(|(address, _)| *address).collect();
        let Some(port) = port_name(&container.name) else { continue };
        pairs.push([
            End { namespace: None, name: port, addresses: Vec::new(), bridge: Some(bridge) },
            End { namespace: namespace.clone(), name: inside, addresses, bridge: None },
        ]);
        for (address, gateway) in given {
            let everything = if address.is_ipv4() { "0.0.0.0/0".parse() } else { "::/0".parse() };
            routes.extend(everything.ok().map(|to| Step::Route(Location(namespace.clone()), to, gateway, None)));
        }
    }
    (pairs, routes)
}

/// The name of a container's interface.
fn inside_name() -> Option<IfName> {
    "eth0".parse().ok()
}

/// The name of the other end, in the host: that of the container in it, where it fits.
pub fn port_name(container: &NetnsName) -> Option<IfName> {
    let plain = format!("veth-{container}");
    let short = || format!("veth-{:08x}", xxh3_64(container.as_str().as_bytes()) & 0xffff_ffff);
    if plain.len() <= IfName::MAX { plain } else { short() }.parse().ok()
}
