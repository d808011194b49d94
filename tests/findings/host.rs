//! Findings about interfaces, routes, sysctls, sockets and connections.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use portfwd::lab::{Links, Netns};

use super::{
    Fault, apply_fix, check_all, expect_fault, expect_finding, expect_no_fault, expect_none, expect_timeout, json,
    reset_and_run, run, summary,
};
use crate::support::{Net, PORTFWD, Said, ask, privileged, root, serve};

#[test]
fn finds_unreachable_targets() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    net.in_host(|| serve("192.0.2.1:8082".parse().expect("address"), false));
    net.in_host(|| serve("127.0.0.1:8082".parse().expect("address"), false));

    let nowhere = Fault {
        id: "F08",
        fault_script: "ip route add unreachable 10.9.0.0/16; nat 'fib daddr type local tcp dport 80 dnat to 10.9.9.9'",
        found: ["proved", "error", "ip t pre handle"],
        near_miss_script: "ip route add 10.9.0.0/16 via 172.17.0.3; nat 'fib daddr type local tcp dport 80 dnat to 10.9.9.9'",
    };
    expect_fault(&net, &nowhere);
    assert_eq!(net.tcp("192.0.2.1:80"), "HostUnreachable");
    expect_no_fault(&net, &nowhere);
    // The bridge of the container engine is deleted, so the target has only the default route.
    reset_and_run(
        &net,
        "xt nat ':DOCKER -
            -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
            -A DOCKER ! -i docker0 -p tcp --dport 80 -j DNAT --to 172.31.0.2:80'",
    );
    expect_finding(&net, "F08", ["likely", "warning", "ip nat DOCKER handle"]);
    reset_and_run(
        &net,
        "ip link add gone group 7 type bridge; ip addr add 10.9.0.1/24 dev gone
            nat 'fib daddr type local tcp dport 80 dnat to 10.9.0.2'; ip link set gone up",
    );
    expect_none(&net, "F08");

    check_all(
        &net,
        &[
            Fault {
                id: "F09",
                fault_script: "ip neigh replace 172.17.0.9 dev docker0 nud failed; nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.9'",
                found: ["likely", "warning", "ip t pre handle"],
                near_miss_script: "ip neigh replace 172.17.0.9 lladdr 02:00:00:00:00:09 dev docker0 nud permanent
                    nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.9'",
            },
            Fault {
                id: "F10",
                fault_script: "nat 'ip daddr 192.0.2.1 tcp dport 80 dnat to 192.0.2.1:8081'",
                found: ["proved", "warning", "ip t pre handle"],
                near_miss_script: "nat 'ip daddr 192.0.2.1 tcp dport 80 dnat to 192.0.2.1:8082'",
            },
            Fault {
                id: "F49",
                fault_script: "nat 'iifname gone0 tcp dport 80 dnat to 172.17.0.3'",
                found: ["proved", "info", "ip t pre handle"],
                near_miss_script: "ip link add gone0 group 7 type bridge; nat 'iifname gone0 tcp dport 80 dnat to 172.17.0.3'",
            },
        ],
    );
    reset_and_run(&net, "nat 'iifname != gone0 tcp dport 80 dnat to 172.17.0.3'");
    expect_finding(&net, "F49", ["likely", "warning", "ip t pre handle"]);

    // A redirect sends packets to the address of the ingress interface.
    net.in_host(|| serve("127.0.0.1:8085".parse().expect("address"), false));
    reset_and_run(&net, "nat 'ip daddr 192.0.2.1 tcp dport 80 redirect to :8085'");
    expect_finding(&net, "F10", ["proved", "warning", "ip t pre handle"]);
    assert_eq!(net.tcp("192.0.2.1:80"), "ConnectionRefused");
    net.in_host(|| serve("192.0.2.1:8085".parse().expect("address"), false));
    expect_none(&net, "F10");
    assert_eq!(net.tcp("192.0.2.1:80"), "192.0.2.1:8085 saw 192.0.2.2");

    let loopback = Fault {
        id: "F11",
        fault_script: "nat 'ip daddr 192.0.2.1 tcp dport 80 dnat to 127.0.0.1:8082'",
        found: ["proved", "error", "ip t pre handle"],
        near_miss_script: "sys ipv4/conf/eth0/route_localnet 1; sys ipv4/conf/docker0/route_localnet 1
            nat 'ip daddr 192.0.2.1 tcp dport 80 dnat to 127.0.0.1:8082'",
    };
    expect_fault(&net, &loopback);
    expect_timeout(&net.client, "192.0.2.1:80");
    expect_no_fault(&net, &loopback);
    assert_eq!(net.tcp("192.0.2.1:80"), "127.0.0.1:8082 saw 192.0.2.2");
    reset_and_run(&net, "nat6 'ip6 daddr 2001:db8::1 tcp dport 80 dnat to [::1]:8082'");
    expect_finding(&net, "F11", ["proved", "error", "ip6 t pre handle"]);
}

#[test]
fn finds_wrong_sysctls() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);

    let off = Fault {
        id: "F12",
        fault_script: "sys ipv4/ip_forward 0; nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
        found: ["proved", "error", "ip t pre handle"],
        near_miss_script: "sys ipv4/ip_forward 0; nat 'fib daddr type local tcp dport 80 dnat to 192.0.2.1:81'",
    };
    let finding = expect_fault(&net, &off);
    expect_timeout(&net.client, "192.0.2.1:80");
    apply_fix(&net, &finding);
    expect_none(&net, "F12");
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.3:80 saw 192.0.2.2");
    expect_no_fault(&net, &off);
    // IPv4 checks `forwarding` of the ingress interface. Answers of the target enter through docker0, so the kernel
    // drops the answers.
    reset_and_run(
        &net,
        "sys ipv4/conf/docker0/forwarding 0; nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
    );
    let finding = expect_finding(&net, "F12", ["proved", "error", "ip t pre handle"]);
    expect_timeout(&net.client, "192.0.2.1:80");
    apply_fix(&net, &finding);
    expect_none(&net, "F12");
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.3:80 saw 192.0.2.2");
    reset_and_run(&net, "sys ipv6/conf/all/forwarding 0; nat6 'fib daddr type local tcp dport 80 dnat to fd00:17::3'");
    expect_finding(&net, "F12", ["proved", "error", "ip6 t pre handle"]);

    let localnet = Fault {
        id: "F16",
        fault_script: "sys ipv4/conf/eth0/route_localnet 1",
        found: ["proved", "warning", ""],
        near_miss_script: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
    };
    expect_fault(&net, &localnet);
    run(&net, "iptables-nft -t raw -I PREROUTING ! -i lo -d 127.0.0.0/8 -j DROP");
    expect_finding(&net, "F16", ["proved", "info", ""]);
    expect_no_fault(&net, &localnet);
    net.in_host(|| serve("127.0.0.1:8082".parse().expect("address"), false));
    reset_and_run(&net, localnet.fault_script);
    expect_finding(&net, "F16", ["proved", "error", ""]);

    let ephemeral = Fault {
        id: "F22",
        fault_script: "sys ipv4/ip_local_reserved_ports ''; nat 'fib daddr type local tcp dport 40000-40010 dnat to 172.17.0.3'",
        found: ["proved", "info", "ip t pre handle"],
        near_miss_script: "sys ipv4/ip_local_reserved_ports 39990-40010; nat 'fib daddr type local tcp dport 40000-40010 dnat to 172.17.0.3'",
    };
    let finding = expect_fault(&net, &ephemeral);
    apply_fix(&net, &finding);
    expect_none(&net, "F22");
    expect_no_fault(&net, &ephemeral);

    let short_timeout = Fault {
        id: "F40",
        fault_script: "sys netfilter/nf_conntrack_udp_timeout_stream 60; nat 'fib daddr type local udp dport 53 dnat to 172.17.0.3'",
        found: ["likely", "info", "ip t pre handle"],
        near_miss_script: "sys netfilter/nf_conntrack_udp_timeout_stream 60; nat 'fib daddr type local tcp dport 53 dnat to 172.17.0.3'",
    };
    let finding = expect_fault(&net, &short_timeout);
    apply_fix(&net, &finding);
    expect_none(&net, "F40");
    expect_no_fault(&net, &short_timeout);
}

#[test]
fn finds_routing_faults() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    // A remote client is behind a second uplink of the host.
    let remote = Netns::new().expect("namespace");
    net.in_host(|| Links::open().and_then(|links| links.veth("wan", "eth0", &remote)).expect("veth"));
    let in_remote = || {
        let links = Links::open().expect("rtnetlink");
        links.up("eth0").expect("up");
        for (address, prefix) in [("203.0.113.2", 24), ("198.51.100.9", 32)] {
            links.address("eth0", address.parse().expect("address"), prefix).expect("address");
        }
    };
    remote.run(in_remote).expect("remote");
    let route = "ip route add 203.0.113.1 dev eth0 src 198.51.100.9";
    assert!(remote.run(|| Command::new("sh").args(["-c", route]).status().expect("sh")).expect("remote").success());
    let answer = || remote.run(|| ask("203.0.113.1:80".parse().expect("address"), false)).expect("remote");
    run(&net, "ip addr add 203.0.113.1/24 dev wan; ip link set wan up; sys ipv4/conf/wan/rp_filter 0");
    let to_wan = |more: &str| {
        format!(
            "{more}\nnat 'ip daddr 203.0.113.1 iifname wan tcp dport 80 dnat to 172.17.0.3'\nfilter forward 'iifname wan counter'"
        )
    };
    let counted = || !run(&net, "nft list ruleset").contains("counter packets 0 ");
    reset_and_run(&net, &to_wan(""));
    expect_finding(&net, "F27", ["likely", "warning", "ip t pre handle"]);
    expect_none(&net, "F28");
    expect_none(&net, "F50");
    expect_timeout(&remote, "203.0.113.1:80");
    assert!(counted());
    reset_and_run(&net, &to_wan("sys ipv4/conf/wan/rp_filter 1"));
    let finding = expect_finding(&net, "F28", ["likely", "error", "ip t pre handle"]);
    expect_timeout(&remote, "203.0.113.1:80");
    assert!(!counted());
    apply_fix(&net, &finding);
    expect_none(&net, "F28");
    expect_timeout(&remote, "203.0.113.1:80");
    assert!(counted());
    // A policy routing rule may send the answers back through `wan`. `audit` does not evaluate policy routing rules.
    reset_and_run(
        &net,
        &to_wan(
            "sys ipv4/conf/wan/rp_filter 0; ip rule add pref 100 from 172.17.0.3 table 100
        ip route add default dev wan table 100",
        ),
    );
    expect_finding(&net, "F50", ["proved", "warning", ""]);
    expect_finding(&net, "F27", ["unknown", "warning", "ip t pre handle"]);
    assert_eq!(answer(), "172.17.0.3:80 saw 198.51.100.9");
    reset_and_run(&net, "nat 'ip daddr 203.0.113.1 iifname eth0 tcp dport 80 dnat to 172.17.0.3'");
    for id in ["F27", "F28", "F50"] {
        expect_none(&net, id);
    }

    check_all(
        &net,
        &[Fault {
            id: "F42",
            fault_script: "ip link set docker0 mtu 1400; nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
            found: ["unknown", "warning", "ip t pre handle"],
            near_miss_script: "ip link set docker0 mtu 1500; nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
        }],
    );
}

#[test]
fn finds_conflicts_with_sockets() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    net.in_host(|| serve("192.0.2.1:8083".parse().expect("address"), false));
    let hidden = Fault {
        id: "F21",
        fault_script: "nat 'fib daddr type local tcp dport 8083 dnat to 172.17.0.3:80'",
        found: ["proved", "error", "ip t pre handle"],
        near_miss_script: "nat 'fib daddr type local tcp dport 8084 dnat to 172.17.0.3:80'",
    };
    expect_fault(&net, &hidden);
    assert_eq!(net.tcp("192.0.2.1:8083"), "172.17.0.3:80 saw 192.0.2.2");
    expect_no_fault(&net, &hidden);
    assert_eq!(net.tcp("192.0.2.1:8083"), "192.0.2.1:8083 saw 192.0.2.2");

    // A dual-stack socket receives IPv4 too.
    net.in_host(|| serve("[::]:8086".parse().expect("address"), false));
    reset_and_run(&net, "nat 'fib daddr type local tcp dport 8086 dnat to 172.17.0.3:80'");
    expect_finding(&net, "F21", ["proved", "error", "ip t pre handle"]);
    assert_eq!(net.tcp("192.0.2.1:8086"), "172.17.0.3:80 saw 192.0.2.2");
    run(&net, "nft flush ruleset");
    assert_eq!(net.tcp("192.0.2.1:8086"), "[::]:8086 saw ::ffff:192.0.2.2");

    // The test simulates a user with an SSH connection from the client.
    let on_ssh = || {
        let said: Said = net.in_host(|| {
            let mut command = Command::new(PORTFWD);
            command.args(["audit", "--json", "--only", "F23"]).arg("--state-dir").arg(net.state.path());
            command.env("SSH_CONNECTION", "192.0.2.2 50000 192.0.2.1 22").current_dir(root());
            command.output().expect("the program starts").into()
        });
        assert_eq!(said.code, 0, "{said:?}");
        json(&said.stdout)["findings"].clone()
    };
    reset_and_run(&net, "nat 'fib daddr type local tcp dport 22 dnat to 172.17.0.3:22'");
    let found = on_ssh();
    assert_eq!(found.as_array().map(Vec::len), Some(1), "{found:#}");
    assert_eq!(summary(&found[0])[..2], ["proved", "error"], "{found:#}");
    expect_none(&net, "F23");
    reset_and_run(&net, "nat 'fib daddr type local iifname docker0 tcp dport 22 dnat to 172.17.0.3:22'");
    assert_eq!(on_ssh().as_array().map(Vec::len), Some(0));
}

/// A UDP client that keeps its socket. All of its packets belong to one tracked connection.
struct UdpClient<'a> {
    net: &'a Net,
    socket: UdpSocket,
}

impl<'a> UdpClient<'a> {
    fn new(net: &'a Net, to: &str) -> Self {
        let socket = net.client.run(|| {
            let socket = UdpSocket::bind("192.0.2.2:0").expect("bind");
            socket.connect(to).expect("connect");
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("set");
            socket
        });
        Self { net, socket: socket.expect("the client's namespace") }
    }

    fn exchange(&self) -> String {
        let exchange = || {
            self.socket.send(b"?")?;
            let mut text = [0; 64];
            let length = self.socket.recv(&mut text)?;
            Ok(String::from_utf8_lossy(&text[..length]).into_owned())
        };
        let answer: std::io::Result<String> = self.net.client.run(exchange).expect("the client's namespace");
        answer.unwrap_or_else(|error| format!("{:?}", error.kind()))
    }
}

#[test]
fn finds_stale_connections() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for at in ["172.17.0.3:53", "172.17.0.4:53"] {
        net.serve(at, true);
    }
    let to = |target: &str| format!("nat 'fib daddr type local udp dport 53 dnat to {target}'\n");
    reset_and_run(&net, &to("172.17.0.3"));
    let udp_client = UdpClient::new(&net, "192.0.2.1:53");
    assert_eq!(udp_client.exchange(), "172.17.0.3:53 saw 192.0.2.2");
    expect_none(&net, "F38");
    run(&net, &format!("nft delete table ip t\n{}", to("172.17.0.4")));
    let finding = expect_finding(&net, "F38", ["proved", "error", "ip t pre handle"]);
    assert_eq!(udp_client.exchange(), "172.17.0.3:53 saw 192.0.2.2");
    apply_fix(&net, &finding);
    expect_none(&net, "F38");
    assert_eq!(udp_client.exchange(), "172.17.0.4:53 saw 192.0.2.2");
    expect_none(&net, "F38");
    // No rule translates the connection any more. The kernel still translates the connection while any rule needs
    // connection tracking.
    run(&net, "nft flush chain ip t pre; nft add rule ip t pre udp dport 54 dnat to 172.17.0.3");
    expect_finding(&net, "F38", ["proved", "warning", ""]);
    assert_eq!(udp_client.exchange(), "172.17.0.4:53 saw 192.0.2.2");
    run(&net, "nft flush chain ip t pre");
    expect_finding(&net, "F38", ["proved", "warning", ""]);
    assert_eq!(udp_client.exchange(), "ConnectionRefused");
    // The connection is older than the forward. The kernel tracks the connection because a rule matches on its state.
    reset_and_run(&net, "filter input 'ct state established accept'");
    net.in_host(|| serve("192.0.2.1:53".parse().expect("address"), true));
    let udp_client = UdpClient::new(&net, "192.0.2.1:53");
    assert_eq!(udp_client.exchange(), "192.0.2.1:53 saw 192.0.2.2");
    expect_none(&net, "F38");
    run(&net, &to("172.17.0.3"));
    let finding = expect_finding(&net, "F38", ["proved", "warning", "ip t pre handle"]);
    assert_eq!(udp_client.exchange(), "192.0.2.1:53 saw 192.0.2.2");
    apply_fix(&net, &finding);
    assert_eq!(udp_client.exchange(), "172.17.0.3:53 saw 192.0.2.2");
}
