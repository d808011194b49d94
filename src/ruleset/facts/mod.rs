//! What is so on a host besides its rules: interfaces, addresses, routes, settings, sockets, connections.
//!
//! A dump tells nothing of it, and then what depends on it is unknown and never fine.

mod boot;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use boot::{Boot, Flush, OwnState, Unit};
use ipnetwork::IpNetwork;

use self::routes::RouteIndex;
use crate::model::{Family, Protocol};
use crate::ruleset::set::{Set, number_of};
use crate::ruleset::table::Gap;
use crate::sys::rtnetlink::Rule;

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
    /// The number of the interface that they leave by. A route of several ways is several routes here.
    pub output: Option<u32>,
    /// The next host on the way; none where it is on the link.
    pub gateway: Option<IpAddr>,
    /// `RTN_…` in include/uapi/linux/rtnetlink.h: 1 is an ordinary one, 2 of this host, 6 to 8 drop, 9 asks the next table.
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

impl Listener {
    /// Whether it serves clients at an address. One at all addresses of IPv6 serves IPv4 as well, unless it does not want to.
    pub fn serves(&self, address: IpAddr) -> bool {
        let all = self.address.is_unspecified();
        let same = Family::of_address(self.address) == Family::of_address(address);
        self.address == address || all && (same || address.is_ipv4() && !self.only_ipv6)
    }
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
    /// The routing rules of IPv4 and IPv6, in order. Empty means the usual rules.
    pub rules: [Vec<Rule>; 2],
    /// True if there are routes for some sources or types of service only. [`Facts::lookup`] does not model them.
    pub special_routes: bool,
    /// True if more than the destination and the three usual rules decides about routes: other rules, or special routes. Then
    /// [`Facts::next_hop`] can be wrong.
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
    /// Where the ssh connection that the user is on was made to: an address of this host, and the port.
    pub ssh: Option<(IpAddr, u16)>,
    /// Where the user is at the other end of it.
    pub ssh_client: Option<IpAddr>,
    /// Tables of x_tables (legacy) that exist, by family.
    pub legacy: BTreeSet<(Family, String)>,
    /// Devices with an XDP program, which sees packets before any rule.
    pub programs: Vec<String>,
    /// Devices with a queueing discipline that can hold filters (tc).
    pub queues: Vec<String>,
    /// True if the host has IPsec policies (xfrm).
    pub ipsec: bool,
    /// True if the host has virtual services (IPVS).
    pub ipvs: bool,
    /// Differences between what our state asks for and what is, in words.
    pub drift: Vec<String>,
    /// What our own state says, where it was asked.
    pub ours: OwnState,
    /// What services do at boot; `None` where systemd is not what starts them, or in another network namespace than theirs.
    pub boot: Option<Boot>,
    /// What could not be read.
    pub gaps: Vec<Gap>,
    /// Finds routes and interfaces by their number; made when first asked. Who changes those in place behind that, so that
    /// they stay as many, sets this to its default.
    pub index: RouteIndex,
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop<'a> {
    /// To this host.
    Local,
    /// Out by a link, and to the next host on the way unless it is on the link.
    Via(&'a Link, Option<IpAddr>),
    /// Nowhere.
    Unreachable,
}

/// The properties of a packet that decide about its route. `None` means unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The destination.
    pub destination: IpAddr,
    /// The source.
    pub source: Option<IpAddr>,
    /// The packet mark.
    pub mark: Option<u32>,
    /// The index of the ingress interface. Packets of this host arrive by the loopback interface.
    pub input: Option<u32>,
    /// The transport protocol.
    pub protocol: Option<u8>,
    /// The source port.
    pub source_port: Option<u16>,
    /// The destination port.
    pub port: Option<u16>,
}

/// The result of a route lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup<'a> {
    /// The routes that the kernel can choose: more than one for a route with several next hops, none if no route matches.
    pub routes: &'a [Route],
    /// True if the lookup reached a rule that refuses the packet.
    pub refused: bool,
    /// True if all rules and routes are modelled.
    pub sure: bool,
}

impl Facts {
    /// Returns the routing rules of a family.
    pub fn rules(&self, family: Family) -> &[Rule] {
        let [four, six] = &self.rules;
        if family == Family::Ipv4 { four } else { six }
    }

    /// Returns the routing rules of a family for a change.
    pub fn rules_mut(&mut self, family: Family) -> &mut Vec<Rule> {
        let [four, six] = &mut self.rules;
        if family == Family::Ipv4 { four } else { six }
    }

    /// Returns the routes of a packet as the kernel finds them, with the routing rules.
    pub fn lookup(&self, flow: &Flow) -> Lookup<'_> {
        self.index.lookup(self, flow)
    }

    /// A setting.
    pub fn setting(&self, path: &str) -> Option<&str> {
        self.settings.get(path).map(|value| value.trim())
    }

    /// A link by its number.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.index.link(self, index)
    }

    /// A link by its name.
    pub fn named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The ports of a bridge, or of another interface that has some, by its number.
    pub fn ports(&self, master: u32) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(move |link| link.master == Some(master))
    }

    /// The link that an address is on: the network of one of its addresses holds it, or a route leads there without another
    /// host on the way. An address of this host is on the link that has it.
    pub fn link_of(&self, address: IpAddr) -> Option<&Link> {
        // Not the first of equal networks but the one that the address itself is given to.
        let own = self.addresses.iter().find(|(_, network)| network.ip() == address);
        let on_link = || match self.next_hop(address) {
            NextHop::Via(link, None) => Some(link),
            _ => None,
        };
        let within = || {
            let networks = self.addresses.iter().filter(|(_, network)| network.contains(address));
            let (link, _) = networks.max_by_key(|(_, network)| network.prefix())?;
            self.link(*link)
        };
        own.and_then(|(link, _)| self.link(*link)).or_else(on_link).or_else(within)
    }

    /// The addresses of a family that others can send to: not those of loopback, and not link-local ones.
    pub fn global_addresses(&self, family: Family) -> Vec<IpAddr> {
        let addresses = self.addresses.iter().map(|(_, network)| network.ip());
        let global = |address: &IpAddr| {
            let link_local = match address {
                IpAddr::V4(address) => address.is_link_local(),
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            Family::of_address(*address) == family && !address.is_loopback() && !link_local
        };
        let mut global: Vec<IpAddr> = addresses.filter(global).collect();
        // One may be given to several links.
        let mut seen = BTreeSet::new();
        global.retain(|address| seen.insert(*address));
        global
    }

    /// The links that a default route of a family leaves by, of whatever table; of several, in the order of the routes.
    ///
    /// What VPNs write so that it wins over the default route without replacing it counts, too: both halves of IPv4, and
    /// `2000::/3`, all addresses of IPv6 that are given out.
    pub fn uplinks(&self, family: Family) -> Vec<&Link> {
        let wide = match family {
            Family::Ipv4 => 1,
            Family::Ipv6 => 3,
        };
        let default =
            |route: &&Route| route.kind == 1 && route.to.prefix() <= wide && Family::of_network(route.to) == family;
        let mut links: Vec<&Link> = Vec::new();
        for link in self.routes.iter().filter(default).filter_map(|route| self.link(route.output?)) {
            if !links.iter().any(|known| known.index == link.index) {
                links.push(link);
            }
        }
        links
    }

    /// Whether a host on a link of ours is known not to answer.
    pub fn is_silent(&self, address: IpAddr) -> bool {
        let mut known = self.neighbours.iter().filter(|neighbour| neighbour.address == address).peekable();
        known.peek().is_some() && known.all(|neighbour| neighbour.failed)
    }

    /// The sockets that serve clients at an address and port.
    pub fn listeners_at(&self, protocol: Protocol, address: IpAddr, port: u16) -> impl Iterator<Item = &Listener> {
        let same = move |one: &&Listener| one.protocol == protocol && one.port == port && one.serves(address);
        self.listeners.iter().filter(same)
    }

    /// The addresses of a family that are this host's.
    pub fn local(&self, family: Family) -> Set {
        // Routes of kind local in other tables serve only the packets of a routing rule.
        let routes = self.routes.iter().filter(|route| {
            route.kind == 2 && [254, 255].contains(&route.table) && Family::of_network(route.to) == family
        });
        Set::from_ranges(routes.map(|route| (number_of(route.to.network()), number_of(route.to.broadcast()))))
    }

    /// Whether an address is this host's.
    pub fn is_local(&self, address: IpAddr) -> bool {
        matches!(self.next_hop(address), NextHop::Local)
    }

    /// Where packets for an address go by this host's routes, as far as only their destination decides; nowhere those for
    /// many hosts (broadcast, multicast), and those whose route is a nexthop object that the kernel does not tell. Of a route
    /// of several ways it is the first.
    pub fn next_hop(&self, address: IpAddr) -> NextHop<'_> {
        match self.index.route(self, address) {
            Some(Route { kind: 2, .. }) => NextHop::Local,
            Some(Route { kind: 1, output: Some(output), gateway, .. }) => {
                self.link(*output).map_or(NextHop::Unreachable, |link| NextHop::Via(link, *gateway))
            }
            _ => NextHop::Unreachable,
        }
    }
}

#[cfg(test)]
mod tests;
