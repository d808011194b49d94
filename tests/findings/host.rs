//! Interfaces, routes, settings, sockets and connections.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use portfwd::lab::{Links, Netns};

use super::{Fault, all, expect, found, json, make, mend, none, not_found, run, shape, silent};
use crate::support::{Net, PORTFWD, Said, ask, privileged, root, serve};

#[test]
fn of_targets() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    net.in_host(|| serve("192.0.2.1:8082".parse().expect("address"), false));
    net.in_host(|| serve("127.0.0.1:8082".parse().expect("address"), false));

    let nowhere = Fault {
        id: "F08",
        made_by: "ip route add unreachable 10.9.0.0/16; nat 'fib daddr type local tcp dport 80 dnat to 10.9.9.9'",
        found: ["proved", "error", "ip t pre handle"],
        nearly: "ip route add 10.9.0.0/16 via 172.17.0.3; nat 'fib daddr type local tcp dport 80 dnat to 10.9.9.9'",
    };
    found(&net, &nowhere);
    assert_eq!(net.tcp("192.0.2.1:80"), "HostUnreachable");
    not_found(&net, &nowhere);
    // The bridge of a container engine is gone, so there is only the default route.
    make(
        &net,
        "xt nat ':DOCKER -
            -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
            -A DOCKER ! -i docker0 -p tcp --dport 80 -j DNAT --to 172.31.0.2:80'",
    );
    expect(&net, "F08", ["likely", "warning", "ip nat DOCKER handle"]);
    make(
        &net,
        "ip link add gone group 7 type bridge; ip addr add 10.9.0.1/24 dev gone
            nat 'fib daddr type local tcp dport 80 dnat to 10.9.0.2'; ip link set gone up",
    );
    none(&net, "F08");

    all(
        &net,
        &[
            Fault {
                id: "F09",
                made_by: "ip neigh replace 172.17.0.9 dev docker0 nud failed; nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.9'",
                found: ["likely", "warning", "ip t pre handle"],
                nearly: "ip neigh replace 172.17.0.9 lladdr 02:00:00:00:00:09 dev docker0 nud permanent
                    nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.9'",
            },
            Fault {
                id: "F10",
                made_by: "nat 'ip daddr 192.0.2.1 tcp dport 80 dnat to 192.0.2.1:8081'",
                found: ["proved", "warning", "ip t pre handle"],
                nearly: "nat 'ip daddr 192.0.2.1 tcp dport 80 dnat to 192.0.2.1:8082'",
            },
            Fault {
                id: "F49",
                made_by: "nat 'iifname gone0 tcp dport 80 dnat to 172.17.0.3'",
                found: ["proved", "error", "ip t pre handle"],
                nearly: "ip link add gone0 group 7 type bridge; nat 'iifname gone0 tcp dport 80 dnat to 172.17.0.3'",
            },
        ],
    );
    make(&net, "nat 'iifname != gone0 tcp dport 80 dnat to 172.17.0.3'");
    expect(&net, "F49", ["likely", "warning", "ip t pre handle"]);

    // What is redirected comes to the address of its interface.
    net.in_host(|| serve("127.0.0.1:8085".parse().expect("address"), false));
    make(&net, "nat 'ip daddr 192.0.2.1 tcp dport 80 redirect to :8085'");
    expect(&net, "F10", ["proved", "warning", "ip t pre handle"]);
    assert_eq!(net.tcp("192.0.2.1:80"), "ConnectionRefused");
    net.in_host(|| serve("192.0.2.1:8085".parse().expect("address"), false));
    none(&net, "F10");
    assert_eq!(net.tcp("192.0.2.1:80"), "192.0.2.1:8085 saw 192.0.2.2");

    let loopback = Fault {
        id: "F11",
        made_by: "nat 'ip daddr 192.0.2.1 tcp dport 80 dnat to 127.0.0.1:8082'",
        found: ["proved", "error", "ip t pre handle"],
        nearly: "sys ipv4/conf/eth0/route_localnet 1; sys ipv4/conf/docker0/route_localnet 1
            nat 'ip daddr 192.0.2.1 tcp dport 80 dnat to 127.0.0.1:8082'",
    };
    found(&net, &loopback);
    silent(&net.client, "192.0.2.1:80");
    not_found(&net, &loopback);
    assert_eq!(net.tcp("192.0.2.1:80"), "127.0.0.1:8082 saw 192.0.2.2");
    make(&net, "nat6 'ip6 daddr 2001:db8::1 tcp dport 80 dnat to [::1]:8082'");
    expect(&net, "F11", ["proved", "error", "ip6 t pre handle"]);
}

#[test]
fn of_settings() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);

    let off = Fault {
        id: "F12",
        made_by: "sys ipv4/ip_forward 0; nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
        found: ["proved", "error", "ip t pre handle"],
        nearly: "sys ipv4/ip_forward 0; nat 'fib daddr type local tcp dport 80 dnat to 192.0.2.1:81'",
    };
    let finding = found(&net, &off);
    silent(&net.client, "192.0.2.1:80");
    mend(&net, &finding);
    none(&net, "F12");
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.3:80 saw 192.0.2.2");
    not_found(&net, &off);
    // Of IPv4 the interface that a packet came by decides, and answers come by the target's.
    make(&net, "sys ipv4/conf/docker0/forwarding 0; nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'");
    let finding = expect(&net, "F12", ["proved", "error", "ip t pre handle"]);
    silent(&net.client, "192.0.2.1:80");
    mend(&net, &finding);
    none(&net, "F12");
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.3:80 saw 192.0.2.2");
    make(&net, "sys ipv6/conf/all/forwarding 0; nat6 'fib daddr type local tcp dport 80 dnat to fd00:17::3'");
    expect(&net, "F12", ["proved", "error", "ip6 t pre handle"]);

    let localnet = Fault {
        id: "F16",
        made_by: "sys ipv4/conf/eth0/route_localnet 1",
        found: ["proved", "warning", ""],
        nearly: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
    };
    found(&net, &localnet);
    run(&net, "iptables-nft -t raw -I PREROUTING ! -i lo -d 127.0.0.0/8 -j DROP");
    expect(&net, "F16", ["proved", "info", ""]);
    not_found(&net, &localnet);
    net.in_host(|| serve("127.0.0.1:8082".parse().expect("address"), false));
    make(&net, localnet.made_by);
    expect(&net, "F16", ["proved", "error", ""]);

    let ephemeral = Fault {
        id: "F22",
        made_by: "sys ipv4/ip_local_reserved_ports ''; nat 'fib daddr type local tcp dport 40000-40010 dnat to 172.17.0.3'",
        found: ["proved", "info", "ip t pre handle"],
        nearly: "sys ipv4/ip_local_reserved_ports 39990-40010; nat 'fib daddr type local tcp dport 40000-40010 dnat to 172.17.0.3'",
    };
    let finding = found(&net, &ephemeral);
    mend(&net, &finding);
    none(&net, "F22");
    not_found(&net, &ephemeral);

    let soon = Fault {
        id: "F40",
        made_by: "sys netfilter/nf_conntrack_udp_timeout_stream 60; nat 'fib daddr type local udp dport 53 dnat to 172.17.0.3'",
        found: ["likely", "info", "ip t pre handle"],
        nearly: "sys netfilter/nf_conntrack_udp_timeout_stream 60; nat 'fib daddr type local tcp dport 53 dnat to 172.17.0.3'",
    };
    let finding = found(&net, &soon);
    mend(&net, &finding);
    none(&net, "F40");
    not_found(&net, &soon);
}

#[test]
fn of_routes() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    // A second way out, and somebody far away who comes by it.
    let far = Netns::new().expect("namespace");
    net.in_host(|| Links::open().and_then(|links| links.veth("wan", "eth0", &far)).expect("veth"));
    let in_far = || {
        let links = Links::open().expect("rtnetlink");
        links.up("eth0").expect("up");
        for (address, prefix) in [("203.0.113.2", 24), ("198.51.100.9", 32)] {
            links.address("eth0", address.parse().expect("address"), prefix).expect("address");
        }
    };
    far.run(in_far).expect("far");
    let route = "ip route add 203.0.113.1 dev eth0 src 198.51.100.9";
    assert!(far.run(|| Command::new("sh").args(["-c", route]).status().expect("sh")).expect("far").success());
    let asked = || far.run(|| ask("203.0.113.1:80".parse().expect("address"), false)).expect("far");
    run(&net, "ip addr add 203.0.113.1/24 dev wan; ip link set wan up; sys ipv4/conf/wan/rp_filter 0");
    let to_wan = |more: &str| {
        format!(
            "{more}\nnat 'ip daddr 203.0.113.1 iifname wan tcp dport 80 dnat to 172.17.0.3'\nfilter forward 'iifname wan counter'"
        )
    };
    let counted = || !run(&net, "nft list ruleset").contains("counter packets 0 ");
    make(&net, &to_wan(""));
    expect(&net, "F27", ["likely", "warning", "ip t pre handle"]);
    none(&net, "F28");
    none(&net, "F50");
    silent(&far, "203.0.113.1:80");
    assert!(counted());
    make(&net, &to_wan("sys ipv4/conf/wan/rp_filter 1"));
    let finding = expect(&net, "F28", ["likely", "error", "ip t pre handle"]);
    silent(&far, "203.0.113.1:80");
    assert!(!counted());
    mend(&net, &finding);
    none(&net, "F28");
    silent(&far, "203.0.113.1:80");
    assert!(counted());
    // A rule for policy routing may send the answers back as they came; which is not looked at.
    make(
        &net,
        &to_wan(
            "sys ipv4/conf/wan/rp_filter 0; ip rule add pref 100 from 172.17.0.3 table 100
        ip route add default dev wan table 100",
        ),
    );
    expect(&net, "F50", ["proved", "warning", ""]);
    expect(&net, "F27", ["unknown", "warning", "ip t pre handle"]);
    assert_eq!(asked(), "172.17.0.3:80 saw 198.51.100.9");
    make(&net, "nat 'ip daddr 203.0.113.1 iifname eth0 tcp dport 80 dnat to 172.17.0.3'");
    for id in ["F27", "F28", "F50"] {
        none(&net, id);
    }

    all(
        &net,
        &[Fault {
            id: "F42",
            made_by: "ip link set docker0 mtu 1400; nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
            found: ["unknown", "warning", "ip t pre handle"],
            nearly: "ip link set docker0 mtu 1500; nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
        }],
    );
}

#[test]
fn of_sockets() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    net.in_host(|| serve("192.0.2.1:8083".parse().expect("address"), false));
    let hidden = Fault {
        id: "F21",
        made_by: "nat 'fib daddr type local tcp dport 8083 dnat to 172.17.0.3:80'",
        found: ["proved", "error", "ip t pre handle"],
        nearly: "nat 'fib daddr type local tcp dport 8084 dnat to 172.17.0.3:80'",
    };
    found(&net, &hidden);
    assert_eq!(net.tcp("192.0.2.1:8083"), "172.17.0.3:80 saw 192.0.2.2");
    not_found(&net, &hidden);
    assert_eq!(net.tcp("192.0.2.1:8083"), "192.0.2.1:8083 saw 192.0.2.2");

    // A socket for both families is reached by either.
    net.in_host(|| serve("[::]:8086".parse().expect("address"), false));
    make(&net, "nat 'fib daddr type local tcp dport 8086 dnat to 172.17.0.3:80'");
    expect(&net, "F21", ["proved", "error", "ip t pre handle"]);
    assert_eq!(net.tcp("192.0.2.1:8086"), "172.17.0.3:80 saw 192.0.2.2");
    run(&net, "nft flush ruleset");
    assert_eq!(net.tcp("192.0.2.1:8086"), "[::]:8086 saw ::ffff:192.0.2.2");

    // The user is on a connection from the client.
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
    make(&net, "nat 'fib daddr type local tcp dport 22 dnat to 172.17.0.3:22'");
    let found = on_ssh();
    assert_eq!(found.as_array().map(Vec::len), Some(1), "{found:#}");
    assert_eq!(shape(&found[0])[..2], ["proved", "error"], "{found:#}");
    none(&net, "F23");
    make(&net, "nat 'fib daddr type local iifname docker0 tcp dport 22 dnat to 172.17.0.3:22'");
    assert_eq!(on_ssh().as_array().map(Vec::len), Some(0));
}

/// A client that keeps its port.
struct Keeper<'a> {
    net: &'a Net,
    socket: UdpSocket,
}

impl<'a> Keeper<'a> {
    fn new(net: &'a Net, to: &str) -> Self {
        let socket = net.client.run(|| {
            let socket = UdpSocket::bind("192.0.2.2:0").expect("bind");
            socket.connect(to).expect("connect");
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("set");
            socket
        });
        Self { net, socket: socket.expect("the client's namespace") }
    }

    fn ask(&self) -> String {
        let ask = || {
            self.socket.send(b"?")?;
            let mut text = [0; 64];
            let length = self.socket.recv(&mut text)?;
            Ok(String::from_utf8_lossy(&text[..length]).into_owned())
        };
        let asked: std::io::Result<String> = self.net.client.run(ask).expect("the client's namespace");
        asked.unwrap_or_else(|error| format!("{:?}", error.kind()))
    }
}

#[test]
fn of_connections() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for at in ["172.17.0.3:53", "172.17.0.4:53"] {
        net.serve(at, true);
    }
    let to = |target: &str| format!("nat 'fib daddr type local udp dport 53 dnat to {target}'\n");
    make(&net, &to("172.17.0.3"));
    let keeper = Keeper::new(&net, "192.0.2.1:53");
    assert_eq!(keeper.ask(), "172.17.0.3:53 saw 192.0.2.2");
    none(&net, "F38");
    run(&net, &format!("nft delete table ip t\n{}", to("172.17.0.4")));
    let finding = expect(&net, "F38", ["proved", "error", "ip t pre handle"]);
    assert_eq!(keeper.ask(), "172.17.0.3:53 saw 192.0.2.2");
    mend(&net, &finding);
    none(&net, "F38");
    assert_eq!(keeper.ask(), "172.17.0.4:53 saw 192.0.2.2");
    none(&net, "F38");
    // One that no rule translates any more, and the kernel does as long as any rule needs connections to be followed.
    run(&net, "nft flush chain ip t pre; nft add rule ip t pre udp dport 54 dnat to 172.17.0.3");
    expect(&net, "F38", ["proved", "warning", ""]);
    assert_eq!(keeper.ask(), "172.17.0.4:53 saw 192.0.2.2");
    run(&net, "nft flush chain ip t pre");
    expect(&net, "F38", ["proved", "warning", ""]);
    assert_eq!(keeper.ask(), "ConnectionRefused");
    // One that began before the forward, and is followed because a rule asks for its state.
    make(&net, "filter input 'ct state established accept'");
    net.in_host(|| serve("192.0.2.1:53".parse().expect("address"), true));
    let keeper = Keeper::new(&net, "192.0.2.1:53");
    assert_eq!(keeper.ask(), "192.0.2.1:53 saw 192.0.2.2");
    none(&net, "F38");
    run(&net, &to("172.17.0.3"));
    let finding = expect(&net, "F38", ["proved", "warning", "ip t pre handle"]);
    assert_eq!(keeper.ask(), "192.0.2.1:53 saw 192.0.2.2");
    mend(&net, &finding);
    assert_eq!(keeper.ask(), "172.17.0.3:53 saw 192.0.2.2");
}
