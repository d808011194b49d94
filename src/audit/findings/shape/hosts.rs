//! Hosts to try findings on: a typical one of Docker, with rules as iptables-save prints them.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::audit::facts::{Facts, Link, Route};
use crate::audit::finding::{Confidence, Finding};
use crate::audit::findings;
use crate::audit::host::Host;
use crate::audit::read::save;

/// A table nat with some rules.
pub(in crate::audit::findings) fn nat(rules: &str) -> String {
    format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n\
         {}\nCOMMIT\n",
        rules.trim()
    )
}

fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
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

fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

fn route(to: &str, output: u32, gateway: Option<&str>, kind: u8) -> Route {
    let gateway = gateway.map(|text| text.parse::<IpAddr>().expect("an address"));
    let table = if kind == 2 { 255 } else { 254 };
    Route { to: network(to), output: Some(output), gateway, kind, table, metric: 0 }
}

/// lo, eth0 with 192.0.2.1/24 and the default route, and docker0 with 172.17.0.0/16; no IPv6.
pub(in crate::audit::findings) fn facts() -> Facts {
    Facts {
        links: vec![link(1, "lo", None), link(2, "eth0", None), link(3, "docker0", Some("bridge"))],
        addresses: vec![(1, network("127.0.0.1/8")), (2, network("192.0.2.1/24")), (3, network("172.17.0.1/16"))],
        routes: vec![
            route("127.0.0.0/8", 1, None, 2),
            route("192.0.2.1/32", 2, None, 2),
            route("172.17.0.1/32", 3, None, 2),
            route("192.0.2.0/24", 2, None, 1),
            route("172.17.0.0/16", 3, None, 1),
            route("0.0.0.0/0", 2, Some("192.0.2.254"), 1),
        ],
        settings: [("net/ipv4/ip_forward".to_owned(), "1\n".to_owned())].into(),
        ..Facts::default()
    }
}

/// The same with 2001:db8:1::1/64 at eth0.
pub(in crate::audit::findings) fn facts_with_ipv6() -> Facts {
    let mut facts = facts();
    facts.addresses.extend([(1, network("::1/128")), (2, network("2001:db8:1::1/64")), (2, network("fe80::1/64"))]);
    facts.routes.extend([
        route("::1/128", 1, None, 2),
        route("2001:db8:1::1/128", 2, None, 2),
        route("fe80::1/128", 2, None, 2),
        route("2001:db8:1::/64", 2, None, 1),
        route("::/0", 2, Some("fe80::2"), 1),
    ]);
    facts
}

/// A host with these rules.
pub(in crate::audit::findings) fn with(text: &str, facts: Option<Facts>) -> Host {
    Host::new(save::parse(text, None).expect("a dump"), facts)
}

/// The host of [`facts`] with these rules in table nat.
pub(in crate::audit::findings) fn docker(rules: &str) -> Host {
    with(&nat(rules), Some(facts()))
}

/// What is found of one kind.
pub(in crate::audit::findings) fn found(host: &Host, id: &str) -> Vec<Finding> {
    findings::all(host, |kind| kind.id == id)
}

/// How sure is what is found of one kind.
pub(in crate::audit::findings) fn confidences(host: &Host, id: &str) -> Vec<Confidence> {
    found(host, id).iter().map(|finding| finding.confidence).collect()
}

/// The kinds of those of F01 to F05 that are found.
pub(in crate::audit::findings) fn of_order(host: &Host) -> Vec<&'static str> {
    let all = findings::all(host, |kind| ("F01"..="F05").contains(&kind.id));
    all.iter().map(|finding| finding.kind.id).collect()
}
