//! Random hosts of the journey oracle: rules of portfwd and of other programs, routing rules and sysctls.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use fastrand::Rng;
use portfwd::engine::Choice as Backend;
use portfwd::iptables::command::Variant;

use crate::oracle::generate::{self, Case};

/// The rules and settings of a host.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// The rules of portfwd, and their backend.
    pub portfwd: Option<(Backend, Case)>,
    /// Other rules for `nft -f`.
    pub nft: String,
    /// Other rules for iptables-restore and ip6tables-restore.
    pub iptables: Option<(Variant, String, String)>,
    /// Commands of ip(8).
    pub routing: Vec<String>,
    /// Sysctls below /proc/sys.
    pub settings: Vec<(String, &'static str)>,
    /// The destination ports that foreign rules name.
    pub ports: Vec<u16>,
    /// The names of the constructs that the host has.
    pub constructs: BTreeSet<&'static str>,
}

fn choose<'a, T: ?Sized>(rng: &mut Rng, list: &[&'a T]) -> &'a T {
    list[rng.usize(..list.len())]
}

fn one_in(rng: &mut Rng, count: u8) -> bool {
    rng.u8(..count) == 0
}

/// Returns a random host.
pub fn setup(rng: &mut Rng) -> Setup {
    let mut setup = Setup::default();
    let variant = match rng.u8(..4) {
        0 => None,
        1 => Some(Variant::Nft),
        _ => Some(Variant::Legacy),
    };
    if !one_in(rng, 3) {
        let backend = match variant {
            Some(variant) if rng.bool() => Backend::Variant(variant),
            _ => Backend::Nft,
        };
        if let Some(case) = portfwd(rng, backend) {
            setup.portfwd = Some((backend, case));
            setup.constructs.insert(match backend {
                Backend::Variant(Variant::Nft) => "portfwd on iptables-nft",
                Backend::Variant(Variant::Legacy) => "portfwd on iptables-legacy",
                _ => "portfwd on nft",
            });
        }
    }
    if !one_in(rng, 3) {
        setup.nft = nft(rng, &mut setup.constructs);
    }
    if let Some(variant) = variant
        && !one_in(rng, 3)
    {
        setup.constructs.insert(if variant == Variant::Nft { "iptables-nft" } else { "iptables-legacy" });
        let text = iptables(rng, true, &mut setup.constructs);
        let text6 = if one_in(rng, 3) { iptables(rng, false, &mut setup.constructs) } else { String::new() };
        setup.iptables = Some((variant, text, text6));
    }
    setup.ports = (1000..1006).collect();
    routing(rng, &mut setup);
    settings(rng, &mut setup);
    setup
}

/// Returns rules of portfwd with the addresses and interfaces of this network.
fn portfwd(rng: &mut Rng, backend: Backend) -> Option<Case> {
    const NAMES: [(&str, &str); 14] = [
        ("\"eth0\"", "\"wan0\""),
        ("\"eth1\"", "\"wan1\""),
        ("\"docker0\"", "\"br0\""),
        ("172.17.0.0/16", "10.9.0.0/24"),
        ("fd00:17::", "fd00:9::"),
        ("172.17.0.", "10.9.0."),
        ("10.1.0.2", "203.0.113.2"),
        ("10.1.0.9", "198.51.100.2"),
        ("192.0.2.1:", "203.0.113.1:"),
        ("192.0.2.2:", "198.51.100.1:"),
        ("2001:db8::1", "2001:db8:a::1"),
        ("198.18.0.2", "203.0.113.2"),
        ("198.18.0.1", "203.0.113.9"),
        ("198.51.100.128/25", "192.0.2.128/25"),
    ];
    let early = one_in(rng, 4);
    let mut case = generate::case(rng, 6, early).for_backend(backend);
    case.tables.retain(|table| !table.contains("br-a") && !table.contains("udplite"));
    for table in &mut case.tables {
        *table = NAMES.iter().fold(std::mem::take(table), |text, (from, to)| text.replace(from, to));
    }
    let mut kept = Case { settings: case.settings.clone(), tables: Vec::new() };
    for table in case.tables {
        kept.tables.push(table);
        if kept.desired().is_none() || kept.clone().for_backend(backend).tables.len() < kept.tables.len() {
            kept.tables.pop();
        }
    }
    (!kept.tables.is_empty()).then_some(kept)
}

/// Returns random matches of nft, for a chain that may see packets in both directions.
fn nft_match(rng: &mut Rng, hook: &str) -> String {
    let mut text = String::new();
    let mut add = |words: &str| text = format!("{text}{words} ");
    if one_in(rng, 3) && hook != "output" {
        add(choose(rng, &["iifname wan0", "iifname wan1", "iifname br0", "iifname != br0"]));
    }
    if one_in(rng, 4) && hook != "prerouting" && hook != "input" {
        add(choose(rng, &["oifname wan0", "oifname br0", "oifname != br0"]));
    }
    if one_in(rng, 4) {
        add(choose(
            rng,
            &["ip saddr 10.9.0.0/24", "ip saddr 192.0.2.0/25", "ip daddr 10.9.0.2", "ip daddr != 203.0.113.1"],
        ));
    }
    if one_in(rng, 5) {
        add(choose(
            rng,
            &["ct state new", "ct state established", "ct status dnat", "ct direction reply", "ct state invalid"],
        ));
    }
    if one_in(rng, 6) {
        add(choose(rng, &["meta mark 0x1", "ct mark 0x1", "meta mark & 0x2 == 0x2"]));
    }
    text
}

/// Returns a random match of a transport protocol, or none.
fn nft_protocol(rng: &mut Rng, needed: bool) -> String {
    let port = rng.u16(1000..1006);
    match rng.u8(..6) {
        0 => format!("udp dport {port} "),
        1 => format!("meta l4proto {{ tcp, udp }} th dport {port}-{} ", port + 2),
        2 => format!("udp sport {} ", rng.u16(1000..1006)),
        3 => "meta l4proto tcp ".into(),
        _ if needed => "meta l4proto udp ".into(),
        _ => String::new(),
    }
}

fn nft(rng: &mut Rng, constructs: &mut BTreeSet<&'static str>) -> String {
    constructs.insert("nft");
    let mut text = String::from("table inet foreign {\n");
    if one_in(rng, 2) {
        constructs.insert("nft nat");
        let priority = choose(rng, &["-120", "-101", "-99", "-50"]);
        let mut rules = String::new();
        for _ in 0..rng.u8(1..5) {
            let what = match rng.u8(..8) {
                0 => "return".to_owned(),
                1 => "accept".to_owned(),
                2 => "redirect to :2001".to_owned(),
                3 => "dnat ip to 203.0.113.2:2003".to_owned(),
                _ => format!("dnat ip to 10.9.0.{}:{}", rng.u8(2..4), rng.u16(2000..2004)),
            };
            // NAT of ports needs a transport protocol.
            let protocol = nft_protocol(rng, true);
            let _ = writeln!(rules, "    {}{protocol}{what}", nft_match(rng, "prerouting"));
        }
        let _ = writeln!(text, "  chain pre {{\n    type nat hook prerouting priority {priority};\n{rules}  }}");
        if one_in(rng, 2) {
            constructs.insert("nft source nat");
            let what = choose(rng, &["masquerade", "masquerade", "snat ip to 203.0.113.9", "snat ip to 10.9.0.1"]);
            let rule = format!("{}{}{what}", nft_match(rng, "postrouting"), nft_protocol(rng, false));
            let _ = writeln!(text, "  chain post {{\n    type nat hook postrouting priority 100;\n    {rule}\n  }}");
        }
    }
    for hook in ["prerouting", "input", "forward", "output", "postrouting"] {
        if !one_in(rng, 4) {
            continue;
        }
        constructs.insert("nft filter");
        let priority = choose(rng, &["-300", "-150", "-10", "10", "150"]);
        let kind = if hook == "output" && rng.bool() { "route" } else { "filter" };
        let mut rules = String::new();
        for _ in 0..rng.u8(1..4) {
            let what = choose(
                rng,
                &[
                    "drop",
                    "accept",
                    "reject",
                    "meta mark set 0x1",
                    "meta mark set 0x3",
                    "ct mark set 0x1",
                    "meta mark set ct mark",
                    "meta mark set meta mark | 0x2",
                    "return",
                    "counter",
                ],
            );
            if what == "reject" && (hook == "prerouting" || hook == "postrouting") {
                continue;
            }
            if what.contains("mark") {
                constructs.insert("marks");
            }
            let _ = writeln!(rules, "    {}{}{what}", nft_match(rng, hook), nft_protocol(rng, false));
        }
        if priority == "-300" && one_in(rng, 3) {
            constructs.insert("notrack");
            let _ = writeln!(rules, "    udp dport {} notrack", rng.u16(1000..1006));
        }
        if one_in(rng, 10) {
            constructs.insert("limit");
            let _ = writeln!(rules, "    udp dport {} limit rate 1000/second drop", rng.u16(1000..1006));
        }
        let _ = writeln!(text, "  chain {hook} {{\n    type {kind} hook {hook} priority {priority};\n{rules}  }}");
    }
    text + "}\n"
}

fn iptables_match(rng: &mut Rng, v4: bool, chain: &str) -> String {
    let mut text = String::new();
    if one_in(rng, 3) && chain != "OUTPUT" && chain != "POSTROUTING" {
        text += choose(rng, &[" -i wan0", " -i wan1", " ! -i br0", " -i br+"]);
    }
    if one_in(rng, 4) && chain != "PREROUTING" && chain != "INPUT" {
        text += choose(rng, &[" -o wan0", " ! -o br0", " -o br0"]);
    }
    if v4 && one_in(rng, 4) {
        text += choose(
            rng,
            &[" -s 10.9.0.0/24", " ! -s 192.0.2.0/24", " -d 10.9.0.2", " -d 203.0.113.1", " -s 203.0.113.2"],
        );
    }
    let port = rng.u16(1000..1006);
    match rng.u8(..5) {
        0 => write!(text, " -p udp -m udp --dport {port}"),
        1 => write!(text, " -p tcp -m tcp --dport {port}:{}", port + 2),
        2 => write!(text, " -p udp -m multiport --dports {port},2000:2002"),
        3 => write!(text, " -p udp -m udp --sport 2000:2003"),
        _ => Ok(()),
    }
    .expect("a string");
    if one_in(rng, 4) {
        text += choose(
            rng,
            &[
                " -m conntrack --ctstate NEW",
                " -m conntrack --ctstate RELATED,ESTABLISHED",
                " -m conntrack --ctstate DNAT",
                " -m mark --mark 0x1",
                " -m connmark --mark 0x1",
                " -m addrtype --dst-type LOCAL",
            ],
        );
    }
    text
}

fn iptables(rng: &mut Rng, v4: bool, constructs: &mut BTreeSet<&'static str>) -> String {
    let mut text = String::new();
    if one_in(rng, 2) {
        constructs.insert("iptables nat");
        text += "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n:X -\n";
        for _ in 0..rng.u8(1..4) {
            let jump = if one_in(rng, 4) { " -j X".to_owned() } else { nat_target(rng, v4) };
            let protocol = if jump.contains("DNAT") || jump.contains("REDIRECT") { " -p udp" } else { "" };
            let matches =
                iptables_match(rng, v4, "PREROUTING").replace(" -p udp", "").replace(" -p tcp -m tcp", " -m udp");
            let matches = if protocol.is_empty() { String::new() } else { matches };
            let _ = writeln!(text, "-A PREROUTING{protocol}{matches}{jump}");
        }
        if one_in(rng, 3) {
            let _ = writeln!(text, "-A OUTPUT -p udp --dport {}{}", rng.u16(1000..1006), nat_target(rng, v4));
        }
        let _ = writeln!(text, "-A X -p udp --dport {} -j RETURN", rng.u16(1000..1006));
        let _ = writeln!(text, "-A X -p udp{}", nat_target(rng, v4));
        if one_in(rng, 2) {
            constructs.insert("iptables source nat");
            let to = if v4 {
                choose(rng, &[" -j MASQUERADE", " -j SNAT --to-source 203.0.113.9"])
            } else {
                " -j MASQUERADE"
            };
            let _ = writeln!(text, "-A POSTROUTING{}{to}", iptables_match(rng, v4, "POSTROUTING"));
        }
        text += "COMMIT\n";
    }
    if one_in(rng, 2) {
        constructs.insert("iptables filter");
        let drops = one_in(rng, 3);
        let policy = if drops { "DROP" } else { "ACCEPT" };
        if drops {
            constructs.insert("policy drop");
        }
        let _ = write!(text, "*filter\n:INPUT ACCEPT\n:FORWARD {policy}\n:OUTPUT ACCEPT\n:Y -\n");
        if drops && !one_in(rng, 4) {
            text += "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
        }
        for chain in ["INPUT", "FORWARD", "FORWARD", "FORWARD", "OUTPUT", "Y"] {
            for _ in 0..rng.u8(..2) {
                let reject = if v4 { " -j REJECT --reject-with icmp-host-prohibited" } else { " -j REJECT" };
                let target = choose(rng, &[" -j DROP", " -j ACCEPT", " -j Y", " -g Y", reject, " -j RETURN"]);
                let target = if chain == "Y" && target.ends_with(" Y") { " -j ACCEPT" } else { target };
                let _ = writeln!(text, "-A {chain}{}{target}", iptables_match(rng, v4, chain));
            }
        }
        if one_in(rng, 8) {
            constructs.insert("statistic");
            text += "-A FORWARD -p tcp -m statistic --mode random --probability 0.5 -j DROP\n";
        }
        text += "COMMIT\n";
    }
    if one_in(rng, 3) {
        constructs.insert("marks");
        text += "*mangle\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n";
        for chain in ["PREROUTING", "PREROUTING", "OUTPUT"] {
            let target = choose(
                rng,
                &[
                    " -j MARK --set-mark 0x1",
                    " -j MARK --set-mark 0x3",
                    " -j CONNMARK --set-mark 0x1",
                    " -j CONNMARK --restore-mark",
                    " -j MARK --set-xmark 0x2/0x2",
                ],
            );
            let _ = writeln!(text, "-A {chain}{}{target}", iptables_match(rng, v4, chain));
        }
        text += "COMMIT\n";
    }
    text
}

fn nat_target(rng: &mut Rng, v4: bool) -> String {
    match (rng.u8(..6), v4) {
        (0, _) => " -j REDIRECT --to-ports 2001".into(),
        (1, _) => " -j RETURN".into(),
        (_, true) => format!(" -j DNAT --to-destination 10.9.0.{}:{}", rng.u8(2..4), rng.u16(2000..2004)),
        (_, false) => format!(" -j DNAT --to-destination [fd00:9::{}]:2002", rng.u8(2..4)),
    }
}

fn routing(rng: &mut Rng, setup: &mut Setup) {
    setup.routing.push("route add default via 203.0.113.2".into());
    setup.routing.push("-6 route add default via 2001:db8:a::2".into());
    let own = u8::from(one_in(rng, 8));
    setup.routing.push(format!("link set br0 type bridge nf_call_iptables {own}"));
    if one_in(rng, 2) {
        setup.constructs.insert("policy routing");
        setup.routing.push("route add default via 198.51.100.2 table 7".into());
        setup.routing.push("-6 route add default via 2001:db8:b::2 table 7".into());
        for (number, family) in [(100, ""), (101, ""), (100, "-6 ")] {
            let rule = match (rng.u8(..7), family) {
                (0, "") => "from 198.51.100.0/24 table 7",
                (1, "") => "to 192.0.2.0/25 table 7",
                (2, _) => "fwmark 0x1 table 7",
                (3, _) => "iif wan1 table 7",
                (4, _) => "table main suppress_prefixlength 0",
                (5, "") => "not from 10.9.0.0/24 table 7",
                (_, _) => "fwmark 0x2/0x2 table 7",
            };
            setup.routing.push(format!("{family}rule add prio {number} {rule}"));
        }
    }
}

fn settings(rng: &mut Rng, setup: &mut Setup) {
    let mut set = |path: &str, value: &'static str| setup.settings.push((path.to_owned(), value));
    let forwards = if one_in(rng, 12) { "0" } else { "1" };
    set("net/ipv4/ip_forward", forwards);
    set("net/ipv6/conf/all/forwarding", "1");
    let filtered = rng.bool();
    for name in ["all", "wan0", "wan1", "br0"] {
        let value = if filtered { choose(rng, &["0", "0", "1", "2"]) } else { "0" };
        set(&format!("net/ipv4/conf/{name}/rp_filter"), value);
        let localnet = if name != "all" && one_in(rng, 10) { "1" } else { "0" };
        set(&format!("net/ipv4/conf/{name}/route_localnet"), localnet);
    }
    let called = rng.bool();
    for family in ["iptables", "ip6tables"] {
        set(&format!("net/bridge/bridge-nf-call-{family}"), if called { "1" } else { "0" });
    }
    setup.constructs.insert(if called { "br_netfilter" } else { "no br_netfilter" });
    if filtered {
        setup.constructs.insert("rp_filter");
    }
}
