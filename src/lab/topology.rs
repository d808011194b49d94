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
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::{LabError, Links, Netns};
use crate::model::{Asked, Binding, Family};

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
    /// Its uplinks, at least one.
    pub uplinks: Vec<Uplink>,
    /// The subnets behind its bridges.
    pub subnets: Vec<Subnet>,
    /// The targets by address.
    pub targets: BTreeMap<IpAddr, Netns>,
    /// A neighbour for each bridge.
    pub neighbours: BTreeMap<String, Netns>,
}

/// The index of a family's address in a pair.
pub fn of(family: Family) -> usize {
    match family {
        Family::Ipv4 => 0,
        Family::Ipv6 => 1,
    }
}

impl Topology {
    /// Builds the network for the chosen forwards.
    ///
    /// # Errors
    /// Where it cannot be built.
    pub fn build(asked: &Asked, chosen: &[&Binding]) -> Result<Self, LabError> {
        let addresses: BTreeSet<IpAddr> = chosen.iter().filter_map(|binding| binding.to.address).collect();
        let subnets = subnets(asked, &addresses)?;
        let names = uplink_names(asked, chosen, &subnets);
        let mut topology = Self {
            host: Netns::new()?,
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
        topology.host.run(|| topology.wire_host(chosen))??;
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

    fn wire_host(&self, chosen: &[&Binding]) -> Result<(), LabError> {
        let links = Links::open()?;
        links.up("lo")?;
        for uplink in &self.uplinks {
            links.veth(&uplink.name, "eth0", &uplink.client)?;
            links.up(&uplink.name)?;
            for address in uplink.host {
                links.address(&uplink.name, address, uplink_prefix(address))?;
            }
        }
        let mut made = BTreeSet::new();
        for subnet in &self.subnets {
            if made.insert(&subnet.bridge) {
                links.bridge(&subnet.bridge)?;
            }
            links.address(&subnet.bridge, subnet.gateway, subnet.network.prefix())?;
        }
        let attached = self.targets.iter().map(|(address, target)| (self.bridge_of(*address), target));
        let neighbours = self.neighbours.iter().map(|(bridge, neighbour)| (bridge.as_str(), neighbour));
        for (number, (bridge, namespace)) in attached.chain(neighbours).enumerate() {
            let name = format!("pf-port{number}");
            links.veth(&name, "eth0", namespace)?;
            links.join(&name, bridge)?;
        }
        for binding in chosen {
            let uplink = self.uplink_of(binding);
            if let (Some(address), Some(uplink)) = (binding.address, uplink)
                && !self.subnets.iter().any(|subnet| subnet.gateway == address)
            {
                links.address(&uplink.name, address, full(address))?;
            }
            // Clients that only some addresses of are let in live behind the same client.
            if let (Some(from), Some(uplink)) = (client_in(binding.from), uplink)
                && self.subnet_of(from).is_none()
            {
                let client = uplink.address.get(of(Family::of(from))).copied();
                if let Some(client) = client.filter(|client| *client != from) {
                    links.route(from, full(from), client)?;
                }
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
    let uplinks: [IpNetwork; 2] = [
        IpNetwork::new(uplink_address(0, 0)[0], 15).map_err(|error| LabError::Topology(error.to_string()))?,
        IpNetwork::new(uplink_address(0, 0)[1], 48).map_err(|error| LabError::Topology(error.to_string()))?,
    ];
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
    let leaving = asked.masquerades.iter().filter_map(|owned| owned.rule.out.as_ref());
    let mut names: Vec<String> = Vec::new();
    for name in interfaces.chain(leaving).map(ToString::to_string) {
        let bridge = subnets.iter().any(|subnet| subnet.bridge == name);
        if !bridge && name != "lo" && !names.contains(&name) && names.len() < 16 {
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
    if from.prefix() < 8 { None } else { hosts(from).next() }
}
