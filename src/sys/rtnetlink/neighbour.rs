//! Neighbours: hardware addresses of IP addresses, from ARP and neighbour discovery.
//!
//! Source: `NDA_…` in include/uapi/linux/neighbour.h.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourHeader, NeighbourMessage};
use nix::libc;

pub use netlink_packet_route::neighbour::NeighbourState;

use super::socket::{Dump, Rtnetlink, ip, number_of};
use crate::model::Family;
use crate::sys::netlink::Attributes;

/// The bytes of `struct ndmsg`.
const HEADER: usize = 12;

/// A neighbour on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The index of the link.
    pub index: u32,
    /// The IP address of the neighbour.
    pub address: IpAddr,
    /// The hardware address, of any length; empty if it is not known.
    pub mac: Vec<u8>,
    /// The state of the hardware address, `NUD_…`.
    pub state: NeighbourState,
}

impl Neighbour {
    /// Reads `struct ndmsg` and its attributes.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let header = NeighbourHeader::parse(body).ok()?;
        let attributes = Attributes::behind(body, HEADER);
        Some(Self {
            index: header.ifindex,
            address: attributes.get(libc::NDA_DST).and_then(ip)?,
            mac: attributes.get(libc::NDA_LLADDR).unwrap_or_default().to_vec(),
            state: header.state,
        })
    }
}

impl Rtnetlink {
    /// Returns the neighbours on all links.
    ///
    /// # Errors
    /// Fails if the kernel does not answer to the end.
    pub fn neighbours(&self, family: Family) -> io::Result<Dump<Neighbour>> {
        let mut message = NeighbourMessage::default();
        message.header.family = number_of(family);
        self.dump(&RouteNetlinkMessage::GetNeighbour(message), number_of(family), Neighbour::read)
    }
}
