use std::time::{Duration, Instant};

use super::*;
use proptest::prelude::*;

fn link(index: u32, name: &str) -> Link {
    let (kind, master, mtu, hairpin) = (None, None, Some(1500), None);
    Link { index, name: name.into(), kind, master, up: true, loopback: name == "lo", mtu, hairpin }
}

fn route(to: &str, output: u32, kind: u8, table: u32, metric: u32) -> Route {
    let gateway = to.ends_with("/0").then(|| [192, 0, 2, 254].into());
    Route { to: to.parse().expect(to), output: Some(output), gateway, kind, table, metric }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn host() -> Facts {
    let owned = |index, text: &str| (index, text.parse().expect(text));
    Facts {
        links: vec![link(1, "lo"), link(2, "eth0"), link(3, "docker0"), link(4, "wg0"), link(5, "eth1")],
        addresses: vec![
            owned(1, "127.0.0.1/8"),
            owned(2, "192.0.2.1/24"),
            owned(3, "172.17.0.1/16"),
            owned(4, "10.8.0.1/32"),
            owned(2, "2001:db8::1/64"),
            owned(2, "fe80::1/64"),
            owned(5, "192.0.2.1/24"),
        ],
        routes: vec![
            route("127.0.0.0/8", 1, 2, 255, 0),
            route("192.0.2.1/32", 2, 2, 255, 0),
            route("192.0.2.255/32", 2, 3, 255, 0),
            route("172.17.0.1/32", 3, 2, 255, 0),
            route("0.0.0.0/0", 5, 1, 254, 200),
            route("0.0.0.0/0", 2, 1, 254, 100),
            route("192.0.2.0/24", 2, 1, 254, 0),
            route("172.17.0.0/16", 3, 1, 254, 0),
            route("10.8.0.2/32", 4, 1, 254, 0),
            route("10.0.0.0/8", 2, 7, 254, 0),
            route("198.51.100.0/24", 2, 6, 254, 0),
            route("203.0.113.0/24", 2, 9, 254, 0),
            route("203.0.113.0/25", 4, 1, 253, 0),
            route("10.9.0.0/16", 4, 1, 100, 0),
            route("2001:db8::/64", 2, 1, 254, 256),
        ],
        ..Facts::default()
    }
}

fn out(facts: &Facts, to: &str) -> String {
    match facts.next_hop(address(to)) {
        NextHop::Local => "here".into(),
        NextHop::Unreachable => "nowhere".into(),
        NextHop::Via(link, None) => link.name.clone(),
        NextHop::Via(link, Some(gateway)) => format!("{} {gateway}", link.name),
    }
}

#[test]
fn ways_are_those_of_the_kernel() {
    let facts = host();
    for (to, way) in [
        ("127.9.9.9", "here"),
        ("192.0.2.1", "here"),
        ("192.0.2.9", "eth0"),
        ("192.0.2.255", "nowhere"),
        // The metric decides between default routes, not their order.
        ("8.8.8.8", "eth0 192.0.2.254"),
        ("172.17.0.3", "docker0"),
        // The longest prefix, and not the one that drops.
        ("10.8.0.2", "wg0"),
        ("10.8.0.3", "nowhere"),
        // Nobody asks table 100.
        ("10.9.0.1", "nowhere"),
        ("198.51.100.1", "nowhere"),
        // Thrown on to the next table, and by what that has not, nowhere.
        ("203.0.113.1", "wg0"),
        ("203.0.113.200", "nowhere"),
        ("2001:db8::7", "eth0"),
        ("2001:db9::7", "nowhere"),
    ] {
        assert_eq!(out(&facts, to), way, "{to}");
    }
    assert!(facts.is_local(address("127.0.0.2")) && !facts.is_local(address("::ffff:127.0.0.2")));
    let local = facts.local(Family::Ipv4);
    assert!(local.has(number_of(address("172.17.0.1"))) && local.size() == (1 << 24) + 2);
    assert!(facts.local(Family::Ipv6).is_empty());
}

/// As it was measured, Linux 6.18: `ip route get` in a namespace with these routes, before and behind `ip rule add`.
#[test]
fn of_ipv4_the_local_and_the_main_table_are_one_until_there_is_a_rule() {
    let mut facts = host();
    let more =
        [("11.0.0.0/8", 1, 2, 255), ("11.5.0.0/16", 2, 1, 254), ("fd00::/16", 1, 2, 255), ("fd00:5::/32", 2, 1, 254)];
    facts.routes.extend(more.map(|(to, output, kind, table)| route(to, output, kind, table, 0)));
    let ways = |facts: &Facts| ["11.5.0.1", "11.6.0.1", "fd00:5::1"].map(|to| out(facts, to));
    assert_eq!(ways(&facts), ["eth0", "here", "here"]);
    facts.policy_routing = true;
    assert_eq!(ways(&facts), ["here", "here", "here"]);
}

#[test]
fn routes_that_come_later_are_found_too() {
    let mut facts = host();
    assert_eq!(out(&facts, "8.8.8.8"), "eth0 192.0.2.254");
    facts.routes.push(route("8.0.0.0/8", 3, 1, 254, 0));
    assert_eq!(out(&facts, "8.8.8.8"), "docker0");
    let mut copy = facts.clone();
    assert_eq!(copy, facts);
    copy.routes[5].metric = 300;
    assert_eq!(out(&copy, "9.9.9.9"), "eth1 192.0.2.254");
    assert_ne!(copy, facts);
}

#[test]
fn addresses_are_on_links() {
    let mut facts = host();
    let on = |facts: &Facts, text: &str| facts.link_of(address(text)).map(|link| link.name.clone());
    for (text, link) in [
        ("192.0.2.7", Some("eth0")),
        ("192.0.2.1", Some("eth0")),
        ("172.17.0.9", Some("docker0")),
        ("10.8.0.1", Some("wg0")),
        // The other end of a wire.
        ("10.8.0.2", Some("wg0")),
        ("127.0.0.1", Some("lo")),
        ("8.8.8.8", None),
        ("2001:db8::5", Some("eth0")),
    ] {
        assert_eq!(on(&facts, text).as_deref(), link, "{text}");
    }
    facts.routes.clear();
    assert_eq!(on(&facts, "172.17.0.9").as_deref(), Some("docker0"));
    let global: Vec<String> = facts.global_addresses(Family::Ipv4).iter().map(ToString::to_string).collect();
    assert_eq!(global, ["192.0.2.1", "172.17.0.1", "10.8.0.1"]);
    assert_eq!(facts.global_addresses(Family::Ipv6), [address("2001:db8::1")]);
}

#[test]
fn uplinks_are_those_of_default_routes_of_any_table() {
    let names = |facts: &Facts, family| facts.uplinks(family).iter().map(|link| link.name.clone()).collect::<Vec<_>>();
    let mut facts = host();
    assert_eq!(names(&facts, Family::Ipv4), ["eth1", "eth0"]);
    assert!(names(&facts, Family::Ipv6).is_empty());
    facts.routes = vec![
        route("0.0.0.0/1", 4, 1, 254, 0),
        route("128.0.0.0/1", 4, 1, 254, 0),
        route("0.0.0.0/0", 2, 7, 254, 0),
        route("0.0.0.0/0", 3, 1, 100, 0),
        route("2000::/3", 5, 1, 254, 0),
        route("64.0.0.0/2", 2, 1, 254, 0),
    ];
    assert_eq!(names(&facts, Family::Ipv4), ["wg0", "docker0"]);
    assert_eq!(names(&facts, Family::Ipv6), ["eth1"]);
}

#[test]
fn a_host_is_silent_where_no_link_knows_it() {
    let neighbour = |text: &str, link, failed| Neighbour { address: address(text), link, failed };
    let neighbours =
        vec![neighbour("10.0.0.1", 2, true), neighbour("10.0.0.2", 2, true), neighbour("10.0.0.2", 3, false)];
    let facts = Facts { neighbours, ..Facts::default() };
    assert_eq!(["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|text| facts.is_silent(address(text))), [true, false, false]);
}

#[test]
fn listeners_serve_their_addresses() {
    let listener = |text: &str, only_ipv6| {
        let (protocol, port, owner) = (Protocol::Tcp, 80, None);
        Listener { protocol, address: address(text), port, only_ipv6, owner }
    };
    let served = |text, only| ["192.0.2.1", "2001:db8::1"].map(|to| listener(text, only).serves(address(to)));
    assert_eq!(served("0.0.0.0", false), [true, false]);
    assert_eq!(served("::", false), [true, true]);
    assert_eq!(served("::", true), [false, true]);
    assert_eq!(served("192.0.2.1", false), [true, false]);
    assert_eq!(served("2001:db8::2", false), [false, false]);
    let facts = Facts { listeners: vec![listener("::", true), listener("192.0.2.1", false)], ..Facts::default() };
    let at = |protocol, port| facts.listeners_at(protocol, address("192.0.2.1"), port).count();
    assert_eq!((at(Protocol::Tcp, 80), at(Protocol::Udp, 80), at(Protocol::Tcp, 81)), (1, 0, 0));
}

proptest! {
    /// Looking at every route, in plain words, says the same.
    #[test]
    fn the_index_finds_what_a_list_would(
        routes in proptest::collection::vec((0..16_u32, 28..=32_u8, prop_oneof![Just(1_u8), Just(2), Just(7), Just(9)],
            prop_oneof![Just(254_u32), Just(255), Just(253), Just(7)], 0..3_u32), 0..24),
        to in 0..16_u32,
        policy_routing in any::<bool>(),
    ) {
        let routes: Vec<Route> = routes.into_iter().enumerate().map(|(at, (bits, length, kind, table, metric))| {
            let whole = IpNetwork::new(IpAddr::from(bits.to_be_bytes()), length).expect("fits");
            let to = IpNetwork::new(whole.network(), length).expect("fits");
            Route { to, output: u32::try_from(at).ok(), gateway: None, kind, table, metric }
        }).collect();
        let links = (0..24).map(|index| link(index, &format!("eth{index}"))).collect();
        let facts = Facts { links, routes, policy_routing, ..Facts::default() };
        let to = IpAddr::from(to.to_be_bytes());
        let mut expected = NextHop::Unreachable;
        let asked: &[&[u32]] = if policy_routing { &[&[255], &[254], &[253]] } else { &[&[255, 254], &[253]] };
        for tables in asked {
            let mut serving: Vec<&Route> =
                facts.routes.iter().filter(|route| tables.contains(&route.table) && route.to.contains(to)).collect();
            serving.sort_by_key(|route| route.metric);
            serving.sort_by_key(|route| std::cmp::Reverse(route.table));
            serving.sort_by_key(|route| std::cmp::Reverse(route.to.prefix()));
            match serving.first().copied() {
                None | Some(Route { kind: 9, .. }) => continue,
                Some(Route { kind: 2, .. }) => expected = NextHop::Local,
                Some(Route { kind: 1, output: Some(output), .. }) => {
                    expected = NextHop::Via(facts.links.iter().find(|link| link.index == *output).expect("a link"), None);
                }
                Some(_) => {}
            }
            break;
        }
        prop_assert_eq!(facts.next_hop(to), expected);
    }
}

/// Many routes of the lengths that hosts have.
fn many(count: u32) -> Facts {
    let mut facts = host();
    let lengths = [32, 24, 16, 30];
    facts.routes.extend((0..count).zip(lengths.into_iter().cycle()).map(|(number, length)| {
        let address = IpAddr::from((0x0b00_0000 | number << 8).to_be_bytes());
        let network = IpNetwork::new(address, length).expect("fits").network();
        Route { to: IpNetwork::new(network, length).expect("fits"), ..route("0.0.0.0/0", 2, 1, 254, 0) }
    }));
    facts
}

fn ask(facts: &Facts, count: u32) -> Duration {
    let started = Instant::now();
    let asked = (0..count).filter(|number| {
        let to = IpAddr::from((0x0b00_0000 | (number << 8) | (number & 0xff)).to_be_bytes());
        matches!(facts.next_hop(to), NextHop::Via(..))
    });
    assert_eq!(asked.count(), usize::try_from(count).expect("fits"));
    started.elapsed()
}

/// Looking at each of 60,000 routes for each of 60,000 addresses takes a minute even in release.
#[test]
fn ways_among_sixty_thousand_routes_are_found_at_once() {
    let taken = [ask(&many(100), 60_000), ask(&many(60_000), 60_000)];
    eprintln!("60,000 ways among 100 and among 60,000 routes: {taken:?}");
    assert!(taken.iter().all(|taken| *taken < Duration::from_secs(10)), "{taken:?}");
}
