//! Random mixtures of rules from several tools in one namespace. `audit` must predict where each real packet goes.
//!
//! Connection tracking shows the real result: the address from which the kernel expects the reply.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use fastrand::Rng;
use portfwd::audit::listing;
use portfwd::model::Family;
use portfwd::ruleset::host::Host;
use portfwd::ruleset::read;
use portfwd::ruleset::region::Field;
use portfwd::ruleset::set::address_of;
use portfwd::ruleset::simulate::{End, PacketTrace, Simulator, first};
use portfwd::ruleset::table::Hook;

use crate::support::{Net, feed, privileged};

/// The default number of mixtures. The environment variable `MIXTURES` overrides it.
const MIXTURES: u64 = 60;

/// The number of packets that the test sends for each mixture.
const PACKETS: usize = 24;

/// The destination ports of rules and packets.
const PORTS: std::ops::Range<u16> = 8000..8008;

/// The addresses of clients. The host has a route to both.
const CLIENTS: [&str; 2] = ["192.0.2.2", "192.0.2.3"];

/// The destination addresses: two addresses of the host, and two behind the host.
const DESTINATIONS: [&str; 4] = ["192.0.2.1", "192.0.2.9", "172.17.0.3", "203.0.113.9"];

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(..from.len())]
}

fn port(rng: &mut Rng) -> u16 {
    rng.u16(PORTS)
}

/// Returns random matches of an nft rule.
fn nft_matches(rng: &mut Rng, ip: bool) -> String {
    let mut text = String::new();
    let mut add = |words: String| text = format!("{text}{words} ");
    if rng.u8(..3) == 0 {
        add(format!("iifname {}", pick(rng, &["\"eth0\"", "!= \"docker0\"", "\"eth*\"", "\"docker0\""])));
    }
    if rng.u8(..3) == 0 {
        add("fib daddr type local".into());
    }
    if ip && rng.u8(..3) == 0 {
        let not = pick(rng, &["", "!= "]);
        add(format!("ip daddr {not}{}", pick(rng, &["192.0.2.1", "192.0.2.0/24", "{ 192.0.2.9, 203.0.113.0/24 }"])));
    }
    if ip && rng.u8(..4) == 0 {
        add(format!("ip saddr {}", pick(rng, &["192.0.2.2", "!= 192.0.2.2", "192.0.2.2-192.0.2.200"])));
    }
    if rng.u8(..6) == 0 {
        add(pick(rng, &["ct state new", "meta mark 0x1", "meta mark & 0x2 == 0x2", "ct state established"]).into());
    }
    let (low, high) = (port(rng), port(rng));
    add(match rng.u8(..7) {
        0 => format!("udp dport {}-{}", low.min(high), low.max(high).max(low + 1)),
        1 => format!("udp dport {{ {low}, {} }}", if high == low { low + 9 } else { high }),
        2 => format!("meta l4proto {{ tcp, udp }} th dport {low}"),
        3 => format!("udp dport != {low}"),
        4 => format!("tcp dport {low}"),
        _ => format!("udp dport {low}"),
    });
    text
}

fn target(rng: &mut Rng) -> String {
    format!("172.17.0.{}", rng.u8(3..9))
}

/// Returns a random statement for a rule in an nft NAT chain.
fn nft_statement(rng: &mut Rng, inet: bool, chains: &[String]) -> String {
    let ip = if inet { " ip" } else { "" };
    match rng.u8(..12) {
        0 => "return".into(),
        1 => "accept".into(),
        2 => "drop".into(),
        3 => format!("redirect to :{}", port(rng)),
        4 => "meta mark set meta mark | 0x2".into(),
        5 | 6 if !chains.is_empty() => {
            format!("{} {}", pick(rng, &["jump", "goto"]), chains[rng.usize(..chains.len())])
        }
        7 => format!("dnat{ip} to {}", target(rng)),
        _ => format!("dnat{ip} to {}:{}", target(rng), rng.u16(1..999)),
    }
}

/// Returns a map for a table, and a rule that looks the map up.
fn nft_map(rng: &mut Rng, name: &str) -> (String, String) {
    let mut ports: Vec<u16> = PORTS.collect();
    rng.shuffle(&mut ports);
    let some = &ports[..rng.usize(1..5)];
    let list =
        |element: &mut dyn FnMut(u16) -> String| some.iter().map(|port| element(*port)).collect::<Vec<_>>().join(", ");
    match rng.u8(..3) {
        0 => (
            format!(
                "map {name} {{ type inet_service : ipv4_addr . inet_service; elements = {{ {} }}; }}",
                list(&mut |port| format!("{port} : {} . {}", target(rng), rng.u16(1..999)))
            ),
            format!("fib daddr type local dnat ip addr . port to udp dport map @{name}"),
        ),
        1 => (
            format!(
                "map {name} {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; elements = {{ {} }}; }}",
                list(&mut |port| format!("192.0.2.1 . udp . {port} : {} . {}", target(rng), rng.u16(1..999)))
            ),
            format!("dnat ip addr . port to ip daddr . meta l4proto . th dport map @{name}"),
        ),
        _ => (
            format!(
                "map {name} {{ type inet_service : verdict; elements = {{ {} }}; }}",
                list(&mut |port| format!("{port} : {}", pick(rng, &["goto last", "accept", "return", "jump last"])))
            ),
            format!("udp dport vmap @{name}"),
        ),
    }
}

fn nft_table(rng: &mut Rng, name: &str, priority: i32) -> String {
    let inet = rng.bool();
    let family = if inet { "inet" } else { "ip" };
    let mut text = format!("table {family} {name} {{\n");
    let (map, lookup) = nft_map(rng, "m");
    text += &format!("  {map}\n");
    let rules = |rng: &mut Rng, count, chains: &[String], extra: Option<&str>| {
        let mut lines: Vec<String> =
            (0..count).map(|_| format!("    {}{}", nft_matches(rng, true), nft_statement(rng, inet, chains))).collect();
        if let Some(extra) = extra {
            lines.insert(rng.usize(..=lines.len()), format!("    {extra}"));
        }
        lines.join("\n")
    };
    text += &format!("  chain last {{\n{}\n  }}\n", rules(rng, 2, &[], None));
    text += &format!("  chain more {{\n{}\n  }}\n", rules(rng, 3, &["last".into()], None));
    let chains = ["last".to_owned(), "more".to_owned()];
    let lookup = rng.bool().then_some(lookup.as_str());
    text += &format!(
        "  chain pre {{\n    type nat hook prerouting priority {priority}; policy accept;\n{}\n  }}\n",
        rules(rng, 4, &chains, lookup)
    );
    if rng.u8(..4) == 0 {
        text += &format!(
            "  chain early {{\n    type filter hook prerouting priority {}; policy accept;\n    {}{}\n  }}\n",
            [-300, -150, -50][rng.usize(..3)],
            nft_matches(rng, true),
            pick(rng, &["drop", "meta mark set 0x1", "accept", "notrack"])
        );
    }
    text + "}\n"
}

/// Returns a random table `nat` for iptables-restore.
fn iptables_nat(rng: &mut Rng) -> String {
    let mut text = String::from(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n:X - [0:0]\n",
    );
    let rule = |rng: &mut Rng, chain: &str, jumps: &[&str]| {
        let mut text = format!("-A {chain}");
        if rng.u8(..3) == 0 {
            text += pick(rng, &[" -i eth0", " ! -i docker0", " -i eth+"]);
        }
        if rng.u8(..3) == 0 {
            text += pick(rng, &[" -d 192.0.2.1/32", " ! -d 203.0.113.0/24", " -s 192.0.2.2/32", " ! -s 192.0.2.2/32"]);
        }
        text += " -p udp";
        let (low, high) = (port(rng), port(rng));
        match rng.u8(..5) {
            0 => write!(text, " -m multiport --dports {low},{high}:{}", high + 1),
            1 => write!(text, " -m udp --dport {}:{}", low.min(high), low.max(high)),
            2 => write!(text, " -m udp ! --dport {low}"),
            _ => write!(text, " -m udp --dport {low}"),
        }
        .expect("a string");
        if rng.u8(..3) == 0 {
            text += pick(
                rng,
                &[
                    " -m addrtype --dst-type LOCAL",
                    " -m addrtype ! --dst-type LOCAL",
                    " -m conntrack --ctstate NEW",
                    " -m mark --mark 0x2/0x2",
                    " -m iprange --src-range 192.0.2.3-192.0.2.9",
                    " -m comment --comment \"a b\"",
                ],
            );
        }
        text += &match rng.u8(..10) {
            0 => " -j RETURN".into(),
            1 => " -j ACCEPT".into(),
            2 => format!(" -j REDIRECT --to-ports {}", port(rng)),
            3 | 4 if !jumps.is_empty() => format!(" -{} {}", pick(rng, &["j", "g"]), pick(rng, jumps)),
            5 => " -j MARK --set-xmark 0x2/0x2".into(),
            6 => format!(" -j DNAT --to-destination {}", target(rng)),
            _ => format!(" -j DNAT --to-destination {}:{}", target(rng), rng.u16(1..999)),
        };
        text + "\n"
    };
    for _ in 0..rng.u8(1..5) {
        text += &rule(rng, "PREROUTING", &["DOCKER", "X"]);
    }
    for _ in 0..rng.u8(1..5) {
        text += &rule(rng, "DOCKER", &["X"]);
    }
    for _ in 0..rng.u8(..3) {
        text += &rule(rng, "X", &[]);
    }
    text + "COMMIT\n"
}

/// Returns the programs that load the rules of a mixture, each with its input.
fn mixture(rng: &mut Rng) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    for name in ["one", "two"] {
        if rng.u8(..3) > 0 {
            let priority = [-120, -110, -101, -100, -99, -50][rng.usize(..6)];
            all.push(("nft", nft_table(rng, name, priority)));
        }
    }
    // Both iptables variants use the same priority, and the order of their chains is undefined. So a mixture contains
    // at most one variant.
    match rng.u8(..3) {
        0 => all.push(("iptables-nft-restore", iptables_nat(rng))),
        1 => all.push(("iptables-legacy-restore", iptables_nat(rng))),
        _ => {}
    }
    // The kernel tracks connections only if a rule needs their state.
    let track = "table inet track {\n  chain c {\n    type filter hook postrouting priority 0;\n    ct state new counter\n  }\n}\n";
    all.push(("nft", track.to_owned()));
    rng.shuffle(&mut all);
    all
}

/// The source and the destination of a packet.
type Sent = (SocketAddr, SocketAddr);

/// Sends packets. Returns the address from which the kernel expects the reply to each packet, or `None` for a dropped
/// packet.
fn send_packets(net: &Net, packets: &[(IpAddr, SocketAddr)]) -> BTreeMap<Sent, Option<SocketAddr>> {
    let sockets: Vec<(UdpSocket, SocketAddr)> = net
        .client
        .run(|| {
            let send = |(from, to): &(IpAddr, SocketAddr)| {
                let socket = UdpSocket::bind((*from, 0)).expect("bind");
                socket.send_to(b"?", to).expect("sent");
                (socket, *to)
            };
            packets.iter().map(send).collect()
        })
        .expect("the client's namespace");
    let mut reply_from = BTreeMap::new();
    // On a busy machine, a packet may arrive late. So the test reads conntrack several times.
    for _ in 0..4 {
        let facts = net.in_host(|| read::facts::read(None));
        assert!(!facts.gaps.iter().any(|gap| gap.what.contains("connections")), "{:?}", facts.gaps);
        for (socket, to) in &sockets {
            let from = socket.local_addr().expect("bound");
            let entry = facts.tracked.iter().find(|one| {
                one.protocol == 17 && one.client == (from.ip(), from.port()) && one.listen == (to.ip(), to.port())
            });
            reply_from.insert((from, *to), entry.map(|one| SocketAddr::new(one.target.0, one.target.1)));
        }
        if reply_from.values().all(Option::is_some) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    reply_from
}

#[test]
fn audit_predicts_where_each_packet_goes() {
    if !privileged() {
        return;
    }
    let tries = std::env::var("MIXTURES").map_or(MIXTURES, |count| count.parse().expect("a number"));
    let seed =
        std::env::var("MIXTURES_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("a number"));
    eprintln!("MIXTURES_SEED={seed}");
    let net = network();
    let (mut sure, mut all, mut rewritten) = (0u64, 0u64, 0u64);
    for number in 0..tries {
        let mut rng = Rng::with_seed(seed.wrapping_add(number));
        let loaded = mixture(&mut rng);
        for (program, text) in &loaded {
            net.in_host(|| match *program {
                "nft" => feed("nft", &["-f", "-"], text),
                restore => feed(restore, &[], text),
            });
        }
        let (rules, facts) = net.in_host(|| read::live(None)).expect("readable");
        let host = Host::new(rules, Some(facts));
        let packets: Vec<(IpAddr, SocketAddr)> = (0..PACKETS)
            .map(|_| {
                let from: IpAddr = pick(&mut rng, &CLIENTS).parse().expect("address");
                let to: IpAddr = pick(&mut rng, &DESTINATIONS).parse().expect("address");
                (from, SocketAddr::new(to, port(&mut rng)))
            })
            .collect();
        let simulator = Simulator::new(&host);
        let shown = || {
            let texts: Vec<String> = loaded.iter().map(|(program, text)| format!("# {program}\n{text}")).collect();
            format!("MIXTURES_SEED={} MIXTURES=1\n{}", seed.wrapping_add(number), texts.join("\n"))
        };
        for ((from, to), reply_from) in send_packets(&net, &packets) {
            all += 1;
            let packet = first(Some("eth0"), 17, (from.ip(), from.port()), (to.ip(), to.port()));
            let trace = simulator.simulate(packet);
            if !trace.is_sure() {
                continue;
            }
            sure += 1;
            let report = || format!("{from} -> {to}\n{}\n{}", trace.render(&host), shown());
            // Conntrack has no entry for an untracked packet.
            if trace.outcomes().any(|(_, _, outcome)| outcome.untracked.is_some()) {
                assert_eq!(reply_from, None, "an untracked packet has an entry: {}", report());
                continue;
            }
            assert_eq!(predicted_reply(&trace), reply_from, "{}", report());
            rewritten += u64::from(reply_from.is_some_and(|reply_from| reply_from != to));
        }
        expect_same_in_dumps(&net, &host, &shown);
        net.in_host(|| {
            feed("nft", &["-f", "-"], "flush ruleset\n");
            feed(
                "iptables-legacy-restore",
                &[],
                "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n",
            );
            let flushed = Command::new("conntrack").arg("-F").output().expect("conntrack is installed");
            assert!(flushed.status.success());
        });
    }
    eprintln!("{tries} mixtures, {all} packets, {sure} sure, {rewritten} rewritten");
    assert!(sure * 10 >= all * 6, "too few packets are predicted: {sure} of {all}");
    assert!(rewritten * 10 >= sure * 2, "too few packets are rewritten: {rewritten} of {sure}");
}

/// Returns the address from which the kernel must expect the reply, or `None` if the packet is dropped.
fn predicted_reply(trace: &PacketTrace<'_>) -> Option<SocketAddr> {
    match trace.end {
        End::Dropped(..) | End::Refused(_) => None,
        _ => {
            let address = address_of(trace.packet.get(Field::Destination)?, Family::Ipv4)?;
            Some(SocketAddr::new(address, u16::try_from(trace.packet.get(Field::Port)?).ok()?))
        }
    }
}

/// Checks that dumps of the host give the same forwards as the kernel.
fn expect_same_in_dumps(net: &Net, host: &Host, shown: &dyn Fn() -> String) {
    let print = |program: &str, arguments: &[&str]| {
        let output = net.in_host(|| Command::new(program).args(arguments).output().expect("installed"));
        assert!(output.status.success(), "{program}");
        String::from_utf8(output.stdout).expect("text")
    };
    let mut dumps = vec![print("nft", &["-j", "list", "ruleset"]), print("iptables-legacy-save", &[])];
    // iptables-nft-save cannot show foreign tables, and prints a note about them. So its dump is used only for
    // iptables-nft rules.
    if shown().contains("iptables-nft-restore") {
        dumps.push(print("iptables-nft-save", &[]));
    }
    // The programs print nothing if there are no tables, so the test skips empty dumps.
    let dumps = dumps
        .iter()
        .filter(|dump| !dump.is_empty())
        .map(|dump| read::dump(dump, None).unwrap_or_else(|error| panic!("{error}\n{dump}")));
    let dumped = Host::new(read::together(dumps.collect()), None);
    let rows = |host: &Host| {
        let mut rows: Vec<String> = listing::forwards(host)
            .into_iter()
            .map(|row| {
                let hooks: Vec<Hook> = row.hooks.iter().map(|(hook, _)| *hook).collect();
                let except = row.except;
                format!(
                    "{:?} {:?} {:?} {:?} {:?} {:?} {} {hooks:?} {except:?}",
                    row.translation, row.protocol, row.ports, row.input, row.from, row.conditions, row.to
                )
            })
            .collect();
        rows.sort();
        rows
    };
    // A dump contains no host addresses. So the rules from the kernel are listed without host addresses too.
    let without_facts = Host::new(host.rules.clone(), None);
    assert_eq!(rows(&dumped), rows(&without_facts), "{}", shown());
}

fn network() -> Net {
    let net = Net::new();
    net.in_host(|| {
        for (path, value) in [("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0")] {
            std::fs::write(format!("/proc/sys/{path}"), value).expect("written");
        }
        let links = portfwd::lab::Links::open().expect("rtnetlink");
        links.address("eth0", Ipv4Addr::new(192, 0, 2, 9).into(), 24).expect("address");
        links.route(Ipv4Addr::new(203, 0, 113, 0).into(), 24, Ipv4Addr::new(172, 17, 0, 3).into()).expect("route");
    });
    net.client
        .run(|| {
            let links = portfwd::lab::Links::open().expect("rtnetlink");
            links.address("eth0", Ipv4Addr::new(192, 0, 2, 3).into(), 24).expect("address");
        })
        .expect("the client's namespace");
    net
}
