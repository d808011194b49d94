//! Parts that the simulator does not model make a verdict unknown.

use super::*;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::Facts;
use crate::ruleset::host::Host;
use crate::ruleset::hosts::{DOCKER, docker, dual, facts, host, link, table};
use crate::ruleset::read::json;
use crate::ruleset::simulate::{PacketTrace, first};
use crate::ruleset::table::{Gap, Ruleset};

/// Returns the trace of a client's packet to the published port of the Docker host.
fn trace(host: &Host) -> PacketTrace<'_> {
    let (from, to) = (([203, 0, 113, 9].into(), 50_000), ([192, 0, 2, 1].into(), 8080));
    PacketTrace::new(host, first(Some("eth0"), 6, from, to))
}

fn with(change: impl FnOnce(&mut Facts)) -> Host {
    let mut facts = facts();
    change(&mut facts);
    host(DOCKER, facts)
}

#[track_caller]
fn expect(host: &Host, guesses: &[Guess]) {
    let trace = trace(host);
    assert_eq!(trace.guesses, guesses, "{}", trace.render(host));
    let confidence = if guesses.is_empty() { Confidence::Proved } else { Confidence::Unknown };
    assert_eq!(trace.confidence(), confidence, "{}", trace.render(host));
}

fn before(name: &str) -> Guess {
    Guess::SeenBefore(name.into())
}

#[test]
fn a_program_or_a_queue_of_an_interface_makes_a_verdict_unknown() {
    expect(&with(|_| {}), &[]);
    expect(&with(|facts| facts.programs.push("eth0".into())), &[before("eth0")]);
    // XDP does not see packets that leave.
    expect(&with(|facts| facts.programs.push("docker0".into())), &[]);
    expect(&with(|facts| facts.queues.push("docker0".into())), &[before("docker0")]);
    expect(&with(|facts| facts.queues.push("wg0".into())), &[]);
    // A port of the bridge passes the packet, too.
    let mut port = dual();
    port.queues.push("veth1".into());
    expect(&host(DOCKER, port), &[before("docker0")]);
    // The facts do not contain the interface below a VLAN.
    let vlan = |kind: &'static str| {
        with(move |facts| {
            facts.links[1] = link(2, "eth0", Some(kind));
            facts.programs.push("enp3s0".into());
        })
    };
    expect(&vlan("vlan"), &[before("eth0")]);
    expect(&vlan("veth"), &[]);
}

#[test]
fn ipsec_ipvs_and_a_vrf_make_a_verdict_unknown() {
    expect(&with(|facts| facts.ipsec = true), &[Guess::Ipsec]);
    expect(&with(|facts| facts.ipvs = true), &[Guess::Ipvs]);
    let vrf = with(|facts| {
        facts.links.push(link(9, "red", Some("vrf")));
        facts.links[1].master = Some(9);
    });
    expect(&vrf, &[Guess::PolicyRouting]);
}

#[test]
fn what_could_not_be_read_makes_a_verdict_unknown() {
    let gap = |what: &str| Gap { what: what.into(), why: "only root may read it".into() };
    expect(&with(|facts| facts.gaps.push(gap("routes of IPv4"))), &[Guess::Unread("routes of IPv4".into())]);
    let every = "interfaces, addresses, routes and neighbours";
    expect(&with(|facts| facts.gaps.push(gap(every))), &[Guess::Unread(every.into())]);
    for harmless in ["neighbours of IPv4", "sockets that wait", "what nftables.service does at boot, `x`"] {
        expect(&with(|facts| facts.gaps.push(gap(harmless))), &[]);
    }
    let mut unread = with(|_| {});
    unread.rules.gaps.push(gap("the rules of nf_tables"));
    expect(&unread, &[Guess::Unread("the rules of nf_tables".into())]);
}

/// Returns the Docker host with a table of `nft -j` that has one base chain with these rules.
fn with_chain(family: &str, base: &str, rules: &[&str]) -> Host {
    let objects: Vec<String> = std::iter::once(format!(r#"{{"table":{{"family":"{family}","name":"t","handle":1}}}}"#))
        .chain([format!(r#"{{"chain":{{"family":"{family}","table":"t","name":"c","handle":1,{base}}}}}"#)])
        .chain(rules.iter().map(|rule| {
            format!(r#"{{"rule":{{"family":"{family}","table":"t","chain":"c","handle":2,"expr":[{rule}]}}}}"#)
        }))
        .collect();
    let more: Ruleset = json::parse(&format!(r#"{{"nftables":[{}]}}"#, objects.join(","))).expect("a dump");
    assert_eq!(more.gaps, []);
    let mut rules = docker("").rules;
    rules.tables.extend(more.tables);
    Host::new(rules, Some(facts()))
}

const TO_8080: &str =
    r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":8080}},{"drop":null}"#;
const TO_22: &str =
    r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":22}},{"drop":null}"#;

#[test]
fn a_netdev_chain_that_matches_makes_a_verdict_unknown() {
    let ingress =
        |device: &str| format!(r#""type":"filter","hook":"ingress","prio":0,"policy":"accept","dev":"{device}""#);
    expect(&with_chain("netdev", &ingress("eth0"), &[TO_8080]), &[before("eth0")]);
    expect(&with_chain("netdev", &ingress("eth0"), &[TO_22, r#"{"accept":null}"#]), &[]);
    expect(&with_chain("netdev", &ingress("eth1"), &[TO_8080]), &[]);
    let drops = ingress("eth0").replace("\"accept\"", "\"drop\"");
    expect(&with_chain("netdev", &drops, &[]), &[before("eth0")]);
}

#[test]
fn a_bridge_chain_that_matches_makes_a_verdict_unknown() {
    let forward = r#""type":"filter","hook":"output","prio":0,"policy":"accept""#;
    expect(&with_chain("bridge", forward, &[TO_22]), &[]);
    expect(&with_chain("bridge", forward, &[r#"{"drop":null}"#]), &[Guess::Bridge("docker0".into())]);
    let dropping = forward.replace("\"accept\"", "\"drop\"");
    expect(&with_chain("bridge", &dropping, &[]), &[Guess::Bridge("docker0".into())]);
}

#[test]
fn matches_that_a_packet_does_not_contain_make_a_verdict_unknown() {
    for condition in [
        "-m owner --uid-owner 1000",
        "-m cgroup --path system.slice",
        "-m time --timestart 09:00 --timestop 17:00",
        "-m statistic --mode random --probability 0.5",
        "-m limit --limit 10/sec",
        "-m hashlimit --hashlimit-upto 1/sec --hashlimit-name a",
        "-m connlimit --connlimit-above 10",
        "-m recent --name a --update --seconds 60",
        "-m quota --quota 1000",
        "-m policy --dir in --pol ipsec",
        "-m bpf --bytecode \"1,6 0 0 65535\"",
        "-m tomorrow",
    ] {
        let rules = table("mangle", &["FORWARD"], &format!("-A FORWARD -p tcp {condition} -j DROP"));
        let host = docker(&rules);
        let trace = trace(&host);
        assert_eq!((trace.doubts().count(), trace.confidence()), (1, Confidence::Unknown), "{condition}");
        // A rule for another protocol does not match, whatever the condition is.
        let host = docker(&rules.replace("-p tcp", "-p udp"));
        assert!(self::trace(&host).is_sure(), "{condition}");
    }
}
