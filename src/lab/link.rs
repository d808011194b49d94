//! Links, addresses and routes of a throw-away network.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnetwork::IpNetwork;

use super::LabError;
use crate::model::Family;
use crate::sys::rtnetlink::{IfPresent, NewLink, NewRoute, Rtnetlink};

/// The protocol number of routes from an administrator: `RTPROT_STATIC` in include/uapi/linux/rtnetlink.h.
const STATIC: u8 = 4;

/// The links of one network namespace: the namespace of the thread that called [`Links::open`].
pub struct Links(Rtnetlink);

fn failed(what: String) -> impl FnOnce(io::Error) -> LabError {
    move |error| LabError::Link(what, error)
}

impl Links {
    /// Opens a netlink socket.
    ///
    /// # Errors
    /// If the process may not open netlink sockets.
    pub fn open() -> Result<Self, LabError> {
        Rtnetlink::open().map(Self).map_err(|error| LabError::Io("opening rtnetlink", error))
    }

    /// Creates a bridge and brings it up.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub fn bridge(&self, name: &str) -> Result<(), LabError> {
        self.0.add_bridge(NewLink { name, mac: None }).map_err(failed(format!("the bridge `{name}`")))?;
        self.up(name)
    }

    /// Creates a veth pair: `name` in this namespace, `peer` in another one. Both ends are down.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub fn veth(&self, name: &str, peer: &str, there: &impl AsFd) -> Result<(), LabError> {
        let end = |name| NewLink { name, mac: None };
        self.0.add_veth(end(name), end(peer), there).map_err(failed(format!("the link `{name}`")))
    }

    /// Makes a link a port of a bridge and brings it up.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub fn join(&self, name: &str, bridge: &str) -> Result<(), LabError> {
        let (port, bridge) = (self.index(name)?, self.index(bridge)?);
        let joined = self.0.set_master(port, bridge).and_then(|()| self.0.set_up(port));
        joined.map_err(failed(format!("the bridge port `{name}`")))
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub fn up(&self, name: &str) -> Result<(), LabError> {
        self.0.set_up(self.index(name)?).map_err(failed(format!("the link `{name}`")))
    }

    /// Adds an address to a link. An address that the link already has is no error.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub fn address(&self, name: &str, address: IpAddr, prefix: u8) -> Result<(), LabError> {
        let index = self.index(name)?;
        let added = network(address, prefix).and_then(|own| self.0.add_address(index, own, IfPresent::Replace));
        added.map_err(failed(format!("the address {address}/{prefix} of `{name}`")))
    }

    /// Adds a route for a prefix through a gateway. A prefix of length 0 is the default route.
    ///
    /// # Errors
    /// If the kernel refuses the request.
    pub fn route(&self, to: IpAddr, prefix: u8, gateway: IpAddr) -> Result<(), LabError> {
        if Family::of_address(to) != Family::of_address(gateway) {
            return Err(LabError::Topology(format!("{to} cannot be reached through {gateway}")));
        }
        let route = |to| NewRoute { to, via: gateway, output: None, protocol: STATIC };
        let added = network(to, prefix).and_then(|to| self.0.add_route(route(to), IfPresent::Replace));
        added.map_err(failed(format!("the route to {to}/{prefix}")))
    }

    fn index(&self, name: &str) -> Result<u32, LabError> {
        let found = self.0.link(name).and_then(|link| link.ok_or_else(|| io::ErrorKind::NotFound.into()));
        found.map(|link| link.index).map_err(failed(format!("the link `{name}`")))
    }
}

fn network(address: IpAddr, prefix: u8) -> io::Result<IpNetwork> {
    IpNetwork::new(address, prefix).map_err(io::Error::other)
}
