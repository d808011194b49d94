//! Plans the steps that create a lab, in order. Each step can be undone. This file changes nothing in the kernel.
//!
//! ```text
//! namespaces ─▶ sysctls  ─▶ bridges ─▶ pairs ─▶ ports ─▶ addresses ─▶ up ─▶ routes ─▶ rules ─▶ processes
//!                                                                                  down: in reverse order
//! ```
//! `up` compares two descriptions by their steps. Steps of both are kept, and all others are made or undone. So for a
//! new address of a link, one address is removed and one is added, and the link is kept.

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

/// A network namespace of the lab, or its host. The host is the namespace in which the lab was created.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Location(pub Option<NetnsName>);

impl Location {
    /// The host of the lab.
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

/// A name that a step needs, and that another program may already use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A name in /run/netns.
    Namespace(NetnsName),
    /// The name of an interface.
    Link(Location, IfName),
    /// A destination, gateway and interface in the host.
    Route(IpNetwork, IpAddr, Option<IfName>),
    /// The name of a rule set.
    Rules(SetName),
}

/// A change that creates part of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Creates a named network namespace with `lo` up. Undo removes the name, and the namespace with it.
    Namespace(NetnsName),
    /// Declares a container on the host's network. Nothing is created or undone.
    Host(NetnsName),
    /// Turns forwarding on in a namespace. Undo turns it off.
    Forward(NetnsName),
    /// Creates a Linux bridge. Undo deletes it.
    Bridge(Location, IfName),
    /// Creates an Open vSwitch bridge in the host. Undo deletes it.
    OvsBridge(IfName),
    /// Creates a veth pair. Undo deletes both ends.
    Veth([(Location, IfName); 2]),
    /// Makes a link a port of a bridge. Undo removes the port.
    Join(Location, IfName, IfName),
    /// Makes a link of the host a port of an Open vSwitch bridge. Undo removes the port.
    OvsPort(IfName, IfName),
    /// Lets the kernel compute the checksums of packets from a link, for a peer that reads them from a packet socket.
    /// Undone with the link.
    Checksums(Location, IfName),
    /// Adds an address to a link. Undo deletes it.
    Address(Location, IfName, IpNetwork),
    /// Brings a link up. Undone with the link.
    Up(Location, IfName),
    /// Adds a route. Undo deletes it.
    Route(Location, IpNetwork, IpAddr, Option<IfName>),
    /// Commits a rule set in the host. Undo removes only this set.
    Rules(Rules),
    /// Starts a container's process. Undo kills it with all its descendants.
    Process(Process),
}

impl Step {
    /// Returns true if this step is lost when `base` is undone, so that it must be made again after it.
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
            // The egress interface is not known beforehand.
            Self::Route(location, _, _, None) => links.iter().any(|(s, _)| *s == location),
            Self::Namespace(_) | Self::Host(_) | Self::Forward(_) | Self::Bridge(..) | Self::OvsBridge(_) => false,
            Self::Veth(_) | Self::Rules(_) | Self::Process(_) => false,
        }
    }

    /// Returns true if the kernel may remove this step's object when the step `gone` is undone. It removes routes
    /// through a deleted address, and other addresses of the same subnet.
    pub fn removed_with(&self, gone: &Self) -> bool {
        let Self::Address(location, link, address) = gone else { return false };
        match self {
            Self::Route(at, _, _, dev) => at == location && dev.as_ref().is_none_or(|dev| dev == link),
            Self::Address(at, of, other) => at == location && of == link && other != address,
            _ => false,
        }
    }

    /// Returns the namespaces of the step: two for a veth pair, otherwise one.
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

/// Returns the steps that create a lab, in order.
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
    // A bridge in user space receives packets from the kernel before their checksums are computed.
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

/// Returns the step for a container's process, or `None` if it has none.
fn process(container: &Container) -> Option<Step> {
    let Container { name, network, processes, command, .. } = container;
    let host = *network == Attachment::Host;
    let process = Process { name: name.clone(), host, pid_namespace: *processes, command: command.clone() };
    (*processes || !command.is_empty()).then_some(Step::Process(process))
}

/// Returns a veth pair for each container at a bridge, and the default routes.
fn containers(lab: &Lab) -> (Vec<[End; 2]>, Vec<Step>) {
    let ends: Vec<&End> = lab.veths.iter().flat_map(|veth| &veth.ends).collect();
    let given = address::assign_addresses(&lab.bridges, &ends, &lab.containers);
    let (mut pairs, mut routes) = (Vec::new(), Vec::new());
    for (container, given) in lab.containers.iter().zip(given) {
        let Some((bridge, inside)) = container.bridge.clone().zip(inside_name()) else { continue };
        // Reading the file has already reported addresses that cannot be assigned.
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

/// Returns the name of a container's own interface.
fn inside_name() -> Option<IfName> {
    "eth0".parse().ok()
}

/// Returns the interface name of the veth end in the host. It contains the container's name, or a hash of it if that is
/// too long.
pub fn port_name(container: &NetnsName) -> Option<IfName> {
    let plain = format!("veth-{container}");
    let short = || format!("veth-{:08x}", xxh3_64(container.as_str().as_bytes()) & 0xffff_ffff);
    if plain.len() <= IfName::MAX_LEN { plain } else { short() }.parse().ok()
}
