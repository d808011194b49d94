//! A typical host for tests of findings: docker0 is a bridge of 172.17.0.0/16, eth0 leads out, and packets are passed on.

use std::net::IpAddr;

use crate::audit::facts::{Facts, Link, Listener, Route};
use crate::audit::finding::Finding;
use crate::audit::findings::Check;
use crate::audit::findings::outlook::Outlook;
use crate::audit::host::Host;
use crate::audit::read::save;
use crate::audit::ruleset::Ruleset;
use crate::model::Protocol;

/// What Docker writes for a container that publishes 8080.
pub(super) const DOCKER: &str = "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n\
    -A DOCKER -i docker0 -j RETURN\n\
    -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80";

/// A table nat of these rules, with a chain DOCKER.
pub(super) fn nat(rules: &str) -> String {
    let chains = "PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n:DOCKER -";
    format!("*nat\n:{chains}\n{rules}\nCOMMIT\n")
}

/// Any table of these rules, whose chains are the built-in ones of `chains`.
pub(super) fn table(name: &str, chains: &[&str], rules: &str) -> String {
    let chains: String = chains.iter().map(|chain| format!(":{chain} ACCEPT\n")).collect();
    format!("*{name}\n{chains}{rules}\nCOMMIT\n")
}

pub(super) fn rules(text: &str) -> Ruleset {
    save::parse(text, None).expect("a dump")
}

/// A host of which only a dump is known.
pub(super) fn dump(text: &str) -> Host {
    Host::new(rules(text), None)
}

/// A host of which also the facts are known.
pub(super) fn host(text: &str, facts: Facts) -> Host {
    Host::new(rules(text), Some(facts))
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
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

pub(super) fn route(to: &str, output: u32, gateway: Option<&str>) -> Route {
    let (kind, table) = (1, 254);
    Route {
        to: to.parse().expect("a network"),
        output: Some(output),
        gateway: gateway.map(address),
        kind,
        table,
        metric: 0,
    }
}

/// A route of an address, or network, of this host itself.
pub(super) fn own(to: &str, output: u32) -> Route {
    Route { kind: 2, table: 255, ..route(to, output, None) }
}

pub(super) fn listener(protocol: Protocol, at: &str, port: u16, process: &str) -> Listener {
    let owner = Some((process.to_owned(), 1234));
    Listener { protocol, address: address(at), port, only_ipv6: false, owner }
}

/// The facts of the typical host.
pub(super) fn facts() -> Facts {
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
    let mut port = link(4, "veth1", Some("veth"));
    (port.master, port.hairpin) = (Some(3), Some(false));
    Facts {
        links: vec![link(1, "lo", None), link(2, "eth0", None), link(3, "docker0", Some("bridge")), port],
        addresses: vec![
            (1, "127.0.0.1/8".parse().expect("an address")),
            (2, "192.0.2.1/24".parse().expect("an address")),
            (3, "172.17.0.1/16".parse().expect("an address")),
            (2, "2001:db8:1::1/64".parse().expect("an address")),
        ],
        routes: vec![
            own("127.0.0.0/8", 1),
            own("192.0.2.1/32", 2),
            own("172.17.0.1/32", 3),
            own("::1/128", 1),
            own("2001:db8:1::1/128", 2),
            route("0.0.0.0/0", 2, Some("192.0.2.254")),
            route("192.0.2.0/24", 2, None),
            route("172.17.0.0/16", 3, None),
            route("2001:db8:1::/64", 2, None),
            route("::/0", 2, Some("2001:db8:1::fe")),
        ],
        settings: settings.map(|(path, value)| (path.to_owned(), value.to_owned())).into(),
        ..Facts::default()
    }
}

/// Looks for one finding.
pub(super) fn find(checks: &'static [Check], id: &str, host: &Host) -> Vec<Finding> {
    let check = checks.iter().find(|check| check.kind.id == id).expect("a finding of this family");
    (check.find)(&Outlook::new(host), &check.kind)
}
