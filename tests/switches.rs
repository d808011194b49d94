use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::process::Command;
use std::time::Duration;

use portfwd::lab::raw_socket::{Datagram, Receiver, Sender};
use portfwd::lab::{Links, Netns};
use portfwd::model::Protocol;

use crate::support::{Net, PORTFWD, Said, ask, privileged};

/// Reads a sysctl of the host, below `/proc/sys/net`.
fn sysctl(net: &Net, key: &str) -> String {
    let text = net.in_host(|| std::fs::read_to_string(format!("/proc/sys/net/{key}")).expect("readable"));
    text.trim().to_owned()
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

const ROUTE_LOCALNET: &str = "ipv4/conf/docker0/route_localnet";

#[test]
fn a_loopback_forward_sets_route_localnet_on_one_interface() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    assert_eq!(sysctl(&net, ROUTE_LOCALNET), "0");
    net.ok(&["add", "8080", "172.17.0.3:80"]);
    let from_host = |to: &str| net.in_host(|| ask(address(to), false));
    assert_eq!(from_host("127.0.0.1:8080"), "ConnectionRefused");
    let said = net.ok(&["add", "8080", "172.17.0.3:80", "--loopback"]);
    assert!(said.stderr.contains("set net.ipv4.conf.docker0.route_localnet to 1, was 0"), "{said:?}");
    assert!(said.stdout.contains("changed 8080/tcp -> 172.17.0.3:80 loopback"), "{said:?}");
    assert_eq!(from_host("127.0.0.1:8080"), "172.17.0.3:80 saw 172.17.0.1");
    assert_eq!(from_host("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.1");
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
    assert_eq!(sysctl(&net, "ipv4/conf/eth0/route_localnet"), "0");
    // The forward's counter includes packets from this host and from outside.
    assert!(net.ok(&["list", "--json"]).stdout.contains(r#""packets":3,"#));
    net.ok(&["add", "127.0.0.1:8081", "172.17.0.3:80", "--loopback"]);
    assert_eq!(from_host("127.0.0.1:8081"), "172.17.0.3:80 saw 172.17.0.1");
    assert_eq!(net.tcp("192.0.2.1:8081"), "ConnectionRefused");
    net.ok(&["rm", "127.0.0.1:8081"]);
    assert_eq!(
        (from_host("127.0.0.1:8081").as_str(), sysctl(&net, ROUTE_LOCALNET).as_str()),
        ("ConnectionRefused", "1")
    );
    let said = net.ok(&["rm", "8080"]);
    assert!(said.stderr.contains("restored net.ipv4.conf.docker0.route_localnet to 0"), "{said:?}");
    assert_eq!(sysctl(&net, ROUTE_LOCALNET), "0");
    net.ok(&["flush"]);
    assert_eq!(net.nft(&["list", "ruleset"]).stdout, "");
}

#[test]
fn the_next_command_restores_a_sysctl_after_a_kill() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let localnet = format!("/proc/sys/net/{ROUTE_LOCALNET}");
    let forward = "/proc/sys/net/ipv4/ip_forward";
    let cases = [
        (localnet.as_str(), &["rm", "8080"][..], &["add", "9090", "172.17.0.3"][..]),
        (forward, &["flush"], &["flush"]),
    ];
    for (path, command, next) in cases {
        // Each round kills portfwd at the next `openat` of the sysctl. The last round kills nothing.
        let kills = (1..20).take_while(|when| {
            net.ok(&["add", "8080", "172.17.0.3:80", "--loopback"]);
            let said: Said = net.in_host(|| {
                let mut strace = Command::new("strace");
                strace.args(["-f", "-o", "/dev/null", "-P", path]);
                strace.args(["-e", &format!("inject=openat:signal=KILL:when={when}")]);
                strace.arg(PORTFWD).arg("--state-dir").arg(net.state.path()).args(command);
                strace.output().expect("strace is installed").into()
            });
            net.ok(next);
            let now = net.in_host(|| std::fs::read_to_string(path).expect("readable"));
            assert_eq!(now.trim(), "0", "{path} {when}");
            net.ok(&["flush"]);
            assert_eq!((sysctl(&net, ROUTE_LOCALNET), sysctl(&net, "ipv4/ip_forward")), ("0".into(), "0".into()));
            said.code != 0
        });
        assert!(kills.count() > 0, "{path}");
    }
}

/// A machine behind docker0. Without a loopback interface, this machine can send to loopback addresses elsewhere.
fn intruder(net: &Net) -> Netns {
    let intruder = Netns::new().expect("namespace");
    net.in_host(|| {
        let links = Links::open().expect("rtnetlink");
        links.veth("port9", "eth0", &intruder).expect("veth");
        links.join("port9", "docker0").expect("join");
    });
    let wire = || {
        let links = Links::open().expect("rtnetlink");
        links.up("eth0").expect("up");
        let ip = |text: &str| text.parse().expect("address");
        links.address("eth0", ip("172.17.0.9"), 16).expect("address");
        links.route(ip("127.0.0.1"), 32, ip("172.17.0.1")).expect("route");
    };
    intruder.run(wire).expect("the intruder's namespace");
    intruder
}

#[test]
fn packets_with_loopback_addresses_from_outside_are_dropped() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let intruder = intruder(&net);
    net.ok(&["add", "8080", "172.17.0.3:80", "--loopback"]);
    assert_eq!(sysctl(&net, ROUTE_LOCALNET), "1");
    let (sender, here) = (Sender::open(&intruder).expect("sender"), Receiver::delivered(&net.host).expect("watch"));
    let send = |first: u64| {
        let ends = [
            ("172.17.0.9:1000", "127.0.0.1:631"),
            ("127.0.0.1:1000", "172.17.0.1:631"),
            ("172.17.0.9:1000", "172.17.0.1:631"),
        ];
        for (number, (source, destination)) in (first..).zip(ends) {
            let (source, destination) = (address(source), address(destination));
            sender.send(&Datagram { protocol: Protocol::Udp, source, destination, number }).expect("sent");
        }
        std::thread::sleep(Duration::from_millis(200));
        let mut seen: Vec<u64> = here.drain().expect("watch").iter().map(|datagram| datagram.number - first).collect();
        seen.sort_unstable();
        seen
    };
    // A new link may lose the first packets.
    for warm_up in 1..50 {
        if !send(warm_up * 100).is_empty() {
            break;
        }
    }
    assert_eq!(send(10_000), [2], "only the packet without a loopback address arrives");
    // Without portfwd's rules, `route_localnet` lets in the packet to 127.0.0.1. So portfwd's guard is what drops that
    // packet. The kernel drops the packet from 127.0.0.1, because `accept_local` is off.
    net.nft(&["flush", "ruleset"]);
    assert_eq!(send(20_000), [0, 2]);
}

/// Sends a router advertisement for a /64 prefix from the client to all nodes on the link.
fn advertise(net: &Net, prefix: Ipv6Addr) {
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    message.extend(prefix.octets());
    let send = || {
        let index = nix::net::if_::if_nametoindex("eth0").expect("eth0");
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::RAW, Some(socket2::Protocol::ICMPV6));
        let socket = socket.expect("raw socket");
        socket.set_multicast_hops_v6(255).expect("hops");
        let all_nodes = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, index);
        // The link-local address may still be tentative. The caller sends again.
        let sent = socket.send_to(&message, &all_nodes.into());
        assert!(!sent.is_err_and(|error| error.kind() != std::io::ErrorKind::AddrNotAvailable));
    };
    net.client.run(send).expect("the client's namespace");
    std::thread::sleep(Duration::from_millis(100));
}

#[test]
fn router_advertisements_are_accepted_after_forwarding_is_enabled() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let own = |prefix: &str| {
        let text = net.in_host(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6").expect("readable"));
        text.contains(prefix)
    };
    let default_route = || {
        let text = net.in_host(|| std::fs::read_to_string("/proc/thread-self/net/ipv6_route").expect("readable"));
        let default = "00000000000000000000000000000000 00 ";
        text.lines().any(|line| line.starts_with(default) && line.ends_with("eth0"))
    };
    let prefix = |third| Ipv6Addr::new(0x2001, 0xdb8, third, 0, 0, 0, 0, 0);
    for _ in 0..50 {
        advertise(&net, prefix(0x77));
        if own("20010db800770000") {
            break;
        }
    }
    assert!(own("20010db800770000") && default_route());
    let said = net.ok(&["add", "8080", "[fd00:17::3]:80"]);
    assert!(said.stderr.contains("set net.ipv6.conf.all.forwarding to 1, was 0"), "{said:?}");
    assert!(said.stderr.contains("set net.ipv6.conf.eth0.accept_ra to 2, was 1"), "{said:?}");
    assert!(own("20010db800770000") && default_route(), "the earlier prefix and route stay");
    advertise(&net, prefix(0x78));
    assert!(own("20010db800780000") && default_route(), "a new advertisement is accepted");
    net.ok(&["flush"]);
    assert_eq!(sysctl(&net, "ipv6/conf/all/forwarding"), "0");
    assert_eq!(sysctl(&net, "ipv6/conf/eth0/accept_ra"), "1");
}

#[test]
fn plan_shows_sysctls_and_a_missing_bridge_changes_no_other_interface() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let set = "[[network]]\nname = \"br-later\"\nsubnet = [\"10.5.0.0/24\"]\n\n[[forward]]\nlisten = \"8080\"\nto = \"10.5.0.2:80\"\nloopback = true\n";
    let path = crate::support::file(&net.state, set).to_string_lossy().into_owned();
    // The default route through eth0 covers the target. eth0 must not get `route_localnet`.
    net.in_host(|| {
        let links = Links::open().expect("rtnetlink");
        let ip = |text: &str| text.parse().expect("address");
        links.route(ip("0.0.0.0"), 0, ip("192.0.2.2")).expect("route");
    });
    let plan = net.ok(&["plan", &path]).stdout;
    assert!(plan.contains("~ net.ipv4.ip_forward = 0  =>  net.ipv4.ip_forward = 1"), "{plan}");
    let said = net.ok(&["apply", &path]);
    assert!(said.stderr.contains("note: there is no interface to 10.5.0.2 yet"), "{said:?}");
    assert_eq!(sysctl(&net, "ipv4/conf/eth0/route_localnet"), "0");
    net.in_host(|| Links::open().expect("rtnetlink").bridge("br-later").expect("bridge"));
    let planned = net.portfwd(&["plan", "--detailed-exitcode", &path]);
    assert_eq!(planned.code, 3, "{planned:?}");
    assert!(planned.stdout.contains("net.ipv4.conf.br-later.route_localnet = 1"), "{planned:?}");
    net.ok(&["apply", &path]);
    assert_eq!(sysctl(&net, "ipv4/conf/br-later/route_localnet"), "1");
    assert_eq!(net.ok(&["plan", "--detailed-exitcode", &path]).stdout, "0 to add, 0 to change, 0 to remove\n");
    // A prohibit route to one target must not block other changes.
    net.ok(&["add", "8086", "10.6.0.2:80", "--loopback"]);
    let forbid = || Command::new("ip").args(["route", "add", "prohibit", "10.6.0.0/24"]).status();
    assert!(net.in_host(forbid).expect("ip is installed").success());
    net.ok(&["add", "9999", "10.7.0.2:80"]);
}
