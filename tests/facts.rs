//! The host facts that the audit reads, in test namespaces: links, routes, sockets, sysctls, connections.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use portfwd::model::{Family, Protocol};
use portfwd::ruleset::facts::{Facts, Flow, NextHop, Route};
use portfwd::ruleset::read::facts::read;

use crate::support::{Net, Said, ask, feed, privileged, serve};

fn run(net: &Net, script: &str) -> String {
    let said: Said = net.in_host(|| Command::new("sh").args(["-ec", script]).output().expect("sh").into());
    assert_eq!(said.code, 0, "{script}: {said:?}");
    said.stdout
}

fn address(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn index(facts: &Facts, name: &str) -> u32 {
    facts.named(name).unwrap_or_else(|| panic!("{name} of {:?}", facts.links)).index
}

#[test]
fn interfaces_are_read_with_their_bridge_and_xdp_programs() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let object = net.state.path().join("program.o");
    fs::write(&object, xdp_object()).expect("written");
    run(
        &net,
        &format!(
            "ip link add a.b type veth peer name b.a mtu 1400
             ip link set b.a up
             bridge link set dev port0 hairpin on
             ip link set b.a master docker0
             ip link set dev eth0 xdpgeneric obj {} sec xdp",
            object.display()
        ),
    );
    let facts = net.in_host(|| read(None));
    assert_eq!(facts.gaps, []);
    let names: BTreeSet<&str> = facts.links.iter().map(|link| link.name.as_str()).collect();
    assert!(names.is_superset(&["lo", "eth0", "docker0", "port0", "a.b", "b.a"].into()), "{names:?}");
    let link = |name: &str| facts.named(name).expect(name);
    let kinds = ["lo", "docker0", "port0"].map(|name| link(name).kind.as_deref());
    assert_eq!(kinds, [None, Some("bridge"), Some("veth")]);
    assert_eq!(["lo", "eth0", "a.b"].map(|name| link(name).up), [true, true, false]);
    assert_eq!(["lo", "eth0"].map(|name| link(name).loopback), [true, false]);
    assert_eq!(["eth0", "b.a"].map(|name| link(name).mtu), [Some(1500), Some(1400)]);
    let bridge = index(&facts, "docker0");
    assert_eq!(["port0", "b.a", "eth0"].map(|name| link(name).master), [Some(bridge), Some(bridge), None]);
    assert_eq!(["port0", "b.a", "eth0"].map(|name| link(name).hairpin), [Some(true), Some(false), None]);
    assert_eq!(facts.ports(bridge).count(), 2);
    assert_eq!(facts.programs, ["eth0"]);
    run(&net, "ip link set dev eth0 xdpgeneric off");
    assert!(net.in_host(|| read(None)).programs.is_empty());
}

/// Returns the object file of an XDP program that passes every packet.
///
/// The file has two instructions, a symbol and names. `clang -target bpf` makes the same program from
/// `__attribute__((section("xdp"))) int pass(void *ctx) { return 2; }`.
fn xdp_object() -> Vec<u8> {
    let code: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let names = b"\0.strtab\0xdp\0.symtab\0pass\0\0\0\0\0\0\0";
    let words = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let halves = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    // The first symbol is the null symbol. The second symbol is `pass`, a global function of 16 bytes in section 2.
    let symbols = [vec![0; 24], halves(&[21, 0x0002_0012]), words(&[0, 16])].concat();
    let (names_at, code_at) = (64, 64 + names.len() as u64);
    let symbols_at = code_at + 16;
    let section = |name, kind, flags, at, size, link: u32, first: u32, align, each| {
        [halves(&[name, kind]), words(&[flags, 0, at, size]), halves(&[link, first]), words(&[align, each])].concat()
    };
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\xf7\0\x01\0\0\0".to_vec();
    file.extend(words(&[0, 0, symbols_at + 48]));
    // The rest of the ELF header: flags, header size, size and count of program headers (0) and of section headers (4),
    // index of the names.
    file.extend([0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0, 4, 0, 1, 0]);
    file.extend(names);
    file.extend(code);
    file.extend(symbols);
    file.extend(section(0, 0, 0, 0, 0, 0, 0, 0, 0));
    file.extend(section(1, 3, 0, names_at, names.len() as u64, 0, 0, 1, 0));
    file.extend(section(9, 1, 6, code_at, 16, 0, 0, 8, 0));
    file.extend(section(13, 2, 0, symbols_at, 48, 1, 1, 8, 24));
    file
}

#[test]
fn routes_agree_with_ip_route_get() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let routes = "ip addr add 10.8.0.1 peer 10.8.0.2/32 dev docker0
         ip route add default via 192.0.2.254
         ip route add default via 192.0.2.253 metric 50
         ip route add 10.20.0.0/16 via 172.17.0.9
         ip route add 10.20.1.0/24 dev eth0
         ip route add blackhole 10.20.1.128/25
         ip route add unreachable 10.30.0.0/16
         ip route add prohibit 10.31.0.0/16
         ip route add throw 10.32.0.0/16
         ip route add 10.32.5.0/24 dev eth0 table default
         ip route add 10.33.0.0/16 dev eth0 table 1000
         ip route add 10.34.0.0/16 nexthop via 192.0.2.251 nexthop via 172.17.0.8
         ip route add 10.35.0.0/16 via inet6 fe80::9 dev eth0
         ip nexthop add id 5 via 192.0.2.250 dev eth0
         ip route add 10.36.0.0/16 nhid 5
         ip route add local 10.40.0.0/16 dev lo
         ip route add 10.40.7.0/24 dev eth0
         ip -6 route add 2001:db8:1::/48 via 2001:db8::99
         ip -6 route add 2001:db8:1:1::/64 via fd00:17::9 metric 7
         ip -6 route add 2001:db8:1:1::/64 via fd00:17::8 metric 5
         ip -6 route add unreachable 2001:db8:2::/48
         ip -6 route add local 2001:db8:3::/48 dev lo
         ip -6 route add 2001:db8:3:7::/64 dev eth0";
    run(&net, routes);
    let destinations = [
        "127.0.0.5",
        "192.0.2.1",
        "192.0.2.77",
        "172.17.0.1",
        "172.17.3.3",
        "10.8.0.1",
        "10.8.0.2",
        "10.8.0.3",
        "8.8.8.8",
        "10.20.9.9",
        "10.20.1.5",
        "10.20.1.200",
        "10.30.1.1",
        "10.31.1.1",
        "10.32.1.1",
        "10.32.5.5",
        "10.33.1.1",
        "10.35.1.1",
        "10.36.1.1",
        "10.40.1.1",
        "10.40.7.1",
        "::1",
        "2001:db8::1",
        "2001:db8::77",
        "fd00:17::5",
        "2001:db8:1::5",
        "2001:db8:1:1::5",
        "2001:db8:2::5",
        "2001:db8:3::5",
        "2001:db8:3:7::5",
        "2001:db8:9::1",
    ];
    // The kernel uses an IPv6 address only after its link is up.
    let own = ["2001:db8::1", "fd00:17::1"].map(address);
    let settled = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        let facts = net.in_host(|| read(None));
        own.iter().all(|own| facts.is_local(*own))
    });
    assert!(settled, "the host's addresses are not usable after five seconds");
    let compare = |destinations: &[&str]| {
        let facts = net.in_host(|| read(None));
        assert_eq!(facts.gaps, []);
        for to in destinations {
            let said: Said =
                net.in_host(|| Command::new("ip").args(["route", "get", to]).output().expect("ip is installed").into());
            let words: Vec<&str> = said.stdout.split_ascii_whitespace().collect();
            let behind = |word: &str| words.iter().position(|found| *found == word).and_then(|at| words.get(at + 1));
            let kernel = match words.first() {
                Some(&"local") => "here".to_owned(),
                Some(_) => {
                    let gateway =
                        behind("via").map(|via| if *via == "inet6" { behind("inet6").expect("via") } else { via });
                    format!("{} {gateway:?}", behind("dev").expect("a device"))
                }
                None => "nowhere".to_owned(),
            };
            let way = match facts.next_hop(address(to)) {
                NextHop::Local => "here".to_owned(),
                NextHop::Unreachable => "nowhere".to_owned(),
                NextHop::Via(link, gateway) => {
                    format!("{} {:?}", link.name, gateway.map(|gateway| gateway.to_string()))
                }
            };
            assert_eq!(way, kernel, "{to}: {said:?}");
        }
        facts
    };
    let facts = compare(&destinations);
    assert!(!facts.policy_routing);
    let ways: Vec<&Route> = facts.routes.iter().filter(|route| route.to.to_string() == "10.34.0.0/16").collect();
    assert_eq!(
        ways.iter().map(|route| route.gateway).collect::<Vec<_>>(),
        ["192.0.2.251", "172.17.0.8"].map(|to| Some(address(to)))
    );
    assert!(facts.routes.iter().any(|route| route.table == 1000));
    let uplinks: Vec<&str> = facts.uplinks(Family::Ipv4).iter().map(|link| link.name.as_str()).collect();
    assert_eq!(uplinks, ["eth0"]);
    assert_eq!(facts.link_of(address("10.8.0.2")).map(|link| link.name.as_str()), Some("docker0"));
    assert_eq!(facts.global_addresses(Family::Ipv4), ["192.0.2.1", "172.17.0.1", "10.8.0.1"].map(address));

    // Any `ip rule` splits the local table from the main table, even if no packet matches the rule.
    run(&net, "ip rule add fwmark 7 table 1000");
    assert!(compare(&destinations).policy_routing);
    run(&net, "ip rule del fwmark 7 table 1000");
    assert!(!net.in_host(|| read(None)).policy_routing);
    run(&net, "ip -6 route add 2001:db8:7::/48 from 2001:db8::/64 via 2001:db8::99");
    assert!(net.in_host(|| read(None)).policy_routing);

    // If the kernel reports a route with a nexthop id only, the audit does not know its gateway and reports a gap.
    run(&net, "ip -6 route flush 2001:db8:7::/48; sysctl -qw net.ipv4.nexthop_compat_mode=0");
    let facts = net.in_host(|| read(None));
    assert!(!facts.policy_routing);
    assert_eq!(
        facts.gaps.iter().map(|gap| gap.what.as_str()).collect::<Vec<_>>(),
        ["the way of the route to 10.36.0.0/16"]
    );
    assert_eq!(facts.next_hop(address("10.36.1.1")), NextHop::Unreachable);
}

#[test]
fn all_of_ten_thousand_routes_are_read() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let add = |number: u32| format!("route add 100.{}.{}.0/28 dev eth0\n", 64 + number / 256, number % 256);
    let batch: String = (0..10_000).map(add).collect();
    net.in_host(|| feed("ip", &["-batch", "-"], &batch));
    let facts = net.in_host(|| read(None));
    let added = facts.routes.iter().filter(|route| route.to.prefix() == 28).count();
    assert_eq!((facts.gaps.as_slice(), added), ([].as_slice(), 10_000));
    assert!(matches!(facts.next_hop(address("100.103.15.7")), NextHop::Via(link, None) if link.name == "eth0"));
    assert_eq!(facts.next_hop(address("100.103.16.7")), NextHop::Unreachable);
}

#[test]
fn neighbours_sysctls_listeners_and_connections_are_read_from_the_namespace() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:53", true);
    run(
        &net,
        "ip link add a.b type veth peer name b.a
         ip neigh add 192.0.2.99 dev eth0 nud failed
         ip neigh add 192.0.2.98 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
         echo 1 > /proc/sys/net/ipv4/conf/a.b/route_localnet
         echo 1 > /proc/sys/net/ipv4/ip_forward
         echo '8080,9000-9001' > /proc/sys/net/ipv4/ip_local_reserved_ports
         nft 'add table ip t; add chain ip t pre { type nat hook prerouting priority -100; }
              add rule ip t pre udp dport 5353 dnat to 172.17.0.3:53'
         iptables-legacy -t raw -L -n > /dev/null",
    );
    assert_eq!(net.ask("192.0.2.1:5353", true), "172.17.0.3:53 saw 192.0.2.2");
    let (facts, tcp, udp) = net.in_host(|| {
        let tcp = TcpListener::bind("192.0.2.1:0").expect("bind");
        let udp = UdpSocket::bind("[::]:0").expect("bind");
        let port = |at: std::io::Result<std::net::SocketAddr>| at.expect("bound").port();
        let ports = (port(tcp.local_addr()), port(udp.local_addr()));
        (read(Some("192.0.2.2 40000 192.0.2.1 22")), ports.0, ports.1)
    });
    assert_eq!(facts.gaps, []);
    assert_eq!(facts.ssh, Some((address("192.0.2.1"), 22)));
    let (silent, answers) = (facts.is_silent(address("192.0.2.99")), facts.is_silent(address("192.0.2.98")));
    assert!(silent && !answers, "{:?}", facts.neighbours);

    for (key, value) in [
        ("net/ipv4/conf/a.b/route_localnet", Some("1")),
        ("net/ipv4/conf/b.a/route_localnet", Some("0")),
        ("net/ipv4/conf/all/route_localnet", Some("0")),
        ("net/ipv4/conf/default/forwarding", Some("1")),
        ("net/ipv6/conf/a.b/forwarding", Some("0")),
        ("net/ipv6/conf/all/forwarding", Some("0")),
        ("net/ipv4/ip_forward", Some("1")),
        ("net/ipv4/ip_local_reserved_ports", Some("8080,9000-9001")),
        ("net/ipv4/conf/none/forwarding", None),
    ] {
        assert_eq!(facts.setting(key), value, "{key}");
    }
    assert!(facts.setting("net/netfilter/nf_conntrack_udp_timeout_stream").is_some());

    let this_process = Some(std::process::id());
    let owner = |protocol, to, port| {
        let mut listeners = facts.listeners_at(protocol, address(to), port);
        let found = listeners.next().map(|listener| listener.owner.as_ref().map(|(_, process)| *process));
        assert_eq!(listeners.next(), None);
        found
    };
    assert_eq!(owner(Protocol::Tcp, "192.0.2.1", tcp), Some(this_process));
    assert_eq!(owner(Protocol::Tcp, "172.17.0.1", tcp), None);
    assert_eq!(owner(Protocol::Udp, "192.0.2.1", udp), Some(this_process));
    assert_eq!(facts.listeners.len(), 2, "{:?}", facts.listeners);

    let (followed, most) = facts.tracked_count.expect("connections are followed");
    assert!(followed >= 1 && most > followed, "{followed} {most}");
    let seen: Vec<_> = facts.tracked.iter().filter(|one| one.listen == (address("192.0.2.1"), 5353)).collect();
    assert_eq!(seen.len(), 1, "{:?}", facts.tracked);
    assert_eq!(
        (seen[0].protocol, seen[0].client.0, seen[0].target),
        (17, address("192.0.2.2"), (address("172.17.0.3"), 53))
    );
    // The connection has the status bit `IPS_DST_NAT` and not `IPS_SRC_NAT`.
    assert_eq!(seen[0].status & 0x30, 0x20, "{seen:?}");
    assert_eq!(facts.legacy, BTreeSet::from([(Family::Ipv4, "raw".to_owned())]));

    // The facts of one namespace do not appear in another.
    let other = net.target.run(|| read(None)).expect("the target's namespace");
    assert_eq!(other.gaps, []);
    assert!(other.legacy.is_empty() && other.named("a.b").is_none() && other.ssh.is_none());
    assert_eq!(
        (other.setting("net/ipv4/ip_forward"), other.setting("net/ipv4/conf/a.b/forwarding")),
        (Some("0"), None)
    );
    assert!(other.listeners_at(Protocol::Udp, address("172.17.0.3"), 53).next().is_some());
    assert!(other.tracked.is_empty());
    let again = net.in_host(|| read(None));
    assert_eq!(again.legacy, facts.legacy);
}

#[test]
fn ipv6_connections_and_connections_without_ports_are_read() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    run(
        &net,
        "nft 'add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in ct state new counter'",
    );
    net.in_host(|| serve("[2001:db8::1]:7000".parse().expect("address"), true));
    let to = "[2001:db8::1]:7000".parse().expect("address");
    // A new link may lose its first packets, so the test sends up to five.
    let mut answers = (0..5).map(|_| net.client.run(|| ask(to, true)).expect("the client's namespace"));
    assert!(answers.any(|said| said.contains("saw 2001:db8::2")));
    let echo = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::ICMPV4));
        // These bytes are an ICMP echo request with id 1, sequence 1 and its checksum.
        let request = [8, 0, 0xf7, 0xfd, 0, 1, 0, 1];
        let to = std::net::SocketAddr::new(address("192.0.2.1"), 0);
        socket.and_then(|socket| socket.send_to(&request, &to.into())).expect("sent")
    };
    net.client.run(echo).expect("the client's namespace");
    let facts = net.in_host(|| read(None));
    assert_eq!(facts.gaps, []);
    let tracked = |protocol: u8| facts.tracked.iter().filter(|one| one.protocol == protocol).collect::<Vec<_>>();
    let (udp, icmp) = (tracked(17), tracked(1));
    let udp = udp.last().unwrap_or_else(|| panic!("{:?}", facts.tracked));
    assert_eq!((udp.client.0, udp.target), (address("2001:db8::2"), (address("2001:db8::1"), 7000)));
    assert_eq!((icmp.len(), icmp[0].listen), (1, (address("192.0.2.1"), 0)), "{:?}", facts.tracked);
}

/// The environment variable that makes a test run its part for an unprivileged user.
const AS_NOBODY: &str = "PORTFWD_TEST_AS_NOBODY";

#[test]
fn data_that_only_root_can_read_is_reported_as_a_gap() {
    if std::env::var_os(AS_NOBODY).is_some() {
        let facts = read(None);
        let mut lines: Vec<String> = facts.gaps.iter().map(|gap| format!("gap: {}: {}", gap.what, gap.why)).collect();
        lines.push(format!("links: {}", facts.links.len()));
        lines.push(format!("routes: {}", !facts.routes.is_empty()));
        lines.push(format!("listeners: {:?}", facts.listeners.iter().map(|one| one.port).collect::<Vec<_>>()));
        eprintln!("{}", lines.join("\n"));
        return;
    }
    if !privileged() {
        return;
    }
    let net = Net::new();
    // The build directory may be readable by root only, so the unprivileged user runs a copy of the program.
    let copy = net.state.path().join("tests");
    fs::copy(std::env::current_exe().expect("we run"), &copy).expect("copied");
    for path in [net.state.path(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
    }
    run(&net, "iptables-legacy -t nat -L -n > /dev/null; ip6tables-legacy -t nat -L -n > /dev/null");
    run(
        &net,
        "nft 'add table ip t; add chain ip t in { type filter hook input priority 0; }; add rule ip t in ct state new counter'",
    );
    net.in_host(|| serve("192.0.2.1:7000".parse().expect("address"), true));
    assert!(net.ask("192.0.2.1:7000", true).contains("saw"));
    let said: Said = net.in_host(|| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(&copy);
        command.args(["facts::data_that_only_root_can_read_is_reported_as_a_gap", "--exact", "--nocapture"]);
        command.env(AS_NOBODY, "1").current_dir(Path::new("/"));
        command.output().expect("setpriv is installed").into()
    });
    assert_eq!(said.code, 0, "{said:?}");
    let lines: Vec<&str> = said.stderr.lines().filter(|line| line.contains(": ")).collect();
    assert_eq!(
        lines,
        [
            "gap: tables of iptables-legacy of IPv4: only root may read it",
            "gap: tables of iptables-legacy of IPv6: only root may read it",
            "gap: IPsec policies: only root may read it",
            "gap: the processes of 1 sockets that wait: they are not shown in /proc, or only to root",
            "gap: connections that are followed: only root may read it",
            "links: 4",
            "routes: true",
            "listeners: [7000]",
        ],
        "{said:?}"
    );
}

#[test]
fn queues_with_filters_and_ipsec_policies_are_found() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let facts = || net.in_host(|| read(None));
    let before = facts();
    assert_eq!((before.queues.len(), before.ipsec, before.ipvs), (0, false, false), "{:?}", before.gaps);
    run(&net, "tc qdisc add dev eth0 clsact");
    run(&net, "tc qdisc add dev docker0 ingress");
    assert_eq!(facts().queues, ["docker0", "eth0"]);
    run(&net, "tc qdisc del dev docker0 ingress; tc qdisc del dev eth0 clsact");
    assert!(facts().queues.is_empty());
    for direction in ["fwd", "in", "out"] {
        let policy = format!("src 10.7.0.0/16 dst 10.8.0.0/16 dir {direction}");
        run(&net, &format!("ip xfrm policy add {policy} action block"));
        assert!(facts().ipsec, "{direction}");
        run(&net, &format!("ip xfrm policy del {policy}"));
        assert!(!facts().ipsec, "{direction}");
    }
}

#[test]
fn routing_rules_lead_where_the_kernel_leads() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    run(
        &net,
        "for i in all eth0 docker0; do sysctl -qw net.ipv4.conf.$i.rp_filter=0; done; sysctl -qw net.ipv4.ip_forward=1
         ip route add default via 192.0.2.2
         ip route add default via 172.17.0.3 table 7; ip route add 10.1.0.0/16 via 172.17.0.4 table 7
         ip route add throw 10.2.0.0/16 table 7; ip route add unreachable 10.3.0.0/16 table 8
         ip route add local 10.9.0.0/16 dev lo table 9",
    );
    let rules = [
        "from 192.0.2.0/24 to 10.0.0.0/8 iif eth0 table 7",
        "fwmark 0x5/0x7 table 7",
        "not from 192.0.2.0/24 table 7",
        "ipproto tcp dport 80-90 table 8",
        "table 7 suppress_prefixlength 8",
        "fwmark 8 blackhole",
        "to 10.9.0.0/16 table 9",
        "iif lo table 7",
        "fwmark 0x10 goto 32766",
    ];
    for (number, rule) in rules.iter().enumerate() {
        run(&net, &format!("ip rule add prio 100 {rule}"));
        // A second rule decides about the packets that the first one skips.
        let second = rules[(number + 4) % rules.len()];
        run(&net, &format!("ip rule add prio 200 {second}"));
        let facts = net.in_host(|| read(None));
        let flow = |to: &str, from: &str, input: &str, mark, port| Flow {
            destination: address(to),
            source: Some(address(from)),
            mark: Some(mark),
            input: Some(index(&facts, input)),
            protocol: Some(6),
            source_port: Some(1000),
            port: Some(port),
        };
        for to in ["10.1.0.1", "10.2.0.1", "10.3.0.1", "10.9.0.1", "8.8.8.8", "172.17.0.9"] {
            for (from, input) in [("192.0.2.7", "eth0"), ("172.17.0.7", "docker0"), ("192.0.2.1", "lo")] {
                for (mark, port) in [(0, 80), (5, 443), (8, 443), (0x10, 80)] {
                    let way = if input == "lo" { format!("from {from}") } else { format!("from {from} iif {input}") };
                    let get =
                        format!("ip route get {to} {way} mark {mark} ipproto tcp sport 1000 dport {port} 2>&1 || :");
                    let kernel = run(&net, &get);
                    let word = |name: &str| {
                        let mut words = kernel.split_ascii_whitespace().skip_while(|word| *word != name);
                        words.nth(1).map(str::to_owned)
                    };
                    let kernel_way = match kernel.split_ascii_whitespace().next() {
                        Some("local") => "here".to_owned(),
                        Some("RTNETLINK") => "nowhere".to_owned(),
                        _ => format!("{:?} {:?}", word("dev"), word("via")),
                    };
                    let found = facts.lookup(&flow(to, from, input, mark, port));
                    assert!(found.sure, "{rule}");
                    let way = match found.routes {
                        [Route { kind: 2, .. }, ..] => "here".to_owned(),
                        [Route { kind: 1, output, gateway, .. }] => {
                            let link = output.and_then(|output| facts.link(output)).map(|link| link.name.clone());
                            format!("{link:?} {:?}", gateway.map(|gateway| gateway.to_string()))
                        }
                        _ => "nowhere".to_owned(),
                    };
                    assert_eq!(way, kernel_way, "{rule}, {second}: {get}: {kernel}");
                }
            }
        }
        run(&net, "ip rule del prio 100; ip rule del prio 200");
    }
}

#[test]
fn bridges_that_call_netfilter_are_found() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let found = || net.in_host(|| read(None)).netfilter_bridges;
    assert!(found().is_empty());
    run(&net, "ip link set docker0 type bridge nf_call_iptables 1");
    assert_eq!(found(), BTreeSet::from([(Family::Ipv4, "docker0".to_owned())]));
    run(&net, "ip link set docker0 type bridge nf_call_iptables 0 nf_call_ip6tables 1");
    assert_eq!(found(), BTreeSet::from([(Family::Ipv6, "docker0".to_owned())]));
}
