//! A client outside: which of this host's addresses it sees, and what becomes of its first packet on the way to a forward's target.

use std::net::IpAddr;

use crate::audit::facts::{Facts, Way};
use crate::audit::forwards::Forward;
use crate::audit::host::Host;
use crate::audit::region::{self, Field, LOCAL, Packet, Region};
use crate::audit::ruleset::{At, Hook, Rewrite};
use crate::audit::set::{number_of, number_of_name};
use crate::audit::trace::{self, AFTER_DNAT, BEFORE_DNAT, Outcome, Verdict, Which};
use crate::audit::view::Translation;
use crate::model::Family;

/// `RTN_UNICAST` in include/uapi/linux/rtnetlink.h.
const UNICAST: u128 = 1;

/// A port of clients: one of those that Linux takes by itself (net/ipv4/ip_local_port_range).
const CLIENT_PORT: u128 = 40_000;

/// A port of services, of forwards of all ports.
const ANY_PORT: u128 = 80;

/// Addresses that are nobody's (RFC 5737, RFC 3849): the first that is not on a link of the host is the client's, and the
/// others are those of more clients, as rules may be about one of these networks.
const CLIENTS: [(Family, &str); 5] = [
    (Family::Ipv4, "198.51.100.77"),
    (Family::Ipv4, "203.0.113.77"),
    (Family::Ipv4, "192.0.2.77"),
    (Family::Ipv6, "2001:db8:77::77"),
    (Family::Ipv6, "3fff:77::77"),
];

/// Whether an address is one that the whole internet may reach: not of RFC 1918, RFC 6598 (carriers' NAT), RFC 3927, RFC 4193, nor
/// of a link or of this host alone. Those for documentation count as global.
pub(super) fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            let of_carrier = a == 100 && (64..128).contains(&b);
            !(address.is_private() || address.is_loopback() || address.is_link_local() || of_carrier)
                && !(address.is_multicast() || address.is_broadcast() || a == 0)
        }
        IpAddr::V6(address) => {
            let of_this_host = address.is_loopback() || address.is_unspecified() || address.is_multicast();
            !(of_this_host || address.is_unique_local() || address.is_unicast_link_local())
        }
    }
}

/// The global addresses of a family that a host owns.
pub(super) fn global(facts: &Facts, family: Family) -> Vec<IpAddr> {
    let all = facts.addresses.iter().map(|(_, network)| network.ip());
    all.filter(|address| Family::of(*address) == family && is_global(*address)).collect()
}

/// A client outside.
pub(super) struct Client<'a> {
    host: &'a Host,
    address: IpAddr,
    /// The interface that its packets arrive by, where that is known.
    pub input: Option<&'a str>,
}

impl<'a> Client<'a> {
    /// Finds one of a family; none where the host has no route to any.
    pub(super) fn new(host: &'a Host, family: Family) -> Option<Self> {
        Self::some(host, family).into_iter().next()
    }

    /// Finds some of a family, those behind a router first.
    pub(super) fn some(host: &'a Host, family: Family) -> Vec<Self> {
        let known = CLIENTS.iter().filter(|(of, _)| *of == family).filter_map(|(_, text)| text.parse().ok());
        let (mut behind, mut near) = (Vec::new(), Vec::new());
        for address in known {
            match host.facts.as_ref().map(|facts| facts.way_to(address)) {
                None => behind.push(Self { host, address, input: None }),
                Some(Way::Out(link, Some(_))) => behind.push(Self { host, address, input: Some(&link.name) }),
                Some(Way::Out(link, None)) => near.push(Self { host, address, input: Some(&link.name) }),
                Some(Way::Here | Way::Nowhere) => {}
            }
        }
        behind.extend(near);
        behind
    }

    /// Whether it may be one of the clients of a region.
    pub(super) fn is_of(&self, region: &Region) -> bool {
        let input = self.input.map(|name| number_of_name(name.as_bytes(), 0));
        region.get(Field::Source).has(number_of(self.address))
            && input.is_none_or(|input| region.get(Field::Input).has(input))
    }

    /// Its first packet for a forward, at one of this host's addresses, or where there is none at one that is not known.
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

    /// Sends its packet.
    pub(super) fn send(&self, mut packet: Packet) -> Travel {
        let mut travel = Travel { sure: self.host.facts.is_some(), ..Travel::default() };
        let rules = &self.host.rules;
        let ask = |travel: &mut Travel, packet: &mut Packet, hook, which| {
            let outcome = trace::hook(rules, packet, hook, &which);
            travel.meet(&outcome);
            outcome
        };
        let raw = ask(&mut travel, &mut packet, Hook::Prerouting, Which::Filter(BEFORE_DNAT));
        if travel.dropped.is_some() || raw.untracked.is_some() {
            return travel;
        }
        let nat = ask(&mut travel, &mut packet, Hook::Prerouting, Which::Nat);
        let Some((translation, to, at)) = nat.rewritten else { return travel };
        travel.taken = Some(at);
        self.rewrite(&mut packet, translation, &to);
        ask(&mut travel, &mut packet, Hook::Prerouting, Which::Filter(AFTER_DNAT));
        let here = packet.get(Field::DestinationKind) == Some(LOCAL);
        let hook = if here { Hook::Input } else { Hook::Forward };
        if travel.dropped.is_none() {
            ask(&mut travel, &mut packet, hook, Which::Filter(i32::MIN..=i32::MAX));
        }
        if travel.dropped.is_none() && !here {
            ask(&mut travel, &mut packet, Hook::Postrouting, Which::Filter(i32::MIN..=i32::MAX));
            let nat = trace::hook(rules, &mut packet, Hook::Postrouting, &Which::Nat);
            travel.source_sure = travel.nat_sure && nat.is_sure() && self.host.facts.is_some();
            travel.source = nat.rewritten.map(|(translation, _, at)| (translation, at));
        }
        travel
    }

    /// Gives a packet its new destination, and the interface by which it leaves.
    fn rewrite(&self, packet: &mut Packet, translation: Translation, to: &Rewrite) {
        let facts = self.host.facts.as_ref();
        if let Some((first, _)) = to.addresses {
            packet.put(Field::Destination, number_of(first));
        }
        if let (Some((first, last)), Some(port)) = (to.ports, packet.get(Field::Port)) {
            let kept = to.base.is_none() && (u128::from(first)..=u128::from(last)).contains(&port);
            packet.put(Field::Port, if kept { port } else { first.into() });
        }
        let status = packet.get(Field::Status).unwrap_or_default();
        packet.put(Field::Status, status | region::DST_NAT);
        let (kind, output) = match (translation, to.addresses, facts) {
            (Translation::Redirect, _, _) | (_, None, _) => (Some(LOCAL), Some("")),
            (_, Some(_), None) => (Some(UNICAST), None),
            (_, Some((first, _)), Some(facts)) => match facts.way_to(first) {
                Way::Here => (Some(LOCAL), Some("")),
                Way::Out(link, _) => (Some(UNICAST), Some(link.name.as_str())),
                Way::Nowhere => (None, None),
            },
        };
        packet.set(Field::DestinationKind, kind);
        packet.set(Field::Output, output.map(|name| number_of_name(name.as_bytes(), 0)));
    }
}

/// What becomes of a client's packet.
#[derive(Debug, Clone, Default)]
pub(super) struct Travel {
    /// The forward that takes it.
    pub taken: Option<At>,
    /// The rule that drops it.
    pub dropped: Option<At>,
    /// How its source is rewritten, and by which rule.
    pub source: Option<(Translation, At)>,
    /// Whether that is sure, whatever else may drop it.
    pub source_sure: bool,
    /// Whether all but the source is sure.
    pub sure: bool,
    /// Whether what was asked for its destination is sure.
    nat_sure: bool,
}

impl Travel {
    fn meet(&mut self, outcome: &Outcome) {
        self.sure &= outcome.is_sure();
        if self.taken.is_none() {
            self.nat_sure = outcome.is_sure();
        }
        match outcome.verdict {
            Verdict::Passes => {}
            Verdict::Dropped(at) => self.dropped = Some(at),
            // What the program does is not known.
            Verdict::Queued(_) => self.sure = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hosts::{docker, facts, nat, with};
    use super::*;

    #[test]
    fn the_whole_internet_reaches_global_addresses() {
        for (text, is) in [
            ("192.0.2.1", true),
            ("8.8.8.8", true),
            ("10.1.2.3", false),
            ("172.31.0.1", false),
            ("172.32.0.1", true),
            ("192.168.1.1", false),
            ("169.254.1.1", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("127.0.0.1", false),
            ("2001:db8::1", true),
            ("fd00::1", false),
            ("fe80::1", false),
            ("::1", false),
        ] {
            assert_eq!(is_global(text.parse().expect("address")), is, "{text}");
        }
        assert_eq!(global(&facts(), Family::Ipv4), [IpAddr::from([192, 0, 2, 1])]);
    }

    #[test]
    fn a_client_s_packet_goes_the_whole_way() {
        let rules = "-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2\n\
                     -A POSTROUTING -o docker0 -j MASQUERADE";
        let send = |host: &Host| {
            let forward = Forward::all(&host.view).remove(0);
            let client = Client::new(host, Family::Ipv4).expect("a way out");
            let address = host.facts.as_ref().map(|_| IpAddr::from([192, 0, 2, 1]));
            client.send(client.packet(&forward, address).expect("it arrives"))
        };
        let travel = send(&docker(rules));
        assert!(travel.taken.is_some() && travel.sure && travel.source_sure && travel.dropped.is_none());
        assert_eq!(travel.source.map(|(translation, _)| translation), Some(Translation::Masquerade));
        let filter = "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\nCOMMIT\n";
        let travel = send(&with(&format!("{filter}{}", nat(rules)), Some(facts())));
        assert!(travel.dropped.is_some() && travel.sure && travel.source.is_none());
        let travel = send(&with(&nat(rules), None));
        assert!(!travel.sure && !travel.source_sure && travel.source.is_none(), "by which interface is not known");
    }
}
