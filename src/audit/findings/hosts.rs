//! Hosts to try findings on: a typical one with Docker, and what is so on it.

use std::collections::BTreeMap;

use crate::audit::facts::{Facts, Link, Route};
use crate::audit::host::Host;
use crate::audit::read::save;

/// The rules of Docker with one port published: 8080 leads to 172.17.0.2:80.
pub const DOCKER: &str = r#"*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
COMMIT
# nat
*nat
:PREROUTING ACCEPT [5:300]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
"#;

/// An interface that is up.
pub fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
    Link {
        index,
        name: name.into(),
        kind: kind.map(str::to_owned),
        master: None,
        up: true,
        loopback: name == "lo",
        mtu: Some(1500),
        hairpin: None,
    }
}

/// A route of the main table, or of that of this host's addresses.
pub fn route(to: &str, output: u32, gateway: Option<&str>, local: bool) -> Route {
    Route {
        to: to.parse().expect("a network"),
        output: Some(output),
        gateway: gateway.map(|gateway| gateway.parse().expect("an address")),
        kind: if local { 2 } else { 1 },
        table: if local { 255 } else { 254 },
        metric: 0,
    }
}

/// A host with Docker: eth0 192.0.2.1/24 with the default route, docker0 172.17.0.1/16, packets are passed on.
pub fn facts() -> Facts {
    let address = |index, text: &str| (index, text.parse().expect("an address"));
    Facts {
        links: vec![link(1, "lo", None), link(2, "eth0", None), link(3, "docker0", Some("bridge"))],
        addresses: vec![address(1, "127.0.0.1/8"), address(2, "192.0.2.1/24"), address(3, "172.17.0.1/16")],
        routes: vec![
            route("127.0.0.0/8", 1, None, true),
            route("192.0.2.1/32", 2, None, true),
            route("172.17.0.1/32", 3, None, true),
            route("192.0.2.0/24", 2, None, false),
            route("172.17.0.0/16", 3, None, false),
            route("0.0.0.0/0", 2, Some("192.0.2.254"), false),
        ],
        settings: BTreeMap::from([
            ("net/ipv4/ip_forward".into(), "1".into()),
            ("net/ipv4/conf/all/route_localnet".into(), "0".into()),
            ("net/ipv4/conf/eth0/route_localnet".into(), "0".into()),
        ]),
        ..Facts::default()
    }
}

/// A host of these rules, of which this is known.
pub fn host(rules: &str, facts: Option<Facts>) -> Host {
    Host::new(save::parse(rules, None).expect("a dump"), facts)
}

/// The host with Docker and these tables more.
pub fn docker(more: &str) -> Host {
    host(&format!("{DOCKER}{more}"), Some(facts()))
}
