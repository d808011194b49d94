//! The routing decision for one packet, and the check of its source (rp_filter).

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use super::simulator::{BROADCAST, Interface, MULTICAST, Simulator, UNICAST};
use super::trace::{Guess, Refusal, RouteDecision};
use crate::model::Family;
use crate::ruleset::facts::{Flow, Link, Route};
use crate::ruleset::region::{Field, LOCAL, Packet};
use crate::ruleset::set::{address_of, name_of, number_of, number_of_name};
use crate::ruleset::view::Translation;

/// The number of `lo` in every namespace: `LOOPBACK_IFINDEX`.
const LO: u32 = 1;

impl<'a> Simulator<'a> {
    /// Routes a packet. `rewritten` is the rewrite of its destination.
    pub(super) fn route(
        &self,
        packet: &Packet,
        rewritten: Option<Translation>,
        guesses: &mut Vec<Guess>,
    ) -> RouteDecision<'a> {
        let family = packet.family;
        let destination = packet.get(Field::Destination);
        let local = packet.get(Field::DestinationKind) == Some(LOCAL);
        let Some(facts) = &self.host.facts else {
            return match rewritten {
                Some(Translation::Redirect) => RouteDecision::Here,
                Some(_) if destination.is_some_and(|to| !is_loopback(family, to)) => RouteDecision::Somewhere,
                _ if local => RouteDecision::Here,
                _ => RouteDecision::Unknown,
            };
        };
        let Some(address) = destination.and_then(|number| address_of(number, family)) else {
            return match rewritten {
                Some(Translation::Redirect) => RouteDecision::Here,
                _ => RouteDecision::Unknown,
            };
        };
        if is_loopback(family, number_of(address)) && !self.may_use_loopback(packet, guesses) {
            return RouteDecision::Refused(Refusal::Loopback);
        }
        // Delivery of broadcast and multicast packets is not modelled.
        if matches!(packet.get(Field::DestinationKind), Some(BROADCAST | MULTICAST)) {
            return RouteDecision::Unknown;
        }
        let found = facts.lookup(&self.flow(packet, address));
        if !found.sure {
            guesses.push(Guess::PolicyRouting);
        }
        match found.routes {
            [Route { kind: 2, .. }, ..] => RouteDecision::Here,
            [Route { kind: 1, output, gateway, .. }, others @ ..] => {
                if !others.is_empty() {
                    guesses.push(Guess::OneOfSeveral);
                }
                let link = output.and_then(|output| facts.link(output));
                link.map_or(RouteDecision::Unknown, |link| RouteDecision::Out(link, *gateway))
            }
            _ => RouteDecision::Refused(Refusal::NoRoute),
        }
    }

    /// Returns the properties of a packet that decide about its route.
    pub(super) fn flow(&self, packet: &Packet, destination: IpAddr) -> Flow {
        let number = |field| packet.get(field);
        let port = |field| number(field).and_then(|port| u16::try_from(port).ok());
        Flow {
            destination,
            source: number(Field::Source).and_then(|source| address_of(source, packet.family)),
            mark: number(Field::Mark).and_then(|mark| u32::try_from(mark).ok()),
            input: match number(Field::Input) {
                Some(0) => Some(LO),
                input => input.and_then(|input| self.interfaces.get(&input)).map(|interface| interface.link.index),
            },
            protocol: number(Field::Protocol).and_then(|protocol| u8::try_from(protocol).ok()),
            source_port: port(Field::SourcePort),
            port: port(Field::Port),
        }
    }

    /// Checks the source of a packet that arrives: `fib_validate_source` in net/ipv4/fib_frontend.c. `leg` is the route of
    /// the packet.
    ///
    /// # Errors
    /// The reason for which the kernel drops the packet.
    pub(super) fn check_source(
        &self,
        packet: &Packet,
        leg: &RouteDecision<'_>,
        guesses: &mut Vec<Guess>,
    ) -> Result<(), Refusal> {
        let Some(facts) = self.host.facts.as_ref().filter(|_| packet.family == Family::Ipv4) else { return Ok(()) };
        let input = packet.get(Field::Input).and_then(|input| self.interfaces.get(&input));
        let Some(input) = input.filter(|input| !input.link.loopback) else { return Ok(()) };
        let source = packet.get(Field::Source).and_then(|source| address_of(source, Family::Ipv4));
        let Some((IpAddr::V4(source), number)) = source.zip(packet.get(Field::Source)) else { return Ok(()) };
        let is_martian = source.is_loopback() && input.localnet != Some(true)
            || source.octets()[0] == 0
            || source.is_multicast()
            || source == Ipv4Addr::BROADCAST;
        if is_martian || self.kind(Family::Ipv4, number) == Some(LOCAL) && !input.accepts_local {
            return Err(Refusal::Martian);
        }
        let mode = match input.reverse_path {
            Some(0) => return Ok(()),
            Some(mode) => mode,
            None => {
                guesses.push(Guess::Interface(input.link.name.clone()));
                return Ok(());
            }
        };
        let back = Flow {
            source: packet.get(Field::Destination).and_then(|to| address_of(to, Family::Ipv4)),
            mark: if input.source_mark { self.flow(packet, source.into()).mark } else { Some(0) },
            input: match leg {
                RouteDecision::Out(link, _) => Some(link.index),
                _ => Some(LO),
            },
            ..self.flow(packet, source.into())
        };
        let found = facts.lookup(&back);
        if !found.sure {
            guesses.push(Guess::PolicyRouting);
        }
        let uses_link = found.routes.iter().any(|route| route.output == Some(input.link.index));
        match found.routes.first() {
            Some(route) if u128::from(route.kind) == LOCAL || u128::from(route.kind) == UNICAST => {
                // Without an address on the interface, the loose mode is strict.
                let loose = mode == 2 && input.addresses.iter().any(IpNetwork::is_ipv4);
                if uses_link || loose { Ok(()) } else { Err(Refusal::ReversePath) }
            }
            Some(route) if u128::from(route.kind) == BROADCAST => Err(Refusal::Martian),
            _ => Err(Refusal::ReversePath),
        }
    }

    /// Returns true if the packet may have a loopback address: `ip_route_input_slow` in net/ipv4/route.c.
    fn may_use_loopback(&self, packet: &Packet, guesses: &mut Vec<Guess>) -> bool {
        let input = packet.get(Field::Input);
        if input == Some(0) || self.is_from_loopback(packet) {
            return true;
        }
        let interface = input.and_then(|input| self.interfaces.get(&input));
        match (packet.family, interface.and_then(|interface| interface.localnet)) {
            (Family::Ipv6, _) => false,
            (_, Some(on)) => on,
            (_, None) => {
                guesses.push(Guess::Interface(input.map(name_of).unwrap_or_default()));
                false
            }
        }
    }

    /// Returns true if a packet of this host may leave by a link: packets from 127/8 need `route_localnet`
    /// (`__mkroute_output` in net/ipv4/route.c).
    pub(super) fn may_leave(&self, packet: &Packet, link: &Link) -> bool {
        let interface = self.interfaces.get(&number_of_name(link.name.as_bytes(), 0));
        let source = packet.get(Field::Source);
        packet.family == Family::Ipv6
            || link.loopback
            || source.is_none_or(|source| !is_loopback(Family::Ipv4, source))
            || interface.is_some_and(|interface| interface.localnet == Some(true))
    }

    /// Returns true if a packet arrives by a loopback interface.
    pub(super) fn is_from_loopback(&self, packet: &Packet) -> bool {
        let input = packet.get(Field::Input);
        let interface = input.and_then(|input| self.interfaces.get(&input));
        interface.map_or(input == Some(number_of_name(b"lo", 0)), |interface| interface.link.loopback)
    }

    /// Returns the source address that masquerading takes for packets to `next`: `inet_select_addr` in net/ipv4/devinet.c and
    /// `ipv6_dev_get_saddr` in net/ipv6/addrconf.c. The choice of several IPv6 addresses is a guess.
    pub(super) fn masquerade_address(
        &self,
        interface: u128,
        family: Family,
        next: Option<IpAddr>,
        guesses: &mut Vec<Guess>,
    ) -> Option<IpAddr> {
        // An address of this host is its own best source (RFC 6724, rule 1).
        if family == Family::Ipv6 && next.is_some_and(|next| self.is_local(family, number_of(next)) == Some(true)) {
            return next;
        }
        let addresses: Vec<IpNetwork> =
            self.addresses_of(interface, family).into_iter().filter(|network| !network.ip().is_loopback()).collect();
        let near = addresses.iter().find(|network| next.is_some_and(|next| network.contains(next)));
        if family == Family::Ipv6 && addresses.len() > 1 {
            guesses.push(Guess::OneOfSeveral);
        }
        let found = near.or(addresses.first()).copied();
        // IPv4 takes the first address of any interface if the egress interface has none that other hosts can use.
        let others = || {
            let links = self.host.facts.iter().flat_map(|facts| &facts.links);
            let mut found = links.flat_map(|link| self.addresses_of(number_of_name(link.name.as_bytes(), 0), family));
            found.find(|network| !network.ip().is_loopback())
        };
        let found = found.or_else(|| others().filter(|_| family == Family::Ipv4));
        self.known(found.as_ref(), interface, guesses)
    }

    /// Returns the address that `redirect` takes for packets that arrive by an interface: `nf_nat_redirect_ipv4` and
    /// `nf_nat_redirect_ipv6` in net/netfilter/nf_nat_redirect.c.
    pub(super) fn redirect_address(&self, interface: u128, family: Family, guesses: &mut Vec<Guess>) -> Option<IpAddr> {
        self.known(self.addresses_of(interface, family).first(), interface, guesses)
    }

    /// Returns the addresses of an interface without link-local ones.
    fn addresses_of(&self, interface: u128, family: Family) -> Vec<IpNetwork> {
        let addresses =
            self.interfaces.get(&interface).map_or(&[][..], |interface: &Interface<'_>| &interface.addresses);
        let usable = |network: &&IpNetwork| match network.ip() {
            IpAddr::V4(_) => family == Family::Ipv4,
            IpAddr::V6(address) => family == Family::Ipv6 && !address.is_unicast_link_local(),
        };
        addresses.iter().filter(usable).copied().collect()
    }

    fn known(&self, network: Option<&IpNetwork>, interface: u128, guesses: &mut Vec<Guess>) -> Option<IpAddr> {
        if network.is_none() && self.host.facts.is_some() {
            guesses.push(Guess::Interface(name_of(interface)));
        }
        network.map(IpNetwork::ip)
    }
}

/// Returns true if an address is a loopback address.
pub(super) fn is_loopback(family: Family, address: u128) -> bool {
    match family {
        Family::Ipv4 => address >> 24 == 127,
        Family::Ipv6 => address == 1,
    }
}

#[cfg(test)]
mod tests;
