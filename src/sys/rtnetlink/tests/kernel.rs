use std::fs::File;
use std::io;
use std::thread;

use netlink_packet_core::Parseable;
use netlink_packet_route::link::{LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, unshare};

use super::super::socket::*;
use super::super::*;
use super::{address, network};
use crate::model::Family;
use crate::sys::netlink::flag;

/// Runs a job in a new network namespace, whose loopback interface is up.
fn inside<T: Send>(job: impl FnOnce(&Rtnetlink) -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let rtnetlink = Rtnetlink::open().expect("rtnetlink");
            rtnetlink.set_up(1).expect("lo");
            job(&rtnetlink)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Returns a new network namespace.
fn namespace() -> File {
    inside(|_| File::open("/proc/thread-self/ns/net").expect("a network namespace"))
}

fn link(rtnetlink: &Rtnetlink, name: &str) -> Link {
    rtnetlink.link(name).expect("an answer").unwrap_or_else(|| panic!("no link {name}"))
}

/// Creates a bridge with two addresses and a port, whose other end is in another namespace. Returns the bridge's index.
fn wire(rtnetlink: &Rtnetlink, there: &File) -> u32 {
    rtnetlink.add_bridge(NewLink { name: "br0", mac: Some([2, 0, 0, 0, 0, 1]) }).expect("a bridge");
    let end = |name, last| NewLink { name, mac: Some([2, 0, 0, 0, 0, last]) };
    rtnetlink.add_veth(end("port0", 2), end("eth0", 3), there).expect("a pair");
    let (bridge, port) = (link(rtnetlink, "br0").index, link(rtnetlink, "port0").index);
    rtnetlink.set_master(port, bridge).expect("a port");
    for link in [bridge, port] {
        rtnetlink.set_up(link).expect("up");
    }
    for own in ["192.0.2.1/24", "2001:db8::1/64"] {
        rtnetlink.add_address(bridge, network(own), IfPresent::Fail).expect(own);
    }
    bridge
}

#[test]
fn links_are_made_and_read_back_and_deleted() {
    let there = namespace();
    inside(|rtnetlink| {
        let index = wire(rtnetlink, &there);
        let (bridge, port) = (link(rtnetlink, "br0"), link(rtnetlink, "port0"));
        assert_eq!((bridge.kind.as_deref(), &bridge.mac[..]), (Some("bridge"), &[2, 0, 0, 0, 0, 1][..]));
        assert_eq!((bridge.up, bridge.loopback, bridge.master, bridge.mtu), (true, false, None, Some(1500)));
        assert_eq!((port.kind.as_deref(), &port.mac[..]), (Some("veth"), &[2, 0, 0, 0, 0, 2][..]));
        // The peer eth0 is down, so port0 has no carrier.
        assert_eq!((port.up, port.carrier, port.master, port.hairpin), (true, false, Some(index), Some(false)));
        assert!(port.is_bridge_port && !bridge.is_bridge_port && !port.has_xdp);
        let number = rtnetlink.namespace_number(&there).expect("an answer");
        assert!(number.is_some() && port.peer_namespace == number, "{port:?} {number:?}");
        let all = rtnetlink.links().expect("links");
        assert_eq!((all.unread, all.interrupted), (0, false));
        assert!(all.objects.contains(&bridge) && all.objects.iter().any(|link| link.loopback && link.name == "lo"));
        assert_eq!(interfaces().expect("links"), ["br0".parse().expect("a name")].into());

        rtnetlink.set_master(port.index, 0).expect("no port");
        assert_eq!(link(rtnetlink, "port0").master, None);
        rtnetlink.delete_link(port.index).expect("deleted");
        assert_eq!(rtnetlink.link("port0").expect("an answer"), None);
        assert_eq!(rtnetlink.link_of_index(port.index).expect("an answer"), None);
        assert_eq!(rtnetlink.namespace_number(&namespace()).expect("an answer"), None);
    });
}

#[test]
fn addresses_are_made_and_read_back_and_deleted() {
    inside(|rtnetlink| {
        for (family, own) in [(Family::Ipv4, "192.0.2.1/24"), (Family::Ipv6, "2001:db8::1/64")] {
            let of_lo = || {
                let all = rtnetlink.addresses(family).expect("addresses").complete().expect("complete");
                all.into_iter().filter(|address| address.own == network(own)).collect::<Vec<_>>()
            };
            assert_eq!(of_lo(), []);
            rtnetlink.add_address(1, network(own), IfPresent::Fail).expect("an address");
            assert_eq!(of_lo(), [Address { index: 1, own: network(own), peer: None, duplicate: false }]);
            let twice = rtnetlink.add_address(1, network(own), IfPresent::Fail).expect_err("twice");
            assert_eq!(twice.kind(), io::ErrorKind::AlreadyExists);
            rtnetlink.add_address(1, network(own), IfPresent::Replace).expect("replaced");
            rtnetlink.delete_address(1, network(own)).expect("deleted");
            assert_eq!(of_lo(), []);
        }
    });
}

#[test]
fn routes_are_made_and_read_back_and_deleted() {
    inside(|rtnetlink| {
        let bridge = wire(rtnetlink, &namespace());
        for (to, via) in [("198.51.100.0/24", "192.0.2.254"), ("::/0", "2001:db8::fe")] {
            let (to, via) = (network(to), address(via));
            let found = || {
                let all = rtnetlink.routes(Family::of_address(via)).expect("routes").complete().expect("complete");
                all.into_iter().filter(|route| route.protocol == 112).collect::<Vec<_>>()
            };
            for output in [None, Some(bridge)] {
                let route = NewRoute { to, via, output, protocol: 112 };
                rtnetlink.add_route(route, IfPresent::Fail).expect("a route");
                let [read] = &found()[..] else { panic!("{:?}", found()) };
                assert_eq!((read.to, read.table, read.kind), (to, 254, RouteType::Unicast));
                assert_eq!((read.source_length, read.service, read.object, read.cloned), (0, 0, None, false));
                let hop = Hop { output: Some(bridge), gateway: Some(via), ..read.hops[0] };
                assert_eq!(read.hops, [hop]);
                let twice = rtnetlink.add_route(route, IfPresent::Fail).expect_err("twice");
                assert_eq!(twice.kind(), io::ErrorKind::AlreadyExists);
                rtnetlink.add_route(route, IfPresent::Replace).expect("replaced");
                rtnetlink.delete_route(route).expect("deleted");
                assert_eq!(found(), []);
            }
        }
        let ways = interfaces_to(["192.0.2.9", "192.0.2.1", "203.0.113.1", "2001:db8::9"].map(address));
        let names: Vec<_> = ways.expect("ways").into_values().map(|way| way.map(|name| name.to_string())).collect();
        assert_eq!(names, [Some("lo".into()), Some("br0".into()), None, Some("br0".into())]);
    });
}

#[test]
fn neighbours_and_rules_are_read() {
    inside(|rtnetlink| {
        let index = wire(rtnetlink, &namespace());
        for (family, of) in [(Family::Ipv4, "192.0.2.7"), (Family::Ipv6, "2001:db8::7")] {
            let mut message = NeighbourMessage::default();
            message.header.family = number_of(family);
            message.header.ifindex = index;
            message.header.state = NeighbourState::Permanent;
            let mac = vec![2, 0, 0, 0, 0, 7];
            message.attributes = vec![
                NeighbourAttribute::Destination(address(of).into()),
                NeighbourAttribute::LinkLayerAddress(mac.clone()),
            ];
            rtnetlink.request(&RouteNetlinkMessage::NewNeighbour(message), flag::CREATE).expect("a neighbour");
            let all = rtnetlink.neighbours(family).expect("neighbours").complete().expect("complete");
            let neighbour = Neighbour { index, address: address(of), mac, state: NeighbourState::Permanent };
            assert!(all.contains(&neighbour), "{all:?}");
        }
        let rules = |family| rtnetlink.rules(family).expect("rules").complete().expect("complete");
        let usual = |(priority, table)| Rule { priority, table, unconditional: true, ..Rule::default() };
        assert_eq!(rules(Family::Ipv4), [(0, 255), (32766, 254), (32767, 253)].map(usual));
        assert_eq!(rules(Family::Ipv6), [(0, 255), (32766, 254)].map(usual));
    });
}

#[test]
fn an_error_has_the_kernels_explanation_and_error_kind() {
    inside(|rtnetlink| {
        let route = NewRoute { to: network("0.0.0.0/0"), via: address("203.0.113.1"), output: None, protocol: 4 };
        let refused = rtnetlink.add_route(route, IfPresent::Fail).expect_err("no such router");
        assert_eq!(refused.kind(), io::ErrorKind::NetworkUnreachable);
        assert!(refused.to_string().starts_with("Nexthop has invalid gateway ("), "{refused}");
        // The kernel gives no explanation for a missing link.
        let missing = rtnetlink.set_up(99).expect_err("no such link");
        assert_eq!(missing.raw_os_error(), Some(nix::libc::ENODEV));
    });
}

#[test]
fn the_readers_of_netlink_packet_route_agree() {
    inside(|rtnetlink| {
        wire(rtnetlink, &namespace());
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let both = |body: &[u8]| Some((Link::read(body)?, LinkMessage::parse(body).ok()?));
        let links = rtnetlink.dump(&request, AddressFamily::Unspec, both).expect("links");
        assert_eq!((links.unread, links.objects.len() >= 3), (0, true));
        for (link, message) in links.objects {
            let has = |attribute| message.attributes.contains(&attribute);
            assert!(has(LinkAttribute::IfName(link.name)) && has(LinkAttribute::Address(link.mac)));
            assert!(has(LinkAttribute::Mtu(link.mtu.expect("a MTU"))));
            assert!(link.master.is_none_or(|master| has(LinkAttribute::Controller(master))));
            let kind = message.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                }),
                _ => None,
            });
            assert_eq!((link.index, link.kind), (message.header.index, kind));
        }
        for family in Family::ALL {
            let mut message = RouteMessage::default();
            message.header.address_family = number_of(family);
            let both = |body: &[u8]| Some((Route::read(body)?, RouteMessage::parse(body).ok()?));
            let routes = rtnetlink.dump(&RouteNetlinkMessage::GetRoute(message), number_of(family), both);
            let routes = routes.expect("routes");
            assert_eq!((routes.unread, routes.objects.len() >= 3), (0, true));
            for (route, message) in routes.objects {
                let has = |attribute| message.attributes.contains(&attribute);
                assert!(route.to.prefix() == 0 || has(RouteAttribute::Destination(route.to.ip().into())));
                assert!(has(RouteAttribute::Table(route.table)));
                assert!(route.hops[0].output.is_none_or(|output| has(RouteAttribute::Oif(output))));
            }
        }
    });
}
