//! `portfwd explain` on a live host: the answer's path, the verdict line, and what no rule decides.

use std::process::Command;

use crate::support::{Net, PORTFWD, Said, privileged, serve};

fn run(net: &Net, script: &str) {
    let said: Said = net.in_host(|| Command::new("sh").args(["-ec", script]).output().expect("sh").into());
    assert_eq!(said.code, 0, "{script}: {said:?}");
}

/// Returns the text of `explain`, and its JSON.
fn explain(net: &Net, packet: &str) -> (String, serde_json::Value) {
    let text = net.ok(&["explain", packet]).stdout;
    let json = net.ok(&["explain", "--json", packet]).stdout;
    (text, serde_json::from_str(&json).expect("JSON"))
}

#[track_caller]
fn expect_verdict(net: &Net, packet: &str, verdict: &str, confidence: &str) {
    let (text, json) = explain(net, packet);
    assert_eq!(text.lines().last(), Some(verdict), "{text}");
    assert_eq!(json["confidence"], confidence, "{text}");
}

const CLIENT: &str = "tcp 192.0.2.2:5000 -> 192.0.2.1:8080 -i eth0";

/// A forward of port 8080 to the target.
const FORWARD: &str = "add table ip f; add chain ip f c { type nat hook prerouting priority -100; }
    add rule ip f c tcp dport 8080 dnat to 172.17.0.3:80";

#[test]
fn explain_shows_whether_the_answer_arrives() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    run(&net, "echo 1 > /proc/sys/net/ipv4/ip_forward");
    run(&net, &format!("nft '{FORWARD}'"));
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
    let arrives = "the packet is delivered and the answer arrives, if 172.17.0.3 sends it through this host";
    expect_verdict(&net, CLIENT, arrives, "proved");
    let (_, json) = explain(&net, CLIENT);
    assert_eq!((&json["answer"]["arrives"], &json["answer"]["from"]), (&true.into(), &"192.0.2.1:8080".into()));

    run(&net, "iptables-legacy -A FORWARD -s 172.17.0.3 -p tcp -j REJECT --reject-with tcp-reset");
    let (text, json) = explain(&net, CLIENT);
    let lost = "the packet is delivered, but the answer is lost: rejected with tcp reset at forward by iptables-legacy";
    assert!(text.lines().last().is_some_and(|line| line.starts_with(lost)), "{text}");
    assert_eq!((&json["answer"]["arrives"], &json["confidence"]), (&false.into(), &"proved".into()));
    assert_ne!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");

    run(&net, "iptables-legacy -F; iptables-legacy -A FORWARD -p tcp -j REJECT");
    let (text, _) = explain(&net, CLIENT);
    let rejected = "rejected with icmp port unreachable at forward by iptables-legacy filter FORWARD rule 1 (user)";
    assert_eq!(text.lines().last(), Some(rejected), "{text}");

    run(
        &net,
        "iptables-legacy -F; iptables-legacy -A FORWARD -p tcp -m statistic --mode random --probability 0 -j DROP",
    );
    let (text, json) = explain(&net, CLIENT);
    assert!(text.lines().last().is_some_and(|line| line.starts_with("unknown: it is not known what ")), "{text}");
    assert_eq!(json["confidence"], "unknown");
}

#[test]
fn explain_names_the_address_that_a_service_must_listen_on() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.in_host(|| serve("127.0.0.1:7777".parse().expect("address"), false));
    run(
        &net,
        "nft 'add table ip t; add chain ip t c { type nat hook prerouting priority -100; }; add rule ip t c tcp dport 8080 redirect to :7777'",
    );
    assert_eq!(net.tcp("192.0.2.1:8080"), "ConnectionRefused");
    let (text, _) = explain(&net, CLIENT);
    let advice = "listens on 127.0.0.1:7777 only; it must listen on 0.0.0.0 or 192.0.2.1";
    assert!(text.lines().last().is_some_and(|line| line.ends_with(advice)), "{text}");
    net.in_host(|| serve("192.0.2.1:7777".parse().expect("address"), false));
    assert_eq!(net.tcp("192.0.2.1:8080"), "192.0.2.1:7777 saw 192.0.2.2");
    expect_verdict(&net, CLIENT, "the packet is delivered and the answer arrives", "proved");
}

#[test]
fn explain_names_a_transparent_proxy() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    run(
        &net,
        "nft 'add table ip t; add chain ip t c { type filter hook prerouting priority -150; };
            add rule ip t c tcp dport 8080 tproxy to 127.0.0.1:12345 meta mark set 1 accept'",
    );
    let (text, json) = explain(&net, CLIENT);
    assert!(text.contains("prerouting, mangle: tproxy to 127.0.0.1:12345 by ip t c handle"), "{text}");
    let proxied = "otherwise a transparent proxy gets the packet (tproxy to 127.0.0.1:12345)\n";
    assert!(text.ends_with(proxied), "{text}");
    assert_eq!(json["confidence"], "unknown");
    run(
        &net,
        "nft flush ruleset; iptables-legacy -t mangle -A PREROUTING -p tcp --dport 8080 -j TPROXY --on-port 12345 --on-ip 127.0.0.1",
    );
    let (text, _) = explain(&net, CLIENT);
    assert!(text.contains("tproxy to 127.0.0.1:12345 by iptables-legacy mangle PREROUTING rule 1"), "{text}");
}

#[test]
fn a_neighbour_of_the_target_gets_a_masqueraded_source() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    // The bridge of this network has one port. br_netfilter would lose a packet that leaves by its ingress port.
    run(&net, "echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables");
    run(
        &net,
        &format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward
             nft '{FORWARD}; add chain ip f o {{ type nat hook postrouting priority 100; }}
               add rule ip f o iifname docker0 oifname docker0 ct status dnat masquerade'"
        ),
    );
    let (text, json) = explain(&net, "tcp 172.17.0.9:5000 -> 192.0.2.1:8080 -i docker0");
    assert!(text.contains("postrouting, nat: masquerade to 172.17.0.1 by ip f o handle"), "{text}");
    assert_eq!(text.lines().last(), Some("the packet is delivered and the answer arrives"), "{text}");
    assert_eq!(json["from"], "172.17.0.1");
}

#[test]
fn explain_fails_if_no_rule_can_be_read() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let copy = net.state.path().join("portfwd");
    std::fs::copy(PORTFWD, &copy).expect("copied");
    for path in [net.state.path(), &copy] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, open).expect("set");
    }
    let said: Said = net.in_host(|| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(&copy);
        command.args(["explain", CLIENT]).current_dir("/").output().expect("setpriv is installed").into()
    });
    assert_eq!((said.code, said.stdout.as_str()), (5, ""), "{said:?}");
    assert!(said.stderr.contains("not permitted to read"), "{said:?}");
}

#[test]
fn explain_proves_that_the_hairpin_of_an_own_forward_is_masqueraded() {
    if !privileged() {
        return;
    }
    for backend in ["nft", "iptables"] {
        let net = Net::new();
        net.serve("172.17.0.3:80", false);
        net.ok(&["add", "8080", "172.17.0.3:80", "--backend", backend]);
        // The neighbour's packet leaves by the interface that it arrived by. In this network both are behind one port.
        let (text, _) = explain(&net, "tcp 172.17.0.4:5000 -> 192.0.2.1:8080 -i docker0");
        let verdict = "unknown: both hosts may be behind the same port of `docker0`; otherwise the packet is delivered and the answer arrives";
        assert_eq!(text.lines().last(), Some(verdict), "{backend}: {text}");
        assert!(text.contains("masquerade to 172.17.0.1"), "{backend}: {text}");
        let (text, json) = explain(&net, CLIENT);
        assert_eq!(json["confidence"], "proved", "{backend}: {text}");
        assert!(!text.contains("masquerade"), "{backend}: {text}");
        let findings = net.portfwd(&["audit"]).stdout;
        assert!(!findings.contains("F24") && findings.contains("0 errors, 0 warnings"), "{backend}: {findings}");
    }
}
