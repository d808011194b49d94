//! Tests with listening programs, and forwards of their ports.

use super::super::hosts::{DOCKER_NAT, address, dual, dump, find, host, listener, nat, table};
use super::*;
use crate::ruleset::table::Gap;

fn listening(at: &str, port: u16, process: &str) -> Facts {
    Facts { listeners: vec![listener(Protocol::Tcp, at, port, process)], ..dual() }
}

fn takes(port: &str) -> String {
    nat(DOCKER_NAT).replace("--dport 8080", &format!("--dport {port}"))
}

#[test]
fn a_program_behind_a_forward_is_hidden() {
    for at in ["0.0.0.0", "192.0.2.1", "::"] {
        let found = find(&host(&nat(DOCKER_NAT), listening(at, 8080, "nginx")), "F21");
        assert_eq!((found.len(), found[0].confidence), (1, Confidence::Proved), "{at}");
        assert!(found[0].message.starts_with("`8080/tcp -> 172.17.0.2:80` takes packets to `nginx` (1234) at "));
    }
    let only_six = |only_ipv6| {
        let mut facts = listening("::", 8080, "nginx");
        facts.listeners[0].only_ipv6 = only_ipv6;
        find(&host(&nat(DOCKER_NAT), facts), "F21").len()
    };
    assert_eq!((only_six(true), only_six(false)), (0, 1));
    for (at, port, process) in
        [("0.0.0.0", 8081, "nginx"), ("127.0.0.1", 8080, "nginx"), ("0.0.0.0", 8080, "docker-proxy")]
    {
        assert!(find(&host(&nat(DOCKER_NAT), listening(at, port, process)), "F21").is_empty(), "{at} {port}");
    }
    assert!(find(&dump(&nat(DOCKER_NAT)), "F21").is_empty());
}

#[test]
fn a_rule_that_is_not_understood_may_hide_a_program() {
    let unclear = nat(DOCKER_NAT).replace("--dport 8080", "--dport 8080 -m tomorrow");
    let found = find(&host(&unclear, listening("0.0.0.0", 8080, "nginx")), "F21");
    assert_eq!(found[0].confidence, Confidence::Unknown);
    assert!(found[0].message.contains("may take packets to"), "{}", found[0].message);
    let kept = nat(&format!("-A PREROUTING -p tcp --dport 8080 -j ACCEPT\n{DOCKER_NAT}"));
    assert!(find(&host(&kept, listening("0.0.0.0", 8080, "nginx")), "F21").is_empty());
    let of_some = nat(DOCKER_NAT).replace("-p tcp", "-s 10.0.0.0/8 -p tcp");
    let found = find(&host(&of_some, listening("0.0.0.0", 8080, "nginx")), "F21");
    assert_eq!((found[0].severity, found[0].confidence), (Severity::Warning, Confidence::Proved));
}

#[test]
fn a_forward_must_not_take_the_ssh_port() {
    let found = find(&host(&takes("22"), listening("0.0.0.0", 22, "sshd")), "F23");
    assert_eq!((found.len(), found[0].severity, found[0].confidence), (1, Severity::Error, Confidence::Proved));
    assert!(found[0].message.contains("the port of `sshd` (1234) at 0.0.0.0:22/tcp"), "{}", found[0].message);
    assert!(found[0].fix.starts_with("change what docker was asked to publish"), "{}", found[0].fix);
    assert!(find(&host(&takes("22"), listening("0.0.0.0", 22, "sshd")), "F21").is_empty(), "one finding is enough");
    assert!(find(&host(&takes("2222"), listening("0.0.0.0", 22, "sshd")), "F23").is_empty());
    for from in ["198.51.100.9", "::ffff:198.51.100.9", "192.0.2.1"] {
        let on = |port| Facts { ssh: Some((address(from), port)), ..dual() };
        assert_eq!(find(&host(&takes("2200"), on(2200)), "F23").len(), 1, "{from}");
        assert!(find(&host(&takes("2200"), on(22)), "F23").is_empty());
    }
    // Packets from docker0 do not match the rule.
    let of = |client| Facts { ssh: Some((address("192.0.2.1"), 22)), ssh_client: Some(address(client)), ..dual() };
    assert_eq!(find(&host(&takes("22"), of("192.0.2.7")), "F23").len(), 1);
    assert!(find(&host(&takes("22"), of("172.17.0.7")), "F23").is_empty());
    let unclear = takes("22").replace("--dport 22", "--dport 22 -m recent --rcheck");
    let found = find(&host(&unclear, listening("0.0.0.0", 22, "sshd")), "F23");
    assert_eq!(found[0].confidence, Confidence::Unknown);
}

#[test]
fn a_listener_at_the_address_of_another_interface_keeps_its_clients() {
    let on = |interface: &str, port| takes(port).replace("! -i docker0", &format!("-i {interface}"));
    let count = |rules: &str, at: &str, port, process: &str, id: &str| {
        find(&host(rules, listening(at, port, process)), id).len()
    };
    for (port, process, id) in [("22", "sshd", "F23"), ("8080", "nginx", "F21")] {
        let number = port.parse().expect("a port");
        assert_eq!(count(&on("eth0", port), "192.0.2.1", number, process, id), 1);
        assert_eq!(count(&on("eth0", port), "0.0.0.0", number, process, id), 1);
        assert_eq!(count(&on("eth0", port), "172.17.0.1", number, process, id), 0);
    }
}

#[test]
fn a_redirect_without_a_listener_is_found() {
    let to = |target: &str| nat(&format!("-A PREROUTING -p tcp -m tcp --dport 80 -j {target}"));
    let redirect = to("REDIRECT --to-ports 3128");
    let found = find(&host(&redirect, listening("0.0.0.0", 3129, "squid")), "F10");
    assert_eq!((found.len(), found[0].confidence), (1, Confidence::Proved));
    assert_eq!(found[0].message, "`80/tcp -> this host:3128` leads to a port of this host where nothing listens");
    assert!(find(&host(&redirect, listening("0.0.0.0", 3128, "squid")), "F10").is_empty());
    assert_eq!(find(&host(&redirect, listening("127.0.0.1", 3128, "squid")), "F10").len(), 1);
    let dnat = to("DNAT --to-destination 192.0.2.1:3128");
    assert!(find(&host(&dnat, listening("192.0.2.1", 3128, "squid")), "F10").is_empty());
    assert_eq!(find(&host(&dnat, listening("172.17.0.1", 3128, "squid")), "F10").len(), 1);
    assert!(find(&host(&nat(DOCKER_NAT), dual()), "F10").is_empty(), "in a container it is not known");
    let mut unread = dual();
    unread.gaps.push(Gap { what: "sockets".into(), why: "not permitted".into() });
    assert_eq!(find(&host(&redirect, unread), "F10")[0].confidence, Confidence::Unknown);
    assert!(find(&dump(&redirect), "F10").is_empty());
}

#[test]
fn ftp_and_sip_need_a_helper() {
    let found = find(&dump(&takes("21")), "F41");
    assert_eq!((found.len(), found[0].severity, found[0].confidence), (1, Severity::Info, Confidence::Likely));
    assert!(found[0].message.contains("the helper `ftp`"));
    assert!(find(&dump(&nat(DOCKER_NAT)), "F41").is_empty());
    assert!(find(&dump(&takes("1:1024")), "F41").is_empty(), "of a wide range that is no hint");
    let rule = "-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp";
    let given = format!("{}{}", takes("21"), table("raw", &["PREROUTING"], rule));
    assert!(find(&dump(&given), "F41").is_empty());
    let mut automatic = dual();
    automatic.settings.insert("net/netfilter/nf_conntrack_helper".into(), "1".into());
    assert!(find(&host(&takes("21"), automatic), "F41").is_empty());
}
