//! Addresses of links.
//!
//! Source: `IFA_…` in include/uapi/linux/if_addr.h.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeader, AddressHeaderFlags, AddressMessage};
use nix::libc;

use super::socket::{Dump, IfPresent, Rtnetlink, ip, number_of};
use crate::model::Family;
use crate::sys::netlink::Attributes;

/// The bytes of `struct ifaddrmsg`.
const HEADER: usize = 8;

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The index of the link.
    pub index: u32,
    /// The address of this host, with the prefix length.
    pub own: IpNetwork,
    /// The address of the other end of a point-to-point link. The prefix length of `own` belongs to this address.
    pub peer: Option<IpAddr>,
    /// True if another host has the same address, so the kernel does not use the address (`IFA_F_DADFAILED`).
    pub duplicate: bool,
}

impl Address {
    /// Reads `struct ifaddrmsg` and its attributes.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let header = AddressHeader::parse(body).ok()?;
        let attributes = Attributes::behind(body, HEADER);
        let address = attributes.get(libc::IFA_ADDRESS).and_then(ip);
        // An IPv6 address without another end has no IFA_LOCAL.
        let own = attributes.get(libc::IFA_LOCAL).and_then(ip).or(address)?;
        Some(Self {
            index: header.index,
            own: IpNetwork::new(own, header.prefix_len).ok()?,
            peer: address.filter(|address| *address != own),
            duplicate: header.flags.contains(AddressHeaderFlags::Dadfailed),
        })
    }
}

impl Rtnetlink {
    /// Returns the addresses of all links.
    ///
    /// # Errors
    /// Fails if the kernel does not answer to the end.
    pub fn addresses(&self, family: Family) -> io::Result<Dump<Address>> {
        let mut message = AddressMessage::default();
        message.header.family = number_of(family);
        self.dump(&RouteNetlinkMessage::GetAddress(message), number_of(family), Address::read)
    }

    /// Adds an address, with the length of its network, to a link.
    ///
    /// # Errors
    /// Fails if the kernel refuses the request.
    pub fn add_address(&self, index: u32, address: IpNetwork, if_present: IfPresent) -> io::Result<()> {
        self.request(&RouteNetlinkMessage::NewAddress(message(index, address)), if_present.flags())
    }

    /// Deletes an address from a link.
    ///
    /// # Errors
    /// Fails if the kernel refuses the request.
    pub fn delete_address(&self, index: u32, address: IpNetwork) -> io::Result<()> {
        self.request(&RouteNetlinkMessage::DelAddress(message(index, address)), 0)
    }
}

fn message(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.family = number_of(Family::of_address(address.ip()));
    message.header.prefix_len = address.prefix();
    message.attributes = vec![AddressAttribute::Address(address.ip()), AddressAttribute::Local(address.ip())];
    message.attributes.extend(broadcast(address).map(AddressAttribute::Broadcast));
    message
}

/// Returns the broadcast address of an IPv4 network. A network of one or two addresses has none (RFC 3021).
fn broadcast(address: IpNetwork) -> Option<Ipv4Addr> {
    match address {
        IpNetwork::V4(address) if address.prefix() < 31 => Some(address.broadcast()),
        _ => None,
    }
}
