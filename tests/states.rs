//! `list` shows which rules are in the kernel and have an effect.

use std::process::Command;

use serde_json::Value;

use crate::support::{Net, Said, examples, privileged};

/// Runs a script in the host's namespace. Panics if it fails.
#[track_caller]
fn run(net: &Net, script: &str) {
    let said: Said = net.in_host(|| Command::new("sh").args(["-ec", script]).output().expect("sh").into());
    assert_eq!(said.code, 0, "{script}: {said:?}");
}

/// Returns the set, the ports, the state and the reason of each forward.
#[track_caller]
fn states(net: &Net) -> Vec<String> {
    let said = net.ok(&["list", "--json"]);
    let list: Value = serde_json::from_str(&said.stdout).expect("JSON");
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or("-").to_owned();
    let row = |row: &Value| ["set", "ports", "state", "reason"].map(|name| text(row, name)).join(" ");
    list["forwards"].as_array().expect("a list").iter().map(row).collect()
}

const LIVE: [&str; 2] = ["cli 8080 live -", "cli 8081 live -"];

/// Adds a forward for all clients and a forward of this host only.
fn net() -> Net {
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    net.ok(&["add", "8080", "172.17.0.3:80"]);
    net.ok(&["add", "127.0.0.1:8081", "172.17.0.3:80", "--loopback"]);
    net
}

#[test]
fn forwards_that_no_packet_reaches_are_ineffective() {
    if !privileged() {
        return;
    }
    let net = net();
    let both = |reason: &str| ["8080", "8081"].map(|port| format!("cli {port} ineffective {reason}"));
    let one = |reason: &str| [format!("cli 8080 ineffective {reason}"), LIVE[1].to_owned()];
    for (script, rows) in [
        ("nft 'add table inet portfwd { flags dormant; }'", both("table inet portfwd is dormant")),
        ("nft flush chain inet portfwd nat-prerouting", one("chain nat-prerouting is empty")),
        (
            "nft flush chain inet portfwd nat-prerouting; nft delete chain inet portfwd nat-prerouting",
            one("chain nat-prerouting does not exist"),
        ),
        ("nft flush chain inet portfwd forwards", one("chain forwards is empty")),
        ("echo 0 > /proc/sys/net/ipv4/ip_forward", one("net.ipv4.ip_forward is 0")),
    ] {
        assert_eq!(states(&net), LIVE);
        assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
        run(&net, script);
        assert_eq!(states(&net), rows, "{script}");
        let said = net.ok(&["list"]);
        assert!(said.stdout.contains(" ineffective "), "{said:?}");
        assert!(said.stderr.contains("ineffective: ") && said.stderr.contains("repairs it"), "{said:?}");
        assert_ne!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2", "{script}");
        net.ok(&["restore"]);
    }
    // A redirect needs no forwarding. The printed command repairs the other forwards, even if portfwd may not set sysctls.
    net.ok(&["add", "8082", ":80"]);
    run(&net, "echo 0 > /proc/sys/net/ipv4/ip_forward");
    assert!(states(&net).contains(&"cli 8082 live -".to_owned()));
    let said = net.ok(&["list"]);
    let warning =
        "warning: 1 rule is ineffective: net.ipv4.ip_forward is 0; `sysctl -w net.ipv4.ip_forward=1` repairs it";
    assert!(said.stderr.contains(warning), "{said:?}");
    run(&net, "sysctl -qw net.ipv4.ip_forward=1");
    assert!(states(&net).iter().all(|row| row.ends_with(" live -")));
}

#[test]
fn chains_without_their_rules_are_reported() {
    if !privileged() {
        return;
    }
    let net = net();
    for chain in ["nat-output", "nat-postrouting", "filter-forward"] {
        run(&net, &format!("nft flush chain inet portfwd {chain}"));
        let said = net.ok(&["list", "--json"]);
        assert!(said.stdout.contains(&format!("\"damaged_chains\":[\"{chain}\"]")), "{said:?}");
        assert!(said.stderr.contains(&format!("warning: chain {chain} is empty in table inet portfwd")), "{said:?}");
        // Other hosts still reach the forward.
        assert_eq!(states(&net)[0], LIVE[0]);
        assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
        net.ok(&["restore"]);
        assert!(net.ok(&["list", "--json"]).stdout.contains("\"damaged_chains\":[]"));
    }
}

#[test]
fn elements_of_other_programs_are_rows() {
    if !privileged() {
        return;
    }
    let net = net();
    run(&net, "nft 'add element inet portfwd ip-ports { tcp . 9000 : 172.17.0.3 . 80 }'");
    assert_eq!(states(&net), [LIVE[0], LIVE[1], "- 9000 foreign -"]);
    assert_eq!(net.tcp("192.0.2.1:9000"), "172.17.0.3:80 saw 192.0.2.2");
    let said = net.ok(&["list"]);
    assert!(
        said.stdout.lines().any(|line| line.starts_with("9000/tcp") && line.contains(" -     foreign")),
        "{said:?}"
    );
    net.ok(&["restore"]);
    // Forwards of an interface, and a comment that looks like portfwd's.
    net.ok(&["add", "8083", "172.17.0.3:80", "--interface", "eth0"]);
    run(&net, "nft 'add element inet portfwd ip-interface-ports { tcp . 9001 . \"eth0\" : 172.17.0.3 . 80 }'");
    run(&net, "nft 'add element inet portfwd ip-ports { tcp . 9002 comment \"other\" : 172.17.0.3 . 80 }'");
    let found = states(&net);
    assert!(
        ["- 9001 foreign -", "other 9002 foreign -"].iter().all(|row| found.contains(&(*row).to_owned())),
        "{found:?}"
    );
}

#[test]
fn the_rules_of_the_examples_are_live() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for example in examples() {
        let path = example.to_string_lossy().into_owned();
        net.ok(&["apply", &path]);
        let said = net.ok(&["list"]);
        assert!(!said.stdout.contains("ineffective") && said.stderr.is_empty(), "{path}: {said:?}");
        net.ok(&["flush"]);
    }
}
