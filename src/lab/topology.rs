//! The network for a rule set, derived from the rule set alone.
//!
//! ```text
//!  client ── uplink ──[ host ]── bridge of a network ──┬── target
//!  198.18.0.2  198.18.0.1                              ├── target
//!                                                      └── neighbour, for hairpin packets
//! ```
//! An interface that the rules name is an uplink with a client, unless it is the bridge of a network. If the rules name
//! none, the uplink is `eth0`. Targets outside of the declared networks get a /24 or /64 network of their own. Listen
//! addresses belong to the host, even if a forward also targets them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnetwork::IpNetwork;

use super::layout::{self, Layout, Subnet, host_prefix, uplink_prefix};
use super::{LabError, Links, Netns};
use crate::model::meaning::Host;
use crate::model::{Binding, DesiredState, Packet};

/// An interface of the host, and the client behind it.
#[derive(Debug)]
pub struct Uplink {
    /// The interface name, such as `eth0`.
    pub name: String,
    /// The network namespace of the client.
    pub client: Netns,
    /// The host's addresses on this link, IPv4 and IPv6.
    pub host: [IpAddr; 2],
    /// The client's addresses, IPv4 and IPv6.
    pub address: [IpAddr; 2],
}

/// A throw-away network.
#[derive(Debug)]
pub struct Topology {
    /// The namespace of the host under test.
    pub host: Netns,
    /// The host's interfaces and routes. The forwarding sysctls are read later, from the host itself.
    pub plan: Host,
    /// The host's uplinks, at least one.
    pub uplinks: Vec<Uplink>,
    /// The subnets behind the host's bridges.
    pub subnets: Vec<Subnet>,
    /// The namespace of each target, by its address.
    pub targets: BTreeMap<IpAddr, Netns>,
    /// The namespace of a neighbour for each bridge, by the bridge's name.
    pub neighbours: BTreeMap<String, Netns>,
    /// A host in each network that a rule other than a forward names.
    pub residents: BTreeMap<IpNetwork, IpAddr>,
    /// Extra addresses of the clients, one for each `from` prefix of a forward, by uplink and prefix.
    pub clients: BTreeMap<(String, IpNetwork), IpAddr>,
}

/// A port that no forward uses: the discard protocol, RFC 863.
pub(super) const DISCARD: u16 = 9;

/// Sets whether bridges in the namespace of the calling thread pass packets to netfilter (`br_netfilter`).
///
/// If this is on, bridges pass the packets that they switch through netfilter. A packet that DNAT sends to a host on
/// the same bridge is then switched and not routed. If it must leave by its ingress port, it is lost unless the port is
/// in hairpin mode. The forwarding sysctls have no effect on it (seen on Linux 6.18).
///
/// # Errors
/// If the sysctls exist and cannot be written.
pub fn set_bridge_netfilter(on: bool) -> std::io::Result<()> {
    for table in ["iptables", "ip6tables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
        if std::path::Path::new(&path).exists() {
            std::fs::write(path, if on { "1" } else { "0" })?;
        }
    }
    Ok(())
}

impl Topology {
    /// Builds the network for the chosen forwards and for all other rules.
    ///
    /// # Errors
    /// If a namespace or a link cannot be created, or no network can be planned for the rules.
    pub fn build(desired: &DesiredState, chosen: &[&Binding]) -> Result<Self, LabError> {
        Self::build_with_packets(desired, chosen, &[])
    }

    /// Builds the network as [`Topology::build`] does, with the hosts of `packets` that are in networks of the rules.
    ///
    /// # Errors
    /// If the network cannot be built, or a packet names an ingress interface that the network does not have.
    pub fn build_with_packets(
        desired: &DesiredState,
        chosen: &[&Binding],
        packets: &[Packet],
    ) -> Result<Self, LabError> {
        let layout = Layout::new(desired, chosen, packets)?;
        let mut topology = Self {
            host: Netns::new()?,
            plan: layout.host,
            uplinks: Vec::new(),
            subnets: layout.subnets,
            targets: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            residents: layout.residents,
            clients: layout.clients,
        };
        for (number, name) in (0u8..).zip(layout.uplinks) {
            let (host, address) = (layout::uplink_host(number), layout::uplink_client(number));
            topology.uplinks.push(Uplink { name, client: Netns::new()?, host, address });
        }
        for address in layout.targets {
            topology.targets.insert(address, Netns::new()?);
        }
        for subnet in topology.subnets.iter().filter(|subnet| subnet.neighbour.is_some()) {
            if !topology.neighbours.contains_key(&subnet.bridge) {
                topology.neighbours.insert(subnet.bridge.clone(), Netns::new()?);
            }
        }
        topology.host.run(|| topology.configure_host())??;
        for uplink in &topology.uplinks {
            uplink.client.run(|| topology.configure_client(uplink))??;
        }
        for (address, target) in &topology.targets {
            target.run(|| topology.configure_target(*address))??;
        }
        for (bridge, neighbour) in &topology.neighbours {
            neighbour.run(|| topology.configure_neighbour(bridge))??;
        }
        Ok(topology)
    }

    /// Returns the subnet that contains an address.
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.network.contains(address))
    }

    /// Returns the uplink of an interface, or the first uplink for `None`.
    pub fn uplink(&self, interface: Option<&str>) -> Option<&Uplink> {
        match interface {
            Some(name) => self.uplinks.iter().find(|uplink| uplink.name == name),
            None => self.uplinks.first(),
        }
    }

    /// Returns the namespace that sends a packet: one behind the packet's ingress interface. A namespace with the
    /// source address is preferred.
    pub fn sender(&self, packet: &Packet) -> Option<&Netns> {
        let Some(interface) = &packet.interface else { return Some(&self.host) };
        if let Some(uplink) = self.uplinks.iter().find(|uplink| uplink.name == interface.as_str()) {
            return Some(&uplink.client);
        }
        let source = packet.source.ip();
        let target = self.targets.get(&source).filter(|_| self.bridge_of(source) == interface.as_str());
        target.or_else(|| self.neighbours.get(interface.as_str()))
    }

    /// Returns the namespace that has an address, except the host.
    pub fn namespace_of(&self, address: IpAddr) -> Option<&Netns> {
        let client = self.uplinks.iter().find(|uplink| uplink.address.contains(&address));
        let neighbour = || {
            let subnet = self.subnets.iter().find(|subnet| subnet.neighbour == Some(address))?;
            self.neighbours.get(&subnet.bridge)
        };
        self.targets.get(&address).or(client.map(|uplink| &uplink.client)).or_else(neighbour)
    }

    /// Returns every namespace but the host, with the host's interface to it.
    pub fn peers(&self) -> impl Iterator<Item = (&str, &Netns)> {
        let clients = self.uplinks.iter().map(|uplink| (uplink.name.as_str(), &uplink.client));
        let targets = self.targets.iter().map(|(address, target)| (self.bridge_of(*address), target));
        let neighbours = self.neighbours.iter().map(|(bridge, neighbour)| (bridge.as_str(), neighbour));
        clients.chain(targets).chain(neighbours)
    }

    /// Returns one packet in each direction between the host and every address of the other namespaces.
    pub fn reachability_packets(&self) -> Vec<Packet> {
        let mut pairs: Vec<(&str, IpAddr, IpAddr)> = Vec::new();
        for uplink in &self.uplinks {
            pairs.extend(uplink.address.iter().zip(&uplink.host).map(|(a, b)| (uplink.name.as_str(), *a, *b)));
        }
        for address in self.targets.keys() {
            let subnet = self.subnet_of(*address);
            pairs.extend(subnet.map(|subnet| (subnet.bridge.as_str(), *address, subnet.gateway)));
        }
        for subnet in &self.subnets {
            pairs.extend(subnet.neighbour.map(|address| (subnet.bridge.as_str(), address, subnet.gateway)));
        }
        let packet = |from: IpAddr, to: IpAddr, interface| Packet {
            protocol: crate::model::Protocol::Udp,
            source: SocketAddr::new(from, DISCARD),
            destination: SocketAddr::new(to, DISCARD),
            interface,
        };
        let each = |(interface, other, host): (&str, IpAddr, IpAddr)| {
            [packet(other, host, interface.parse().ok()), packet(host, other, None)]
        };
        pairs.into_iter().flat_map(each).collect()
    }

    fn configure_host(&self) -> Result<(), LabError> {
        let links = Links::open()?;
        links.up("lo")?;
        // Clients send from addresses that the host has no route back to.
        for place in ["all", "default"] {
            let strict = format!("/proc/sys/net/ipv4/conf/{place}/rp_filter");
            std::fs::write(strict, "0").map_err(|error| LabError::Io("switching rp_filter off", error))?;
        }
        set_bridge_netfilter(false).map_err(|error| LabError::Io("switching bridge netfilter off", error))?;
        for uplink in &self.uplinks {
            links.veth(&uplink.name, "eth0", &uplink.client)?;
            links.up(&uplink.name)?;
        }
        let bridges: BTreeSet<&String> = self.subnets.iter().map(|subnet| &subnet.bridge).collect();
        for bridge in bridges {
            links.bridge(bridge)?;
        }
        let inside = self.peers().filter(|(name, _)| self.uplink(Some(name)).is_none());
        for (number, (bridge, namespace)) in inside.enumerate() {
            let name = format!("pf-port{number}");
            links.veth(&name, "eth0", namespace)?;
            links.join(&name, bridge)?;
        }
        for interface in &self.plan.interfaces {
            for own in &interface.addresses {
                links.address(interface.name.as_str(), own.ip(), own.prefix())?;
            }
        }
        for route in &self.plan.routes {
            if let Some(gateway) = route.gateway {
                links.route(route.to.network(), route.to.prefix(), gateway)?;
            }
        }
        Ok(())
    }

    /// Returns the uplink that a forward's clients use.
    pub fn uplink_of(&self, binding: &Binding) -> Option<&Uplink> {
        self.uplink(binding.interface.as_ref().map(crate::model::IfName::as_str)).or_else(|| self.uplinks.first())
    }

    /// Returns the client address inside the `from` prefix of a forward.
    pub fn client_of(&self, binding: &Binding) -> Option<IpAddr> {
        self.clients.get(&(self.uplink_of(binding)?.name.clone(), binding.from?)).copied()
    }

    fn bridge_of(&self, address: IpAddr) -> &str {
        self.subnet_of(address).map_or("", |subnet| &subnet.bridge)
    }

    fn configure_client(&self, uplink: &Uplink) -> Result<(), LabError> {
        let links = Links::open()?;
        links.up("lo")?;
        links.up("eth0")?;
        for (address, gateway) in uplink.address.into_iter().zip(uplink.host) {
            links.address("eth0", address, uplink_prefix(address))?;
            links.route(unspecified(address), 0, gateway)?;
        }
        for (_, from) in self.clients.iter().filter(|((name, _), _)| *name == uplink.name) {
            links.address("eth0", *from, host_prefix(*from))?;
        }
        Ok(())
    }

    fn configure_target(&self, address: IpAddr) -> Result<(), LabError> {
        let Some(subnet) = self.subnet_of(address) else { return Ok(()) };
        let links = Links::open()?;
        links.up("lo")?;
        links.up("eth0")?;
        links.address("eth0", address, subnet.network.prefix())?;
        links.route(unspecified(address), 0, subnet.gateway)
    }

    fn configure_neighbour(&self, bridge: &str) -> Result<(), LabError> {
        let links = Links::open()?;
        links.up("lo")?;
        links.up("eth0")?;
        for subnet in self.subnets.iter().filter(|subnet| subnet.bridge == bridge) {
            if let Some(address) = subnet.neighbour {
                links.address("eth0", address, subnet.network.prefix())?;
                links.route(unspecified(address), 0, subnet.gateway)?;
            }
        }
        Ok(())
    }
}

fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
