//! The network that a rule set is about, derived from the set alone.
//!
//! ```text
//!  client ── uplink ──[ host ]── bridge of a network ──┬── target
//!  198.18.0.2  198.18.0.1                              ├── target
//!                                                      └── neighbour, who tries the hairpin
//! ```
//! There is an uplink with a client for every interface that the rules name and that is no network, `eth0` where they
//! name none. Targets outside of any declared network get one of their own: their /24 or /64. What is listened at is the
//! host's, also where something leads to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnetwork::IpNetwork;

use super::layout::{self, Layout, Subnet, host_prefix, uplink_prefix};
use super::{LabError, Links, Netns};
use crate::model::meaning::Host;
use crate::model::{Asked, Binding, Packet};

/// An interface of the host, and the client behind it.
#[derive(Debug)]
pub struct Uplink {
    /// The interface's name.
    pub name: String,
    /// The client's namespace.
    pub client: Netns,
    /// The host's addresses there, IPv4 and IPv6.
    pub host: [IpAddr; 2],
    /// The client's addresses, IPv4 and IPv6.
    pub address: [IpAddr; 2],
}

/// A throw-away network.
#[derive(Debug)]
pub struct Topology {
    /// The host under test.
    pub host: Netns,
    /// Its interfaces and routes; what it forwards is its own to say.
    pub plan: Host,
    /// Its uplinks, at least one.
    pub uplinks: Vec<Uplink>,
    /// The subnets behind its bridges.
    pub subnets: Vec<Subnet>,
    /// The targets by address.
    pub targets: BTreeMap<IpAddr, Netns>,
    /// A neighbour for each bridge.
    pub neighbours: BTreeMap<String, Netns>,
    /// The target that is in a network which a rule other than a forward is about.
    pub residents: BTreeMap<IpNetwork, IpAddr>,
    /// The clients that forwards let in by their prefix, by uplink; more addresses of its client.
    pub clients: BTreeMap<(String, IpNetwork), IpAddr>,
}

/// A port that no forward is about: that of the discard protocol, RFC 863.
pub(super) const DISCARD: u16 = 9;

/// Sets whether bridges of the namespace of the calling thread ask netfilter about what they switch (`br_netfilter`).
///
/// With it a bridge translates and switches on its own what would otherwise go through this host's routing: a packet that
/// goes back to the port it came from is lost unless that port is in hairpin mode, and whether packets are forwarded does
/// not matter (seen on Linux 6.18).
///
/// # Errors
/// Where the switches are there and cannot be set.
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
    /// Builds the network for the chosen forwards and for everything else that is asked.
    ///
    /// # Errors
    /// Where it cannot be built.
    pub fn build(asked: &Asked, chosen: &[&Binding]) -> Result<Self, LabError> {
        Self::build_with_packets(asked, chosen, &[])
    }

    /// The same, with everybody whom `packets` name, as far as the rules know of them.
    ///
    /// # Errors
    /// Where it cannot be built, or a packet arrives by an interface that it does not have.
    pub fn build_with_packets(asked: &Asked, chosen: &[&Binding], packets: &[Packet]) -> Result<Self, LabError> {
        let layout = Layout::new(asked, chosen, packets)?;
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

    /// The subnet that an address is in.
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.network.contains(address))
    }

    /// The uplink of an interface; the first where none is named.
    pub fn uplink(&self, interface: Option<&str>) -> Option<&Uplink> {
        match interface {
            Some(name) => self.uplinks.iter().find(|uplink| uplink.name == name),
            None => self.uplinks.first(),
        }
    }

    /// Who sends a packet: whoever is behind the interface that it arrives by, the one whose address it has if possible.
    pub fn sender(&self, packet: &Packet) -> Option<&Netns> {
        let Some(interface) = &packet.interface else { return Some(&self.host) };
        if let Some(uplink) = self.uplinks.iter().find(|uplink| uplink.name == interface.as_str()) {
            return Some(&uplink.client);
        }
        let source = packet.source.ip();
        let target = self.targets.get(&source).filter(|_| self.bridge_of(source) == interface.as_str());
        target.or_else(|| self.neighbours.get(interface.as_str()))
    }

    /// Who has an address, this host excepted.
    pub fn namespace_of(&self, address: IpAddr) -> Option<&Netns> {
        let client = self.uplinks.iter().find(|uplink| uplink.address.contains(&address));
        let neighbour = || {
            let subnet = self.subnets.iter().find(|subnet| subnet.neighbour == Some(address))?;
            self.neighbours.get(&subnet.bridge)
        };
        self.targets.get(&address).or(client.map(|uplink| &uplink.client)).or_else(neighbour)
    }

    /// Everybody but the host, with the interface of the host that they are behind.
    pub fn peers(&self) -> impl Iterator<Item = (&str, &Netns)> {
        let clients = self.uplinks.iter().map(|uplink| (uplink.name.as_str(), &uplink.client));
        let targets = self.targets.iter().map(|(address, target)| (self.bridge_of(*address), target));
        let neighbours = self.neighbours.iter().map(|(bridge, neighbour)| (bridge.as_str(), neighbour));
        clients.chain(targets).chain(neighbours)
    }

    /// A packet each way between the host and every address of everybody else.
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
        // Clients send from addresses that no route leads back to.
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

    /// The uplink that a forward's clients come from.
    pub fn uplink_of(&self, binding: &Binding) -> Option<&Uplink> {
        self.uplink(binding.interface.as_ref().map(crate::model::IfName::as_str)).or_else(|| self.uplinks.first())
    }

    /// The client that a forward lets in by its prefix.
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
