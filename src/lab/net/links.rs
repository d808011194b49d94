//! Identities of a lab's links and routes. They tell the links and routes of labs from those of other programs.

use std::fmt;
use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::model::Family;
use crate::sys::rtnetlink::{Hop, Link, NewLink, NewRoute, Route, Rtnetlink};

/// The protocol number of a lab's routes. iproute2's rt_protos lists the numbers of other programs.
const ROUTE_PROTOCOL: u8 = 112;

/// A random hardware address: locally administered, unicast (IEEE 802, clause 8.2).
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
    /// Creates a hardware address from random bytes.
    pub fn new(mut bytes: [u8; 6]) -> Self {
        let [first, ..] = &mut bytes;
        *first = *first & 0xfc | 0x02;
        Self(bytes)
    }

    /// Returns a request for a link with this address.
    pub(super) fn link(self, name: &str) -> NewLink<'_> {
        NewLink { name, mac: Some(self.0) }
    }

    /// Returns true if a link has this address.
    pub(super) fn matches(&self, link: &Link) -> bool {
        link.mac == self.0
    }
}

/// Returns a route with the protocol number of labs.
pub(super) fn lab_route(to: IpNetwork, via: IpAddr, output: Option<u32>) -> NewRoute {
    NewRoute { to, via, output, protocol: ROUTE_PROTOCOL }
}

/// Returns true if the namespace has this route of a lab. If `output` is `None`, any egress link matches.
pub(super) fn has_route(links: &Rtnetlink, to: IpNetwork, via: IpAddr, output: Option<u32>) -> io::Result<bool> {
    let by = |hop: &Hop| hop.gateway == Some(via) && (output.is_none() || hop.output == output);
    let is = |route: &Route| route.protocol == ROUTE_PROTOCOL && route.to == to && route.hops.first().is_some_and(by);
    Ok(links.routes(Family::of_network(to))?.complete()?.iter().any(is))
}

/// Returns true if a link has an address.
pub(super) fn has_address(links: &Rtnetlink, index: u32, own: IpNetwork) -> io::Result<bool> {
    let addresses = links.addresses(Family::of_network(own))?.complete()?;
    Ok(addresses.iter().any(|address| address.index == index && address.own == own))
}
