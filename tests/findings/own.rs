//! What `audit` reports about portfwd's own rules: each forward once, as the user wrote it, and no fault.

use serde_json::Value;

use super::{json, run};
use crate::support::{BOTH, Net, Said, file, privileged, serve};

/// Returns the ports and the target of each forward that `audit` lists.
fn rows(net: &Net, arguments: &[&str]) -> Vec<String> {
    let said = net.portfwd(&[&["audit", "--json"], arguments].concat());
    assert_eq!(said.code, 0, "{said:?}");
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let Value::Array(rows) = json(&said.stdout)["forwards"].clone() else { panic!("{said:?}") };
    rows.iter().map(|row| format!("{}/{} {}", text(row, "ports"), text(row, "protocol"), text(row, "to"))).collect()
}

/// Writes the output of `nft -j list ruleset` to a file.
fn dump(net: &Net) -> String {
    let said = net.nft(&["-j", "list", "ruleset"]);
    assert_eq!(said.code, 0, "{said:?}");
    file(&net.state, &said.stdout).to_string_lossy().into_owned()
}

/// The findings about the order of rules.
const ORDER: [&str; 3] = ["--only", "F01,F02,F03,F04,F05", "--no-fail-on-unknown"];

#[test]
fn a_forward_with_options_is_listed_once() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for options in [
        &["--source", "masquerade"][..],
        &["--source", "192.0.2.1"],
        &["--no-hairpin"],
        &["--source", "masquerade", "--from", "192.0.2.0/24"],
        &["--no-hairpin", "--interface", "eth0"],
    ] {
        net.ok(&[&["add", "8080", "172.17.0.3:80"], options].concat());
        for source in [&[][..], &[dump(&net).as_str()]] {
            let arguments = [source, &["--fail-on", "info"], &ORDER].concat();
            assert_eq!(rows(&net, &arguments), ["8080/tcp 172.17.0.3:80"], "{options:?} {source:?}");
        }
        net.ok(&["flush"]);
    }
}

#[test]
fn a_range_is_one_row() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for (forward, row) in [
        (&["8000-8010", "172.17.0.3:9000-9010"][..], "8000-8010/tcp 172.17.0.3:9000-9010"),
        (&["8000-8010", "172.17.0.3:80", "--source", "masquerade"], "8000-8010/tcp 172.17.0.3:80"),
        (&["8000-8010/udp", "[fd00:17::3]:8000-8010"], "8000-8010/udp [fd00:17::3]:8000-8010"),
        // The rules of such a range are in two maps.
        (&["8200-8299/udp", "172.17.0.3:53"], "8200-8299/udp 172.17.0.3:53"),
    ] {
        net.ok(&[&["add"], forward].concat());
        for source in [&[][..], &[dump(&net).as_str()]] {
            let found = rows(&net, &[source, &["--fail-on", "info"], &ORDER].concat());
            assert_eq!(found, [row], "{source:?}");
        }
        net.ok(&["flush"]);
    }
    // The maps of other programs are folded too.
    run(&net, "nft 'table ip t { chain c { type nat hook prerouting priority dstnat;
        dnat to tcp dport map { 82 : 172.17.0.3 . 1082, 80 : 172.17.0.3 . 1080, 81 : 172.17.0.3 . 1081, 90 : 172.17.0.4 . 1 }; }; }'");
    assert_eq!(rows(&net, &[]), ["80-82/tcp 172.17.0.3:1080-1082/80", "90/tcp 172.17.0.4:1"]);
    assert_eq!(rows(&net, &[&dump(&net)]), ["80-82/tcp 172.17.0.3:1080-1082/80", "90/tcp 172.17.0.4:1"]);
}

#[test]
fn audit_lists_the_forwards_of_the_examples_as_list_does() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for example in ["source", "ranges", "quickstart"] {
        net.ok(&["apply", &format!("rules/{example}.toml")]);
        let Value::Array(listed) = json(&net.ok(&["list", "--json"]).stdout)["forwards"].clone() else { panic!() };
        let found = rows(&net, &[&["--fail-on", "info"][..], &ORDER].concat());
        assert_eq!(found.len(), listed.len(), "{example}: {found:#?} {listed:#?}");
        net.ok(&["flush"]);
    }
}

#[test]
fn a_source_rule_of_both_families_is_one_row() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let count = |script: &str| {
        run(&net, "nft flush ruleset");
        run(&net, script);
        let audit = json(&net.ok(&["audit", "--json"]).stdout);
        let Value::Array(rows) = audit["sources"].clone() else { panic!("{audit}") };
        rows.iter().map(|row| row["family"].clone()).collect::<Vec<_>>()
    };
    let post = |family: &str, rule: &str| {
        format!("nft 'table {family} t {{ chain c {{ type nat hook postrouting priority srcnat; {rule}; }}; }}'")
    };
    assert_eq!(count(&post("inet", "oifname eth0 masquerade")), [Value::Null]);
    assert_eq!(count(&post("inet", "meta nfproto ipv4 masquerade")), ["ipv4"]);
    assert_eq!(count(&post("ip", "masquerade")), ["ipv4"]);
    assert_eq!(count(&post("inet", "ip saddr 10.0.0.0/8 masquerade; ip6 saddr fd00::/8 masquerade")), ["ipv4", "ipv6"]);
}

#[test]
fn the_guard_of_a_loopback_forward_is_enough() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.in_host(|| serve("127.0.0.1:7777".parse().expect("address"), false));
    let arguments = ["audit", "--only", "F01,F02,F03,F04,F05,F16", "--fail-on", "info", "--no-fail-on-unknown"];
    let count = |said: &Said| said.stdout.lines().skip(1).take_while(|line| !line.is_empty()).count();
    for listen in ["127.0.0.1:8080", "8080", "192.0.2.1:8080"] {
        let add = ["add", listen, "172.17.0.3:80", "--loopback"];
        net.ok(&add);
        let said = net.ok(&arguments);
        assert_eq!(count(&said), 1, "{said:?}");
        // Without the guard, other hosts reach the listener.
        run(&net, "nft flush chain inet portfwd guard-prerouting");
        let said = net.portfwd(&arguments);
        assert!(said.code == 4 && said.stdout.contains("error[F16]"), "{said:?}");
        net.ok(&["flush"]);
        for variant in BOTH {
            net.chains(variant, &add);
            let said = net.try_chains(variant, &arguments);
            assert_eq!((said.code, count(&said)), (0, 1), "{said:?}");
            net.chains(variant, &["flush"]);
        }
    }
}

#[test]
fn rules_of_a_missing_interface_wait_for_it() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["add", "8080", "172.17.0.3:80", "--interface", "ppp0"]);
    let said = net.ok(&["audit", "--only", "F49", "--fail-on", "warning"]);
    assert!(said.stdout.contains("info[F49]: 1 rule waits for `ppp0`: no such interface now"), "{said:?}");
    assert!(!said.stdout.contains("portfwd rm"), "{said:?}");
    net.ok(&["flush"]);
    // firewalld makes such rules for each interface of a zone. They rewrite nothing.
    let zone = |rule: &str| {
        format!(
            "nft 'table inet firewalld {{
                chain nat_PRE_external {{ jump nat_PRE_external_allow; }}
                chain nat_PRE_external_allow {{ {rule} }}
                chain nat_PREROUTING_ZONES {{ iifname ppp0 goto nat_PRE_external; }}
                chain nat_PREROUTING {{ type nat hook prerouting priority dstnat + 10; jump nat_PREROUTING_ZONES; }}
            }}'"
        )
    };
    run(&net, &zone(""));
    assert_eq!(net.portfwd(&["audit", "--only", "F49", "--fail-on", "info"]).code, 0);
    run(&net, &format!("nft flush ruleset; {}", zone("tcp dport 80 dnat ip to 172.17.0.3;")));
    let said = net.portfwd(&["audit", "--only", "F49", "--fail-on", "info"]);
    assert!(said.code == 4 && said.stdout.contains("info[F49]"), "{said:?}");
}

#[test]
fn rules_in_another_backend_are_no_drift() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for variant in BOTH {
        net.chains(variant, &["add", "8080", "172.17.0.3:80"]);
        for arguments in [&["audit", "--only", "F46", "--fail-on", "info", "--no-fail-on-unknown"][..], &["list"]] {
            let said = net.ok(arguments);
            let warning = format!("warning: iptables-{} also has rules of portfwd", variant.name());
            assert!(said.stderr.contains(&warning), "{said:?}");
        }
        // With the option of the backend, drift is found.
        run(&net, &format!("iptables-{} -t nat -F PORTFWD-forwards", variant.name()));
        let said = net.try_chains(variant, &["audit", "--only", "F46", "--fail-on", "info", "--no-fail-on-unknown"]);
        assert_eq!(said.code, 4, "{said:?}");
        net.chains(variant, &["flush"]);
    }
}
