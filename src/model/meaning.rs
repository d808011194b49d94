//! The reference for the meaning of rule sets. Its input is a host, the rule sets and the first packet of a connection.
//! Its output is the fate of the packet.
//!
//! This file shares no code with the compilers. It checks every rule for every packet, and it uses the rules as a user
//! writes them instead of the normal form. If a backend and this file disagree, one of them has a bug. `tests/oracle`
//! sends random packets to find such bugs.
//!
//! A packet passes these steps in order:
//! 1. The kernel drops a packet that arrives at an interface with a loopback source or destination address.
//! 2. The forward with the highest precedence rewrites the destination. If no forward matches, the 1:1 translation with
//!    the longest prefix does.
//! 3. The packet goes to this host, or the host routes it. Routing needs IP forwarding. An isolated network accepts
//!    only packets that a forward or 1:1 translation publishes.
//! 4. A packet that leaves can get a new source. The first of these applies:
//!    - the source of its forward;
//!    - the address of the egress interface, for a hairpin or a loopback connection;
//!    - the source of a 1:1 translation;
//!    - the source of the `snat`, `masquerade` or network rule with the highest precedence.
//!
//! Be aware: the meaning covers only the first packet of a connection. All other packets follow the conntrack entry.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

use super::packet::Packet;
use super::{
    Family, Forward, IfName, Masquerade, Mode, Network, Pool, PortRange, Protocol, RuleSet, Snat, Source, netmap,
};

/// The properties of a host that determine the fate of a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// The interfaces without the loopback interface.
    pub interfaces: Vec<Interface>,
    /// The routes, including those to the networks of the host's own addresses.
    pub routes: Vec<Route>,
    /// The families for which IP forwarding is enabled.
    pub forwarding: Vec<Family>,
}

/// A network interface of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The name in the kernel.
    pub name: IfName,
    /// The addresses with their prefix lengths. The first address of a family is the primary one.
    pub addresses: Vec<IpNetwork>,
}

/// A route of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destination prefix, which can be a default route.
    pub to: IpNetwork,
    /// The egress interface of the route.
    pub interface: IfName,
    /// The next hop, or `None` if the network is directly connected.
    pub gateway: Option<IpAddr>,
}

impl Host {
    /// Returns true if `address` is a loopback address or an address of an interface.
    pub fn owns(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.interfaces.iter().any(|here| here.addresses.iter().any(|own| own.ip() == address))
    }

    /// Returns the route to `address`: the matching route with the longest prefix.
    pub fn route(&self, address: IpAddr) -> Option<&Route> {
        self.routes.iter().filter(|route| route.to.contains(address)).max_by_key(|route| route.to.prefix())
    }

    /// Returns the source address of masqueraded packets that leave by `route` to `destination`: the interface's
    /// address in the network of the next hop, otherwise its first address.
    fn masquerade_address(&self, route: &Route, destination: IpAddr) -> Option<IpAddr> {
        let next = route.gateway.unwrap_or(destination);
        let here = self.interfaces.iter().find(|interface| interface.name == route.interface)?;
        let family = Family::of_address(destination);
        let own: Vec<&IpNetwork> = here.addresses.iter().filter(|own| Family::of_network(**own) == family).collect();
        own.iter().find(|own| own.contains(next)).or(own.first()).map(|own| own.ip())
    }
}

/// The reason for a dropped packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// The packet arrived at an interface, and its source or destination is a loopback address.
    Martian,
    /// The host has no route to the destination.
    NoRoute,
    /// IP forwarding is disabled for the packet's family.
    NotForwarded,
    /// The destination is in an isolated network, and no rule publishes it.
    Isolated,
    /// A rule needs an address of an interface, and the interface has no address of the packet's family.
    NoAddress,
}

/// The source addresses and ports that the receiver of a packet may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisibleSource {
    /// The lowest address that the receiver may see.
    pub first: IpAddr,
    /// The highest address that the receiver may see.
    pub last: IpAddr,
    /// The ports, or `None` if the packet keeps its port. The kernel still changes a port that is in use.
    pub ports: Option<PortRange>,
}

impl VisibleSource {
    fn single(address: IpAddr) -> Self {
        Self { first: address, last: address, ports: None }
    }

    /// Returns the addresses and ports of a pool. A random mode without ports chooses among all ports.
    fn from_pool(pool: Pool, mode: Option<Mode>) -> Self {
        let random = matches!(mode, Some(Mode::Random | Mode::FullyRandom));
        let all_ports = || PortRange::new(1, u16::MAX).filter(|_| random);
        Self { first: pool.first(), last: pool.last(), ports: pool.ports().or_else(all_ports) }
    }

    /// Returns true if the receiver may see `source` for a packet with the source port `sent_port`.
    pub fn allows(&self, source: SocketAddr, sent_port: u16) -> bool {
        let port = match self.ports {
            Some(ports) => contains(ports, source.port()),
            None => source.port() == sent_port,
        };
        (self.first..=self.last).contains(&source.ip()) && port
    }
}

/// The fate of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The host drops the packet.
    Dropped(DropReason),
    /// This host receives the packet.
    Local {
        /// The destination address after all rewrites, or `None` for any address of this host (a redirect).
        address: Option<IpAddr>,
        /// The destination port after all rewrites.
        port: u16,
        /// The source that the receiver sees.
        source: VisibleSource,
    },
    /// The packet leaves this host.
    Sent {
        /// The destination address and port after all rewrites.
        to: SocketAddr,
        /// The egress interface.
        interface: IfName,
        /// The source that the receiver sees.
        source: VisibleSource,
    },
}

/// The result of the rule sets for a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning<'a> {
    /// The forward with the highest precedence, if a forward matches.
    pub forward: Option<&'a Forward>,
    /// The fate of the packet.
    pub fate: Fate,
}

/// Returns the fate of `packet` on `host` with the rules of `sets`.
///
/// The sets must not have conflicts, see [`conflict`](super::conflict) and [`precedence`](super::precedence).
pub fn meaning<'a>(sets: &'a [RuleSet], host: &Host, packet: &Packet) -> Meaning<'a> {
    let forward = winning_forward(sets, host, packet);
    let fate = fate(sets, host, packet, forward).unwrap_or_else(Fate::Dropped);
    Meaning { forward, fate }
}

fn fate(sets: &[RuleSet], host: &Host, packet: &Packet, forward: Option<&Forward>) -> Result<Fate, DropReason> {
    let (source, destination) = (packet.source.ip(), packet.destination.ip());
    if packet.interface.is_some() && (source.is_loopback() || destination.is_loopback()) {
        return Err(DropReason::Martian);
    }
    if packet.interface.is_none() && !host.owns(destination) && host.route(destination).is_none() {
        return Err(DropReason::NoRoute);
    }
    let translated = if forward.is_none() { netmap_target(sets, destination) } else { None };
    let port = forward.map_or(packet.destination.port(), |forward| target_port(forward, packet.destination.port()));
    let address = match forward {
        Some(Forward { to, .. }) if to.address.is_none() => return redirect(host, packet, port),
        Some(forward) => forward.to.address.unwrap_or(destination),
        None => translated.unwrap_or(destination),
    };
    if host.owns(address) {
        return Ok(Fate::Local { address: Some(address), port, source: VisibleSource::single(source) });
    }
    let route = host.route(address).ok_or(DropReason::NoRoute)?;
    if let Some(arrived) = &packet.interface {
        if !host.forwarding.contains(&packet.family()) {
            return Err(DropReason::NotForwarded);
        }
        let published = forward.is_some() || translated.is_some();
        let isolates =
            |network: &Network| network.isolate && network.name == route.interface && network.name != *arrived;
        let mut networks = sets.iter().flat_map(|set| &set.networks).filter(|network| isolates(network));
        if !published && networks.any(|network| network.subnets.iter().any(|subnet| subnet.contains(address))) {
            return Err(DropReason::Isolated);
        }
    }
    let own = || host.masquerade_address(route, address).map(VisibleSource::single).ok_or(DropReason::NoAddress);
    let hairpinned = packet.interface.as_ref() == Some(&route.interface);
    let visible = match forward.map(|forward| (forward.source, forward.hairpin)) {
        Some((Source::Address(address), _)) => VisibleSource::single(address),
        Some((Source::Masquerade, _)) => own()?,
        Some((Source::Keep, hairpin)) if hairpin && hairpinned || destination.is_loopback() => own()?,
        None if translated.is_some() && hairpinned => own()?,
        _ => match (netmap_source(sets, source), source_rewrite(sets, source, &route.interface)) {
            (Some(address), _) => VisibleSource::single(address),
            (None, Some(SourceRewrite::Masquerade)) => own()?,
            (None, Some(SourceRewrite::Pool(pool, mode))) => VisibleSource::from_pool(pool, mode),
            (None, None) => VisibleSource::single(source),
        },
    };
    Ok(Fate::Sent { to: SocketAddr::new(address, port), interface: route.interface.clone(), source: visible })
}

/// Returns the fate of a redirect. The kernel uses an address of the ingress interface as destination.
///
/// # Errors
/// If the ingress interface has no address of the packet's family.
fn redirect(host: &Host, packet: &Packet, port: u16) -> Result<Fate, DropReason> {
    if let Some(arrived) = &packet.interface {
        let here = host.interfaces.iter().find(|interface| interface.name == *arrived);
        let own = |own: &IpNetwork| Family::of_network(*own) == packet.family();
        if !here.is_some_and(|interface| interface.addresses.iter().any(own)) {
            return Err(DropReason::NoAddress);
        }
    }
    Ok(Fate::Local { address: None, port, source: VisibleSource::single(packet.source.ip()) })
}

/// The precedence of a forward for a packet. The forward with the greatest rank wins.
///
/// The fields are: has an address, has an interface, length of the client prefix, has a single port instead of a range.
type Rank = (bool, bool, Option<u8>, bool);

fn winning_forward<'a>(sets: &'a [RuleSet], host: &Host, packet: &Packet) -> Option<&'a Forward> {
    let forwards = sets.iter().flat_map(|set| &set.forwards);
    let ranked = forwards.filter_map(|forward| Some((rank(forward, host, packet)?, forward)));
    ranked.max_by_key(|(rank, _)| *rank).map(|(_, forward)| forward)
}

/// Returns the rank of a forward, or `None` if the forward does not match the packet.
fn rank(forward: &Forward, host: &Host, packet: &Packet) -> Option<Rank> {
    let range = *forward.listen.ports.ranges().iter().find(|range| contains(**range, packet.destination.port()))?;
    let mut ends = [forward.to.address, forward.listen.address].into_iter().flatten();
    let of_family = ends.all(|end| Family::of_address(end) == packet.family());
    let arrived = packet.interface.as_ref();
    // Packets of this host to a loopback address have no ingress interface. The forward's interface does not matter.
    let to_loopback = arrived.is_none() && packet.destination.ip().is_loopback();
    let interface_matches =
        to_loopback || forward.interface.as_ref().is_none_or(|interface| arrived == Some(interface));
    let protocols = if forward.listen.protocols.is_empty() { &forward.protocols } else { &forward.listen.protocols };
    let protocol_matches = match protocols.as_slice() {
        [] => packet.protocol == Protocol::Tcp,
        protocols => protocols.contains(&packet.protocol),
    };
    let from = longest_client_prefix(forward, packet.source.ip())?;
    let matches =
        of_family && interface_matches && protocol_matches && listens_at(forward, host, packet.destination.ip());
    matches.then_some((forward.listen.address.is_some(), forward.interface.is_some(), from, range.is_single()))
}

/// Returns true if the forward listens at `destination`.
///
/// A forward without an address listens at every address of this host. A forward with `loopback` also listens at the
/// loopback addresses, unless its own address is a loopback address.
fn listens_at(forward: &Forward, host: &Host, destination: IpAddr) -> bool {
    match forward.listen.address {
        Some(address) if address == destination => true,
        Some(address) => forward.loopback && destination.is_loopback() && !address.is_loopback(),
        None if destination.is_loopback() => forward.loopback,
        None => host.owns(destination),
    }
}

/// Returns the length of the longest client prefix that contains `source`.
///
/// Returns `Some(None)` if the forward accepts every client, and `None` if it does not accept `source`.
fn longest_client_prefix(forward: &Forward, source: IpAddr) -> Option<Option<u8>> {
    if forward.from.is_empty() {
        return Some(None);
    }
    let lengths = forward.from.iter().filter(|from| from.contains(source)).map(IpNetwork::prefix);
    lengths.max().map(Some)
}

fn contains(range: PortRange, port: u16) -> bool {
    (range.first()..=range.last()).contains(&port)
}

/// Returns the target port of a listen port.
fn target_port(forward: &Forward, port: u16) -> u16 {
    match (forward.to.ports, forward.listen.ports.single_range()) {
        (None, _) => port,
        (Some(to), _) if to.is_single() => to.first(),
        (Some(to), Some(listen)) => port - listen.first() + to.first(),
        // A list of listen ports with a target range is invalid.
        (Some(_), None) => port,
    }
}

/// Returns the new destination if a 1:1 translation matches packets to `destination`.
fn netmap_target(sets: &[RuleSet], destination: IpAddr) -> Option<IpAddr> {
    let netmaps = sets.iter().flat_map(|set| &set.netmaps).filter(|netmap| netmap.listen.contains(destination));
    netmaps.max_by_key(|netmap| netmap.listen.prefix()).map(|found| netmap::translate(destination, found.to))
}

/// Returns the new source if a 1:1 translation matches packets from `source`.
fn netmap_source(sets: &[RuleSet], source: IpAddr) -> Option<IpAddr> {
    let netmaps = sets.iter().flat_map(|set| &set.netmaps).filter(|netmap| netmap.to.contains(source));
    netmaps.max_by_key(|netmap| netmap.to.prefix()).map(|found| netmap::translate(source, found.listen))
}

/// The new source of a `snat`, `masquerade` or network rule.
#[derive(Clone, Copy)]
enum SourceRewrite {
    Masquerade,
    Pool(Pool, Option<Mode>),
}

/// Returns the source rewrite of the winning rule: first the rules with `out`, then the longer prefix, then `snat`.
fn source_rewrite(sets: &[RuleSet], source: IpAddr, by: &IfName) -> Option<SourceRewrite> {
    let inside = |from: Option<IpNetwork>| from.is_none_or(|from| from.contains(source));
    let out = |out: &Option<IfName>| out.as_ref().is_none_or(|out| out == by);
    type Rank = (bool, Reverse<Option<u8>>, bool);
    let mut rules: Vec<(Rank, SourceRewrite)> = Vec::new();
    // `0.0.0.0/0` and `::/0` count as no prefix.
    let length = |from: Option<IpNetwork>| from.map(|from| from.prefix()).filter(|length| *length > 0);
    let rank = |out: bool, from, masquerade: bool| (!out, Reverse(length(from)), masquerade);
    for set in sets {
        for Masquerade { from, out: named } in &set.masquerades {
            if inside(*from) && out(named) {
                rules.push((rank(named.is_some(), *from, true), SourceRewrite::Masquerade));
            }
        }
        for Snat { from, out: named, to, mode } in &set.snats {
            if inside(*from) && out(named) && to.family() == Family::of_address(source) {
                rules.push((rank(named.is_some(), *from, false), SourceRewrite::Pool(*to, *mode)));
            }
        }
        for network in set.networks.iter().filter(|network| network.masquerade && network.name != *by) {
            let subnets = network.subnets.iter().filter(|subnet| subnet.contains(source));
            rules.extend(subnets.map(|subnet| (rank(false, Some(*subnet), true), SourceRewrite::Masquerade)));
        }
    }
    rules.into_iter().min_by_key(|(rank, _)| *rank).map(|(_, rewrite)| rewrite)
}
