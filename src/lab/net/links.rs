//! What a standing network asks of rtnetlink besides what every lab does: links with a hardware address that is chosen
//! beforehand, what is there, and its removal.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use futures_util::stream::TryStreamExt;
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{AddressMessageBuilder, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use serde::{Deserialize, Serialize};

use crate::lab::link::plain;
use crate::lab::{Links, Netns};
use crate::model::IfName;

/// The number by which a route says that we made it. Those that other programs use are in iproute2's rt_protos.
const OUR_ROUTES: u8 = 112;

/// A hardware address that was chosen at random: locally administered, of one host (IEEE 802, clause 8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mac([u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Mac {
    /// Makes one of random bytes.
    pub fn new(mut bytes: [u8; 6]) -> Self {
        let [first, ..] = &mut bytes;
        *first = *first & 0xfc | 0x02;
        Self(bytes)
    }
}

/// A link that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub index: u32,
    pub up: bool,
    /// The bridge that it is a port of.
    pub controller: Option<u32>,
    mac: Vec<u8>,
}

impl Found {
    fn new(message: &LinkMessage) -> Self {
        let mut found = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            controller: None,
            mac: Vec::new(),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Controller(index) => found.controller = Some(*index),
                LinkAttribute::Address(mac) => found.mac.clone_from(mac),
                _ => {}
            }
        }
        found
    }

    /// Whether it is the one that was made with this address.
    pub fn has(&self, mac: &Mac) -> bool {
        self.mac == mac.0
    }
}

impl Links {
    pub(super) fn wait<T>(&self, answer: impl Future<Output = Result<T, rtnetlink::Error>>) -> io::Result<T> {
        self.runtime.block_on(answer).map_err(plain)
    }

    /// The link of a name; none where there is none.
    pub(super) fn find(&self, name: &IfName) -> io::Result<Option<Found>> {
        let links = self.handle.link().get().match_name(name.to_string()).execute();
        match self.wait(links.try_collect::<Vec<_>>()) {
            Ok(links) => Ok(links.first().map(Found::new)),
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a bridge, which stays down. Its hardware address is set, so it does not take that of a port.
    pub(super) fn add_bridge(&self, name: &IfName, mac: &Mac) -> io::Result<()> {
        let message = LinkBridge::new(name.as_str()).address(mac.0.into()).build();
        self.wait(self.handle.link().add(message).execute())
    }

    /// Makes a pair of links, which stay down: one here, its peer in another namespace, each under its own name from its
    /// first moment on.
    pub(super) fn add_veth(&self, here: (&IfName, &Mac), there: (&IfName, &Mac), site: &Netns) -> io::Result<()> {
        let peer = LinkUnspec::new_with_name(there.0.as_str()).address(there.1.0.into());
        let peer = peer.setns_by_fd(site.as_fd().as_raw_fd()).build();
        let pair = LinkVeth::new(here.0.as_str(), there.0.as_str()).address(here.1.0.into());
        let pair = pair.set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
        self.wait(self.handle.link().add(pair).execute())
    }

    /// Removes a link; a pair with its other end.
    pub(super) fn remove(&self, index: u32) -> io::Result<()> {
        self.wait(self.handle.link().del(index).execute())
    }

    /// Makes a link a port of a bridge; of none where that is 0.
    pub(super) fn control(&self, port: u32, bridge: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(port).controller(bridge).build();
        self.wait(self.handle.link().set(message).execute())
    }

    /// Brings a link up.
    pub(super) fn bring_up(&self, index: u32) -> io::Result<()> {
        self.wait(self.handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute())
    }

    /// The addresses of a link.
    pub(super) fn addresses(&self, index: u32) -> io::Result<Vec<IpNetwork>> {
        let all = self.handle.address().get().set_link_index_filter(index).execute();
        Ok(self.wait(all.try_collect::<Vec<_>>())?.iter().filter_map(address).collect())
    }

    /// Gives a link an address.
    pub(super) fn add_address(&self, index: u32, address: IpNetwork) -> io::Result<()> {
        self.wait(self.handle.address().add(index, address.ip(), address.prefix()).execute())
    }

    /// Takes an address from a link.
    pub(super) fn remove_address(&self, index: u32, address: IpNetwork) -> io::Result<()> {
        let message = match address {
            IpNetwork::V4(v4) => {
                AddressMessageBuilder::<std::net::Ipv4Addr>::new().index(index).address(v4.ip(), v4.prefix()).build()
            }
            IpNetwork::V6(v6) => {
                AddressMessageBuilder::<std::net::Ipv6Addr>::new().index(index).address(v6.ip(), v6.prefix()).build()
            }
        };
        self.wait(self.handle.address().del(message).execute())
    }

    /// Whether one of our routes is there.
    pub(super) fn has_route(&self, to: IpNetwork, via: IpAddr, dev: Option<u32>) -> io::Result<bool> {
        let mut question = RouteMessage::default();
        question.header.address_family = match to {
            IpNetwork::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
            IpNetwork::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
        };
        let routes = self.wait(self.handle.route().get(question).execute().try_collect::<Vec<_>>())?;
        Ok(routes.iter().any(|route| is_route(route, to, via, dev)))
    }

    /// Makes a route. One that is there already, whoever made it, is an error.
    pub(super) fn add_route(&self, to: IpNetwork, via: IpAddr, dev: Option<u32>) -> io::Result<()> {
        let message = route(to, via, dev)?;
        self.wait(self.handle.route().add(message).execute())
    }

    /// Removes one of our routes.
    pub(super) fn remove_route(&self, to: IpNetwork, via: IpAddr, dev: Option<u32>) -> io::Result<()> {
        let message = route(to, via, dev)?;
        self.wait(self.handle.route().del(message).execute())
    }
}

fn route(to: IpNetwork, via: IpAddr, dev: Option<u32>) -> io::Result<RouteMessage> {
    let message = RouteMessageBuilder::<IpAddr>::new().protocol(RouteProtocol::Other(OUR_ROUTES));
    let message = message.destination_prefix(to.ip(), to.prefix()).map_err(io::Error::other)?;
    let message = message.gateway(via).map_err(io::Error::other)?;
    Ok(match dev {
        Some(index) => message.output_interface(index).build(),
        None => message.build(),
    })
}

fn is_route(route: &RouteMessage, to: IpNetwork, via: IpAddr, dev: Option<u32>) -> bool {
    let (mut destination, mut gateway, mut out) = (None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = plain_address(address),
            RouteAttribute::Gateway(address) => gateway = plain_address(address),
            RouteAttribute::Oif(index) => out = Some(*index),
            _ => {}
        }
    }
    route.header.protocol == RouteProtocol::Other(OUR_ROUTES)
        && route.header.destination_prefix_length == to.prefix()
        // The kernel leaves it out where it is all of a family.
        && (to.prefix() == 0 || destination == Some(to.ip()))
        && gateway == Some(via)
        && (dev.is_none() || out == dev)
}

pub(super) fn plain_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// The address of a link that a message tells of.
pub(super) fn address(message: &AddressMessage) -> Option<IpNetwork> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    // One of IPv6 has no other end, and is told only as what is reached by it.
    let address = address.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    });
    IpNetwork::new(address?, message.header.prefix_len).ok()
}
