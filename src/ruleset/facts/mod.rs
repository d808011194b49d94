//! The facts of a host besides its rules: interfaces, addresses, routes, settings, sockets, connections.
//!
//! A dump contains no facts. A verdict that depends on them is then unknown.

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
    /// The index in the kernel.
    pub index: u32,
    /// The name, for example `eth0`.
    pub name: String,
    /// The kind as in ip-link(8), for example `bridge`. Hardware has none.
    pub kind: Option<String>,
    /// The index of the bridge or other interface that this is a port of.
    pub master: Option<u32>,
    /// True if the interface is up.
    pub up: bool,
    /// True for the loopback interface.
    pub loopback: bool,
    /// The maximum size of a packet in bytes.
    pub mtu: Option<u32>,
    /// True if a bridge port sends packets back by the port itself (`hairpin_mode`).
    pub hairpin: Option<bool>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destinations.
    pub to: IpNetwork,
    /// The index of the egress interface. A route with several next hops is several routes here.
    pub output: Option<u32>,
    /// The router. `None` means that the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// `RTN_…` in include/uapi/linux/rtnetlink.h: 1 unicast, 2 local, 6 to 8 refuse packets, 9 throw.
    pub kind: u8,
    /// The number of the table: 254 is main, 255 is local.
    pub table: u32,
    /// The priority among routes to the same network. The lowest wins.
    pub metric: u32,
}

/// A neighbour on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The IP address.
    pub address: IpAddr,
    /// The index of the link.
    pub link: u32,
    /// True if address resolution failed.
    pub failed: bool,
}

/// A socket that accepts packets or connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// The protocol.
    pub protocol: Protocol,
    /// The address. An unspecified address means all.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// True if an IPv6 socket at all addresses does not accept IPv4.
    pub only_ipv6: bool,
    /// The name and the number of the process.
    pub owner: Option<(String, u32)>,
}

impl Listener {
    /// Returns true if the socket accepts packets to an address. An IPv6 socket at all addresses also accepts IPv4, unless
    /// `only_ipv6` is set.
    pub fn serves(&self, address: IpAddr) -> bool {
        let all = self.address.is_unspecified();
        let same = Family::of_address(self.address) == Family::of_address(address);
        self.address == address || all && (same || address.is_ipv4() && !self.only_ipv6)
    }
}

/// An entry of connection tracking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracked {
    /// The number of the protocol.
    pub protocol: u8,
    /// The source of the first packet.
    pub client: (IpAddr, u16),
    /// The destination of the first packet.
    pub listen: (IpAddr, u16),
    /// The source of the answers, before NAT.
    pub target: (IpAddr, u16),
    /// `IPS_…` in include/uapi/linux/netfilter/nf_conntrack_common.h.
    pub status: u32,
}

/// The facts of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The interfaces.
    pub links: Vec<Link>,
    /// The index of an interface, and an address with the prefix length of its network.
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
    /// Sysctls by their path below /proc/sys, for example `net/ipv4/ip_forward`.
    pub settings: BTreeMap<String, String>,
    /// The listening sockets.
    pub listeners: Vec<Listener>,
    /// The entries of connection tracking.
    pub tracked: Vec<Tracked>,
    /// The number of entries of connection tracking, and the limit.
    pub tracked_count: Option<(u64, u64)>,
    /// The address and port of this host that the user's ssh connection uses.
    pub ssh: Option<(IpAddr, u16)>,
    /// The address of the ssh client.
    pub ssh_client: Option<IpAddr>,
    /// The tables of iptables-legacy that exist, by family.
    pub legacy: BTreeSet<(Family, String)>,
    /// Devices with an XDP program, which sees packets before any rule.
    pub programs: Vec<String>,
    /// Devices with a queueing discipline that can hold filters (tc).
    pub queues: Vec<String>,
    /// The bridges that pass packets of a family to netfilter by their own option, for example `nf_call_iptables`.
    pub netfilter_bridges: BTreeSet<(Family, String)>,
    /// True if the host has IPsec policies (xfrm).
    pub ipsec: bool,
    /// True if the host has virtual services (IPVS).
    pub ipvs: bool,
    /// The differences between portfwd's state and the live rules, as text.
    pub drift: Vec<String>,
    /// The content of portfwd's own state, if it was read.
    pub ours: OwnState,
    /// The services that systemd starts at boot. `None` without systemd, or in another network namespace than theirs.
    pub boot: Option<Boot>,
    /// The parts that could not be read.
    pub gaps: Vec<Gap>,
    /// An index of routes and interfaces, built at the first lookup. After a change of routes in place, reset the index to
    /// its default.
    pub index: RouteIndex,
}

/// The next hop of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop<'a> {
    /// The packet is for this host.
    Local,
    /// Out by a link, to a router or to a host on the link.
    Via(&'a Link, Option<IpAddr>),
    /// No route.
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

    /// Returns a sysctl.
    pub fn setting(&self, path: &str) -> Option<&str> {
        self.settings.get(path).map(|value| value.trim())
    }

    /// Returns the link with an index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.index.link(self, index)
    }

    /// Returns the link with a name.
    pub fn named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Returns the ports of a bridge or of another interface, by its index.
    pub fn ports(&self, master: u32) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(move |link| link.master == Some(master))
    }

    /// Returns the link of an address: the link that has the address, the link of a route without a router, or the link with
    /// a network that contains the address.
    pub fn link_of(&self, address: IpAddr) -> Option<&Link> {
        // Several links can have equal networks, so the link with the address itself comes first.
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

    /// Returns the addresses of a family that other hosts can use: no loopback and no link-local addresses.
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
        // Several links can have the same address.
        let mut seen = BTreeSet::new();
        global.retain(|address| seen.insert(*address));
        global
    }

    /// Returns the links of the default routes of all tables, in the order of the routes.
    ///
    /// The routes of VPNs that win over the default route count, too: both halves of IPv4, and `2000::/3`, all global
    /// addresses of IPv6.
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

    /// Returns true if address resolution failed for a neighbour.
    pub fn is_silent(&self, address: IpAddr) -> bool {
        let mut known = self.neighbours.iter().filter(|neighbour| neighbour.address == address).peekable();
        known.peek().is_some() && known.all(|neighbour| neighbour.failed)
    }

    /// Returns the sockets that accept packets to an address and port.
    pub fn listeners_at(&self, protocol: Protocol, address: IpAddr, port: u16) -> impl Iterator<Item = &Listener> {
        let same = move |one: &&Listener| one.protocol == protocol && one.port == port && one.serves(address);
        self.listeners.iter().filter(same)
    }

    /// Returns the addresses of this host.
    pub fn local(&self, family: Family) -> Set {
        // Routes of kind local in other tables serve only the packets of a routing rule.
        let routes = self.routes.iter().filter(|route| {
            route.kind == 2 && [254, 255].contains(&route.table) && Family::of_network(route.to) == family
        });
        Set::from_ranges(routes.map(|route| (number_of(route.to.network()), number_of(route.to.broadcast()))))
    }

    /// Returns true if an address is this host's.
    pub fn is_local(&self, address: IpAddr) -> bool {
        matches!(self.next_hop(address), NextHop::Local)
    }

    /// Returns the next hop of packets to an address with the usual routing rules: the first of several. Broadcast and
    /// multicast addresses, and routes whose nexthop object is unknown, have none.
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
