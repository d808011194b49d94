//! Answers of delivered packets.

use crate::model::{Family, Protocol};
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::Facts;
use crate::ruleset::host::Host;
use crate::ruleset::hosts::{DOCKER, docker, facts, host, link, listener, nat, own, route, table};
use crate::ruleset::region::Packet;
use crate::ruleset::simulate::{AnswerEnd, Journey, Simulator, first};
use crate::sys::rtnetlink::Rule;

fn packet(input: Option<&str>, from: &str, to: &str) -> Packet {
    let of = |text: &str| text.parse::<std::net::SocketAddr>().map(|at| (at.ip(), at.port())).expect("a socket");
    first(input, 6, of(from), of(to))
}

fn client() -> Packet {
    packet(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080")
}

fn told(host: &Host, packet: Packet) -> String {
    let simulator = Simulator::new(host);
    simulator.journey(packet).render(host).to_string()
}

fn verdict(host: &Host, packet: Packet) -> (String, Confidence) {
    let simulator = Simulator::new(host);
    let journey: Journey<'_> = simulator.journey(packet);
    (journey.verdict(host), journey.confidence())
}

/// Returns the Docker host with the uplink `wan1`. The default route leaves by eth0.
fn two_uplinks(settings: &[(&str, &str)]) -> Facts {
    let mut facts = facts();
    facts.links.push(link(5, "wan1", None));
    facts.addresses.push((5, "198.51.100.1/24".parse().expect("a network")));
    facts.routes.extend([own("198.51.100.1/32", 5), route("198.51.100.0/24", 5, None)]);
    let wan1 = ["rp_filter", "route_localnet", "forwarding"].map(|name| format!("net/ipv4/conf/wan1/{name}"));
    facts.settings.extend(wan1.into_iter().zip(["0", "0", "1"].map(str::to_owned)));
    facts.settings.extend(settings.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())));
    facts
}

#[test]
fn an_answer_goes_back_through_all_hooks() {
    expect_test::expect![[r#"
        203.0.113.9:50000 -> 192.0.2.1:8080/tcp arrives by eth0
          prerouting, nat: dnat to 172.17.0.2:80 by ip nat DOCKER line 20 (docker)
          routed out by docker0
          forward, filter: accepted by ip filter DOCKER line 7 (docker)
          postrouting, nat: passes
        leaves by docker0
        answer 172.17.0.2:80 -> 203.0.113.9:50000/tcp arrives by docker0
          routed out by eth0 to 192.0.2.254
          forward, filter: accepted by ip filter FORWARD line 6 (docker)
          postrouting, nat: source back to 192.0.2.1:8080
        leaves by eth0 to 192.0.2.254
        the packet is delivered and the answer arrives, if 172.17.0.2 sends it through this host
    "#]]
    .assert_eq(&told(&docker(""), client()));
}

#[test]
fn a_drop_of_answers_is_found() {
    for (rules, lost) in [
        ("-A FORWARD -s 172.17.0.2 -p tcp --sport 80 -j DROP", true),
        ("-A FORWARD -m conntrack --ctstate ESTABLISHED -j DROP", true),
        ("-A FORWARD -m conntrack --ctstate NEW -o eth0 -j DROP", false),
        ("-A FORWARD -d 172.17.0.2 -p tcp --sport 80 -j DROP", false),
    ] {
        let host = docker(&table("mangle", &["FORWARD"], rules));
        let (text, confidence) = verdict(&host, client());
        assert_eq!(text.contains("but the answer is lost: dropped at forward by ip mangle FORWARD"), lost, "{text}");
        assert_eq!(confidence, Confidence::Proved, "{text}");
    }
    // X1: only the direction to the target is accepted.
    let rules = DOCKER.replace("-A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n", "");
    let (text, _) = verdict(&host(&rules, facts()), client());
    assert!(text.ends_with("but the answer is lost: dropped at forward by ip filter FORWARD policy (user)"), "{text}");
}

#[test]
fn a_doubt_on_the_way_is_in_the_last_line() {
    for rule in ["-A FORWARD -m tomorrow -j DROP", "-A FORWARD -i docker0 -m tomorrow -j DROP"] {
        let host = docker(&table("mangle", &["FORWARD"], rule));
        let text = told(&host, client());
        let last = text.lines().last().expect("a line");
        assert!(last.starts_with("unknown: it is not known what ip mangle FORWARD line"), "{text}");
    }
}

#[test]
fn an_answer_takes_the_route_to_the_client() {
    let forward = nat("-A PREROUTING -i wan1 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80");
    let sent = || packet(Some("wan1"), "203.0.113.9:50000", "198.51.100.1:8080");
    let (text, confidence) = verdict(&host(&forward, two_uplinks(&[])), sent());
    assert!(text.starts_with("the packet is delivered, but the answer leaves by eth0 and not by wan1"), "{text}");
    assert_eq!(confidence, Confidence::Proved);
    let strict = two_uplinks(&[("net/ipv4/conf/wan1/rp_filter", "1")]);
    let (text, _) = verdict(&host(&forward, strict), sent());
    assert_eq!(text, "the packet is lost: packets to its source leave by another interface (rp_filter)");
    // A mark of the connection leads the answer back.
    let marks = table(
        "mangle",
        &["PREROUTING"],
        "-A PREROUTING -i wan1 -j CONNMARK --set-mark 1\n-A PREROUTING -j CONNMARK --restore-mark",
    );
    let mut facts = two_uplinks(&[]);
    let mut back = route("0.0.0.0/0", 5, Some("198.51.100.254"));
    back.table = 7;
    facts.routes.push(back);
    let usual = |priority, table| Rule { priority, table, unconditional: true, ..Rule::default() };
    let marked = Rule { priority: 100, table: 7, mark: Some((1, u32::MAX)), ..Rule::default() };
    *facts.rules_mut(Family::Ipv4) = vec![usual(0, 255), marked, usual(32766, 254), usual(32767, 253)];
    facts.policy_routing = true;
    let (text, confidence) = verdict(&host(&format!("{forward}{marks}"), facts), sent());
    assert_eq!(text, "the packet is delivered and the answer arrives, if 172.17.0.2 sends it through this host");
    assert_eq!(confidence, Confidence::Proved);
}

#[test]
fn a_neighbour_of_the_target_is_answered_directly() {
    let forward = "-A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80";
    let sent = || packet(Some("docker0"), "172.17.0.3:50000", "192.0.2.1:8080");
    let with = |rules: &str, called: &str, hairpin| {
        let mut facts = facts();
        for (index, name) in [(6, "veth1"), (7, "veth2")] {
            let mut port = link(index, name, Some("veth"));
            (port.master, port.hairpin) = (Some(3), Some(hairpin));
            facts.links.push(port);
        }
        facts.settings.insert("net/bridge/bridge-nf-call-iptables".into(), called.into());
        host(&nat(rules), facts)
    };
    for called in ["0", "1"] {
        let (text, confidence) = verdict(&with(forward, called, false), sent());
        assert!(text.ends_with("the sender does not accept that answer"), "{text}");
        assert_eq!(confidence, Confidence::Proved);
        let masquerade = format!("{forward}\n-A POSTROUTING -s 172.17.0.0/16 -d 172.17.0.2 -j MASQUERADE");
        let (text, confidence) = verdict(&with(&masquerade, called, false), sent());
        assert_eq!((text.as_str(), confidence), ("the packet is delivered and the answer arrives", Confidence::Proved));
        // The target asks itself: br_netfilter does not send the packet back by the same port.
        for hairpin in [false, true] {
            let itself = packet(Some("docker0"), "172.17.0.2:50000", "192.0.2.1:8080");
            let (text, _) = verdict(&with(&masquerade, called, hairpin), itself);
            assert_eq!(text.contains("hairpin mode"), called == "1" && !hairpin, "{called} {hairpin}: {text}");
        }
    }
    // Packets between two neighbours are switched; rules see them with br_netfilter only.
    let drops = format!("{}{}", nat(""), table("filter", &["FORWARD"], "-A FORWARD -j DROP"));
    for (called, passes) in [("0", true), ("1", false)] {
        let mut host = with("", called, false);
        host.rules = crate::ruleset::hosts::rules(&drops);
        let (text, _) = verdict(&host, packet(Some("docker0"), "172.17.0.3:50000", "172.17.0.2:80"));
        assert_eq!(text == "the packet is delivered and the receiver answers directly", passes, "{text}");
    }
}

#[test]
fn a_redirect_names_the_address_that_a_service_must_listen_on() {
    let redirect = nat("-A PREROUTING -p tcp --dport 8080 -j REDIRECT --to-ports 7777");
    let with = |addresses: &[&str], redirect: &str| {
        let mut facts = facts();
        facts.listeners = addresses.iter().map(|at| listener(Protocol::Tcp, at, 7777, "app")).collect();
        verdict(&host(redirect, facts), client()).0
    };
    assert_eq!(
        with(&["127.0.0.1"], &redirect),
        "nothing accepts it: app listens on 127.0.0.1:7777 only; it must listen on 0.0.0.0 or 192.0.2.1"
    );
    assert_eq!(
        with(&["127.0.0.1", "172.17.0.1"], &redirect),
        "nothing accepts it: app listens on 127.0.0.1:7777, 172.17.0.1:7777 only; it must listen on 0.0.0.0 or 192.0.2.1"
    );
    assert_eq!(with(&[], &redirect), "nothing listens on port 7777 of this host");
    let dnat = nat("-A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.1:7777");
    assert!(with(&["192.0.2.1"], &dnat).ends_with("it must listen on 0.0.0.0 or 172.17.0.1"));
    for at in ["0.0.0.0", "::", "192.0.2.1"] {
        assert_eq!(with(&[at], &redirect), "the packet is delivered and the answer arrives", "{at}");
    }
}

#[test]
fn the_answer_of_a_connection_that_is_not_tracked_is_unknown() {
    let raw = "-A PREROUTING -p tcp --dport 443 -j CT --notrack";
    let host = docker(&table("raw", &["PREROUTING"], raw));
    let simulator = Simulator::new(&host);
    let journey = simulator.journey(packet(Some("docker0"), "172.17.0.2:50000", "203.0.113.9:443"));
    assert_eq!(journey.answer.expect("an answer").end, AnswerEnd::Unknown);
}
