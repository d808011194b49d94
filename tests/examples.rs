//! `audit` of every example in `rules/`, with each backend, live and from dumps. The host has all interfaces and targets of
//! the examples, and a firewall. So each finding would be wrong.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use portfwd::iptables::command::Variant;
use portfwd::lab::{Links, Netns};

use crate::support::{Net, Said, examples, feed, file, privileged};

/// The interfaces and addresses of the host.
const HOST: &str = "
    ip link del eth0
    for link in wan0 wan1 lan0 dmz0; do ip link set $link up; done
    for address in 203.0.113.1/24 198.18.0.1/32 2001:db8::1/64 2001:db8::10/128; do ip address add $address dev wan0; done
    for last in 8 9 10 11 12 13 14 15 16 25; do ip address add 203.0.113.$last/32 dev wan0; done
    ip address add 100.64.7.1/24 dev wan1
    for address in 10.0.0.1/24 10.0.1.1/24 10.0.9.1/24 fd00:10::1/64; do ip address add $address dev lan0; done
    ip address add 10.99.0.1/24 dev dmz0
    ip link add br-backend type bridge; ip link set br-backend up; ip link set backend master br-backend up
    ip address add 172.18.0.1/16 dev br-backend
    ip route add default via 203.0.113.2; ip -6 route add default via 2001:db8::2
";

/// The targets of the examples.
const TARGETS: &str = "
    for link in lan0 dmz0 backend; do ip link set $link up; done
    for last in 2 3 4 5 6 7 25; do ip address add 10.0.0.$last/24 dev lan0; done
    for address in 10.0.9.2/24 fd00:10::2/64; do ip address add $address dev lan0; done
    for address in 172.17.0.2/16 fd00:17::2/64; do ip address add $address dev eth0; done
    ip address add 172.18.0.2/16 dev backend
";

const CLIENT: &str = "
    for link in wan0 wan1; do ip link set $link up; done
    ip address add 203.0.113.2/24 dev wan0; ip address add 2001:db8::2/64 dev wan0; ip address add 100.64.7.2/24 dev wan1
";

/// A firewall that accepts forwarded connections, and connections from inside.
const FIREWALL: &str = "
    table inet firewall {
        chain forward {
            type filter hook forward priority filter; policy drop
            ct state established,related accept
            ct status dnat accept
            iifname { lan0, dmz0, docker0, br-backend } oifname { wan0, wan1 } accept
        }
    }
";

fn run(netns: &Netns, script: &'static str) {
    let said: Said = netns.run(|| Command::new("sh").args(["-ec", script]).output().expect("sh")).expect("runs").into();
    assert_eq!(said.code, 0, "{script}: {said:?}");
}

fn host() -> Net {
    let net = Net::new();
    let links = || {
        let links = Links::open().expect("rtnetlink");
        for link in ["wan0", "wan1"] {
            links.veth(link, link, &net.client).expect("veth");
        }
        for link in ["lan0", "dmz0", "backend"] {
            links.veth(link, link, &net.target).expect("veth");
        }
    };
    net.in_host(links);
    run(&net.target, TARGETS);
    run(&net.client, CLIENT);
    run(&net.host, HOST);
    net
}

/// Writes the rules of all programs into files, as a user does for another machine.
fn dumps(net: &Net, variant: Option<Variant>) -> Vec<String> {
    let mut texts = vec![net.nft(&["-j", "list", "ruleset"]).stdout];
    if let Some(variant) = variant {
        for word in ["iptables", "ip6tables"] {
            let program = format!("{word}-{}-save", variant.name());
            let said: Said = net.in_host(|| Command::new(&program).output().expect("iptables is installed").into());
            texts.push(said.stdout);
        }
    }
    let mut paths = Vec::new();
    for text in texts.iter().filter(|text| !text.trim().is_empty()) {
        // `audit` reads the family of the iptables rules from the name of the file.
        let path = file(&net.state, text);
        let name = if text.contains("ip6tables") { path.with_extension("v6") } else { path.with_extension("v4") };
        std::fs::rename(&path, &name).expect("renamed");
        paths.push(name.to_string_lossy().into_owned());
    }
    paths
}

/// The same firewall for iptables-legacy-restore, whose rules an nft table would not go well with.
const LEGACY_FIREWALL: &str = "*filter
:FORWARD DROP
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT
-A FORWARD -i lan0 -o wan+ -j ACCEPT
-A FORWARD -i dmz0 -o wan+ -j ACCEPT
-A FORWARD -i docker0 -o wan+ -j ACCEPT
-A FORWARD -i br-backend -o wan+ -j ACCEPT
COMMIT
";

/// Loads the firewall and applies an example.
fn apply(net: &Net, variant: Option<Variant>, example: &Path) {
    let name = example.file_stem().expect("a name").to_string_lossy().into_owned();
    // In `netmap`, other hosts have these addresses.
    let verb = if name == "netmap" { "del" } else { "replace" };
    for address in ["192.0.2.10/32", "192.0.2.80/32"] {
        let arguments = ["address", verb, address, "dev", "wan0"];
        drop(net.in_host(|| Command::new("ip").args(arguments).output().expect("ip")));
    }
    net.nft(&["flush", "ruleset"]);
    match variant {
        Some(Variant::Legacy) => {
            for word in ["iptables-legacy-restore", "ip6tables-legacy-restore"] {
                net.in_host(|| feed(word, &["--wait"], LEGACY_FIREWALL));
            }
        }
        _ => net.in_host(|| feed("nft", &["-f", "-"], FIREWALL)),
    }
    let text = std::fs::read_to_string(example).expect("readable");
    // iptables has no priorities.
    let has_priority = |line: &&str| line.starts_with("priority");
    let text: Vec<&str> = text.lines().filter(|line| variant.is_none() || !has_priority(line)).collect();
    let copy = net.state.path().join(format!("{name}.toml"));
    std::fs::write(&copy, text.join("\n")).expect("written");
    let said = portfwd(net, variant, &["apply", &copy.to_string_lossy()]);
    assert_eq!(said.code, 0, "{variant:?} {name}: {said:?}");
}

fn portfwd(net: &Net, variant: Option<Variant>, arguments: &[&str]) -> Said {
    match variant {
        None => net.portfwd(&[&["--backend", "nft"], arguments].concat()),
        Some(variant) => net.try_chains(variant, arguments),
    }
}

/// Checks that `audit` exits with 0 for each example, backend and source. Matches of iptables may be unknown unless
/// `knows_iptables` is true.
fn expect_no_fault(knows_iptables: bool) {
    let net = host();
    let listen = |port: u16| TcpListener::bind(("::", port)).expect("bind");
    let _listeners: Vec<TcpListener> = net.in_host(|| [8443].into_iter().chain(9400..=9409).map(listen).collect());
    let mut faults = Vec::new();
    for variant in [None, Some(Variant::Nft), Some(Variant::Legacy)] {
        let allows_unknown = variant.is_some() && !knows_iptables;
        let options = if allows_unknown { &["--no-fail-on-unknown"][..] } else { &[] };
        for example in examples() {
            apply(&net, variant, &example);
            let files = dumps(&net, variant);
            let files: Vec<&str> = files.iter().map(String::as_str).collect();
            for files in [&[][..], &files] {
                let said = portfwd(&net, variant, &[&["audit", "--fail-on", "warning"], options, files].concat());
                if said.code != 0 {
                    let place = if files.is_empty() { "live" } else { "dumps" };
                    let is_fault =
                        |line: &&str| line.starts_with("error") || line.starts_with("warning") || line.contains(" ? ");
                    let lines: Vec<&str> = said.stdout.lines().filter(is_fault).chain(said.stderr.lines()).collect();
                    let name = example.display();
                    faults.push(format!("{variant:?} {name} {place}: {}\n  {}", said.code, lines.join("\n  ")));
                }
            }
            assert_eq!(portfwd(&net, variant, &["flush"]).code, 0);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // The state of the host matters: without forwarding, the audit finds a fault.
    run(&net.host, "iptables-legacy -F; iptables-legacy -P FORWARD ACCEPT; nft flush ruleset");
    net.ok(&["apply", "rules/quickstart.toml"]);
    run(&net.host, "echo 0 > /proc/sys/net/ipv4/ip_forward");
    assert_eq!(net.portfwd(&["audit", "--fail-on", "error", "--only", "F12"]).code, 4);
}

#[test]
fn the_audit_of_the_examples_finds_no_fault() {
    if privileged() {
        expect_no_fault(false);
    }
}

#[test]
fn the_audit_of_the_examples_knows_all_rules_of_iptables() {
    if privileged() {
        expect_no_fault(true);
    }
}
