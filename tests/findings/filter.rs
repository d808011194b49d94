//! What filters, sources, neighbours and ways beside a forward make of it.

use std::process::Command;

use portfwd::lab::{Links, Netns};

use super::{Fault, all, expect, finds, found, make, mend, none, not_found, run, silent};
use crate::support::{Net, Said, ask, privileged, serve};

const ANSWER: &str = "172.17.0.3:80 saw 192.0.2.2";

fn net() -> Net {
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    net
}

#[test]
fn of_packets_that_are_dropped() {
    if !privileged() {
        return;
    }
    let net = net();
    let dropped = Fault {
        id: "F13",
        made_by: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt filter ':FORWARD DROP
            -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT'",
        found: ["proved", "error", "ip t pre handle"],
        nearly: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt filter ':FORWARD DROP
            -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            -A FORWARD -d 172.17.0.3 -p tcp --dport 80 -j ACCEPT'",
    };
    let finding = found(&net, &dropped);
    silent(&net.client, "192.0.2.1:8080");
    mend(&net, &finding);
    none(&net, "F13");
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
    not_found(&net, &dropped);
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
    // To accept in one table is not enough.
    make(
        &net,
        "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt filter '-A FORWARD -d 172.17.0.3 -p tcp --dport 80 -j ACCEPT'
            filter forward 'ct state established accept; iifname eth0 drop'",
    );
    // By the bridge it is not dropped.
    let finding = expect(&net, "F13", ["proved", "warning", "ip t pre handle"]);
    silent(&net.client, "192.0.2.1:8080");
    mend(&net, &finding);
    none(&net, "F13");
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);

    // What this host answers itself meets hook input, and IPv6 filters of its own.
    net.in_host(|| serve("192.0.2.1:8082".parse().expect("address"), false));
    make(
        &net,
        "nat 'fib daddr type local tcp dport 8080 redirect to :8082'
            xt filter ':INPUT DROP
            -A INPUT -p tcp --dport 8080 -j ACCEPT'",
    );
    let finding = expect(&net, "F13", ["proved", "error", "ip t pre handle"]);
    silent(&net.client, "192.0.2.1:8080");
    mend(&net, &finding);
    none(&net, "F13");
    assert_eq!(net.tcp("192.0.2.1:8080"), "192.0.2.1:8082 saw 192.0.2.2");
    net.serve("[fd00:17::3]:80", false);
    make(
        &net,
        "nat6 'fib daddr type local tcp dport 8080 dnat to [fd00:17::3]:80'
            xt6 filter ':FORWARD DROP
            -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT'",
    );
    let finding = expect(&net, "F13", ["proved", "error", "ip6 t pre handle"]);
    silent(&net.client, "[2001:db8::1]:8080");
    mend(&net, &finding);
    none(&net, "F13");
    assert_eq!(net.tcp("[2001:db8::1]:8080"), "[fd00:17::3]:80 saw 2001:db8::2");

    let before = Fault {
        id: "F36",
        made_by: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt raw '-A PREROUTING -p tcp --dport 8000:8100 -j DROP'",
        found: ["proved", "error", "ip t pre handle"],
        nearly: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt raw '-A PREROUTING -p tcp --dport 80 -j DROP'",
    };
    found(&net, &before);
    silent(&net.client, "192.0.2.1:8080");
    none(&net, "F13");
    not_found(&net, &before);
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);

    make(
        &net,
        "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            nft 'table netdev n { chain c { type filter hook ingress device eth0 priority 0; tcp dport 8080 drop; }; }'",
    );
    expect(&net, "F36", ["likely", "error", "ip t pre handle"]);
    silent(&net.client, "192.0.2.1:8080");

    let untracked = Fault {
        id: "F35",
        made_by: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt raw '-A PREROUTING -i eth0 -p tcp --dport 8080 -j NOTRACK'",
        found: ["proved", "error", "ip t pre handle"],
        nearly: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            xt raw '-A PREROUTING -i eth0 -p udp --dport 8080 -j NOTRACK'",
    };
    found(&net, &untracked);
    assert_eq!(net.tcp("192.0.2.1:8080"), "ConnectionRefused");
    not_found(&net, &untracked);
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
}

#[test]
fn of_what_lets_packets_through() {
    if !privileged() {
        return;
    }
    let net = net();
    let blanket = Fault {
        id: "F14",
        made_by: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority filter + 10; policy drop;
                ct state { established, related } accept; ct status dnat accept; }; }'",
        found: ["proved", "warning", "ip t pre handle"],
        nearly: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority filter + 10; policy drop;
                ct state { established, related } accept; ip daddr 172.17.0.3 tcp dport 80 accept; ct status dnat accept; }; }'",
    };
    found(&net, &blanket);
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
    // Without the rule of the other tool nothing lets it through.
    run(
        &net,
        "nft flush chain inet firewalld filter_FORWARD
            nft add rule inet firewalld filter_FORWARD 'ct state { established, related } accept'",
    );
    expect(&net, "F13", ["proved", "error", "ip t pre handle"]);
    silent(&net.client, "192.0.2.1:8080");
    not_found(&net, &blanket);

    let past = Fault {
        id: "F19",
        made_by: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            filter input 'iifname eth0 tcp dport 8080 drop'",
        found: ["proved", "error", "ip t pre handle"],
        nearly: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            filter input 'iifname eth0 tcp dport 8081 drop'",
    };
    found(&net, &past);
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
    not_found(&net, &past);

    // A rule that compares all of the status at once, as `nft -o` may make it.
    let status = |asked: &str| {
        format!(
            "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
             filter forward 'ct state established accept; ct status {asked} accept; drop'"
        )
    };
    make(&net, &status("{ dnat, snat }"));
    expect(&net, "F34", ["proved", "warning", "inet f forward handle"]);
    silent(&net.client, "192.0.2.1:8080");
    expect(&net, "F13", ["proved", "error", "ip t pre handle"]);
    make(&net, &status("dnat"));
    none(&net, "F34");
    none(&net, "F13");
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
}

#[test]
fn of_ways_beside_a_forward() {
    if !privileged() {
        return;
    }
    let net = net();
    let direct = Fault {
        id: "F17",
        made_by: "nat 'fib daddr type local ip saddr 198.51.100.0/24 tcp dport 8080 dnat to 172.17.0.3:80'",
        found: ["proved", "warning", "ip t pre handle"],
        nearly: "nat 'fib daddr type local ip saddr 198.51.100.0/24 tcp dport 8080 dnat to 172.17.0.3:80'
            xt raw '-A PREROUTING -d 172.17.0.3 ! -i docker0 -j DROP'",
    };
    let finding = found(&net, &direct);
    assert_ne!(net.tcp("192.0.2.1:8080"), ANSWER);
    assert_eq!(net.tcp("172.17.0.3:80"), ANSWER);
    mend(&net, &finding);
    none(&net, "F17");
    silent(&net.client, "172.17.0.3:80");
    not_found(&net, &direct);

    // A neighbour who has no loopback address of its own, and sends what is for one to this host.
    let in_client = "ip addr del 127.0.0.1/8 dev lo; echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
        ip route add 127.0.0.1/32 via 192.0.2.1 src 192.0.2.2";
    let said: Said =
        net.client.run(|| Command::new("sh").args(["-ec", in_client]).output().expect("sh").into()).expect("there");
    assert_eq!(said.code, 0, "{said:?}");
    make(&net, "nat 'ip daddr 127.0.0.1 tcp dport 8080 dnat to 172.17.0.3:80'");
    let found = finds(&net, "F15");
    // One for each interface that it may come by.
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found.iter().all(|finding| finding["severity"] == "error"), "{found:#?}");
    assert_eq!(net.tcp("127.0.0.1:8080"), ANSWER);
    mend(&net, &found[0]);
    none(&net, "F15");
    silent(&net.client, "127.0.0.1:8080");
    make(&net, "nat 'iifname lo ip daddr 127.0.0.1 tcp dport 8080 dnat to 172.17.0.3:80'");
    none(&net, "F15");
    // And what listens on it, for this host alone.
    net.in_host(|| serve("127.0.0.1:8082".parse().expect("address"), false));
    silent(&net.client, "127.0.0.1:8082");
    make(&net, "sys ipv4/conf/eth0/route_localnet 1");
    let finding = expect(&net, "F16", ["proved", "error", ""]);
    assert_eq!(net.tcp("127.0.0.1:8082"), "127.0.0.1:8082 saw 192.0.2.2");
    let fix = finding["fix"].as_str().expect("a fix");
    run(&net, fix.split(';').next().unwrap_or(fix));
    none(&net, "F16");
    silent(&net.client, "127.0.0.1:8082");

    all(
        &net,
        &[Fault {
            id: "F25",
            made_by: "nat 'iifname eth0 ip saddr 198.51.100.0/24 tcp dport 80 dnat to 172.17.0.3;
                    iifname docker0 ip daddr 192.0.2.1 tcp dport 80 dnat to 172.17.0.3'",
            found: ["proved", "warning", "ip t pre handle"],
            nearly: "nat 'iifname eth0 ip saddr 198.51.100.0/24 tcp dport 80 dnat to 172.17.0.3;
                    iifname docker0 ip daddr 192.0.2.1 ip saddr 172.17.0.9 tcp dport 80 dnat to 172.17.0.3'",
        }],
    );
}

#[test]
fn of_packets_that_legacy_rules_drop() {
    if !privileged() {
        return;
    }
    let net = net();
    make(
        &net,
        "iptables-legacy -P FORWARD DROP
            iptables-legacy -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            iptables-legacy -t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 8080 -j DNAT --to 172.17.0.3:80",
    );
    let finding = expect(&net, "F13", ["proved", "error", "iptables-legacy nat PREROUTING rule"]);
    silent(&net.client, "192.0.2.1:8080");
    mend(&net, &finding);
    none(&net, "F13");
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
}

#[test]
fn of_flowtables() {
    if !privileged() {
        return;
    }
    let net = net();
    let fault = Fault {
        id: "F37",
        made_by: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'
            nft 'table ip fast { flowtable f { hook ingress priority 0; devices = { eth0, port0 }; };
                chain c { type filter hook forward priority 0; ct state established flow add @f; }; }'",
        found: ["likely", "warning", "ip t pre handle"],
        nearly: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'
            nft 'table ip fast { flowtable f { hook ingress priority 0; devices = { eth0 }; };
                chain c { type filter hook forward priority 0; ct state established flow add @f; }; }'",
    };
    if run(&net, &format!("({}) > /dev/null 2>&1 && echo yes || echo no", fault.made_by)).contains("no") {
        eprintln!("SKIPPED: this kernel has no flowtables");
        return;
    }
    all(&net, &[fault]);
}

#[test]
fn of_neighbours_of_the_target() {
    if !privileged() {
        return;
    }
    let net = net();
    // A target that asks for itself: the bridge gives nothing back by the port that it came by.
    let calls = |on: u8| format!("sys bridge/bridge-nf-call-iptables {on}\n");
    if run(&net, "ls /proc/sys/net").contains("bridge") {
        let script = "nat 'ip daddr 192.0.2.1 tcp dport 8080 dnat to 172.17.0.3:80'
            post 'ip saddr 172.17.0.0/16 ip daddr 172.17.0.0/16 masquerade'";
        make(&net, &(calls(1) + script));
        let finding = expect(&net, "F26", ["likely", "info", "ip t pre handle"]);
        let itself = || net.target.run(|| ask("192.0.2.1:8080".parse().expect("address"), false)).expect("target");
        silent(&net.target, "192.0.2.1:8080");
        mend(&net, &finding);
        none(&net, "F26");
        assert_eq!(itself(), "172.17.0.3:80 saw 172.17.0.1");
        run(&net, &calls(0));
    }

    // One more on the target's bridge.
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
    let asks = || neighbour.run(|| ask("192.0.2.1:8080".parse().expect("address"), false)).expect("neighbour");
    let forward = "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'\n";
    make(&net, forward);
    let finding = expect(&net, "F24", ["proved", "warning", "ip t pre handle"]);
    let beside = finds(&net, "F26");
    assert_eq!(beside.len(), 1, "{beside:#?}");
    assert_eq!(beside[0]["severity"], "warning", "{beside:#?}");
    silent(&neighbour, "192.0.2.1:8080");
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
    mend(&net, &finding);
    none(&net, "F24");
    none(&net, "F26");
    assert_eq!(asks(), "172.17.0.3:80 saw 172.17.0.1");
    assert_eq!(net.tcp("192.0.2.1:8080"), ANSWER);
    make(&net, "nat 'iifname eth0 ip daddr 192.0.2.1 tcp dport 8080 dnat to 172.17.0.3:80'");
    none(&net, "F24");
    none(&net, "F26");
}
