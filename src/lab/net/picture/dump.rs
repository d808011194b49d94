//! Reads the links, routes and neighbours of one network namespace over rtnetlink, with the kernel's indexes.

use std::io;

use super::{Link, Mac, Neighbour, Route, State};
use crate::model::Family;
use crate::sys::rtnetlink::{self, NeighbourState, RouteType, Rtnetlink};

/// The number of the main table of routes: `RT_TABLE_MAIN` in include/uapi/linux/rtnetlink.h.
const MAIN_TABLE: u32 = 254;

/// A link, and the indexes of the links that it refers to.
pub(super) struct DumpedLink {
    pub link: Link,
    /// The index of the bridge or other device that the link is a port of.
    pub controller: Option<u32>,
    /// The index of the peer of a veth pair, in the peer's namespace.
    pub peer_index: Option<u32>,
    /// The number of the peer's namespace, as this namespace numbers it. `None` means this namespace.
    pub peer_namespace: Option<i32>,
}

/// The links, routes and neighbours of a namespace.
pub(super) struct Dump {
    /// The links, sorted by index.
    pub links: Vec<DumpedLink>,
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
}

impl Dump {
    /// Returns the link of an index.
    pub fn link(&self, index: Option<u32>) -> Option<&Link> {
        let place = position(&self.links, index?)?;
        self.links.get(place).map(|seen| &seen.link)
    }
}

fn position(links: &[DumpedLink], index: u32) -> Option<usize> {
    links.binary_search_by_key(&index, |seen| seen.link.index).ok()
}

/// Reads the namespace of the calling thread.
pub(super) fn read_dump() -> io::Result<Dump> {
    let links = Rtnetlink::open()?;
    let mut seen: Vec<DumpedLink> = links.links()?.complete()?.into_iter().map(dumped_link).collect();
    seen.sort_by_key(|seen| seen.link.index);
    for family in Family::ALL {
        for address in links.addresses(family)?.complete()? {
            if let Some(seen) = position(&seen, address.index).and_then(|place| seen.get_mut(place)) {
                seen.link.addresses.push(address.own);
            }
        }
    }
    let name = |index: u32| {
        let found = position(&seen, index).and_then(|place| seen.get(place));
        found.map_or_else(|| format!("#{index}"), |seen| seen.link.name.clone())
    };
    let (mut routes, mut neighbours) = (Vec::new(), Vec::new());
    for family in Family::ALL {
        for route in links.routes(family)?.complete()? {
            routes.extend(routes_of(&route, name));
        }
        let found = links.neighbours(family)?.complete()?;
        let mut of_family: Vec<_> = found.into_iter().filter_map(|found| neighbour(found, name)).collect();
        // The kernel returns neighbours in the order of its hash table.
        of_family.sort_by(|a, b| (&a.dev, a.address).cmp(&(&b.dev, b.address)));
        neighbours.extend(of_family);
    }
    Ok(Dump { links: seen, routes, neighbours })
}

fn dumped_link(found: rtnetlink::Link) -> DumpedLink {
    let state = match (found.up, found.carrier) {
        (true, true) => State::Up,
        (true, false) => State::NoCarrier,
        (false, _) => State::Down,
    };
    let link = Link {
        index: found.index,
        name: found.name,
        kind: found.kind,
        state,
        mac: mac(found.mac),
        bridge: None,
        peer: None,
        addresses: Vec::new(),
    };
    DumpedLink { link, controller: found.master, peer_index: found.peer, peer_namespace: found.peer_namespace }
}

/// Returns a hardware address, or `None` if it is all zeros, as for `lo`.
fn mac(bytes: Vec<u8>) -> Option<Mac> {
    bytes.iter().any(|byte| *byte != 0).then_some(Mac(bytes))
}

/// Returns a route for each next hop of a unicast or rejecting route in the main table.
fn routes_of(route: &rtnetlink::Route, name: impl Fn(u32) -> String) -> Vec<Route> {
    let kind = match route.kind {
        RouteType::Unicast => "unicast",
        RouteType::Unreachable => "unreachable",
        RouteType::BlackHole => "blackhole",
        RouteType::Prohibit => "prohibit",
        RouteType::Throw => "throw",
        _ => return Vec::new(),
    };
    let hops = route.hops.iter().filter(|_| route.table == MAIN_TABLE);
    let route_via = |hop: &rtnetlink::Hop| {
        let dev = hop.output.map(&name).filter(|_| kind == "unicast");
        Route { to: route.to, kind, via: hop.gateway, dev, src: route.source }
    };
    hops.map(route_via).collect()
}

/// Returns a neighbour, or `None` if its address needs no resolution, such as a multicast address. ip-neighbour(8)
/// omits these too.
fn neighbour(found: rtnetlink::Neighbour, name: impl Fn(u32) -> String) -> Option<Neighbour> {
    let state = match found.state {
        NeighbourState::Noarp | NeighbourState::None => return None,
        NeighbourState::Incomplete => "INCOMPLETE".into(),
        NeighbourState::Reachable => "REACHABLE".into(),
        NeighbourState::Stale => "STALE".into(),
        NeighbourState::Delay => "DELAY".into(),
        NeighbourState::Probe => "PROBE".into(),
        NeighbourState::Failed => "FAILED".into(),
        NeighbourState::Permanent => "PERMANENT".into(),
        other => format!("{:#x}", u16::from(other)),
    };
    Some(Neighbour { address: found.address, mac: mac(found.mac), dev: name(found.index), state })
}
