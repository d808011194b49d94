//! Packets on their way through hosts.

use super::*;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::host::Host;
use crate::ruleset::hosts::{DOCKER, docker, dump, facts, host};
use crate::ruleset::region::{DST_NAT, DST_NAT_DONE, LOCAL, State};
use crate::ruleset::set::name_of;
use crate::ruleset::table::Hook;

fn tcp(input: Option<&str>, from: &str, to: &str) -> Packet {
    let of = |text: &str| {
        let socket: std::net::SocketAddr = text.parse().expect("address and port");
        (socket.ip(), socket.port())
    };
    first(input, 6, of(from), of(to))
}

fn told(host: &Host, packet: Packet) -> String {
    PacketTrace::new(host, packet).render(host).to_string()
}

#[test]
fn a_client_outside_comes_to_the_container() {
    let host = docker("");
    let trace = PacketTrace::new(&host, tcp(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080"));
    expect_test::expect![[r#"
        203.0.113.9:50000 -> 192.0.2.1:8080/tcp arrives by eth0
          prerouting, nat: dnat to 172.17.0.2:80 by ip nat DOCKER line 20 (docker)
          routed out by docker0
          forward, filter: accepted by ip filter DOCKER line 7 (docker)
          postrouting, nat: passes
        leaves by docker0
    "#]]
    .assert_eq(&trace.render(&host).to_string());
    assert!(trace.is_sure());
    assert_eq!(trace.confidence(), Confidence::Proved);
    let seen = [Field::OriginalPort, Field::Port, Field::Status, Field::DestinationKind];
    assert_eq!(seen.map(|field| trace.packet.get(field)), [8080, 80, DST_NAT | DST_NAT_DONE, UNICAST].map(Some));
    assert_eq!(trace.packet.get(Field::Output).map(name_of).as_deref(), Some("docker0"));
    assert_eq!(trace.start.get(Field::DestinationKind), Some(LOCAL));
    assert!(trace.forwarded_by().is_some() && trace.masqueraded_by().is_none());
}

#[test]
fn a_container_asks_its_own_host() {
    // Docker leaves it to docker-proxy, which listens here.
    let trace = told(&docker(""), tcp(Some("docker0"), "172.17.0.3:50000", "192.0.2.1:8080"));
    expect_test::expect![[r#"
        172.17.0.3:50000 -> 192.0.2.1:8080/tcp arrives by docker0
          prerouting, nat: passes
          routed to this host
          input, nat: passes
        arrives at this host
    "#]]
    .assert_eq(&trace);
    let out = told(&docker(""), tcp(Some("docker0"), "172.17.0.2:50000", "203.0.113.9:443"));
    expect_test::expect![[r#"
        172.17.0.2:50000 -> 203.0.113.9:443/tcp arrives by docker0
          prerouting, nat: passes
          routed out by eth0 to 192.0.2.254
          forward, filter: accepted by ip filter FORWARD line 6 (docker)
          postrouting, nat: masquerade to 192.0.2.1 by ip nat POSTROUTING line 17 (docker)
        leaves by eth0 to 192.0.2.254
    "#]]
    .assert_eq(&out);
}

#[test]
fn what_this_host_sends_is_routed_again() {
    let trace = told(&docker(""), tcp(None, "192.0.2.1:50000", "192.0.2.1:8080"));
    expect_test::expect![[r#"
        192.0.2.1:50000 -> 192.0.2.1:8080/tcp is sent
          routed to this host
          output, nat: dnat to 172.17.0.2:80 by ip nat DOCKER line 20 (docker)
          routed out by docker0
          postrouting, nat: passes
        leaves by docker0
    "#]]
    .assert_eq(&trace);
    let input = "*filter\n:INPUT ACCEPT\n-A INPUT -i lo -p tcp --dport 22 -j DROP\nCOMMIT\n";
    let here = host(input, facts());
    let trace = PacketTrace::new(&here, tcp(None, "127.0.0.1:50000", "127.0.0.1:22"));
    assert!(matches!(trace.end, End::Dropped(Hook::Input, Part::Filter, ..)), "{}", trace.render(&here));
}

#[test]
fn a_policy_drops_it() {
    let rules = DOCKER.replace("--dport 80 -j ACCEPT", "--dport 81 -j ACCEPT");
    let host = host(&rules, facts());
    let trace = PacketTrace::new(&host, tcp(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080"));
    let End::Dropped(Hook::Forward, Part::Filter, at, _) = trace.end else { panic!("{}", trace.render(&host)) };
    assert_eq!(host.place(at).to_string(), "ip filter FORWARD policy (user)");
    assert!(trace.is_sure());
}

#[test]
fn raw_drops_what_never_comes_to_nat() {
    let raw = "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -i eth0 -p tcp --dport 8080 -j DROP\nCOMMIT\n";
    let host = docker(raw);
    let trace = PacketTrace::new(&host, tcp(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080"));
    assert!(matches!(trace.end, End::Dropped(Hook::Prerouting, Part::Raw, ..)));
    assert!(trace.forwarded_by().is_none());
}

#[test]
fn chains_before_tracking_see_no_state() {
    for (state, drops) in [("NEW", false), ("INVALID", true)] {
        let rule = format!("*raw\n:PREROUTING ACCEPT\n-A PREROUTING -m conntrack --ctstate {state} -j DROP\nCOMMIT\n");
        let host = docker(&rule);
        let trace = PacketTrace::new(&host, tcp(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080"));
        assert_eq!(matches!(trace.end, End::Dropped(..)), drops, "{state}");
        assert!(drops || trace.packet.get(Field::State) == Some(State::New.number()));
    }
}

#[test]
fn what_is_not_followed_is_not_translated() {
    let raw = "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -p tcp --dport 8080 -j CT --notrack\nCOMMIT\n";
    let trace = told(&docker(raw), tcp(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080"));
    assert!(trace.contains("not followed by ip raw PREROUTING") && trace.ends_with("arrives at this host\n"));
}

#[test]
fn a_match_that_is_not_understood_is_a_doubt() {
    let rules =
        DOCKER.replace(":DOCKER - [0:0]\n-A FORWARD", ":DOCKER - [0:0]\n-A FORWARD -m tomorrow -j DROP\n-A FORWARD");
    let host = host(&rules, facts());
    let trace = PacketTrace::new(&host, tcp(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080"));
    assert!(matches!(trace.end, End::Leaves(Some(_), None)));
    assert_eq!((trace.doubts().count(), trace.confidence()), (1, Confidence::Unknown));
    assert!(trace.render(&host).to_string().contains("not sure what it does: ip filter FORWARD line 4 (user)"));
}

#[test]
fn a_dump_leaves_open_where_it_goes() {
    let host = dump(DOCKER);
    let packet = tcp(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080").with(Field::DestinationKind, LOCAL);
    let trace = PacketTrace::new(&host, packet);
    assert_eq!(trace.guesses, [Guess::NoFacts]);
    assert!(trace.forwarded_by().is_some() && !trace.is_sure(), "{}", trace.render(&host));
}

#[test]
fn routing_has_a_say() {
    let to_loopback =
        "*nat\n:PREROUTING ACCEPT\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 127.0.0.1\nCOMMIT\n";
    let come = || tcp(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:80");
    let with = |path: &str, value: &str| {
        let mut facts = facts();
        facts.settings.insert(path.into(), value.into());
        facts
    };
    for (facts, end) in [
        (facts(), End::Refused(Refusal::Loopback)),
        (with("net/ipv4/conf/eth0/route_localnet", "1"), End::Arrives),
        (with("net/ipv4/conf/all/route_localnet", "1"), End::Arrives),
    ] {
        assert_eq!(PacketTrace::new(&host(to_loopback, facts), come()).end, end);
    }
    let off = host(DOCKER, with("net/ipv4/conf/eth0/forwarding", "0"));
    let trace = PacketTrace::new(&off, tcp(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080"));
    assert_eq!(trace.end, End::Refused(Refusal::NotForwarding));
    let nowhere = host("*nat\n:PREROUTING ACCEPT\n-A PREROUTING -j REDIRECT --to-ports 81\nCOMMIT\n", facts());
    let trace = PacketTrace::new(&nowhere, come());
    assert_eq!((trace.end, trace.packet.get(Field::Port)), (End::Arrives, Some(81)));
}

#[test]
fn a_program_that_sees_it_before_is_named() {
    let mut facts = facts();
    facts.programs.push("eth0".into());
    let host = host(DOCKER, facts);
    let trace = PacketTrace::new(&host, tcp(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080"));
    assert_eq!(trace.guesses, [Guess::SeenBefore("eth0".into())]);
    assert_eq!(trace.confidence(), Confidence::Unknown);
}

#[test]
fn who_asks_only_whether_it_gets_through_is_not_told_of_sources() {
    let doubtful = DOCKER.replace("-A POSTROUTING -s", "-A POSTROUTING -m tomorrow -s");
    let host = host(&doubtful, facts());
    let simulator = Simulator::new(&host);
    let packet = || tcp(Some("docker0"), "172.17.0.2:50000", "203.0.113.9:443");
    assert!(!simulator.simulate(packet()).is_sure() && simulator.simulate_passage(packet()).is_sure());
    assert_eq!(simulator.simulate(packet()).end, simulator.simulate_passage(packet()).end);
}

#[test]
fn a_transparent_proxy_is_named() {
    let rule = "-A PREROUTING -p tcp --dport 8080 -j TPROXY --on-port 12345 --on-ip 127.0.0.1 --tproxy-mark 0x1/0x1";
    let host = docker(&crate::ruleset::hosts::table("mangle", &["PREROUTING"], rule));
    let trace = PacketTrace::new(&host, tcp(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080"));
    let text = trace.render(&host).to_string();
    assert!(text.contains("prerouting, mangle: tproxy to 127.0.0.1:12345 by ip mangle PREROUTING line"), "{text}");
    assert_eq!(trace.confidence(), Confidence::Unknown);
}

#[test]
fn a_rejected_packet_is_not_called_dropped() {
    let rule = "-A FORWARD -p tcp -j REJECT --reject-with tcp-reset";
    let text = told(
        &docker(&crate::ruleset::hosts::table("mangle", &["FORWARD"], rule)),
        tcp(Some("eth0"), "203.0.113.9:50000", "192.0.2.1:8080"),
    );
    assert!(
        text.contains("rejected with tcp reset at forward by ip mangle FORWARD") && !text.contains("dropped"),
        "{text}"
    );
}
