//! What the audit keeps of interfaces, addresses, routes, neighbours and routing rules.

use ipnetwork::IpNetwork;

use crate::model::Family;
use crate::ruleset::facts::{Facts, Link, Neighbour, Route};
use crate::ruleset::table::Gap;
use crate::sys::rtnetlink::{self, Address, NeighbourState, RouteType, Rule};

/// Priorities and tables of the rules that every host has, `RT_TABLE_…`: first the addresses of this host, then the main table,
/// last the default table, which mostly is empty.
const LOCAL: (u32, u32) = (0, 255);
const MAIN: (u32, u32) = (32766, 254);
const DEFAULT: (u32, u32) = (32767, 253);

/// Adds an interface, and its name to those with programs (XDP).
pub(super) fn add_link(link: rtnetlink::Link, facts: &mut Facts) {
    if link.has_xdp {
        facts.programs.push(link.name.clone());
    }
    for (family, calls) in Family::ALL.into_iter().zip(link.calls_netfilter) {
        if calls {
            facts.netfilter_bridges.insert((family, link.name.clone()));
        }
    }
    facts.links.push(Link {
        index: link.index,
        name: link.name,
        kind: link.kind,
        master: link.master,
        up: link.up,
        loopback: link.loopback,
        mtu: link.mtu,
        hairpin: link.hairpin,
    });
}

/// Adds an address, unless it is another host's, too. At a point-to-point link the network is that of the other end.
pub(super) fn add_address(address: Address, facts: &mut Facts) {
    let own = if address.peer.is_some() { IpNetwork::from(address.own.ip()) } else { address.own };
    if !address.duplicate {
        facts.addresses.push((address.index, own));
    }
}

/// Adds a route: one for each next hop that is not dead. The audit reads routes by destination only, so others are policy routing.
pub(super) fn add_route(route: &rtnetlink::Route, facts: &mut Facts) {
    if route.cloned {
        return;
    }
    if route.service > 0 {
        facts.policy_routing = true;
        facts.special_routes = true;
        return;
    }
    let (to, kind) = (route.to, route.kind.into());
    let by = |output, gateway| Route { to, output, gateway, kind, table: route.table, metric: route.metric };
    let has_no_way = route.kind == RouteType::Unicast && route.hops.iter().all(|hop| hop.output.is_none());
    if let Some(object) = route.object.filter(|_| has_no_way) {
        facts.gaps.push(Gap {
            what: format!("the way of the route to {to}"),
            why: format!("it is the nexthop object {object}, which the kernel does not tell with it"),
        });
        facts.routes.push(by(None, None));
        return;
    }
    for hop in route.hops.iter().filter(|hop| !hop.dead) {
        facts.routes.push(by(hop.output, hop.gateway));
        facts.policy_routing |= route.source_length > 0;
        facts.special_routes |= route.source_length > 0;
    }
}

/// Adds a neighbour, unless its address needs no resolution, as those for multicast, or was not resolved yet.
pub(super) fn add_neighbour(neighbour: &rtnetlink::Neighbour, facts: &mut Facts) {
    let state = u16::from(neighbour.state);
    let has = |flag: NeighbourState| state & u16::from(flag) > 0;
    if state > 0 && !has(NeighbourState::Noarp) {
        let failed = has(NeighbourState::Incomplete) || has(NeighbourState::Failed);
        facts.neighbours.push(Neighbour { address: neighbour.address, link: neighbour.index, failed });
    }
}

/// Returns true if a family has other rules than the usual ones. A kernel without support for rules has none.
pub(super) fn unusual(rules: &[Rule]) -> bool {
    let is = |rule: &Rule, usual| rule.unconditional && (rule.priority, rule.table) == usual;
    let has = |usual| rules.iter().any(|rule| is(rule, usual));
    let other = |rule: &Rule| ![LOCAL, MAIN, DEFAULT].iter().any(|usual| is(rule, *usual));
    !rules.is_empty() && (rules.iter().any(other) || !has(LOCAL) || !has(MAIN))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::sys::rtnetlink::Hop;

    fn network(text: &str) -> IpNetwork {
        text.parse().expect(text)
    }

    fn hop(output: u32) -> Hop {
        Hop { output: Some(output), gateway: None, dead: false }
    }

    fn route(to: &str, kind: RouteType, hops: Vec<Hop>) -> rtnetlink::Route {
        rtnetlink::Route {
            to: network(to),
            source_length: 0,
            service: 0,
            table: 254,
            protocol: 4,
            kind,
            cloned: false,
            metric: 7,
            source: None,
            object: None,
            hops,
        }
    }

    fn added(route: &rtnetlink::Route) -> Facts {
        let mut facts = Facts::default();
        add_route(route, &mut facts);
        facts
    }

    #[test]
    fn an_address_is_our_end() {
        let peer = Some(IpAddr::from([10, 8, 0, 2]));
        let read = |peer, duplicate| {
            let mut facts = Facts::default();
            add_address(Address { index: 7, own: network("10.8.0.1/24"), peer, duplicate }, &mut facts);
            facts.addresses
        };
        assert_eq!(read(None, false), [(7, network("10.8.0.1/24"))]);
        assert_eq!(read(peer, false), [(7, network("10.8.0.1/32"))]);
        assert_eq!(read(None, true), []);
    }

    #[test]
    fn a_route_is_one_for_each_way_that_is_not_dead() {
        let dead = Hop { dead: true, ..hop(2) };
        let facts = added(&route("10.0.0.0/8", RouteType::Unicast, vec![hop(1), dead, hop(3)]));
        let way = |output| Route {
            to: network("10.0.0.0/8"),
            output: Some(output),
            gateway: None,
            kind: 1,
            table: 254,
            metric: 7,
        };
        assert_eq!((facts.routes, facts.policy_routing, facts.gaps), (vec![way(1), way(3)], false, Vec::new()));
    }

    #[test]
    fn routes_that_not_the_destination_alone_decides_are_told_apart() {
        let plain = |kind| route("::/0", kind, vec![hop(7)]);
        let told = |route| {
            let facts = added(&route);
            (facts.routes.len(), facts.policy_routing, facts.gaps.len())
        };
        assert_eq!(told(plain(RouteType::Unicast)), (1, false, 0));
        assert_eq!(told(rtnetlink::Route { source_length: 64, ..plain(RouteType::Unicast) }), (1, true, 0));
        assert_eq!(told(rtnetlink::Route { service: 8, ..plain(RouteType::Unicast) }), (0, true, 0));
        assert_eq!(told(rtnetlink::Route { cloned: true, ..plain(RouteType::Unicast) }), (0, false, 0));
        let nowhere = vec![Hop { output: None, gateway: None, dead: false }];
        let object = |kind| rtnetlink::Route { object: Some(7), ..route("::/0", kind, nowhere.clone()) };
        assert_eq!(told(object(RouteType::Unicast)), (1, false, 1));
        // A route that drops packets needs no interface.
        assert_eq!(told(object(RouteType::BlackHole)), (1, false, 0));
        assert_eq!(told(rtnetlink::Route { object: Some(7), ..plain(RouteType::Unicast) }), (1, false, 0));
    }

    #[test]
    fn neighbours_that_do_not_answer_are_known() {
        for (state, expected) in [
            (NeighbourState::None, None),
            (NeighbourState::Incomplete, Some(true)),
            (NeighbourState::Reachable, Some(false)),
            (NeighbourState::Failed, Some(true)),
            (NeighbourState::Noarp, None),
            (NeighbourState::Other(0x41), None),
        ] {
            let mut facts = Facts::default();
            let address = IpAddr::from([192, 0, 2, 9]);
            add_neighbour(&rtnetlink::Neighbour { index: 7, address, mac: Vec::new(), state }, &mut facts);
            let expected: Vec<_> = expected.map(|failed| Neighbour { address, link: 7, failed }).into_iter().collect();
            assert_eq!(facts.neighbours, expected, "{state}");
        }
    }

    #[test]
    fn rules_that_are_not_the_usual_ones_are_seen() {
        let rule = |(priority, table)| Rule { priority, table, unconditional: true, ..Rule::default() };
        let usual = [rule(LOCAL), rule(MAIN), rule(DEFAULT)];
        assert!(!unusual(&[]) && !unusual(&usual) && !unusual(&usual[..2]));
        assert!(unusual(&usual[1..]) && unusual(&usual[..1]));
        for other in [rule((100, 254)), rule((0, 254)), Rule { unconditional: false, ..rule(MAIN) }] {
            assert!(unusual(&[&usual[..], std::slice::from_ref(&other)].concat()), "{other:?}");
        }
    }
}
