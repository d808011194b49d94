//! Sample pictures for tests.

use super::*;
use crate::lab::net::description::Attachment;
use crate::lab::net::plan::Step;
use crate::lab::net::{Location, NetnsName};

pub(super) fn location(name: &str) -> Location {
    Location((name != "host").then(|| name.parse().expect("name")))
}

pub(super) fn link(index: u32, name: &str, kind: &str, addresses: &[&str]) -> Link {
    Link {
        index,
        name: name.into(),
        kind: (!kind.is_empty()).then(|| kind.into()),
        state: State::Up,
        mac: (name != "lo").then(|| Mac(vec![2, 0, 0, 0, 0, u8::try_from(index).unwrap_or(0)])),
        bridge: None,
        peer: None,
        addresses: addresses.iter().map(|address| address.parse().expect("address")).collect(),
    }
}

pub(super) fn joined(link: Link, bridge: &str) -> Link {
    Link { bridge: Some(bridge.into()), ..link }
}

pub(super) fn to(link: Link, space: &str, name: &str) -> Link {
    Link { peer: Some(Peer::Link { namespace: location(space), name: name.into() }), ..link }
}

pub(super) fn space(name: &str, links: Vec<Link>) -> NamespaceView {
    NamespaceView {
        location: location(name),
        network: None,
        containers: Vec::new(),
        publish: Vec::new(),
        here: true,
        forwards_ipv4: false,
        forwards_ipv6: false,
        links,
        routes: Vec::new(),
        neighbours: Vec::new(),
        processes: Vec::new(),
        missing: Vec::new(),
    }
}

pub(super) fn route(to: &str, via: Option<&str>, dev: &str) -> Route {
    let via = via.map(|via| via.parse().expect("address"));
    Route { to: to.parse().expect("prefix"), kind: "unicast", via, dev: Some(dev.into()), src: None }
}

pub(super) fn picture(spaces: Vec<NamespaceView>) -> Picture {
    Picture { lab: "sample".parse().expect("name"), host: None, spaces }
}

pub(super) fn red_blue() -> Picture {
    let mut red = space(
        "red",
        vec![
            link(1, "lo", "", &["127.0.0.1/8"]),
            to(link(2, "veth-red", "veth", &["192.168.15.1/24", "fe80::1/64"]), "blue", "veth-blue"),
        ],
    );
    red.routes = vec![route("192.168.15.0/24", None, "veth-red"), route("fe80::/64", None, "veth-red")];
    red.neighbours = vec![Neighbour {
        address: [192, 168, 15, 2].into(),
        mac: Some(Mac(vec![2, 0, 0, 0, 0, 3])),
        dev: "veth-red".into(),
        state: "REACHABLE".into(),
    }];
    let blue = space("blue", vec![to(link(3, "veth-blue", "veth", &["192.168.15.2/24"]), "red", "veth-red")]);
    picture(vec![red, blue])
}

/// Returns a host with a bridge and a foreign veth end. Containers: one at the bridge with a process, one without a
/// network, one on the host's network. A namespace is missing.
pub(super) fn docker() -> Picture {
    let mut host = space(
        "host",
        vec![
            link(2, "eth0", "", &["203.0.113.5/24"]),
            link(3, "docker0", "bridge", &["172.17.0.1/16"]),
            joined(to(link(4, "veth-web", "veth", &[]), "web", "eth0"), "docker0"),
            joined(
                Link { state: State::NoCarrier, peer: Some(Peer::Elsewhere), ..link(5, "a<&\"\u{1b}'", "veth", &[]) },
                "docker0",
            ),
        ],
    );
    host.forwards_ipv4 = true;
    host.containers = vec!["same".parse().expect("name")];
    host.routes = vec![route("0.0.0.0/0", Some("203.0.113.1"), "eth0"), route("172.17.0.0/16", None, "docker0")];
    let mut web = space("web", vec![to(link(2, "eth0", "veth", &["172.17.0.2/16"]), "host", "veth-web")]);
    web.network = Some(Attachment::Bridge);
    web.publish = vec!["8080:80".into()];
    web.routes = vec![route("0.0.0.0/0", Some("172.17.0.1"), "eth0")];
    web.routes.push(Route { kind: "blackhole", dev: None, ..route("192.0.2.7/32", None, "eth0") });
    web.neighbours = vec![Neighbour {
        address: "fd00::9".parse().expect("address"),
        mac: None,
        dev: "eth0".into(),
        state: "FAILED".into(),
    }];
    web.processes = vec![Process { pid: 4711, inside: Some(1), name: "httpd\u{7}".into() }];
    let alone =
        NamespaceView { network: Some(Attachment::None), ..space("alone", vec![link(1, "lo", "", &["127.0.0.1/8"])]) };
    let name: NetnsName = "gone".parse().expect("name");
    let gone = NamespaceView { here: false, missing: vec![Step::Namespace(name)], ..space("gone", Vec::new()) };
    picture(vec![host, web, alone, gone])
}

/// Returns three namespaces in a ring. One of them also has a pair of its own, so there are wires within a column and
/// within a card.
pub(super) fn ring() -> Picture {
    let pair = |index, name: &str, there, peer: &str| to(link(index, name, "veth", &["10.0.0.1/24"]), there, peer);
    picture(vec![
        space("a", vec![pair(1, "a-b", "b", "b-a"), pair(2, "a-c", "c", "c-a")]),
        space("b", vec![pair(1, "b-a", "a", "a-b"), pair(2, "b-c", "c", "c-b")]),
        space(
            "c",
            vec![
                pair(1, "c-a", "a", "a-c"),
                pair(2, "c-b", "b", "b-c"),
                pair(3, "x", "c", "y"),
                pair(4, "y", "c", "x"),
            ],
        ),
    ])
}
