//! What the kernel tells of one network namespace, over rtnetlink, by the numbers that it uses itself.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use futures_util::stream::{StreamExt, TryStreamExt};
use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType, RouteVia};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Link, Mac, Neighbour, Route, State};
use crate::lab::net::links;
use crate::lab::{Links, Netns};

/// Both families, in the order in which they are told.
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// A link, and what it points at by numbers.
pub(super) struct Seen {
    pub link: Link,
    /// The number of the bridge, or of what else it is a port of.
    pub controller: Option<u32>,
    /// The number of its other end there.
    pub other_end: Option<u32>,
    /// The namespace of its other end, by the number that this one has for it; none: the same.
    pub other_space: Option<i32>,
}

/// All that is told of a namespace.
pub(super) struct Dump {
    /// Sorted by number.
    pub links: Vec<Seen>,
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
}

impl Dump {
    /// The link of a number.
    pub fn link(&self, index: Option<u32>) -> Option<&Link> {
        let place = position(&self.links, index?)?;
        self.links.get(place).map(|seen| &seen.link)
    }
}

fn position(links: &[Seen], index: u32) -> Option<usize> {
    links.binary_search_by_key(&index, |seen| seen.link.index).ok()
}

/// Reads all of it.
pub(super) fn dump(links: &Links) -> io::Result<Dump> {
    let mut seen = links.every()?;
    seen.sort_by_key(|seen| seen.link.index);
    for (index, address) in links.every_address()? {
        if let Some(seen) = position(&seen, index).and_then(|place| seen.get_mut(place)) {
            seen.link.addresses.push(address);
        }
    }
    let name = |index: u32| {
        let found = position(&seen, index).and_then(|place| seen.get(place));
        found.map_or_else(|| format!("#{index}"), |seen| seen.link.name.clone())
    };
    let (mut routes, mut neighbours) = (Vec::new(), Vec::new());
    for family in FAMILIES {
        for message in links.every_route(family)? {
            routes.extend(routes_of(&message, name));
        }
        let mut of_family: Vec<_> =
            links.every_neighbour(family)?.iter().filter_map(|message| neighbour(message, name)).collect();
        // The kernel's order is that of a hash table.
        of_family.sort_by(|a, b| (&a.dev, a.address).cmp(&(&b.dev, b.address)));
        neighbours.extend(of_family);
    }
    Ok(Dump { links: seen, routes, neighbours })
}

/// The number that the namespace of `links` has for another one; none where it has none, and so no pair with it.
///
/// Source: ip-netns(8), `list-id`; `rtnl_net_getid` in net/core/net_namespace.c.
pub(super) fn number(links: &Links, other: &Netns) -> io::Result<Option<i32>> {
    let fd = u32::try_from(other.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Fd(fd));
    let mut question = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
    question.header.flags = NLM_F_REQUEST;
    let mut handle = links.handle.clone();
    let answer = links.runtime.block_on(async {
        let mut answers = handle.request(question).map_err(io::Error::other)?;
        Ok::<_, io::Error>(answers.next().await)
    })?;
    match answer.map(|answer| answer.payload) {
        Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer))) => {
            let id = answer.attributes.iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(id) => Some(*id),
                _ => None,
            });
            Ok(id.filter(|id| *id >= 0))
        }
        Some(NetlinkPayload::Error(error)) => Err(error.to_io()),
        _ => Ok(None),
    }
}

impl Links {
    fn every(&self) -> io::Result<Vec<Seen>> {
        let all = self.handle.link().get().execute();
        Ok(self.wait(all.try_collect::<Vec<_>>())?.iter().map(seen).collect())
    }

    fn every_address(&self) -> io::Result<Vec<(u32, IpNetwork)>> {
        let all = self.wait(self.handle.address().get().execute().try_collect::<Vec<_>>())?;
        Ok(all.iter().filter_map(|message| Some((message.header.index, links::address(message)?))).collect())
    }

    fn every_route(&self, family: AddressFamily) -> io::Result<Vec<RouteMessage>> {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        self.wait(self.handle.route().get(question).execute().try_collect())
    }

    fn every_neighbour(&self, family: AddressFamily) -> io::Result<Vec<NeighbourMessage>> {
        self.wait(self.handle.neighbours().get().set_address_family(family).execute().try_collect())
    }
}

fn seen(message: &LinkMessage) -> Seen {
    let flags = message.header.flags;
    let state = match (flags.contains(LinkFlags::Up), flags.contains(LinkFlags::LowerUp)) {
        (true, true) => State::Up,
        (true, false) => State::NoCarrier,
        (false, _) => State::Down,
    };
    let index = message.header.index;
    let (name, addresses) = (format!("#{index}"), Vec::new());
    let link = Link { index, name, kind: None, state, mac: None, bridge: None, peer: None, addresses };
    let mut seen = Seen { link, controller: None, other_end: None, other_space: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => seen.link.name.clone_from(name),
            LinkAttribute::Address(bytes) => seen.link.mac = mac(bytes),
            LinkAttribute::Controller(index) => seen.controller = Some(*index),
            LinkAttribute::Link(index) => seen.other_end = Some(*index),
            LinkAttribute::LinkNetNsId(number) => seen.other_space = Some(*number),
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                seen.link.kind = kind;
            }
            _ => {}
        }
    }
    seen
}

/// A hardware address; none where it is all zeros, as that of `lo` is.
fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.iter().any(|byte| *byte != 0).then(|| Mac(bytes.to_vec()))
}

/// The routes of a message that are in the main table and for one receiver: one for each of its next hops.
fn routes_of(message: &RouteMessage, name: impl Fn(u32) -> String) -> Vec<Route> {
    let kind = match message.header.kind {
        RouteType::Unicast => "unicast",
        RouteType::Unreachable => "unreachable",
        RouteType::BlackHole => "blackhole",
        RouteType::Prohibit => "prohibit",
        RouteType::Throw => "throw",
        _ => return Vec::new(),
    };
    let main = u32::from(RouteHeader::RT_TABLE_MAIN);
    let mut table = u32::from(message.header.table);
    let all: IpAddr = match message.header.address_family {
        AddressFamily::Inet => [0; 4].into(),
        _ => [0; 16].into(),
    };
    let (mut to, mut src) = (all, None);
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(address) => to = links::plain_address(address).unwrap_or(all),
            RouteAttribute::PrefSource(address) => src = links::plain_address(address),
            RouteAttribute::MultiPath(all) => {
                hops.extend(all.iter().map(|hop| (hop.attributes.as_slice(), Some(hop.interface_index))));
            }
            _ => {}
        }
    }
    if hops.is_empty() {
        hops.push((message.attributes.as_slice(), None));
    }
    let Ok(to) = IpNetwork::new(to, message.header.destination_prefix_length) else { return Vec::new() };
    if table != main {
        return Vec::new();
    }
    let route = |(attributes, index): (&[RouteAttribute], Option<u32>)| {
        let out = attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let dev = index.or(out).map(&name).filter(|_| kind == "unicast");
        Route { to, kind, via: attributes.iter().find_map(gateway), dev, src }
    };
    hops.into_iter().map(route).collect()
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) | RouteAttribute::Via(RouteVia::Inet(address)) => {
            Some((*address).into())
        }
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) | RouteAttribute::Via(RouteVia::Inet6(address)) => {
            Some((*address).into())
        }
        _ => None,
    }
}

/// A neighbour; none where nobody is asked for it, as for multicast: ip-neighbour(8) leaves these out, too.
fn neighbour(message: &NeighbourMessage, name: impl Fn(u32) -> String) -> Option<Neighbour> {
    let state = match message.header.state {
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
    let (mut address, mut hardware) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some(IpAddr::from(*found)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => address = Some(IpAddr::from(*found)),
            NeighbourAttribute::LinkLayerAddress(bytes) => hardware = mac(bytes),
            _ => {}
        }
    }
    Some(Neighbour { address: address?, mac: hardware, dev: name(message.header.ifindex), state })
}
