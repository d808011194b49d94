//! Tests with reachable and unreachable targets.

use super::super::hosts::{DOCKER_NAT, address, dual, dump, find, host, nat, route, table};
use super::*;
use crate::ruleset::facts::Neighbour;

fn to(target: &str) -> String {
    nat(&format!("-A PREROUTING -d 192.0.2.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination {target}"))
}

fn of_dump(id: &str, text: &str) -> Vec<Finding> {
    find(&dump(text), id)
}

#[test]
fn a_target_without_a_route_is_an_error() {
    let mut none = dual();
    none.routes.retain(|route| route.to.prefix() > 0);
    let found = find(&host(&to("10.5.0.1:80"), none.clone()), "F08");
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].message,
        "`192.0.2.1:80/tcp -> 10.5.0.1:80` cannot be reached: this host has no route to 10.5.0.1"
    );
    assert_eq!((found[0].severity, found[0].confidence), (Severity::Error, Confidence::Proved));
    assert!(find(&host(&nat(DOCKER_NAT), none.clone()), "F08").is_empty(), "docker0 exists");
    assert!(of_dump("F08", &to("10.5.0.1:80")).is_empty());
    none.policy_routing = true;
    let doubtful = find(&host(&to("10.5.0.1:80"), none.clone()), "F08");
    assert_eq!(doubtful[0].confidence, Confidence::Likely);
    let unclear = to("10.5.0.1:80").replace("--dport 80", "--dport 80 -m tomorrow");
    none.policy_routing = false;
    assert_eq!(find(&host(&unclear, none), "F08")[0].confidence, Confidence::Likely);
}

#[test]
fn a_private_target_by_the_default_route_is_a_warning() {
    let found = find(&host(&to("10.5.0.1:80"), dual()), "F08");
    assert_eq!((found[0].severity, found[0].confidence), (Severity::Warning, Confidence::Likely));
    assert!(find(&host(&to("203.0.113.9:80"), dual()), "F08").is_empty(), "a public address");
    let mut routed = dual();
    routed.routes.push(route("10.5.0.0/16", 2, Some("192.0.2.254")));
    assert!(find(&host(&to("10.5.0.1:80"), routed), "F08").is_empty(), "a route of its own");
    let mut inside = dual();
    inside.routes.retain(|route| route.to.prefix() > 0 || route.to.is_ipv6());
    inside.routes.push(route("0.0.0.0/0", 2, Some("10.0.0.254")));
    assert!(find(&host(&to("10.5.0.1:80"), inside.clone()), "F08").is_empty(), "the gateway may know the target");
    let other = find(&host(&to("192.168.5.1:80"), inside.clone()), "F08");
    assert_eq!(other[0].confidence, Confidence::Unknown);
    let gone = nat(DOCKER_NAT).replace("172.17.0.2", "10.18.0.2");
    assert_eq!(find(&host(&gone, inside), "F08")[0].confidence, Confidence::Likely, "a container is on a link");
}

#[test]
fn many_targets_without_a_route_are_one_finding() {
    let rules: Vec<String> = (0..20)
        .map(|n| format!("-A PREROUTING -p tcp -m tcp --dport {n} -j DNAT --to-destination 10.5.0.{n}"))
        .collect();
    let mut none = dual();
    none.routes.retain(|route| route.to.prefix() > 0);
    let found = find(&host(&nat(&rules.join("\n")), none), "F08");
    assert_eq!(found.len(), 1);
    assert!(found[0].message.starts_with("20 forwards (`0/tcp -> 10.5.0.0`, "), "{}", found[0].message);
}

#[test]
fn a_failed_neighbour_does_not_answer() {
    let mut failed = dual();
    let neighbour = |text: &str, link, failed| Neighbour { address: address(text), link, failed };
    failed.neighbours = vec![neighbour("172.17.0.2", 3, true), neighbour("192.0.2.254", 2, false)];
    let found = find(&host(&nat(DOCKER_NAT), failed.clone()), "F09");
    assert_eq!(found.len(), 1);
    assert!(found[0].message.ends_with("leads to a host that does not answer: 172.17.0.2 on `docker0`"));
    failed.neighbours = vec![neighbour("172.17.0.2", 2, true), neighbour("172.17.0.2", 3, false)];
    assert!(find(&host(&nat(DOCKER_NAT), failed), "F09").is_empty(), "on another link");
    assert!(of_dump("F09", &nat(DOCKER_NAT)).is_empty());
}

#[test]
fn other_hosts_do_not_reach_ipv4_loopback() {
    let found = find(&host(&to("127.0.0.1:80"), dual()), "F11");
    assert_eq!((found.len(), found[0].confidence), (1, Confidence::Proved));
    assert!(found[0].message.contains("the kernel drops such packets on `eth0`, `docker0`"), "{}", found[0].message);
    let mut on = dual();
    on.settings.insert("net/ipv4/conf/eth0/route_localnet".into(), "1".into());
    let some = find(&host(&to("127.0.0.1:80"), on.clone()), "F11");
    assert_eq!(some[0].severity, Severity::Warning, "docker0 is not on");
    let by_eth0 = to("127.0.0.1:80").replace("-p tcp", "-i eth0 -p tcp");
    assert!(find(&host(&by_eth0, on), "F11").is_empty());
    assert!(find(&host(&nat(DOCKER_NAT), dual()), "F11").is_empty());
    assert_eq!(of_dump("F11", &to("127.0.0.1:80"))[0].confidence, Confidence::Likely);
}

#[test]
fn other_hosts_never_reach_ipv6_loopback() {
    let text = to("[::1]:80").replace("192.0.2.1/32", "2001:db8:1::1/128");
    let found = find(&host(&text, dual()), "F11");
    assert_eq!((found.len(), found[0].confidence), (1, Confidence::Proved));
    let outer = to("[2001:db8:1::1]:80").replace("192.0.2.1/32", "2001:db8:1::1/128");
    assert!(find(&host(&outer, dual()), "F11").is_empty());
}

#[test]
fn missing_interfaces_are_named() {
    let by = |name: &str| to("172.17.0.2:80").replace("-p tcp", &format!("{name} -p tcp"));
    let found = find(&host(&by("-i eth7"), dual()), "F49");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].message, "1 rule waits for `eth7`: no such interface now");
    assert_eq!((found[0].severity, found[0].confidence), (Severity::Info, Confidence::Proved));
    assert!(!found[0].fix.contains(" -D "), "{}", found[0].fix);
    let excepted = find(&host(&by("! -i eth7"), dual()), "F49");
    assert_eq!((excepted[0].severity, excepted[0].confidence), (Severity::Warning, Confidence::Likely));
    for fine in ["-i eth0", "-i eth7+", "! -i docker0", ""] {
        assert!(find(&host(&by(fine), dual()), "F49").is_empty(), "{fine}");
    }
    assert!(of_dump("F49", &by("-i eth7")).is_empty());
    let filter = table("filter", &["FORWARD"], "-A FORWARD -i eth7 -j DROP");
    assert!(find(&host(&filter, dual()), "F49").is_empty(), "a rule without NAT");
}

#[test]
fn zones_without_nat_wait_for_no_interface() {
    // firewalld makes such chains for each interface of a zone.
    let zone = |rule: &str| {
        let rules = format!("-A PREROUTING -j ZONES\n-A ZONES -i ppp0 -g ZONE\n-A ZONE -j ALLOW\n{rule}");
        let chains = ":ZONES - [0:0]\n:ZONE - [0:0]\n:ALLOW - [0:0]\n";
        let text = table("nat", &["PREROUTING"], &rules).replace("-A PREROUTING", &format!("{chains}-A PREROUTING"));
        find(&host(&text, dual()), "F49").iter().map(|finding| finding.message.clone()).collect::<Vec<_>>()
    };
    assert_eq!(zone(""), [""; 0]);
    assert_eq!(zone("-A ALLOW -i ppp0 -j RETURN\n-A ZONE -i ppp1 -j ACCEPT"), [""; 0]);
    let waits = ["1 rule waits for `ppp0`: no such interface now"];
    assert_eq!(zone("-A ALLOW -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2"), waits);
    assert_eq!(zone("-A ZONE -p tcp --dport 80 -j REDIRECT --to-ports 81"), waits);
}
