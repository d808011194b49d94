//! The marks of the links and routes of standing networks, which tell them from those of other programs.

use std::fmt;
use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::model::Family;
use crate::sys::rtnetlink::{Hop, Link, NewLink, NewRoute, Route, Rtnetlink};

/// The protocol number of the routes that a lab makes. iproute2's rt_protos lists those of other programs.
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

    /// Returns the link to create with this address.
    pub(super) fn link(self, name: &str) -> NewLink<'_> {
        NewLink { name, mac: Some(self.0) }
    }

    /// Returns true if a link has this address.
    pub(super) fn is_of(&self, link: &Link) -> bool {
        link.mac == self.0
    }
}

/// Returns the route that a lab makes.
pub(super) fn marked(to: IpNetwork, via: IpAddr, output: Option<u32>) -> NewRoute {
    NewRoute { to, via, output, protocol: OUR_ROUTES }
}

/// Returns true if a lab's route is there. Without `output` it may lead through any link.
pub(super) fn has_route(links: &Rtnetlink, to: IpNetwork, via: IpAddr, output: Option<u32>) -> io::Result<bool> {
    let by = |hop: &Hop| hop.gateway == Some(via) && (output.is_none() || hop.output == output);
    let is = |route: &Route| route.protocol == OUR_ROUTES && route.to == to && route.hops.first().is_some_and(by);
    Ok(links.routes(Family::of_network(to))?.complete()?.iter().any(is))
}

/// Returns true if a link has an address.
pub(super) fn has_address(links: &Rtnetlink, index: u32, own: IpNetwork) -> io::Result<bool> {
    let addresses = links.addresses(Family::of_network(own))?.complete()?;
    Ok(addresses.iter().any(|address| address.index == index && address.own == own))
}
