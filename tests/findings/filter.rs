//! Findings about filters, sources, neighbours and packets that bypass a forward.

use std::process::Command;

use portfwd::lab::{Links, Netns};

use super::{
    Fault, apply_fix, check_all, expect_fault, expect_finding, expect_no_fault, expect_none, expect_timeout,
    findings_of, reset_and_run, run,
};
use crate::support::{Net, Said, ask, privileged, serve};

const ANSWER: &str = "172.17.0.3:80 saw 192.0.2.2";

fn net() -> Net {
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    net
}

#[test]
fn finds_dropped_packets() {
    if !privileged() {
        return;
    }
    let net = net();
    let dropped = Fault {
        id: "F13",
        fault_script: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt filter ':FORWARD DROP
            -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT'",
        found: ["proved", "error", "ip t pre handle"],
        near_miss_script: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt filter ':FORWARD DROP
            -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            -A FORWARD -d 172.17.0.3 -p tcp --dport 80 -j ACCEPT'",
    };
    let finding = expect_fault(&net, &dropped);
    expect_timeout(&net.client, "192.0.2.1:8080");
    apply_fix(&net, &finding);
    expect_none(&net, "F13");
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
    expect_no_fault(&net, &dropped);
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
    // A packet passes only if every table accepts it.
    reset_and_run(
        &net,
        "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt filter '-A FORWARD -d 172.17.0.3 -p tcp --dport 80 -j ACCEPT'
            filter forward 'ct state established accept; iifname eth0 drop'",
    );
    // The rule does not drop packets from the bridge, so the finding is only a warning.
    let finding = expect_finding(&net, "F13", ["proved", "warning", "ip t pre handle"]);
    expect_timeout(&net.client, "192.0.2.1:8080");
    apply_fix(&net, &finding);
    expect_none(&net, "F13");
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);

    // Redirected packets pass hook input and not hook forward. IPv6 packets pass IPv6 filters.
    net.in_host(|| serve("192.0.2.1:8082".parse().expect("address"), false));
    reset_and_run(
        &net,
        "nat 'fib daddr type local tcp dport 8080 redirect to :8082'
            xt filter ':INPUT DROP
            -A INPUT -p tcp --dport 8080 -j ACCEPT'",
    );
    let finding = expect_finding(&net, "F13", ["proved", "error", "ip t pre handle"]);
    expect_timeout(&net.client, "192.0.2.1:8080");
    apply_fix(&net, &finding);
    expect_none(&net, "F13");
    assert_eq!(net.tcp("192.0.2.1:8080"), "192.0.2.1:8082 saw 192.0.2.2");
    net.serve("[fd00:17::3]:80", false);
    reset_and_run(
        &net,
        "nat6 'fib daddr type local tcp dport 8080 dnat to [fd00:17::3]:80'
            xt6 filter ':FORWARD DROP
            -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT'",
    );
    let finding = expect_finding(&net, "F13", ["proved", "error", "ip6 t pre handle"]);
    expect_timeout(&net.client, "[2001:db8::1]:8080");
    apply_fix(&net, &finding);
    expect_none(&net, "F13");
    assert_eq!(net.tcp("[2001:db8::1]:8080"), "[fd00:17::3]:80 saw 2001:db8::2");

    let before = Fault {
        id: "F36",
        fault_script: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt raw '-A PREROUTING -p tcp --dport 8000:8100 -j DROP'",
        found: ["proved", "error", "ip t pre handle"],
        near_miss_script: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt raw '-A PREROUTING -p tcp --dport 80 -j DROP'",
    };
    expect_fault(&net, &before);
    expect_timeout(&net.client, "192.0.2.1:8080");
    expect_none(&net, "F13");
    expect_no_fault(&net, &before);
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);

    reset_and_run(
        &net,
        "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            nft 'table netdev n { chain c { type filter hook ingress device eth0 priority 0; tcp dport 8080 drop; }; }'",
    );
    expect_finding(&net, "F36", ["likely", "error", "ip t pre handle"]);
    expect_timeout(&net.client, "192.0.2.1:8080");

    let untracked = Fault {
        id: "F35",
        fault_script: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt raw '-A PREROUTING -i eth0 -p tcp --dport 8080 -j NOTRACK'",
        found: ["proved", "error", "ip t pre handle"],
        near_miss_script: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt raw '-A PREROUTING -i eth0 -p udp --dport 8080 -j NOTRACK'",
    };
    expect_fault(&net, &untracked);
    assert_eq!(net.tcp("192.0.2.1:8080"), "ConnectionRefused");
    expect_no_fault(&net, &untracked);
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
}

#[test]
fn finds_faults_of_accept_rules() {
    if !privileged() {
        return;
    }
    let net = net();
    let blanket = Fault {
        id: "F14",
        fault_script: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority filter + 10; policy drop;
                ct state { established, related } accept; ct status dnat accept; }; }'",
        found: ["proved", "warning", "ip t pre handle"],
        near_miss_script: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority filter + 10; policy drop;
                ct state { established, related } accept; ip daddr 172.17.0.3 tcp dport 80 accept; ct status dnat accept; }; }'",
    };
    expect_fault(&net, &blanket);
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
    // Without firewalld's accept rule, the filter drops the packets.
    run(
        &net,
        "nft flush chain inet firewalld filter_FORWARD
            nft add rule inet firewalld filter_FORWARD 'ct state { established, related } accept'",
    );
    expect_finding(&net, "F13", ["proved", "error", "ip t pre handle"]);
    expect_timeout(&net.client, "192.0.2.1:8080");
    expect_no_fault(&net, &blanket);

    let past = Fault {
        id: "F19",
        fault_script: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            filter input 'iifname eth0 tcp dport 8080 drop'",
        found: ["proved", "error", "ip t pre handle"],
        near_miss_script: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            filter input 'iifname eth0 tcp dport 8081 drop'",
    };
    expect_fault(&net, &past);
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
    expect_no_fault(&net, &past);

    // This rule compares the whole conntrack status at once. `nft -o` can produce such a rule.
    let status = |value: &str| {
        format!(
            "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
             filter forward 'ct state established accept; ct status {value} accept; drop'"
        )
    };
    reset_and_run(&net, &status("{ dnat, snat }"));
    expect_finding(&net, "F34", ["proved", "warning", "inet f forward handle"]);
    expect_timeout(&net.client, "192.0.2.1:8080");
    expect_finding(&net, "F13", ["proved", "error", "ip t pre handle"]);
    reset_and_run(&net, &status("dnat"));
    expect_none(&net, "F34");
    expect_none(&net, "F13");
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
}

#[test]
fn finds_packets_that_bypass_a_forward() {
    if !privileged() {
        return;
    }
    let net = net();
    let direct = Fault {
        id: "F17",
        fault_script: "nat 'fib daddr type local ip saddr 198.51.100.0/24 tcp dport 8080 dnat to 172.17.0.3:80'",
        found: ["proved", "warning", "ip t pre handle"],
        near_miss_script: "nat 'fib daddr type local ip saddr 198.51.100.0/24 tcp dport 8080 dnat to 172.17.0.3:80'
            xt raw '-A PREROUTING -d 172.17.0.3 ! -i docker0 -j DROP'",
    };
    let finding = expect_fault(&net, &direct);
    assert_ne!(net.tcp("192.0.2.1:8080"), ANSWER);
    assert_eq!(net.tcp("172.17.0.3:80"), ANSWER);
    apply_fix(&net, &finding);
    expect_none(&net, "F17");
    expect_timeout(&net.client, "172.17.0.3:80");
    expect_no_fault(&net, &direct);

    // This client has no loopback address. The client routes packets for 127.0.0.1 to the host.
    let in_client = "ip addr del 127.0.0.1/8 dev lo; echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
        ip route add 127.0.0.1/32 via 192.0.2.1 src 192.0.2.2";
    let said: Said =
        net.client.run(|| Command::new("sh").args(["-ec", in_client]).output().expect("sh").into()).expect("there");
    assert_eq!(said.code, 0, "{said:?}");
    reset_and_run(&net, "nat 'ip daddr 127.0.0.1 tcp dport 8080 dnat to 172.17.0.3:80'");
    let found = findings_of(&net, "F15");
    // `audit` reports one finding for each possible ingress interface.
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found.iter().all(|finding| finding["severity"] == "error"), "{found:#?}");
    assert_eq!(net.tcp("127.0.0.1:8080"), ANSWER);
    apply_fix(&net, &found[0]);
    expect_none(&net, "F15");
    expect_timeout(&net.client, "127.0.0.1:8080");
    reset_and_run(&net, "nat 'iifname lo ip daddr 127.0.0.1 tcp dport 8080 dnat to 172.17.0.3:80'");
    expect_none(&net, "F15");
    // The listener on 127.0.0.1 is meant for clients on this host only.
    net.in_host(|| serve("127.0.0.1:8082".parse().expect("address"), false));
    expect_timeout(&net.client, "127.0.0.1:8082");
    reset_and_run(&net, "sys ipv4/conf/eth0/route_localnet 1");
    let finding = expect_finding(&net, "F16", ["proved", "error", ""]);
    assert_eq!(net.tcp("127.0.0.1:8082"), "127.0.0.1:8082 saw 192.0.2.2");
    let fix = finding["fix"].as_str().expect("a fix");
    run(&net, fix.split(';').next().unwrap_or(fix));
    expect_none(&net, "F16");
    expect_timeout(&net.client, "127.0.0.1:8082");

    // The bridge has one port. With br_netfilter, a bridge sends no packet back by its ingress port.
    check_all(
        &net,
        &[Fault {
            id: "F25",
            fault_script: "sys bridge/bridge-nf-call-iptables 0
                nat 'iifname eth0 ip saddr 198.51.100.0/24 tcp dport 80 dnat to 172.17.0.3;
                    iifname docker0 ip daddr 192.0.2.1 tcp dport 80 dnat to 172.17.0.3'",
            found: ["proved", "warning", "ip t pre handle"],
            near_miss_script: "nat 'iifname eth0 ip saddr 198.51.100.0/24 tcp dport 80 dnat to 172.17.0.3;
                    iifname docker0 ip daddr 192.0.2.1 ip saddr 172.17.0.9 tcp dport 80 dnat to 172.17.0.3'",
        }],
    );
}

#[test]
fn finds_packets_that_legacy_rules_drop() {
    if !privileged() {
        return;
    }
    let net = net();
    reset_and_run(
        &net,
        "iptables-legacy -P FORWARD DROP
            iptables-legacy -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            iptables-legacy -t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 8080 -j DNAT --to 172.17.0.3:80",
    );
    let finding = expect_finding(&net, "F13", ["proved", "error", "iptables-legacy nat PREROUTING rule"]);
    expect_timeout(&net.client, "192.0.2.1:8080");
    apply_fix(&net, &finding);
    expect_none(&net, "F13");
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
}

#[test]
fn finds_flowtables_that_bypass_the_rules() {
    if !privileged() {
        return;
    }
    let net = net();
    let fault = Fault {
        id: "F37",
        fault_script: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'
            nft 'table ip fast { flowtable f { hook ingress priority 0; devices = { eth0, port0 }; };
                chain c { type filter hook forward priority 0; ct state established flow add @f; }; }'",
        found: ["likely", "warning", "ip t pre handle"],
        near_miss_script: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'
            nft 'table ip fast { flowtable f { hook ingress priority 0; devices = { eth0 }; };
                chain c { type filter hook forward priority 0; ct state established flow add @f; }; }'",
    };
    if run(&net, &format!("({}) > /dev/null 2>&1 && echo yes || echo no", fault.fault_script)).contains("no") {
        eprintln!("SKIPPED: this kernel has no flowtables");
        return;
    }
    check_all(&net, &[fault]);
}

#[test]
fn finds_a_missing_hairpin_rule_for_the_targets_network() {
    if !privileged() {
        return;
    }
    let net = net();
    // The target connects to its own forward. The bridge sends no frame back out of its ingress port.
    let calls = |on: u8| format!("sys bridge/bridge-nf-call-iptables {on}\n");
    if run(&net, "ls /proc/sys/net").contains("bridge") {
        let script = "nat 'ip daddr 192.0.2.1 tcp dport 8080 dnat to 172.17.0.3:80'
            post 'ip saddr 172.17.0.0/16 ip daddr 172.17.0.0/16 masquerade'";
        reset_and_run(&net, &(calls(1) + script));
        let finding = expect_finding(&net, "F26", ["likely", "info", "ip t pre handle"]);
        let answer_to_target =
            || net.target.run(|| ask("192.0.2.1:8080".parse().expect("address"), false)).expect("target");
        expect_timeout(&net.target, "192.0.2.1:8080");
        apply_fix(&net, &finding);
        expect_none(&net, "F26");
        assert_eq!(answer_to_target(), "172.17.0.3:80 saw 172.17.0.1");
        run(&net, &calls(0));
    }

    // The neighbour is a second container on the target's bridge.
    let neighbour = Netns::new().expect("namespace");
    let ip = |text: &str| text.parse().expect("address");
    net.in_host(|| {
        let links = Links::open().expect("rtnetlink");
        links.veth("port1", "eth0", &neighbour).expect("veth");
        links.join("port1", "docker0").expect("join");
    });
    let in_neighbour = || {
        let links = Links::open().expect("rtnetlink");
        links.up("eth0").expect("up");
        links.address("eth0", ip("172.17.0.7"), 16).expect("address");
        links.route(ip("0.0.0.0"), 0, ip("172.17.0.1")).expect("route");
    };
    neighbour.run(in_neighbour).expect("neighbour");
    let answer = || neighbour.run(|| ask("192.0.2.1:8080".parse().expect("address"), false)).expect("neighbour");
    let forward = "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'\n";
    reset_and_run(&net, forward);
    let finding = expect_finding(&net, "F24", ["proved", "warning", "ip t pre handle"]);
    let beside = findings_of(&net, "F26");
    assert_eq!(beside.len(), 1, "{beside:#?}");
    assert_eq!(beside[0]["severity"], "warning", "{beside:#?}");
    expect_timeout(&neighbour, "192.0.2.1:8080");
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
    apply_fix(&net, &finding);
    expect_none(&net, "F24");
    expect_none(&net, "F26");
    assert_eq!(answer(), "172.17.0.3:80 saw 172.17.0.1");
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
    reset_and_run(&net, "nat 'iifname eth0 ip daddr 192.0.2.1 tcp dport 8080 dnat to 172.17.0.3:80'");
    expect_none(&net, "F24");
    expect_none(&net, "F26");
}
