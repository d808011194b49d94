//! Routes of all tables, and the route that a packet takes.
//!
//! Source: `RTA_…`, `struct rtmsg` and `struct rtnexthop` in include/uapi/linux/rtnetlink.h.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;

use super::socket::{Dump, IfPresent, Rtnetlink, explained, ip, number_of};
use crate::model::{Family, IfName};
use crate::sys::netlink::Attributes;

/// The bytes of `struct rtmsg`.
const HEADER: usize = 12;
/// The bytes of `struct rtnexthop`.
const HOP_HEADER: usize = 8;

/// `RTA_NH_ID` in include/uapi/linux/rtnetlink.h.
const NEXTHOP_OBJECT: u16 = 30;

/// A route, from `RTM_GETROUTE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destinations of the route.
    pub to: IpNetwork,
    /// The prefix length of the source network. A length above 0 limits the route to some sources.
    pub source_length: u8,
    /// The type of service. 0 means any.
    pub service: u8,
    /// The number of the table.
    pub table: u32,
    /// The program that made the route, `RTPROT_…`.
    pub protocol: u8,
    /// The kind of the route.
    pub kind: RouteType,
    /// True if the route is a cached destination of the kernel and not a configured route (`RTM_F_CLONED`).
    pub cloned: bool,
    /// The priority among routes to the same network; the lowest wins.
    pub metric: u32,
    /// The source address that the kernel prefers for packets of this host.
    pub source: Option<IpAddr>,
    /// The number of the nexthop object (ip-nexthop(8)) that the route uses.
    pub object: Option<u32>,
    /// The next hops. A route that drops packets has one without an interface.
    pub hops: Vec<Hop>,
}

/// A next hop of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The index of the interface.
    pub output: Option<u32>,
    /// The router. `None` means that the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// True if the kernel does not use the hop, because the link is down (`RTNH_F_DEAD`).
    pub dead: bool,
}

impl Route {
    /// Reads `struct rtmsg` and its attributes.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let header = RouteHeader::parse(body).ok()?;
        let attributes = Attributes::behind(body, HEADER);
        let destination = match attributes.get(libc::RTA_DST) {
            Some(value) => ip(value)?,
            None if header.address_family == AddressFamily::Inet => [0; 4].into(),
            None => [0; 16].into(),
        };
        let hops = match attributes.get(libc::RTA_MULTIPATH) {
            Some(hops) => read_hops(hops)?,
            None => vec![Hop {
                output: attributes.u32(libc::RTA_OIF),
                gateway: gateway(attributes),
                dead: header.flags.contains(RouteFlags::Dead),
            }],
        };
        Some(Self {
            to: IpNetwork::new(destination, header.destination_prefix_length).ok()?,
            source_length: header.source_prefix_length,
            service: header.tos,
            // The header has only 8 bits for the table.
            table: attributes.u32(libc::RTA_TABLE).unwrap_or(header.table.into()),
            protocol: header.protocol.into(),
            kind: header.kind,
            cloned: header.flags.contains(RouteFlags::Cloned),
            metric: attributes.u32(libc::RTA_PRIORITY).unwrap_or(0),
            source: attributes.get(libc::RTA_PREFSRC).and_then(ip),
            object: attributes.u32(NEXTHOP_OBJECT),
            hops,
        })
    }
}

/// Reads a sequence of `struct rtnexthop`, each with its attributes.
fn read_hops(mut bytes: &[u8]) -> Option<Vec<Hop>> {
    let mut hops = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let hop = bytes.get(..length).filter(|hop| hop.len() >= HOP_HEADER)?;
        hops.push(Hop {
            output: Some(u32::from_ne_bytes(hop.get(4..HOP_HEADER)?.try_into().ok()?)),
            gateway: gateway(Attributes::behind(hop, HOP_HEADER)),
            dead: RouteNextHopFlags::from_bits_retain(*hop.get(2)?).contains(RouteNextHopFlags::Dead),
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(hops)
}

/// Returns the router. A router of another family than the route is in `RTA_VIA`, after two bytes for the family.
fn gateway(attributes: Attributes<'_>) -> Option<IpAddr> {
    let other_family = || attributes.get(libc::RTA_VIA)?.get(2..).and_then(ip);
    attributes.get(libc::RTA_GATEWAY).and_then(ip).or_else(other_family)
}

/// A route of the main table to create or delete.
#[derive(Debug, Clone, Copy)]
pub struct NewRoute {
    /// The destinations of the route.
    pub to: IpNetwork,
    /// The router, whose family is that of the destinations.
    pub via: IpAddr,
    /// The index of the interface. `None` means the interface of the network that the router is in.
    pub output: Option<u32>,
    /// The program that makes the route, `RTPROT_…`.
    pub protocol: u8,
}

impl NewRoute {
    fn message(self) -> RouteMessage {
        let mut message = destination(self.to);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::from(self.protocol);
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Gateway(self.via.into()));
        message.attributes.extend(self.output.map(RouteAttribute::Oif));
        message
    }
}

fn destination(to: IpNetwork) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = number_of(Family::of_address(to.ip()));
    message.header.destination_prefix_length = to.prefix();
    message.attributes.push(RouteAttribute::Destination(to.ip().into()));
    message
}

impl Rtnetlink {
    /// Returns the routes of all tables.
    ///
    /// # Errors
    /// Fails if the kernel does not answer to the end.
    pub fn routes(&self, family: Family) -> io::Result<Dump<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = number_of(family);
        self.dump(&RouteNetlinkMessage::GetRoute(message), number_of(family), Route::read)
    }

    /// Adds a route.
    ///
    /// # Errors
    /// Fails if the kernel refuses the request.
    pub fn add_route(&self, route: NewRoute, if_present: IfPresent) -> io::Result<()> {
        self.request(&RouteNetlinkMessage::NewRoute(route.message()), if_present.flags())
    }

    /// Deletes a route.
    ///
    /// # Errors
    /// Fails if the kernel refuses the request.
    pub fn delete_route(&self, route: NewRoute) -> io::Result<()> {
        self.request(&RouteNetlinkMessage::DelRoute(route.message()), 0)
    }

    /// Returns the egress interface of packets from this host to an address. `names` caches the names of interfaces.
    fn interface_to(&self, address: IpAddr, names: &mut HashMap<u32, Option<IfName>>) -> io::Result<Option<IfName>> {
        let Some(index) = self.output_to(address)? else { return Ok(None) };
        if let Some(name) = names.get(&index) {
            return Ok(name.clone());
        }
        let name = self.link_of_index(index)?.and_then(|link| link.name.parse().ok());
        names.insert(index, name.clone());
        Ok(name)
    }

    /// Returns the index of the egress interface of packets from this host to an address. Returns `None` if there is no
    /// route.
    fn output_to(&self, address: IpAddr) -> io::Result<Option<u32>> {
        let message = destination(address.into());
        match self.get(&RouteNetlinkMessage::GetRoute(message), Route::read).map_err(explained) {
            Ok(route) => Ok(route.and_then(|route| route.hops.first()?.output)),
            Err(error) if is_no_route(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Returns true for the errors of a destination without a route. A `blackhole` route gives EINVAL, a `prohibit` route
/// EACCES.
///
/// Source: `fib_props` in net/ipv4/fib_semantics.c.
fn is_no_route(error: &io::Error) -> bool {
    use io::ErrorKind;
    let kinds = [
        ErrorKind::NetworkUnreachable,
        ErrorKind::HostUnreachable,
        ErrorKind::NotFound,
        ErrorKind::InvalidInput,
        ErrorKind::PermissionDenied,
    ];
    kinds.contains(&error.kind())
}

/// Returns the egress interface of packets from this host to each address, or `None` if there is no route.
///
/// # Errors
/// Fails if a request fails. The error contains the address.
pub fn interfaces_to(
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Result<BTreeMap<IpAddr, Option<IfName>>, (IpAddr, io::Error)> {
    let mut addresses = addresses.into_iter().peekable();
    let Some(first) = addresses.peek().copied() else { return Ok(BTreeMap::new()) };
    let rtnetlink = Rtnetlink::open().map_err(|error| (first, error))?;
    let mut names = HashMap::new();
    addresses
        .map(|address| match rtnetlink.interface_to(address, &mut names) {
            Ok(name) => Ok((address, name)),
            Err(error) => Err((address, error)),
        })
        .collect()
}
