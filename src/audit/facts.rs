//! What is so on a host besides its rules: interfaces, addresses, routes, settings, sockets, connections.
//!
//! A dump tells nothing of it, and then what depends on it is unknown and never fine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::ruleset::Gap;
use super::set::Set;
use crate::model::{Family, Protocol};

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What kind of interface it is, `bridge`, `veth`; none of hardware.
    pub kind: Option<String>,
    /// The number of the bridge, or other interface, that it is a port of.
    pub master: Option<u32>,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// The most bytes of one packet.
    pub mtu: Option<u32>,
    /// Whether a port of a bridge sends back what came by itself (`hairpin_mode`).
    pub hairpin: Option<bool>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The packets for which it is.
    pub to: IpNetwork,
    /// The number of the interface that they leave by.
    pub output: Option<u32>,
    /// The next host on the way; none where it is on the link.
    pub gateway: Option<IpAddr>,
    /// `RTN_…` in include/uapi/linux/rtnetlink.h: 1 is an ordinary one, 2 of this host, 6 to 8 drop.
    pub kind: u8,
    /// The number of its table: 254 is the main one, 255 that of this host's addresses.
    pub table: u32,
    /// Lower is better.
    pub metric: u32,
}

/// What is known of a neighbour on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// The number of the link.
    pub link: u32,
    /// Whether it does not answer.
    pub failed: bool,
}

/// A socket that waits for packets or connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// The protocol.
    pub protocol: Protocol,
    /// The address; unspecified for all.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Whether one of IPv6 at all addresses serves only IPv6.
    pub only_ipv6: bool,
    /// Whose it is: name and number of a process.
    pub owner: Option<(String, u32)>,
}

/// A connection that is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracked {
    /// The protocol's number.
    pub protocol: u8,
    /// Who began it.
    pub client: (IpAddr, u16),
    /// Where the client sends to.
    pub listen: (IpAddr, u16),
    /// Who answers.
    pub target: (IpAddr, u16),
    /// `IPS_…` in include/uapi/linux/netfilter/nf_conntrack_common.h.
    pub status: u32,
}

/// What is so on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The interfaces.
    pub links: Vec<Link>,
    /// The addresses with the lengths of their networks, and the numbers of their interfaces.
    pub addresses: Vec<(u32, IpNetwork)>,
    /// The routes of all tables.
    pub routes: Vec<Route>,
    /// Whether more than the three usual rules decide which table of routes is asked.
    pub policy_routing: bool,
    /// The neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Settings below /proc/sys by their path, `net/ipv4/ip_forward`.
    pub settings: BTreeMap<String, String>,
    /// Sockets that wait.
    pub listeners: Vec<Listener>,
    /// Connections that are followed.
    pub tracked: Vec<Tracked>,
    /// How many connections are followed, and how many may be.
    pub tracked_count: Option<(u64, u64)>,
    /// The ssh connection that the user is on: client, and where it is connected to.
    pub ssh: Option<(IpAddr, u16)>,
    /// Tables of x_tables (legacy) that exist, by family.
    pub legacy: BTreeSet<(Family, String)>,
    /// Devices that have programs (XDP) which see packets before any rule.
    pub programs: Vec<String>,
    /// Differences between what our state asks for and what is, in words.
    pub drift: Vec<String>,
    /// What could not be read.
    pub gaps: Vec<Gap>,
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way<'a> {
    /// To this host.
    Here,
    /// Out by a link, and to the next host on the way unless it is on the link.
    Out(&'a Link, Option<IpAddr>),
    /// Nowhere.
    Nowhere,
}

impl Facts {
    /// A setting.
    pub fn setting(&self, path: &str) -> Option<&str> {
        self.settings.get(path).map(|value| value.trim())
    }

    /// A link by its number.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// A link by its name.
    pub fn named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The addresses of a family that are this host's.
    pub fn local(&self, family: Family) -> Set {
        let of_routes = self.routes.iter().filter(|route| route.kind == 2 && Family::of_network(route.to) == family);
        of_routes.fold(Set::none(), |all, route| all.or(&Set::network(route.to)))
    }

    /// Whether an address is this host's.
    pub fn is_local(&self, address: IpAddr) -> bool {
        matches!(self.way_to(address), Way::Here)
    }

    /// Where packets for an address go by this host's routes, as far as only their destination decides.
    pub fn way_to(&self, address: IpAddr) -> Way<'_> {
        let serves = |route: &&Route| route.to.contains(address) && matches!(route.table, 253..=255);
        // That of this host's own addresses is asked first, then the main one, then the default one.
        let best =
            self.routes.iter().filter(serves).min_by_key(|route| {
                (std::cmp::Reverse(route.table), std::cmp::Reverse(route.to.prefix()), route.metric)
            });
        match best {
            Some(Route { kind: 2, .. }) => Way::Here,
            Some(Route { kind: 1, output: Some(output), gateway, .. }) => {
                self.link(*output).map_or(Way::Nowhere, |link| Way::Out(link, *gateway))
            }
            _ => Way::Nowhere,
        }
    }
}
