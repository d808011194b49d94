//! An outside client: the addresses of this host that the client reaches, and the path of its first packet to a target.

use std::net::IpAddr;

use super::Context;
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::ruleset::facts::NextHop;
use crate::ruleset::region::{self, Field, LOCAL, Packet, Region};
use crate::ruleset::set::{number_of, number_of_name};
use crate::ruleset::simulate::chains::Outcome;
use crate::ruleset::simulate::{End, PacketTrace, Part, UNICAST};
use crate::ruleset::table::{At, Hook};
use crate::ruleset::view::Translation;

/// The source port of clients, from Linux's default range (net/ipv4/ip_local_port_range).
const CLIENT_PORT: u128 = 40_000;

/// The port of a forward that has no port.
const ANY_PORT: u128 = 80;

/// Documentation addresses (RFC 5737, RFC 3849). The client gets the first address that is on no link of the host. The
/// others are for more clients, because rules may match one of these networks.
const CLIENTS: [(Family, &str); 5] = [
    (Family::Ipv4, "198.51.100.77"),
    (Family::Ipv4, "203.0.113.77"),
    (Family::Ipv4, "192.0.2.77"),
    (Family::Ipv6, "2001:db8:77::77"),
    (Family::Ipv6, "3fff:77::77"),
];

/// A client outside.
pub(super) struct Client<'a> {
    address: IpAddr,
    /// The ingress interface, if it is known.
    pub input: Option<&'a str>,
}

impl<'a> Client<'a> {
    /// Returns a client of a family. Returns `None` if the host has no route to any candidate.
    pub(super) fn new(context: &Context<'a>, family: Family) -> Option<Self> {
        Self::some(context, family).into_iter().next()
    }

    /// Returns clients of a family, those behind a router first.
    pub(super) fn some(context: &Context<'a>, family: Family) -> Vec<Self> {
        let known = CLIENTS.iter().filter(|(of, _)| *of == family).filter_map(|(_, text)| text.parse().ok());
        let (mut behind, mut near) = (Vec::new(), Vec::new());
        for address in known {
            match context.facts().map(|facts| facts.next_hop(address)) {
                None => behind.push(Self { address, input: None }),
                Some(NextHop::Via(link, Some(_))) => behind.push(Self { address, input: Some(&link.name) }),
                Some(NextHop::Via(link, None)) => near.push(Self { address, input: Some(&link.name) }),
                Some(NextHop::Local | NextHop::Unreachable) => {}
            }
        }
        behind.extend(near);
        behind
    }

    /// Returns true if a region contains packets of the client.
    pub(super) fn is_of(&self, region: &Region) -> bool {
        let input = self.input.map(|name| number_of_name(name.as_bytes(), 0));
        region.get(Field::Source).has(number_of(self.address))
            && input.is_none_or(|input| region.get(Field::Input).has(input))
    }

    /// Returns the client's first packet for a forward, to an address of this host if one is known.
    pub(super) fn packet(&self, forward: &Forward<'_>, to: Option<IpAddr>) -> Option<Packet> {
        let (_, step) = forward.arriving().next()?;
        let one = |field, otherwise| match step.region.get(field) {
            all if all.has(otherwise) => otherwise,
            some => some.first().unwrap_or(otherwise),
        };
        let mut packet = region::packet(forward.family, self.input)
            .with(Field::Output, 0)
            .with(Field::Source, number_of(self.address))
            .with(Field::SourceKind, UNICAST)
            .with(Field::SourcePort, one(Field::SourcePort, CLIENT_PORT))
            .with(Field::DestinationKind, LOCAL)
            .with(Field::Protocol, one(Field::Protocol, 6))
            .with(Field::Port, one(Field::Port, ANY_PORT));
        if self.input.is_none() {
            packet.set(Field::Input, None);
        }
        packet.set(Field::Destination, to.map(number_of));
        packet.set(Field::OriginalDestination, to.map(number_of));
        packet.set(Field::OriginalPort, packet.get(Field::Port));
        Some(packet)
    }
}

/// Returns true if the forward rewrote the client's packet and no rule or route refused it.
pub(super) fn gets_in(trace: &PacketTrace<'_>, forward: At) -> bool {
    let lost = matches!(trace.end, End::Dropped(..) | End::Refused(_));
    !lost && trace.forwarded_by() == Some(forward)
}

/// Returns the source translation of a forwarded packet, its rule, and whether it is certain. Drops do not matter.
pub(super) fn hidden(trace: &PacketTrace<'_>, forward: At) -> Option<(Translation, At, bool)> {
    if trace.forwarded_by() != Some(forward) || !matches!(trace.end, End::Leaves(..)) {
        return None;
    }
    let outcome = trace.at(Hook::Postrouting, Part::Nat)?;
    let (translation, _, at) = outcome.rewritten.as_ref()?;
    let to_target = trace.at(Hook::Prerouting, Part::Nat).is_some_and(Outcome::is_sure);
    Some((*translation, *at, to_target && outcome.is_sure()))
}

#[cfg(test)]
mod tests {
    use super::super::super::hosts::{dump, facts, host, nat, with_nat};
    use super::*;
    use crate::ruleset::host::Host;

    #[test]
    fn a_client_s_packet_goes_the_whole_way() {
        let rules = "-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2\n\
                     -A POSTROUTING -o docker0 -j MASQUERADE";
        let lead = |host: &Host| {
            let context = Context::new(host);
            let forward = &context.forwards()[0];
            let client = Client::new(&context, Family::Ipv4).expect("a way out");
            let address = host.facts.as_ref().map(|_| IpAddr::from([192, 0, 2, 1]));
            let trace = context.simulator.simulate(client.packet(forward, address).expect("it arrives"));
            (gets_in(&trace, forward.at), hidden(&trace, forward.at).map(|(by, _, sure)| (by, sure)))
        };
        assert_eq!(lead(&with_nat(rules)), (true, Some((Translation::Masquerade, true))));
        let filter = "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\nCOMMIT\n";
        assert_eq!(lead(&host(&format!("{filter}{}", nat(rules)), facts())), (false, None));
        assert_eq!(lead(&dump(&nat(rules))), (true, None), "by which interface is not known");
    }
}
