//! Hosts for unit tests. The typical host runs Docker: eth0 is the uplink, docker0 is a bridge with 172.17.0.0/16, and IP
//! forwarding is on.

use std::net::IpAddr;

use crate::model::Protocol;
use crate::ruleset::facts::{Facts, Link, Listener, Route};
use crate::ruleset::host::Host;
use crate::ruleset::read::save;
use crate::ruleset::table::Ruleset;

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

/// The rules of [`DOCKER`] in table nat.
pub const DOCKER_NAT: &str = "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n\
    -A DOCKER -i docker0 -j RETURN\n\
    -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80";

/// Returns a table nat with `rules` and a chain DOCKER.
pub fn nat(rules: &str) -> String {
    let chains = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"];
    table("nat", &chains, &format!(":DOCKER -\n{}", rules.trim()))
}

/// Returns a table with the built-in chains `chains` and with `rules`.
pub fn table(name: &str, chains: &[&str], rules: &str) -> String {
    let chains: String = chains.iter().map(|chain| format!(":{chain} ACCEPT [0:0]\n")).collect();
    format!("*{name}\n{chains}{rules}\nCOMMIT\n")
}

/// Parses iptables-save text.
pub fn rules(text: &str) -> Ruleset {
    save::parse(text, None).expect("a dump")
}

/// Returns a host with rules and facts.
pub fn host(text: &str, facts: impl Into<Option<Facts>>) -> Host {
    Host::new(rules(text), facts.into())
}

/// Returns a host without facts.
pub fn dump(text: &str) -> Host {
    host(text, None::<Facts>)
}

/// Returns the Docker host with more tables.
pub fn docker(more: &str) -> Host {
    host(&format!("{DOCKER}{more}"), facts())
}

/// Returns the host with `rules` in table nat and without Docker.
pub fn with_nat(rules: &str) -> Host {
    host(&nat(rules), facts())
}

/// Parses an address.
pub fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Returns an interface that is up.
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

/// Returns a route of the main table.
pub fn route(to: &str, output: u32, gateway: Option<&str>) -> Route {
    let (to, gateway) = (to.parse().expect("a network"), gateway.map(address));
    Route { to, output: Some(output), gateway, kind: 1, table: 254, metric: 0 }
}

/// Returns a route of table local.
pub fn own(to: &str, output: u32) -> Route {
    Route { kind: 2, table: 255, ..route(to, output, None) }
}

/// Returns a listening socket of `process`.
pub fn listener(protocol: Protocol, at: &str, port: u16, process: &str) -> Listener {
    let owner = Some((process.to_owned(), 1234));
    Listener { protocol, address: address(at), port, only_ipv6: false, owner }
}

/// Returns facts with lo, eth0 (192.0.2.1/24, default route) and docker0 (172.17.0.1/16), without IPv6.
pub fn facts() -> Facts {
    let settings = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/route_localnet", "0"),
        ("net/ipv4/conf/default/route_localnet", "0"),
        ("net/ipv4/conf/eth0/route_localnet", "0"),
        ("net/ipv4/conf/docker0/route_localnet", "0"),
        ("net/ipv4/conf/eth0/forwarding", "1"),
        ("net/ipv4/conf/docker0/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/eth0/rp_filter", "0"),
        ("net/ipv4/ip_local_port_range", "32768\t60999"),
        ("net/ipv4/ip_local_reserved_ports", ""),
        ("net/netfilter/nf_conntrack_udp_timeout", "30"),
        ("net/netfilter/nf_conntrack_udp_timeout_stream", "120"),
        ("net/bridge/bridge-nf-call-iptables", "1"),
    ];
    let network = |index, text: &str| (index, text.parse().expect("a network"));
    Facts {
        links: vec![link(1, "lo", None), link(2, "eth0", None), link(3, "docker0", Some("bridge"))],
        addresses: vec![network(1, "127.0.0.1/8"), network(2, "192.0.2.1/24"), network(3, "172.17.0.1/16")],
        routes: vec![
            own("127.0.0.0/8", 1),
            own("192.0.2.1/32", 2),
            own("172.17.0.1/32", 3),
            route("192.0.2.0/24", 2, None),
            route("172.17.0.0/16", 3, None),
            route("0.0.0.0/0", 2, Some("192.0.2.254")),
        ],
        settings: settings.map(|(path, value)| (path.to_owned(), value.to_owned())).into(),
        ..Facts::default()
    }
}

/// Returns [`facts`] plus 2001:db8:1::1/64 on eth0 and a container behind a port of docker0.
pub fn dual() -> Facts {
    let mut facts = facts();
    let mut port = link(4, "veth1", Some("veth"));
    (port.master, port.hairpin) = (Some(3), Some(false));
    facts.links.push(port);
    let networks = [(1, "::1/128"), (2, "2001:db8:1::1/64"), (2, "fe80::1/64")];
    facts.addresses.extend(networks.map(|(index, text)| (index, text.parse().expect("a network"))));
    facts.routes.extend([
        own("::1/128", 1),
        own("2001:db8:1::1/128", 2),
        own("fe80::1/128", 2),
        route("2001:db8:1::/64", 2, None),
        route("::/0", 2, Some("2001:db8:1::fe")),
    ]);
    facts
}

/// Returns [`dual`] with other settings.
pub fn with(settings: &[(&str, &str)]) -> Facts {
    let mut facts = dual();
    facts.settings.extend(settings.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())));
    facts
}

/// Returns a table nat with a forward of port 80 that has an additional match.
pub fn by(match_: &str, protocol: &str) -> String {
    nat(&format!("-A PREROUTING {match_} -p {protocol} --dport 80 -j DNAT --to-destination 172.17.0.2:80"))
}
