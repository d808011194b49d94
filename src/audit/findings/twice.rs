//! Tests with a rule that two jumps reach with different packets: the findings name the packets of both paths.

use super::hosts::{confidences, facts, find, host, listener, nat, of_order, table};
use crate::audit::finding::Finding;
use crate::model::Protocol;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Facts, Tracked};

/// Returns rules in which two jumps reach one rule.
fn ways(first: &str, second: &str, target: &str) -> String {
    nat(&format!(
        "-A PREROUTING {first} -j DOCKER\n-A PREROUTING {second} -j DOCKER\n-A DOCKER -m addrtype --dst-type LOCAL {target}"
    ))
}

fn web(second: &str) -> String {
    ways("-p tcp -m tcp --dport 80", second, "-j DNAT --to-destination 172.17.0.2")
}

/// Returns the findings of one kind whose message contains `name`.
fn about(text: &str, facts: Facts, id: &str, name: &str) -> Vec<Finding> {
    let mut found = find(&host(text, facts), id);
    found.retain(|finding| finding.message.contains(name));
    found
}

#[test]
fn one_path_is_enough_to_reach_a_rule() {
    let takes = |port: u16| format!("-A PREROUTING -p tcp -m tcp --dport {port} -j DNAT --to-destination 172.17.0.9\n");
    let ways = web("-p tcp -m tcp --dport 81");
    let before = |rules: &str| {
        host(
            &ways.replace(
                "-A PREROUTING -p tcp -m tcp --dport 80 -j DOCKER",
                &format!("{rules}-A PREROUTING -p tcp -m tcp --dport 80 -j DOCKER"),
            ),
            facts(),
        )
    };
    assert_eq!(of_order(&before("")), [""; 0]);
    assert!(!of_order(&before(&takes(80))).contains(&"F01"));
    assert!(!of_order(&before(&takes(81))).contains(&"F01"));
    let both = before(&(takes(80) + &takes(81)));
    assert_eq!((of_order(&both), confidences(&both, "F01")), (vec!["F01"], vec![Confidence::Proved]));
    let message = &find(&both, "F01")[0].message;
    assert!(message.starts_with("`80/tcp, 81/tcp -> 172.17.0.2` is never reached"), "{message}");
    // One jump has a match that is not understood.
    let unclear = web("-p tcp -m tcp --dport 81 -m tomorrow");
    let unclear = unclear.replace(":DOCKER -", &format!(":DOCKER -\n{}{}", takes(80), takes(81)));
    assert_eq!(confidences(&host(&unclear, facts()), "F01"), [Confidence::Proved]);
}

#[test]
fn a_tie_has_the_confidence_of_the_tied_path() {
    // The first jump has a match that is not understood. The other table matches packets of the second jump.
    let ways =
        ways("-p tcp -m tcp --dport 80 -m tomorrow", "-p tcp -m tcp --dport 81", "-j DNAT --to-destination 172.17.0.2");
    let mut rules = super::hosts::rules(&ways);
    let mut other = super::hosts::rules(&nat(
        "-A PREROUTING -p tcp -m tcp --dport 81 -m addrtype --dst-type LOCAL -j DNAT --to-destination 172.17.0.9",
    ));
    other.tables[0].name = "other".into();
    rules.tables.extend(other.tables);
    for table in &mut rules.tables {
        table.tool = crate::ruleset::table::Tool::Nft;
    }
    let host = crate::ruleset::host::Host::new(rules, Some(facts()));
    assert_eq!(confidences(&host, "F05"), [Confidence::Proved]);
}

#[test]
fn findings_about_sockets_consider_both_paths() {
    let listening =
        |port, program| Facts { listeners: vec![listener(Protocol::Tcp, "0.0.0.0", port, program)], ..facts() };
    let second = web("-p tcp -m tcp --dport 81");
    assert_eq!(about(&second, listening(81, "web"), "F21", "`81/tcp ->").len(), 1);
    assert_eq!(about(&second, listening(80, "web"), "F21", "`80/tcp ->").len(), 1);
    assert!(find(&host(&second, listening(82, "web")), "F21").is_empty());
    assert_eq!(about(&web("-p tcp -m tcp --dport 22"), listening(22, "sshd"), "F23", "`22/tcp ->").len(), 1);
    assert_eq!(about(&web("-p tcp -m tcp --dport 40000"), facts(), "F22", "`40000/tcp ->").len(), 1);
    assert_eq!(about(&web("-p tcp -m tcp --dport 21"), facts(), "F41", "`21/tcp ->").len(), 1);
    let short = super::hosts::with(&[("net/netfilter/nf_conntrack_udp_timeout_stream", "60")]);
    assert_eq!(about(&web("-p udp -m udp --dport 53"), short, "F40", "`53/udp ->").len(), 1);
    let redirect = ways("-p tcp -m tcp --dport 80", "-p tcp -m tcp --dport 81", "-j REDIRECT");
    assert_eq!(about(&redirect, listening(80, "web"), "F10", "`81/tcp ->").len(), 1);
    assert!(about(&redirect, listening(80, "web"), "F10", "80/tcp").is_empty());
}

#[test]
fn findings_about_filters_consider_both_paths() {
    let dropped = |hook: &str, name: &str| {
        let drops = format!("-A {hook} -p tcp -m tcp --dport 81 -j DROP");
        format!("{}{}", web("-p tcp -m tcp --dport 81"), table(name, &[hook], &drops))
    };
    assert_eq!(about(&dropped("FORWARD", "filter"), facts(), "F13", "`81/tcp ->").len(), 1);
    assert!(about(&dropped("FORWARD", "filter"), facts(), "F13", "80/tcp").is_empty());
    assert_eq!(about(&dropped("PREROUTING", "raw"), facts(), "F36", "`81/tcp ->").len(), 1);
}

#[test]
fn findings_about_connections_consider_both_paths() {
    let address = super::hosts::address;
    let tracked = |port| Tracked {
        protocol: 6,
        client: (address("198.51.100.5"), 50_000),
        listen: (address("192.0.2.1"), port),
        target: (address("192.0.2.1"), port),
        status: 0x2,
    };
    let found =
        |port| about(&web("-p tcp -m tcp --dport 81"), Facts { tracked: vec![tracked(port)], ..facts() }, "F38", "");
    assert_eq!([80, 81, 82].map(|port| found(port).len()), [1, 1, 0]);
}
