//! Network interfaces, and the numbers that namespaces have for each other.
//!
//! Source: `IFLA_…` in include/uapi/linux/if_link.h, `NETNSA_…` in net_namespace.h.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;

use super::socket::{Dump, IfPresent, Rtnetlink, error_number, explained};
use crate::model::IfName;
use crate::sys::netlink::Attributes;

/// The bytes of `struct ifinfomsg`.
const HEADER: usize = 16;

/// `IFLA_BRPORT_MODE` in include/uapi/linux/if_link.h.
const HAIRPIN: u16 = 4;
/// `IFLA_BR_NF_CALL_IPTABLES` and `IFLA_BR_NF_CALL_IP6TABLES` in include/uapi/linux/if_link.h.
const CALLS_NETFILTER: [u16; 2] = [36, 37];
/// `IFLA_XDP_ATTACHED` in include/uapi/linux/if_link.h.
const XDP_ATTACHED: u16 = 2;

/// A network interface, from `RTM_GETLINK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The index of the interface in its namespace.
    pub index: u32,
    /// The name. Bytes that are not UTF-8 are replaced.
    pub name: String,
    /// The kind as in ip-link(8), `veth` or `bridge`; `None` for `lo` and most hardware.
    pub kind: Option<String>,
    /// The hardware address, of any length.
    pub mac: Vec<u8>,
    /// The largest packet, in bytes.
    pub mtu: Option<u32>,
    /// True if the link is administratively up.
    pub up: bool,
    /// True if the link has a carrier.
    pub carrier: bool,
    /// True if the link is a loopback interface.
    pub loopback: bool,
    /// The index of the bridge, or other device, that the link is a port of.
    pub master: Option<u32>,
    /// True if the link is a port of a Linux bridge.
    pub is_bridge_port: bool,
    /// The hairpin mode of a bridge port.
    pub hairpin: Option<bool>,
    /// The index of the other end of a pair.
    pub peer: Option<u32>,
    /// The namespace of the other end of a pair, by its number here. `None` means this namespace.
    pub peer_namespace: Option<i32>,
    /// True if a bridge passes its IPv4 and IPv6 packets to netfilter (`nf_call_iptables`, `nf_call_ip6tables`).
    pub calls_netfilter: [bool; 2],
    /// True if an XDP program is attached.
    pub has_xdp: bool,
}

impl Link {
    /// Reads `struct ifinfomsg` and its attributes.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let header = LinkHeader::parse(body).ok()?;
        let attributes = Attributes::behind(body, HEADER);
        let info = attributes.nested(libc::IFLA_LINKINFO).unwrap_or_default();
        let is_bridge_port = info.text(libc::IFLA_INFO_SLAVE_KIND).as_deref() == Some("bridge");
        let port = info.nested(libc::IFLA_INFO_SLAVE_DATA).filter(|_| is_bridge_port);
        let is_bridge = info.text(libc::IFLA_INFO_KIND).as_deref() == Some("bridge");
        let bridge = info.nested(libc::IFLA_INFO_DATA).filter(|_| is_bridge);
        let xdp = attributes.nested(libc::IFLA_XDP).and_then(|xdp| xdp.u8(XDP_ATTACHED));
        Some(Self {
            index: header.index,
            name: attributes.text(libc::IFLA_IFNAME).filter(|name| !name.is_empty())?,
            kind: info.text(libc::IFLA_INFO_KIND),
            mac: attributes.get(libc::IFLA_ADDRESS).unwrap_or_default().to_vec(),
            mtu: attributes.u32(libc::IFLA_MTU),
            up: header.flags.contains(LinkFlags::Up),
            carrier: header.flags.contains(LinkFlags::LowerUp),
            loopback: header.flags.contains(LinkFlags::Loopback),
            master: attributes.u32(libc::IFLA_MASTER),
            is_bridge_port,
            hairpin: port.and_then(|port| port.u8(HAIRPIN)).map(|mode| mode > 0),
            peer: attributes.u32(libc::IFLA_LINK),
            peer_namespace: attributes.u32(libc::IFLA_LINK_NETNSID).map(u32::cast_signed),
            calls_netfilter: CALLS_NETFILTER
                .map(|kind| bridge.and_then(|bridge| bridge.u8(kind)).is_some_and(|on| on > 0)),
            // The value 0 is `XDP_ATTACHED_NONE`.
            has_xdp: xdp.is_some_and(|mode| mode > 0),
        })
    }
}

/// A link to create.
#[derive(Debug, Clone, Copy)]
pub struct NewLink<'a> {
    /// The name, at most 15 bytes.
    pub name: &'a str,
    /// The hardware address. `None` means that the kernel chooses a random one.
    pub mac: Option<[u8; 6]>,
}

impl NewLink<'_> {
    fn message(self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(self.name.to_owned()));
        message.attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        message
    }
}

impl Rtnetlink {
    /// Returns all links of the namespace.
    ///
    /// # Errors
    /// Fails if the kernel does not answer to the end.
    pub fn links(&self) -> io::Result<Dump<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        self.dump(&RouteNetlinkMessage::GetLink(message), AddressFamily::Unspec, Link::read)
    }

    /// Returns the link with a name, or `None` if there is none.
    ///
    /// # Errors
    /// Fails if the kernel refuses the request.
    pub fn link(&self, name: &str) -> io::Result<Option<Link>> {
        self.get_link(NewLink { name, mac: None }.message())
    }

    /// Returns the link with an index, or `None` if there is none.
    pub(super) fn link_of_index(&self, index: u32) -> io::Result<Option<Link>> {
        self.get_link(of_index(index))
    }

    fn get_link(&self, message: LinkMessage) -> io::Result<Option<Link>> {
        match self.get(&RouteNetlinkMessage::GetLink(message), Link::read) {
            Err(error) if error_number(&error) == Some(libc::ENODEV) => Ok(None),
            found => found.map_err(explained),
        }
    }

    /// Creates a bridge, which stays down. A bridge without a given hardware address takes the address of a port.
    ///
    /// # Errors
    /// Fails if the kernel refuses the request.
    pub fn add_bridge(&self, bridge: NewLink<'_>) -> io::Result<()> {
        let mut message = bridge.message();
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        self.request(&RouteNetlinkMessage::NewLink(message), IfPresent::Fail.flags())
    }

    /// Creates a pair of links, which stay down: one here, and its peer in another namespace.
    ///
    /// # Errors
    /// Fails if the kernel refuses the request.
    pub fn add_veth(&self, here: NewLink<'_>, peer: NewLink<'_>, namespace: &impl AsFd) -> io::Result<()> {
        let mut there = peer.message();
        there.attributes.push(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
        let pair = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(there)))];
        let mut message = here.message();
        message.attributes.push(LinkAttribute::LinkInfo(pair));
        self.request(&RouteNetlinkMessage::NewLink(message), IfPresent::Fail.flags())
    }

    /// Deletes a link, and the other end of a pair.
    ///
    /// # Errors
    /// Fails if the kernel refuses the request.
    pub fn delete_link(&self, index: u32) -> io::Result<()> {
        self.request(&RouteNetlinkMessage::DelLink(of_index(index)), 0)
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// Fails if the kernel refuses the request.
    pub fn set_up(&self, index: u32) -> io::Result<()> {
        let mut message = of_index(index);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(&RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Makes a link a port of a bridge, or of none if the index of the bridge is 0.
    ///
    /// # Errors
    /// Fails if the kernel refuses the request.
    pub fn set_master(&self, index: u32, bridge: u32) -> io::Result<()> {
        let mut message = of_index(index);
        message.attributes.push(LinkAttribute::Controller(bridge));
        self.request(&RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Returns the number (nsid) that this namespace has for another namespace. Returns `None` if there is no number, and so
    /// no veth pair between the two.
    ///
    /// Source: ip-netns(8), `list-id`; `rtnl_net_getid` in net/core/net_namespace.c.
    ///
    /// # Errors
    /// Fails if the kernel refuses the request.
    pub fn namespace_number(&self, other: &impl AsFd) -> io::Result<Option<i32>> {
        const HEADER: usize = 4;
        const NUMBER: u16 = 1;
        let fd = u32::try_from(other.as_fd().as_raw_fd()).map_err(io::Error::other)?;
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(fd));
        let read = |body: &[u8]| Attributes::behind(body, HEADER).u32(NUMBER).map(u32::cast_signed);
        let number = self.get(&RouteNetlinkMessage::GetNsId(message), read).map_err(explained)?;
        Ok(number.filter(|number| *number >= 0))
    }
}

fn of_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Returns the interfaces that the kernel routes packets by: all except the loopback interface and bridge ports. The packets
/// of bridge ports arrive at the bridge.
///
/// # Errors
/// Fails if the kernel does not answer to the end.
pub fn interfaces() -> io::Result<BTreeSet<IfName>> {
    let links = Rtnetlink::open()?.links()?.complete()?;
    let routed = links.into_iter().filter(|link| !link.is_bridge_port && link.name != "lo");
    Ok(routed.filter_map(|link| link.name.parse().ok()).collect())
}
