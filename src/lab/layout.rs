//! The plan of a throw-away network: its hosts and addresses, derived from the rules alone. This file creates nothing
//! in the kernel.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::LabError;
use crate::model::meaning::{Host, Interface, Route};
use crate::model::{Binding, DesiredState, Family, IfName, Packet, netmap, precedence};

/// The maximum number of uplinks.
const MAX_UPLINKS: u8 = 16;

/// The last part of the host's address on an uplink, and of the client's address.
const HOST_END: u8 = 1;
const CLIENT_END: u8 = 2;

/// The maximum number of interface names in an error.
const MAX_LISTED_NAMES: usize = 20;

/// A subnet behind a bridge of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// The bridge's interface name.
    pub bridge: String,
    /// The subnet as a prefix.
    pub network: IpNetwork,
    /// The host's address in the subnet.
    pub gateway: IpAddr,
    /// The neighbour's address, or `None` if the subnet has no address left.
    pub neighbour: Option<IpAddr>,
}

/// The plan of a network that does not exist yet.
#[derive(Debug)]
pub(super) struct Layout {
    /// The host's interfaces and routes, without the forwarding sysctls.
    pub host: Host,
    /// The names of the host's uplinks, at least one.
    pub uplinks: Vec<String>,
    /// The subnets behind the host's bridges.
    pub subnets: Vec<Subnet>,
    /// The addresses of the hosts in the subnets, except neighbours.
    pub targets: BTreeSet<IpAddr>,
    /// A host address in each network that a rule other than a forward names.
    pub residents: BTreeMap<IpNetwork, IpAddr>,
    /// A client address in each `from` prefix of a forward, by uplink and prefix.
    pub clients: BTreeMap<(String, IpNetwork), IpAddr>,
}

impl Layout {
    /// Plans a network for the chosen forwards, for the hosts of `packets`, and for all other rules.
    ///
    /// Names and addresses do not depend on the choice of forwards.
    pub fn new(desired: &DesiredState, chosen: &[&Binding], packets: &[Packet]) -> Result<Self, LabError> {
        let all = || desired.bindings.iter().map(|owned| &owned.rule);
        // Listen addresses belong to the host, even if a forward also targets them.
        let listened: BTreeSet<IpAddr> =
            all().filter_map(|binding| binding.address).filter(|address| !address.is_loopback()).collect();
        let target = |binding: &Binding| binding.to.address.filter(|address| !listened.contains(address));
        let mentioned = packet_addresses(desired, packets);
        let declared = declared(desired);
        let residents = residents(desired, &declared, &listened);
        let all_targets: BTreeSet<IpAddr> = all().filter_map(target).chain(residents.values().copied()).collect();
        let mut targets: BTreeSet<IpAddr> = chosen.iter().filter_map(|binding| target(binding)).collect();
        if let Some((address, home)) = targets.iter().find_map(|address| reserved_address(*address, &declared)) {
            return Err(LabError::Topology(format!(
                "`{address}` cannot be tried: no host of `{home}` can have it; declare the network of the address"
            )));
        }
        targets.extend(residents.values());
        targets.extend(all_targets.intersection(&mentioned));
        let networks = networks(declared, &all_targets);
        let uplinks = uplink_names(desired, chosen, &networks);
        let names = || uplinks.iter().chain(networks.iter().map(|(bridge, _)| bridge)).map(String::as_str);
        for interface in packets.iter().filter_map(|packet| packet.interface.as_ref()) {
            if !names().any(|name| name == interface.as_str()) {
                return Err(unknown_interface(interface, names()));
            }
        }
        let wanted = |(bridge, network): &&(String, IpNetwork)| {
            desired.networks.iter().any(|owned| owned.rule.name.as_str() == bridge)
                || targets.iter().chain(&mentioned).any(|address| network.contains(*address))
                || packets.iter().filter_map(|packet| packet.interface.as_ref()).any(|name| name.as_str() == bridge)
        };
        let subnets = subnets(networks.iter().filter(wanted), &all_targets, &listened)?;
        let (host, clients) = (Host::default(), BTreeMap::new());
        let mut layout = Self { host, uplinks, subnets, targets, residents, clients };
        layout.clients = layout.assign_clients(chosen, &listened);
        let mut own: BTreeSet<IpAddr> =
            chosen.iter().flat_map(|binding| [binding.address, binding.to.address]).flatten().collect();
        own.extend(mentioned);
        layout.host =
            layout.plan_host(all().filter(|binding| binding.address.is_some_and(|address| own.contains(&address))));
        Ok(layout)
    }

    /// Returns the number of the uplink that a forward's clients use.
    fn uplink_of(&self, binding: &Binding) -> u8 {
        let named =
            binding.interface.as_ref().and_then(|name| self.uplinks.iter().position(|here| here == name.as_str()));
        named.and_then(|number| u8::try_from(number).ok()).unwrap_or(0)
    }

    fn numbered_uplinks(&self) -> impl Iterator<Item = (u8, &String)> {
        (0..MAX_UPLINKS).zip(&self.uplinks)
    }

    /// Assigns a client address inside each `from` prefix. It differs from all other addresses, including that of the
    /// ordinary client.
    fn assign_clients(
        &self,
        chosen: &[&Binding],
        listened: &BTreeSet<IpAddr>,
    ) -> BTreeMap<(String, IpNetwork), IpAddr> {
        let wanted: BTreeSet<_> = chosen
            .iter()
            // A shorter prefix is treated as one that contains the ordinary client.
            .filter_map(|binding| Some((self.uplink_of(binding), binding.from.filter(|from| from.prefix() >= 8)?)))
            .collect();
        let mut wanted: Vec<_> = wanted.into_iter().collect();
        // Long prefixes come first because they leave the fewest addresses.
        wanted.sort_by_key(|(_, from)| Reverse(from.prefix()));
        let mut used: BTreeSet<IpAddr> = (0..MAX_UPLINKS)
            .flat_map(|number| [HOST_END, CLIENT_END].map(|end| uplink_address(number, end)))
            .flatten()
            .collect();
        let mut clients = BTreeMap::new();
        for (number, from) in wanted {
            let Some(name) = self.uplinks.get(usize::from(number)) else { continue };
            let free = |address: &IpAddr| {
                let inside = self.subnets.iter().any(|subnet| subnet.network.contains(*address));
                !inside && !address.is_loopback() && !listened.contains(address) && !used.contains(address)
            };
            if let Some(address) = host_addresses(from).find(free) {
                used.insert(address);
                clients.insert((name.clone(), from), address);
            }
        }
        clients
    }

    /// Returns the host's addresses, including the listen addresses of `listening`, and its routes.
    fn plan_host<'a>(&self, listening: impl Iterator<Item = &'a Binding>) -> Host {
        let mut interfaces: Vec<(&String, Vec<IpNetwork>)> = Vec::new();
        for (number, name) in self.numbered_uplinks() {
            let own = uplink_address(number, HOST_END).into_iter();
            let own = own.filter_map(|address| IpNetwork::new(address, uplink_prefix(address)).ok());
            interfaces.push((name, own.collect()));
        }
        for subnet in &self.subnets {
            let Ok(gateway) = IpNetwork::new(subnet.gateway, subnet.network.prefix()) else { continue };
            match interfaces.iter_mut().find(|(name, _)| **name == subnet.bridge) {
                Some((_, addresses)) => addresses.push(gateway),
                None => interfaces.push((&subnet.bridge, vec![gateway])),
            }
        }
        let mut used: BTreeSet<IpAddr> =
            interfaces.iter().flat_map(|(_, addresses)| addresses.iter().map(IpNetwork::ip)).collect();
        for binding in listening {
            // Uplinks are the first interfaces of the list.
            if let Some(address) = binding.address.filter(|address| !address.is_loopback())
                && let Some((_, addresses)) = interfaces.get_mut(usize::from(self.uplink_of(binding)))
                && used.insert(address)
            {
                addresses.extend(IpNetwork::new(address, host_prefix(address)));
            }
        }
        let mut routes = Vec::new();
        for (number, name) in self.numbered_uplinks() {
            // The host routes these addresses through the ordinary client.
            for ((_, from), address) in self.clients.iter().filter(|((uplink, _), _)| uplink == name) {
                let gateway = uplink_address(number, CLIENT_END).get(family_index(Family::of_network(*from))).copied();
                if let (Ok(to), Ok(interface)) = (IpNetwork::new(*address, host_prefix(*address)), name.parse()) {
                    routes.push(Route { to, interface, gateway });
                }
            }
        }
        let named =
            |(name, addresses): (&String, Vec<IpNetwork>)| Some(Interface { name: name.parse().ok()?, addresses });
        let interfaces: Vec<Interface> = interfaces.into_iter().filter_map(named).collect();
        for interface in &interfaces {
            for own in &interface.addresses {
                let Ok(to) = IpNetwork::new(own.network(), own.prefix()) else { continue };
                routes.push(Route { to, interface: interface.name.clone(), gateway: None });
            }
        }
        Host { interfaces, routes, forwarding: Vec::new() }
    }
}

/// Returns the index of a family in an array of an IPv4 and an IPv6 address.
pub(super) fn family_index(family: Family) -> usize {
    match family {
        Family::Ipv4 => 0,
        Family::Ipv6 => 1,
    }
}

/// Returns the sources and destinations of packets, and the destinations after 1:1 translation.
fn packet_addresses(desired: &DesiredState, packets: &[Packet]) -> BTreeSet<IpAddr> {
    let mut mentioned = BTreeSet::new();
    for packet in packets {
        let (source, destination) = (packet.source.ip(), packet.destination.ip());
        let netmaps =
            desired.netmaps.iter().map(|owned| &owned.rule).filter(|netmap| netmap.listen.contains(destination));
        mentioned.extend(netmaps.map(|found| netmap::translate(destination, found.to)));
        mentioned.extend([source, destination]);
    }
    mentioned
}

fn unknown_interface<'a>(interface: &IfName, names: impl Iterator<Item = &'a str>) -> LabError {
    let mut names: Vec<&str> = names.collect();
    // Subnets of the same bridge are adjacent, so this removes all repeated names.
    names.dedup();
    let more = if names.len() > MAX_LISTED_NAMES { ", …" } else { "" };
    names.truncate(MAX_LISTED_NAMES);
    let listed = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    LabError::Topology(format!("`{interface}` is no interface of the throw-away network, which has {listed}{more}"))
}

/// Returns the declared networks, each with the name of its bridge.
fn declared(desired: &DesiredState) -> Vec<(String, IpNetwork)> {
    let networks = desired.networks.iter().map(|owned| &owned.rule);
    networks.flat_map(|network| network.subnets.iter().map(|subnet| (network.name.to_string(), *subnet))).collect()
}

/// Returns a host address in each network that a rule other than a forward names. It is the second address, because the
/// first one is the gateway's.
fn residents(
    desired: &DesiredState,
    declared: &[(String, IpNetwork)],
    listened: &BTreeSet<IpAddr>,
) -> BTreeMap<IpNetwork, IpAddr> {
    let egress = precedence::by_precedence(desired).into_iter().filter_map(|(egress, _)| egress.from);
    let inside = desired.netmaps.iter().map(|owned| owned.rule.to);
    let clients = client_networks();
    let outside = |network: &IpNetwork| clients.iter().any(|clients| clients.contains(network.network()));
    let resident = |network: IpNetwork| {
        let free = |address: &IpAddr| !listened.contains(address) && reserved_address(*address, declared).is_none();
        let mut hosts = host_addresses(network).filter(free);
        let first = hosts.next()?;
        Some((network, hosts.next().unwrap_or(first)))
    };
    egress.chain(inside).filter(|network| network.prefix() >= 8 && !outside(network)).filter_map(resident).collect()
}

/// Returns the address with its network if no single host can use it. The first address of an IPv6 network belongs to
/// all routers (RFC 4291, section 2.6.1), the last of an IPv4 network is broadcast.
fn reserved_address(address: IpAddr, declared: &[(String, IpNetwork)]) -> Option<(IpAddr, IpNetwork)> {
    let home = declared.iter().map(|(_, network)| *network).find(|network| network.contains(address));
    let home = home.or_else(|| implied_network(address))?;
    let shared = match home {
        IpNetwork::V4(home) => home.prefix() < 31 && address == IpAddr::V4(home.broadcast()),
        IpNetwork::V6(home) => home.prefix() < 127 && address == IpAddr::V6(home.network()),
    };
    shared.then_some((address, home))
}

/// Returns the /24 or /64 network around an address that is in no declared network.
fn implied_network(address: IpAddr) -> Option<IpNetwork> {
    let length = uplink_prefix(address);
    let around = IpNetwork::new(address, length).ok()?;
    IpNetwork::new(around.network(), length).ok()
}

/// Returns the declared networks and a /24 or /64 network for each other target, with the names of their bridges.
fn networks(declared: Vec<(String, IpNetwork)>, all_targets: &BTreeSet<IpAddr>) -> Vec<(String, IpNetwork)> {
    let undeclared = |address: &&IpAddr| !declared.iter().any(|(_, network)| network.contains(**address));
    let made: BTreeSet<IpNetwork> =
        all_targets.iter().filter(undeclared).filter_map(|address| implied_network(*address)).collect();
    let first = declared.len();
    let made = (first..).zip(made).map(|(number, network)| (format!("pf-net{number}"), network));
    declared.iter().cloned().chain(made).collect()
}

fn subnets<'a>(
    networks: impl Iterator<Item = &'a (String, IpNetwork)>,
    all_targets: &BTreeSet<IpAddr>,
    listened: &BTreeSet<IpAddr>,
) -> Result<Vec<Subnet>, LabError> {
    let uplinks = client_networks();
    let mut subnets = Vec::new();
    for (bridge, network) in networks {
        let (bridge, network) = (bridge.clone(), *network);
        if uplinks.iter().any(|uplink| uplink.contains(network.network()) || network.contains(uplink.network())) {
            return Err(LabError::Topology(format!(
                "`{network}` cannot be tried: the throw-away network uses 198.18.0.0/15 and 2001:2::/48 for its clients"
            )));
        }
        let free = |address: &IpAddr| !all_targets.contains(address);
        let Some(gateway) = host_addresses(network).find(free) else {
            return Err(LabError::Topology(format!("`{network}` has no address left for the host itself")));
        };
        let neighbour =
            host_addresses(network).find(|other| free(other) && *other != gateway && !listened.contains(other));
        subnets.push(Subnet { bridge, network, gateway, neighbour });
    }
    Ok(subnets)
}

/// Returns the usable host addresses of a network, at most the first 4,000.
fn host_addresses(network: IpNetwork) -> Box<dyn Iterator<Item = IpAddr>> {
    let narrow = network.prefix() + 1 >= host_prefix(network.ip());
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

/// Returns the interfaces in the rules that are no bridges, or `eth0` if there are none.
fn uplink_names(desired: &DesiredState, chosen: &[&Binding], networks: &[(String, IpNetwork)]) -> Vec<String> {
    let all = desired.bindings.iter().map(|owned| &owned.rule).chain(chosen.iter().copied());
    let interfaces = all.filter_map(|binding| binding.interface.as_ref());
    let masquerades = desired.masquerades.iter().filter_map(|owned| owned.rule.out.as_ref());
    let leaving = masquerades.chain(desired.snats.iter().filter_map(|owned| owned.rule.out.as_ref()));
    let is_bridge = |name: &str| networks.iter().any(|(bridge, _)| bridge == name);
    let mut names: Vec<String> = Vec::new();
    for name in interfaces.chain(leaving).map(IfName::as_str) {
        let known = names.iter().any(|known| known == name);
        if !known && names.len() < usize::from(MAX_UPLINKS) && name != "lo" && !is_bridge(name) {
            names.push(name.to_owned());
        }
    }
    if names.is_empty() {
        names.push(if is_bridge("eth0") { "pf-uplink".into() } else { "eth0".into() });
    }
    names
}

/// Returns the host's addresses on an uplink, IPv4 and IPv6.
pub(super) fn uplink_host(number: u8) -> [IpAddr; 2] {
    uplink_address(number, HOST_END)
}

/// Returns the client's addresses on an uplink, IPv4 and IPv6.
pub(super) fn uplink_client(number: u8) -> [IpAddr; 2] {
    uplink_address(number, CLIENT_END)
}

/// Returns addresses of the ranges for benchmarks, which no real host has: RFC 2544 and RFC 5180.
fn uplink_address(number: u8, end: u8) -> [IpAddr; 2] {
    let end6 = u16::from(end);
    [Ipv4Addr::new(198, 18, number, end).into(), Ipv6Addr::new(0x2001, 2, 0, number.into(), 0, 0, 0, end6).into()]
}

/// Returns the networks that contain all uplinks.
fn client_networks() -> Vec<IpNetwork> {
    let [v4, v6] = uplink_address(0, 0);
    [IpNetwork::new(v4, 15), IpNetwork::new(v6, 48)].into_iter().flatten().collect()
}

/// Returns the prefix length for a network that is not declared.
pub(super) fn uplink_prefix(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 24,
        IpAddr::V6(_) => 64,
    }
}

/// Returns the prefix length for a single address.
pub(super) fn host_prefix(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}
