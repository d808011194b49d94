//! What rule sets mean: a host and the first packet of a connection, and what must become of it.
//!
//! This is the reference. It reads like the documentation, looks at every rule for every packet, and shares nothing with
//! the compilers: it starts from the rules as they are written, not from their normal form. Where a backend and this file
//! disagree, one of them has a fault; `tests/oracle` looks for such packets with real ones.
//!
//! A packet's way, in this order:
//! 1. Loopback addresses on a wire are nobody's: dropped.
//! 2. The forward that wins sends it on; where none is about it, the 1:1 translation with the longest prefix.
//! 3. It is for this host, or it is routed. What passes through needs forwarding switched on, and an isolated network is
//!    entered only by what was published.
//! 4. What leaves takes another source: the one that its forward names; the interface's, where a forward or a 1:1
//!    translation sends it back to where it came from (hairpin) or was sent to a loopback address; the one of its 1:1 translation; the one of the first rule about
//!    what leaves. Otherwise it keeps its own.
//!
//! Be aware: it is about the packets that open a connection. All others follow their connection.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

use super::packet::Packet;
use super::{Family, Forward, IfName, Masquerade, Mode, Network, Pool, PortRange, RuleSet, Snat, Source, netmap};

/// What must be known of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Its interfaces, the loopback interface excepted.
    pub interfaces: Vec<Interface>,
    /// Its routes, those to the networks of its own addresses included.
    pub routes: Vec<Route>,
    /// The families that it forwards between interfaces.
    pub forwarding: Vec<Family>,
}

/// An interface of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: IfName,
    /// Its addresses with their networks; the first of a family is the primary one.
    pub addresses: Vec<IpNetwork>,
}

/// A way to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The network.
    pub to: IpNetwork,
    /// The interface that it is behind.
    pub by: IfName,
    /// The neighbour that carries packets further; none: the network itself is there.
    pub gateway: Option<IpAddr>,
}

impl Host {
    /// Whether packets to `address` are for this host.
    pub fn owns(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.interfaces.iter().any(|here| here.addresses.iter().any(|own| own.ip() == address))
    }

    /// The way to `address`: the route with the longest prefix.
    pub fn route(&self, address: IpAddr) -> Option<&Route> {
        self.routes.iter().filter(|route| route.to.contains(address)).max_by_key(|route| route.to.prefix())
    }

    /// The address that what leaves by `route` to `destination` takes when it is masqueraded: the one in the network of the
    /// next hop, otherwise the first.
    fn own_address(&self, route: &Route, destination: IpAddr) -> Option<IpAddr> {
        let next = route.gateway.unwrap_or(destination);
        let here = self.interfaces.iter().find(|interface| interface.name == route.by)?;
        let family = Family::of(destination);
        let own: Vec<&IpNetwork> = here.addresses.iter().filter(|own| Family::of_network(**own) == family).collect();
        own.iter().find(|own| own.contains(next)).or(own.first()).map(|own| own.ip())
    }
}

/// Why a packet reaches nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// Its source or destination is a loopback address, and it came over a wire.
    Martian,
    /// No route leads to its destination.
    NoRoute,
    /// This host does not forward packets of its family.
    NotForwarded,
    /// Its destination is in an isolated network, and nothing publishes it.
    Isolated,
    /// The interface that it should take its address from has none.
    NoAddress,
}

/// The client that the receiver sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The lowest address that it may see.
    pub first: IpAddr,
    /// The highest, included.
    pub last: IpAddr,
    /// The ports that it may see; none: the packet's own, or another where that is taken already.
    pub ports: Option<PortRange>,
}

impl Seen {
    fn one(address: IpAddr) -> Self {
        Self { first: address, last: address, ports: None }
    }

    /// A random mode chooses among all ports where the pool has none.
    fn of(pool: Pool, mode: Option<Mode>) -> Self {
        let random = matches!(mode, Some(Mode::Random | Mode::FullyRandom));
        let any = || PortRange::new(1, u16::MAX).filter(|_| random);
        Self { first: pool.first(), last: pool.last(), ports: pool.ports().or_else(any) }
    }

    /// Whether `source` is one that it may see of a packet that was sent from the port `sent`.
    pub fn allows(&self, source: SocketAddr, sent: u16) -> bool {
        let port = match self.ports {
            Some(ports) => (ports.first()..=ports.last()).contains(&source.port()),
            None => source.port() == sent,
        };
        (self.first..=self.last).contains(&source.ip()) && port
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Nobody gets it.
    Dropped(Dropped),
    /// This host gets it.
    Here {
        /// The address that it is sent to in the end; none: any of this host's (a redirect).
        address: Option<IpAddr>,
        /// The port.
        port: u16,
        /// The client that the receiver sees.
        seen: Seen,
    },
    /// It leaves this host.
    Leaves {
        /// Whom it is sent to in the end.
        to: SocketAddr,
        /// The interface it leaves by.
        by: IfName,
        /// The client that the receiver sees.
        seen: Seen,
    },
}

/// What rule sets say of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning<'a> {
    /// The forward that wins, if one is about the packet.
    pub forward: Option<&'a Forward>,
    /// What becomes of it.
    pub fate: Fate,
}

/// What must become of `packet` on `host` under `sets`.
///
/// The sets must not contradict each other, as `check` makes sure.
pub fn meaning<'a>(sets: &'a [RuleSet], host: &Host, packet: &Packet) -> Meaning<'a> {
    let forward = winner(sets, host, packet);
    let fate = fate(sets, host, packet, forward).unwrap_or_else(Fate::Dropped);
    Meaning { forward, fate }
}

fn fate(sets: &[RuleSet], host: &Host, packet: &Packet, forward: Option<&Forward>) -> Result<Fate, Dropped> {
    let (source, destination) = (packet.source.ip(), packet.destination.ip());
    if packet.interface.is_some() && (source.is_loopback() || destination.is_loopback()) {
        return Err(Dropped::Martian);
    }
    if packet.interface.is_none() && !host.owns(destination) && host.route(destination).is_none() {
        return Err(Dropped::NoRoute);
    }
    let translated = if forward.is_none() { inward(sets, destination) } else { None };
    let port = forward.map_or(packet.destination.port(), |forward| target_port(forward, packet.destination.port()));
    let address = match forward {
        Some(Forward { to, .. }) if to.address.is_none() => return redirect(host, packet, port),
        Some(forward) => forward.to.address.unwrap_or(destination),
        None => translated.unwrap_or(destination),
    };
    if host.owns(address) {
        return Ok(Fate::Here { address: Some(address), port, seen: Seen::one(source) });
    }
    let route = host.route(address).ok_or(Dropped::NoRoute)?;
    if let Some(arrived) = &packet.interface {
        if !host.forwarding.contains(&packet.family()) {
            return Err(Dropped::NotForwarded);
        }
        let published = forward.is_some() || translated.is_some();
        let fences = |network: &Network| network.isolate && network.name == route.by && network.name != *arrived;
        let mut networks = sets.iter().flat_map(|set| &set.networks).filter(|network| fences(network));
        if !published && networks.any(|network| network.subnets.iter().any(|subnet| subnet.contains(address))) {
            return Err(Dropped::Isolated);
        }
    }
    let own = || host.own_address(route, address).map(Seen::one).ok_or(Dropped::NoAddress);
    let back_again = packet.interface.as_ref() == Some(&route.by);
    let seen = match forward.map(|forward| (forward.source, forward.hairpin)) {
        Some((Source::Address(address), _)) => Seen::one(address),
        Some((Source::Masquerade, _)) => own()?,
        Some((Source::Keep, hairpin)) if hairpin && back_again || destination.is_loopback() => own()?,
        None if translated.is_some() && back_again => own()?,
        _ => match (outward(sets, source), leaving(sets, source, &route.by)) {
            (Some(address), _) => Seen::one(address),
            (None, Some(Leaving::Masquerade)) => own()?,
            (None, Some(Leaving::Pool(pool, mode))) => Seen::of(pool, mode),
            (None, None) => Seen::one(source),
        },
    };
    Ok(Fate::Leaves { to: SocketAddr::new(address, port), by: route.by.clone(), seen })
}

/// A redirect goes to an address of the interface it arrived by; where that has none it cannot be done.
fn redirect(host: &Host, packet: &Packet, port: u16) -> Result<Fate, Dropped> {
    if let Some(arrived) = &packet.interface {
        let here = host.interfaces.iter().find(|interface| interface.name == *arrived);
        let own = |own: &IpNetwork| Family::of_network(*own) == packet.family();
        if !here.is_some_and(|interface| interface.addresses.iter().any(own)) {
            return Err(Dropped::NoAddress);
        }
    }
    Ok(Fate::Here { address: None, port, seen: Seen::one(packet.source.ip()) })
}

/// What decides which of two forwards wins; the greatest does. In this order: an address is named; an interface is named;
/// the length of the client prefix, none being the least; a single port rather than a range.
type Rank = (bool, bool, Option<u8>, bool);

fn winner<'a>(sets: &'a [RuleSet], host: &Host, packet: &Packet) -> Option<&'a Forward> {
    let forwards = sets.iter().flat_map(|set| &set.forwards);
    let ranked = forwards.filter_map(|forward| Some((rank(forward, host, packet)?, forward)));
    ranked.max_by_key(|(rank, _)| *rank).map(|(_, forward)| forward)
}

/// How a forward that is about the packet ranks; `None` where it is not about it.
fn rank(forward: &Forward, host: &Host, packet: &Packet) -> Option<Rank> {
    let range = *forward.listen.ports.ranges().iter().find(|range| holds(**range, packet.destination.port()))?;
    let mut ends = [forward.to.address, forward.listen.address].into_iter().flatten();
    let of_family = ends.all(|end| Family::of(end) == packet.family());
    let arrived = packet.interface.as_ref();
    // What this host sends itself at a loopback address arrives at no interface, whichever the forward names.
    let to_loopback = arrived.is_none() && packet.destination.ip().is_loopback();
    let there = to_loopback || forward.interface.as_ref().is_none_or(|interface| arrived == Some(interface));
    let said = if forward.listen.protocols.is_empty() { &forward.protocols } else { &forward.listen.protocols };
    let spoken =
        if said.is_empty() { packet.protocol == super::Protocol::Tcp } else { said.contains(&packet.protocol) };
    let from = client(forward, packet.source.ip())?;
    let about = of_family && there && spoken && listens_at(forward, host, packet.destination.ip());
    about.then_some((forward.listen.address.is_some(), forward.interface.is_some(), from, range.is_single()))
}

/// Without an address every address of this host, the loopback addresses only where asked for; these also where another
/// address is named.
fn listens_at(forward: &Forward, host: &Host, destination: IpAddr) -> bool {
    match forward.listen.address {
        Some(address) if address == destination => true,
        Some(address) => forward.loopback && destination.is_loopback() && !address.is_loopback(),
        None if destination.is_loopback() => forward.loopback,
        None => host.owns(destination),
    }
}

/// The length of the longest client prefix that `source` is in; `Some(None)` where everybody is let in, `None` where
/// `source` is not.
fn client(forward: &Forward, source: IpAddr) -> Option<Option<u8>> {
    if forward.from.is_empty() {
        return Some(None);
    }
    let lengths = forward.from.iter().filter(|from| from.contains(source)).map(IpNetwork::prefix);
    lengths.max().map(Some)
}

fn holds(range: PortRange, port: u16) -> bool {
    (range.first()..=range.last()).contains(&port)
}

/// Where a port is sent to: kept, all to one, or shifted one to one.
fn target_port(forward: &Forward, port: u16) -> u16 {
    match (forward.to.ports, forward.listen.ports.single_range()) {
        (None, _) => port,
        (Some(to), _) if to.is_single() => to.first(),
        (Some(to), Some(listen)) => port - listen.first() + to.first(),
        // Lists onto a range are refused.
        (Some(_), None) => port,
    }
}

/// Where a 1:1 translation leads what is sent to `destination`.
fn inward(sets: &[RuleSet], destination: IpAddr) -> Option<IpAddr> {
    let netmaps = sets.iter().flat_map(|set| &set.netmaps).filter(|netmap| netmap.listen.contains(destination));
    netmaps.max_by_key(|netmap| netmap.listen.prefix()).map(|found| netmap::translate(destination, found.to))
}

/// What `source` becomes when it leaves, where a 1:1 translation is about it.
fn outward(sets: &[RuleSet], source: IpAddr) -> Option<IpAddr> {
    let netmaps = sets.iter().flat_map(|set| &set.netmaps).filter(|netmap| netmap.to.contains(source));
    netmaps.max_by_key(|netmap| netmap.to.prefix()).map(|found| netmap::translate(source, found.listen))
}

/// What a rule about what leaves asks.
#[derive(Clone, Copy)]
enum Leaving {
    Masquerade,
    Pool(Pool, Option<Mode>),
}

/// The rule about what leaves that wins: one that names the interface, then the longer prefix, then one that names its
/// addresses.
fn leaving(sets: &[RuleSet], source: IpAddr, by: &IfName) -> Option<Leaving> {
    let inside = |from: Option<IpNetwork>| from.is_none_or(|from| from.contains(source));
    let out = |out: &Option<IfName>| out.as_ref().is_none_or(|out| out == by);
    type Rank = (bool, Reverse<Option<u8>>, bool);
    let mut rules: Vec<(Rank, Leaving)> = Vec::new();
    // The prefix of everybody says no more than none.
    let length = |from: Option<IpNetwork>| from.map(|from| from.prefix()).filter(|length| *length > 0);
    let rank = |out: bool, from, masquerade: bool| (!out, Reverse(length(from)), masquerade);
    for set in sets {
        for Masquerade { from, out: named } in &set.masquerades {
            if inside(*from) && out(named) {
                rules.push((rank(named.is_some(), *from, true), Leaving::Masquerade));
            }
        }
        for Snat { from, out: named, to, mode } in &set.snats {
            if inside(*from) && out(named) && to.family() == Family::of(source) {
                rules.push((rank(named.is_some(), *from, false), Leaving::Pool(*to, *mode)));
            }
        }
        for network in set.networks.iter().filter(|network| network.masquerade && network.name != *by) {
            let subnets = network.subnets.iter().filter(|subnet| subnet.contains(source));
            rules.extend(subnets.map(|subnet| (rank(false, Some(*subnet), true), Leaving::Masquerade)));
        }
    }
    rules.into_iter().min_by_key(|(rank, _)| *rank).map(|(_, leaving)| leaving)
}
