//! The network that a rule set is about, derived from the set alone.
//!
//! ```text
//!  client ── uplink ──[ host ]── bridge of a network ──┬── target
//!  198.18.0.2  198.18.0.1                              ├── target
//!                                                      └── neighbour, who tries the hairpin
//! ```
//! There is an uplink with a client for every interface that the rules name and that is no network, `eth0` where they
//! name none. Targets outside of any declared network get one of their own: their /24 or /64.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnetwork::IpNetwork;

use super::{LabError, Links, Netns};
use crate::model::meaning::{Host, Interface, Route};
use crate::model::{Asked, Binding, Family, Packet, egress};

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

/// A subnet behind a bridge of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// The bridge's name.
    pub bridge: String,
    /// The subnet.
    pub network: IpNetwork,
    /// The host's address in it.
    pub gateway: IpAddr,
    /// The neighbour's address in it, where there is room for one.
    pub neighbour: Option<IpAddr>,
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
}

/// A port that no forward is about: that of the discard protocol, RFC 863.
pub(super) const DISCARD: u16 = 9;

/// How many uplinks there are at most.
const MOST_UPLINKS: u8 = 16;

/// Sets whether bridges of the namespace of the calling thread ask netfilter about what they switch (`br_netfilter`).
///
/// With it a bridge translates and switches on its own what would otherwise go through this host's routing: a packet that
/// goes back to the port it came from is lost unless that port is in hairpin mode, and whether packets are forwarded does
/// not matter (seen on Linux 6.18).
///
/// # Errors
/// Where the switches are there and cannot be set.
pub fn bridges_ask_netfilter(on: bool) -> std::io::Result<()> {
    for table in ["iptables", "ip6tables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
        if std::path::Path::new(&path).exists() {
            std::fs::write(path, if on { "1" } else { "0" })?;
        }
    }
    Ok(())
}

/// The index of a family's address in a pair.
pub fn of(family: Family) -> usize {
    match family {
        Family::Ipv4 => 0,
        Family::Ipv6 => 1,
    }
}

impl Topology {
    /// Builds the network for the chosen forwards and for everything else that is asked.
    ///
    /// # Errors
    /// Where it cannot be built.
    pub fn build(asked: &Asked, chosen: &[&Binding]) -> Result<Self, LabError> {
        let mut addresses: BTreeSet<IpAddr> = chosen.iter().filter_map(|binding| binding.to.address).collect();
        addresses.extend(residents(asked));
        let subnets = subnets(asked, &addresses)?;
        let names = uplink_names(asked, chosen, &subnets);
        let mut topology = Self {
            host: Netns::new()?,
            plan: Host::default(),
            uplinks: Vec::new(),
            subnets,
            targets: BTreeMap::new(),
            neighbours: BTreeMap::new(),
        };
        for (number, name) in (0u8..).zip(names) {
            let uplink = Uplink {
                name,
                client: Netns::new()?,
                host: uplink_address(number, 1),
                address: uplink_address(number, 2),
            };
            topology.uplinks.push(uplink);
        }
        for address in addresses {
            topology.targets.insert(address, Netns::new()?);
        }
        for subnet in topology.subnets.iter().filter(|subnet| subnet.neighbour.is_some()) {
            if !topology.neighbours.contains_key(&subnet.bridge) {
                topology.neighbours.insert(subnet.bridge.clone(), Netns::new()?);
            }
        }
        topology.plan = topology.plan_host(chosen);
        topology.host.run(|| topology.wire_host())??;
        for uplink in &topology.uplinks {
            uplink.client.run(|| topology.wire_client(uplink, chosen))??;
        }
        for (address, target) in &topology.targets {
            target.run(|| topology.wire_target(*address))??;
        }
        for (bridge, neighbour) in &topology.neighbours {
            neighbour.run(|| topology.wire_neighbour(bridge))??;
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
    pub fn owner(&self, address: IpAddr) -> Option<&Netns> {
        let client = self.uplinks.iter().find(|uplink| uplink.address.contains(&address));
        let neighbour = || {
            let subnet = self.subnets.iter().find(|subnet| subnet.neighbour == Some(address))?;
            self.neighbours.get(&subnet.bridge)
        };
        self.targets.get(&address).or(client.map(|uplink| &uplink.client)).or_else(neighbour)
    }

    /// Everybody but the host, with the interface of the host that they are behind.
    pub fn others(&self) -> impl Iterator<Item = (&str, &Netns)> {
        let clients = self.uplinks.iter().map(|uplink| (uplink.name.as_str(), &uplink.client));
        let targets = self.targets.iter().map(|(address, target)| (self.bridge_of(*address), target));
        let neighbours = self.neighbours.iter().map(|(bridge, neighbour)| (bridge.as_str(), neighbour));
        clients.chain(targets).chain(neighbours)
    }

    /// A packet each way between the host and every address of everybody else.
    pub fn neighbourly(&self) -> Vec<Packet> {
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

    /// The host's addresses and routes.
    fn plan_host(&self, chosen: &[&Binding]) -> Host {
        let mut interfaces: Vec<(String, Vec<IpNetwork>)> = Vec::new();
        for uplink in &self.uplinks {
            let own = uplink.host.iter().filter_map(|address| IpNetwork::new(*address, uplink_prefix(*address)).ok());
            interfaces.push((uplink.name.clone(), own.collect()));
        }
        for subnet in &self.subnets {
            let Ok(gateway) = IpNetwork::new(subnet.gateway, subnet.network.prefix()) else { continue };
            match interfaces.iter_mut().find(|(name, _)| *name == subnet.bridge) {
                Some((_, addresses)) => addresses.push(gateway),
                None => interfaces.push((subnet.bridge.clone(), vec![gateway])),
            }
        }
        let mut routes = Vec::new();
        for binding in chosen {
            let Some(uplink) = self.uplink_of(binding) else { continue };
            let taken = |address: IpAddr| interfaces.iter().any(|(_, own)| own.iter().any(|own| own.ip() == address));
            if let Some(address) = binding.address.filter(|address| !address.is_loopback() && !taken(*address))
                && let Some((_, own)) = interfaces.iter_mut().find(|(name, _)| *name == uplink.name)
            {
                own.extend(IpNetwork::new(address, full(address)));
            }
            // Clients that only some addresses of are let in live behind the same client.
            if let Some(from) = client_in(binding.from).filter(|from| self.subnet_of(*from).is_none())
                && let Some(client) = uplink.address.get(of(Family::of(from))).copied().filter(|client| *client != from)
                && let (Ok(to), Ok(by)) = (IpNetwork::new(from, full(from)), uplink.name.parse())
                && !routes.iter().any(|route: &Route| route.to == to)
            {
                routes.push(Route { to, by, gateway: Some(client) });
            }
        }
        let named =
            |(name, addresses): (String, Vec<IpNetwork>)| Some(Interface { name: name.parse().ok()?, addresses });
        let interfaces: Vec<Interface> = interfaces.into_iter().filter_map(named).collect();
        for interface in &interfaces {
            for own in &interface.addresses {
                let Ok(to) = IpNetwork::new(own.network(), own.prefix()) else { continue };
                routes.push(Route { to, by: interface.name.clone(), gateway: None });
            }
        }
        Host { interfaces, routes, forwarding: Vec::new() }
    }

    fn wire_host(&self) -> Result<(), LabError> {
        let links = Links::open()?;
        links.up("lo")?;
        // Clients send from addresses that no route leads back to.
        for place in ["all", "default"] {
            let strict = format!("/proc/sys/net/ipv4/conf/{place}/rp_filter");
            std::fs::write(strict, "0").map_err(|error| LabError::Io("switching rp_filter off", error))?;
        }
        bridges_ask_netfilter(false).map_err(|error| LabError::Io("switching bridge netfilter off", error))?;
        for uplink in &self.uplinks {
            links.veth(&uplink.name, "eth0", &uplink.client)?;
            links.up(&uplink.name)?;
        }
        let bridges: BTreeSet<&String> = self.subnets.iter().map(|subnet| &subnet.bridge).collect();
        for bridge in bridges {
            links.bridge(bridge)?;
        }
        let inside = self.others().filter(|(name, _)| self.uplink(Some(name)).is_none());
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

    fn bridge_of(&self, address: IpAddr) -> &str {
        self.subnet_of(address).map_or("", |subnet| &subnet.bridge)
    }

    fn wire_client(&self, uplink: &Uplink, chosen: &[&Binding]) -> Result<(), LabError> {
        let links = Links::open()?;
        links.up("lo")?;
        links.up("eth0")?;
        for (address, gateway) in uplink.address.into_iter().zip(uplink.host) {
            links.address("eth0", address, uplink_prefix(address))?;
            links.route(unspecified(address), 0, gateway)?;
        }
        for from in chosen.iter().filter_map(|binding| client_in(binding.from)) {
            if self.subnet_of(from).is_none() && !uplink.address.contains(&from) {
                links.address("eth0", from, full(from))?;
            }
        }
        Ok(())
    }

    fn wire_target(&self, address: IpAddr) -> Result<(), LabError> {
        let Some(subnet) = self.subnet_of(address) else { return Ok(()) };
        let links = Links::open()?;
        links.up("lo")?;
        links.up("eth0")?;
        links.address("eth0", address, subnet.network.prefix())?;
        links.route(unspecified(address), 0, subnet.gateway)
    }

    fn wire_neighbour(&self, bridge: &str) -> Result<(), LabError> {
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

/// An address in every network that a rule other than a forward is about, so that somebody is there.
fn residents(asked: &Asked) -> BTreeSet<IpAddr> {
    let egress = egress::ordered(asked).into_iter().filter_map(|(egress, _)| egress.from);
    let inside = asked.netmaps.iter().map(|owned| owned.rule.to);
    let clients = client_networks();
    let outside = |network: &IpNetwork| clients.iter().any(|clients| clients.contains(network.network()));
    egress.chain(inside).filter(|network| !outside(network)).filter_map(resident).collect()
}

/// Who sends from a network, or is reached in it: its second host, because the first is the gateway.
pub fn resident(network: IpNetwork) -> Option<IpAddr> {
    if network.prefix() < 8 {
        return None;
    }
    let mut hosts = hosts(network);
    let first = hosts.next()?;
    Some(hosts.next().unwrap_or(first))
}

/// Declared networks, and one for every /24 or /64 of targets that are in none.
fn subnets(asked: &Asked, targets: &BTreeSet<IpAddr>) -> Result<Vec<Subnet>, LabError> {
    let declared = asked
        .networks
        .iter()
        .flat_map(|owned| owned.rule.subnets.iter().map(|subnet| (owned.rule.name.to_string(), *subnet)));
    let mut all: Vec<(String, IpNetwork)> = declared.collect();
    for target in targets {
        if all.iter().any(|(_, network)| network.contains(*target)) {
            continue;
        }
        let length = match target {
            IpAddr::V4(_) => 24,
            IpAddr::V6(_) => 64,
        };
        let around = IpNetwork::new(*target, length).ok();
        let around = around.and_then(|around| IpNetwork::new(around.network(), length).ok());
        let Some(around) = around else { continue };
        all.push((format!("pf-net{}", all.len()), around));
    }
    let uplinks = client_networks();
    let mut subnets = Vec::with_capacity(all.len());
    for (bridge, network) in all {
        if uplinks.iter().any(|uplink| uplink.contains(network.network()) || network.contains(uplink.network())) {
            return Err(LabError::Topology(format!(
                "`{network}` cannot be tried: the throw-away network uses 198.18.0.0/15 and 2001:2::/48 for its clients"
            )));
        }
        let free = |address: &IpAddr| !targets.contains(address);
        let gateway = hosts(network).find(free);
        let Some(gateway) = gateway else {
            return Err(LabError::Topology(format!("`{network}` has no address left for the host itself")));
        };
        let neighbour = hosts(network).filter(free).find(|address| *address != gateway);
        subnets.push(Subnet { bridge, network, gateway, neighbour });
    }
    Ok(subnets)
}

/// The addresses that hosts of a network can have, the first 4,000 of them.
fn hosts(network: IpNetwork) -> Box<dyn Iterator<Item = IpAddr>> {
    let narrow = network.prefix() + 1 >= full(network.ip());
    match network {
        IpNetwork::V4(network) => {
            let (first, last) = (u32::from(network.network()), u32::from(network.broadcast()));
            let range = if narrow { first..=last } else { first + 1..=last - 1 };
            Box::new(range.take(4000).map(|bits| Ipv4Addr::from(bits).into()))
        }
        IpNetwork::V6(network) => {
            let (first, last) = (u128::from(network.network()), u128::from(network.broadcast()));
            let range = if narrow { first..=last } else { first + 1..=last };
            Box::new(range.take(4000).map(|bits| Ipv6Addr::from(bits).into()))
        }
    }
}

/// The interfaces that the rules name and that are no bridge; `eth0` where that is none.
fn uplink_names(asked: &Asked, chosen: &[&Binding], subnets: &[Subnet]) -> Vec<String> {
    let interfaces = chosen.iter().filter_map(|binding| binding.interface.as_ref());
    let masquerades = asked.masquerades.iter().filter_map(|owned| owned.rule.out.as_ref());
    let leaving = masquerades.chain(asked.snats.iter().filter_map(|owned| owned.rule.out.as_ref()));
    let mut names: Vec<String> = Vec::new();
    for name in interfaces.chain(leaving).map(ToString::to_string) {
        let bridge = subnets.iter().any(|subnet| subnet.bridge == name);
        if !bridge && name != "lo" && !names.contains(&name) && names.len() < usize::from(MOST_UPLINKS) {
            names.push(name);
        }
    }
    if names.is_empty() {
        let taken = subnets.iter().any(|subnet| subnet.bridge == "eth0");
        names.push(if taken { "pf-uplink".into() } else { "eth0".into() });
    }
    names
}

/// Addresses for measuring, which nobody has: RFC 2544 and RFC 5180.
fn uplink_address(number: u8, host: u8) -> [IpAddr; 2] {
    let host6 = u16::from(host);
    [Ipv4Addr::new(198, 18, number, host).into(), Ipv6Addr::new(0x2001, 2, 0, number.into(), 0, 0, 0, host6).into()]
}

/// The networks that all uplinks are in.
fn client_networks() -> Vec<IpNetwork> {
    let [v4, v6] = uplink_address(0, 0);
    [IpNetwork::new(v4, 15), IpNetwork::new(v6, 48)].into_iter().flatten().collect()
}

fn uplink_prefix(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 24,
        IpAddr::V6(_) => 64,
    }
}

fn full(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A client's address that a forward lets in.
pub fn client_in(from: Option<IpNetwork>) -> Option<IpAddr> {
    let from = from?;
    // Where the prefix holds everybody the ordinary client is one of them.
    if from.prefix() < 8 {
        return None;
    }
    // Nor is an address free that the host or an ordinary client has.
    let taken = |address: &IpAddr, end| (0..MOST_UPLINKS).any(|number| uplink_address(number, end).contains(address));
    hosts(from).find(|address| !taken(address, 1) && !taken(address, 2))
}
