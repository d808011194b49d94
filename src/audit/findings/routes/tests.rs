//! Tests with hosts whose routes fit their forwards, and with hosts whose routes do not.

use super::super::hosts::{DOCKER_NAT, by, dual, dump, find, link, nat, none, one, own, route, table, with};
use super::*;
use crate::ruleset::facts::Facts;

/// Returns the facts of a host with a second uplink, eth1 with 203.0.113.1.
fn two_ways(settings: &[(&str, &str)]) -> Facts {
    let mut facts = with(settings);
    facts.links.push(link(5, "eth1", None));
    facts.addresses.push((5, "203.0.113.1/24".parse().expect("a network")));
    facts.routes.push(own("203.0.113.1/32", 5));
    facts.routes.push(route("203.0.113.0/24", 5, None));
    facts
}

#[test]
fn clients_on_the_bridge_of_the_target_get_direct_answers() {
    let off = with(&[("net/bridge/bridge-nf-call-iptables", "0")]);
    let found = one("F26", &by("-d 192.0.2.1", "tcp"), off.clone());
    assert_eq!(found.confidence, Confidence::Proved);
    assert!(found.message.starts_with("clients on `docker0` get the answers of"), "{}", found.message);
    none("F26", &nat(DOCKER_NAT), off.clone());
    let with_rule = |rule: &str| by("-d 192.0.2.1", "tcp").replace("COMMIT", &format!("{rule}\nCOMMIT"));
    none("F26", &with_rule("-A POSTROUTING -s 172.17.0.0/16 -d 172.17.0.2/32 -j MASQUERADE"), off.clone());
    let unclear = with_rule("-A POSTROUTING -s 172.17.0.0/16 -m tomorrow -j MASQUERADE");
    assert_eq!(one("F26", &unclear, off).confidence, Confidence::Unknown);
    let mut absent = dual();
    absent.settings.remove("net/bridge/bridge-nf-call-iptables");
    assert_eq!(one("F26", &by("-d 192.0.2.1", "tcp"), absent).confidence, Confidence::Likely);
    let itself = one("F26", &by("-d 192.0.2.1", "tcp"), dual());
    assert_eq!((itself.severity, itself.fix.as_str()), (Severity::Info, "bridge link set dev veth1 hairpin on"));
    assert!(find(&dump(&by("-d 192.0.2.1", "tcp")), "F26").is_empty());
}

#[test]
fn answers_by_another_interface_are_likely_lost() {
    let found = one("F27", &by("-d 203.0.113.1", "tcp"), two_ways(&[]));
    assert_eq!(found.confidence, Confidence::Likely);
    assert!(found.message.ends_with("arrive on `eth1`, and answers leave by `eth0`"), "{}", found.message);
    none("F27", &by("-d 192.0.2.1", "tcp"), two_ways(&[]));
    none("F27", &by("-d 203.0.113.1 -s 203.0.113.0/24", "tcp"), two_ways(&[]));
    none("F27", &by("-i docker0", "tcp"), two_ways(&[]));
    none("F27", &nat(DOCKER_NAT), two_ways(&[]));
    let policy = Facts { policy_routing: true, ..two_ways(&[]) };
    assert_eq!(one("F27", &by("-d 203.0.113.1", "tcp"), policy).confidence, Confidence::Unknown);
    assert!(find(&dump(&by("-d 203.0.113.1", "tcp")), "F27").is_empty());
}

#[test]
fn a_strict_filter_drops_clients_of_another_route() {
    let listen = by("-d 203.0.113.1", "tcp");
    let found = one("F28", &listen, two_ways(&[("net/ipv4/conf/eth1/rp_filter", "1")]));
    assert_eq!((found.severity, found.confidence), (Severity::Error, Confidence::Likely));
    assert_eq!(one("F28", &listen, two_ways(&[("net/ipv4/conf/all/rp_filter", "1")])).kind.id, "F28");
    none("F28", &listen, two_ways(&[("net/ipv4/conf/all/rp_filter", "1"), ("net/ipv4/conf/eth1/rp_filter", "2")]));
    none("F28", &by("-d 192.0.2.1", "tcp"), two_ways(&[("net/ipv4/conf/all/rp_filter", "1")]));
    let mut unknown = two_ways(&[]);
    unknown.settings.retain(|path, _| !path.ends_with("rp_filter"));
    none("F28", &listen, unknown);
}

#[test]
fn a_smaller_egress_mtu_is_unknown() {
    let mut small = dual();
    small.links.iter_mut().filter(|link| link.name == "docker0").for_each(|link| link.mtu = Some(1420));
    let found = one("F42", &nat(DOCKER_NAT), small.clone());
    assert_eq!((found.severity, found.confidence), (Severity::Warning, Confidence::Unknown));
    none("F42", &nat(DOCKER_NAT), dual());
    none("F42", &by("", "udp"), small.clone());
    let clamped = table("mangle", &["FORWARD"], "-A FORWARD -p tcp -j TCPMSS --clamp-mss-to-pmtu");
    none("F42", &format!("{}{clamped}", nat(DOCKER_NAT)), small);
    assert!(find(&dump(&nat(DOCKER_NAT)), "F42").is_empty());
}

#[test]
fn policy_routing_is_one_finding() {
    let policy = || Facts { policy_routing: true, ..dual() };
    assert_eq!(one("F50", &nat(DOCKER_NAT), policy()).confidence, Confidence::Proved);
    none("F50", &nat(DOCKER_NAT), dual());
    none("F50", &nat("-A PREROUTING -p tcp --dport 80 -j REDIRECT"), policy());
    let mut vrf = dual();
    vrf.links.push(link(9, "blue", Some("vrf")));
    assert!(one("F50", &nat(DOCKER_NAT), vrf).evidence[0].contains("`blue`"));
    assert!(find(&dump(&nat(DOCKER_NAT)), "F50").is_empty());
}
