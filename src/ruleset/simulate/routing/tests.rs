//! Routing by rules, source checks and marks.

use crate::model::Family;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::Facts;
use crate::ruleset::host::Host;
use crate::ruleset::hosts::{DOCKER, dual, facts, host, link, own, route, table};
use crate::ruleset::region::Packet;
use crate::ruleset::simulate::{End, Guess, PacketTrace, Refusal, first};
use crate::sys::rtnetlink::{Effect, Rule};

fn usual(priority: u32, table: u32) -> Rule {
    Rule { priority, table, unconditional: true, ..Rule::default() }
}

/// Returns the Docker host with a second uplink `wan1`, whose default route is in table 7.
fn two_uplinks(rules: &[Rule]) -> Facts {
    let mut facts = facts();
    facts.links.push(link(5, "wan1", None));
    facts.addresses.push((5, "198.51.100.1/24".parse().expect("a network")));
    facts.routes.extend([own("198.51.100.1/32", 5), route("198.51.100.0/24", 5, None)]);
    let mut other = route("0.0.0.0/0", 5, Some("198.51.100.254"));
    other.table = 7;
    facts.routes.push(other);
    *facts.rules_mut(Family::Ipv4) = [&[usual(0, 255)], rules, &[usual(32766, 254), usual(32767, 253)]].concat();
    facts.rules_mut(Family::Ipv4).sort_by_key(|rule| rule.priority);
    facts.policy_routing = !rules.is_empty();
    facts
}

fn packet(input: Option<&str>, from: &str, to: &str) -> Packet {
    let of = |text: &str| text.parse::<std::net::SocketAddr>().map(|at| (at.ip(), at.port())).expect("a socket");
    first(input, 6, of(from), of(to))
}

#[track_caller]
fn end(host: &Host, packet: Packet) -> String {
    let trace = PacketTrace::new(host, packet);
    assert_eq!(trace.confidence(), Confidence::Proved, "{}", trace.render(host));
    trace.end.render(host)
}

fn rule(priority: u32) -> Rule {
    Rule { priority, table: 7, ..Rule::default() }
}

#[test]
fn rules_choose_the_table() {
    let network = |text: &str| Some(text.parse().expect("a network"));
    let (usual, other) = ("leaves by eth0 to 192.0.2.254", "leaves by wan1 to 198.51.100.254");
    for (name, rule, end_of_packet) in [
        ("no match", Rule { from: network("10.0.0.0/8"), ..rule(100) }, usual),
        ("source", Rule { from: network("172.17.0.0/16"), ..rule(100) }, other),
        ("not the source", Rule { from: network("10.0.0.0/8"), inverted: true, ..rule(100) }, other),
        ("destination", Rule { to: network("203.0.113.0/24"), ..rule(100) }, other),
        ("ingress interface", Rule { input: Some("docker0".into()), ..rule(100) }, other),
        ("another ingress interface", Rule { input: Some("lo".into()), ..rule(100) }, usual),
        ("an interface that does not exist", Rule { input: Some("gone".into()), ..rule(100) }, usual),
        ("a bound socket", Rule { output: Some("eth0".into()), ..rule(100) }, usual),
        ("mark", Rule { mark: Some((1, 1)), ..rule(100) }, usual),
        ("no mark", Rule { mark: Some((0, 1)), ..rule(100) }, other),
        ("protocol", Rule { protocol: Some(6), ..rule(100) }, other),
        ("another protocol", Rule { protocol: Some(17), ..rule(100) }, usual),
        ("port", Rule { ports: Some((443, 443)), ..rule(100) }, other),
        ("source port", Rule { source_ports: Some((1, 1024)), ..rule(100) }, usual),
        ("after the main table", rule(40000), usual),
        ("a suppressed default route", Rule { suppress: Some(0), ..rule(100) }, usual),
        ("refused", Rule { effect: Effect::Refuse, ..rule(100) }, "goes nowhere: no route leads there"),
        ("nothing", Rule { effect: Effect::Continue, ..rule(100) }, usual),
        ("a VRF", Rule { vrf: true, ..rule(100) }, usual),
    ] {
        let host = host(&table("filter", &["FORWARD"], ""), two_uplinks(&[rule]));
        let sent = packet(Some("docker0"), "172.17.0.2:50000", "203.0.113.9:443");
        assert_eq!(end(&host, sent), end_of_packet, "{name}");
    }
    // A jump skips the rules between.
    let refuse = Rule { effect: Effect::Refuse, ..rule(200) };
    let jump = Rule { effect: Effect::Goto(300), ..rule(100) };
    let host = host(&table("filter", &["FORWARD"], ""), two_uplinks(&[jump, refuse, rule(300)]));
    assert_eq!(end(&host, packet(Some("docker0"), "172.17.0.2:50000", "203.0.113.9:443")), other);
}

#[test]
fn a_rule_that_is_not_understood_makes_a_verdict_unknown() {
    let unknown = Rule { unknown: true, ..rule(100) };
    let not_matching = Rule { protocol: Some(17), ..unknown.clone() };
    for (rule, guesses) in [(unknown, &[Guess::PolicyRouting][..]), (not_matching, &[])] {
        let host = host(DOCKER, two_uplinks(&[rule]));
        let trace = PacketTrace::new(&host, packet(Some("docker0"), "172.17.0.2:50000", "203.0.113.9:443"));
        assert_eq!(trace.guesses, guesses);
    }
    let mut special = facts();
    special.special_routes = true;
    let host = host(DOCKER, special);
    let trace = PacketTrace::new(&host, packet(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080"));
    assert_eq!(trace.confidence(), Confidence::Unknown);
}

#[test]
fn a_mark_at_output_routes_again_only_in_a_chain_of_type_route() {
    let marked = Rule { mark: Some((1, u32::MAX)), ..rule(100) };
    for (name, end_of_packet) in
        [("mangle", "leaves by wan1 to 198.51.100.254"), ("filter", "leaves by eth0 to 192.0.2.254")]
    {
        let rules = table(name, &["OUTPUT"], "-A OUTPUT -p tcp -j MARK --set-mark 1");
        let host = host(&rules, two_uplinks(std::slice::from_ref(&marked)));
        assert_eq!(end(&host, packet(None, "192.0.2.1:50000", "203.0.113.9:443")), end_of_packet, "{name}");
    }
    // At prerouting every chain comes before routing.
    let rules = table("mangle", &["PREROUTING"], "-A PREROUTING -s 172.17.0.0/16 -j MARK --set-mark 1");
    let host = host(&rules, two_uplinks(&[marked]));
    let sent = packet(Some("docker0"), "172.17.0.2:50000", "203.0.113.9:443");
    assert_eq!(end(&host, sent), "leaves by wan1 to 198.51.100.254");
}

#[test]
fn the_reverse_path_filter_is_the_larger_of_both_settings() {
    let filtered = |all: &str, here: &str, rules: &[Rule]| {
        let mut facts = two_uplinks(rules);
        facts.settings.insert("net/ipv4/conf/all/rp_filter".into(), all.into());
        facts.settings.insert("net/ipv4/conf/wan1/rp_filter".into(), here.into());
        let host = host(DOCKER, facts);
        let trace = PacketTrace::new(&host, packet(Some("wan1"), "203.0.113.9:50000", "198.51.100.1:8080"));
        assert_eq!(trace.confidence(), Confidence::Proved, "{}", trace.render(&host));
        trace.end == End::Refused(Refusal::ReversePath)
    };
    for (all, here, refused) in
        [("0", "0", false), ("0", "1", true), ("1", "0", true), ("1", "2", false), ("2", "1", false), ("0", "2", false)]
    {
        assert_eq!(filtered(all, here, &[]), refused, "all {all}, interface {here}");
    }
    // The kernel looks the source up with the egress interface of the packet as ingress interface.
    let back = Rule { input: Some("docker0".into()), ..rule(100) };
    assert!(!filtered("0", "1", &[back]));
    // A loose filter needs a route.
    let mut nowhere = facts();
    nowhere.routes.retain(|route| route.to.prefix() > 0);
    nowhere.settings.insert("net/ipv4/conf/eth0/rp_filter".into(), "2".into());
    let host = host(DOCKER, nowhere);
    let trace = PacketTrace::new(&host, packet(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080"));
    assert_eq!(trace.end, End::Refused(Refusal::ReversePath));
}

#[test]
fn a_source_that_no_other_host_has_is_refused() {
    for (source, refused) in
        [("192.0.2.1:1", true), ("127.0.0.1:1", true), ("0.0.0.0:1", true), ("224.0.0.1:1", true), ("9.9.9.9:1", false)]
    {
        let host = host(DOCKER, facts());
        let trace = PacketTrace::new(&host, packet(Some("eth0"), source, "192.0.2.1:8080"));
        assert_eq!(trace.end == End::Refused(Refusal::Martian), refused, "{source}");
    }
    let mut accepting = facts();
    accepting.settings.insert("net/ipv4/conf/eth0/accept_local".into(), "1".into());
    let host = host(DOCKER, accepting);
    let trace = PacketTrace::new(&host, packet(Some("eth0"), "192.0.2.1:1", "192.0.2.1:8080"));
    assert!(trace.end.is_delivery());
}

#[test]
fn ipv6_is_forwarded_by_the_setting_of_all_interfaces() {
    for (all, here, passes) in [("1", "0", true), ("0", "1", false)] {
        let mut facts = dual();
        facts.settings.insert("net/ipv6/conf/all/forwarding".into(), all.into());
        facts.settings.insert("net/ipv6/conf/docker0/forwarding".into(), here.into());
        let host = host(DOCKER, facts);
        let sent = packet(Some("docker0"), "[2001:db8:9::1]:1", "[2001:db8:8::1]:80");
        let end = PacketTrace::new(&host, sent).end;
        assert_eq!(end.is_delivery(), passes, "{end:?}");
    }
}

#[test]
fn a_local_route_of_another_table_makes_no_address_local() {
    let mut facts = facts();
    let mut proxy = own("0.0.0.0/0", 1);
    proxy.table = 100;
    facts.routes.push(proxy);
    let host = host(DOCKER, facts);
    assert_eq!(
        end(&host, packet(Some("docker0"), "172.17.0.2:50000", "203.0.113.9:443")),
        "leaves by eth0 to 192.0.2.254"
    );
}
