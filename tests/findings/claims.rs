//! NAT statements that portfwd does not understand: each has a row, or a finding that names it.

use super::run;
use crate::support::{Net, file, privileged};

/// Asserts that `audit` names a rule, live or in dumps, and that the exit code is 4.
fn expect_named(net: &Net, files: &[&str], name: &str, advice: &str) {
    let said = net.portfwd(&[&["audit", "--fail-on", "error", "--only", "F52"], files].concat());
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.stdout.contains("F52") && said.stdout.contains(name), "{said:?}");
    assert!(said.stdout.contains(advice), "{said:?}");
    let off = net.portfwd(&[&["audit", "--fail-on", "error", "--no-fail-on-unknown", "--only", "F52"], files].concat());
    assert_eq!(off.code, 0, "{off:?}");
}

#[test]
fn a_nat_statement_with_a_computed_target_is_named() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for (hook, rule) in [
        ("prerouting", "tcp dport 81 dnat to jhash ip saddr mod 2 seed 0x1 offset 167772161"),
        ("prerouting", "tcp dport 81 dnat to numgen random mod 2 offset 167772161"),
        ("postrouting", "snat to symhash mod 2 offset 167772161"),
    ] {
        let script = format!(
            "nft flush ruleset; nft 'table ip t {{ chain c {{ type nat hook {hook} priority 0; {rule}; }}; }}'"
        );
        run(&net, &script);
        expect_named(&net, &[], "ip t c handle", "not understood");
        let dump = file(&net.state, &run(&net, "nft -j list ruleset"));
        expect_named(&net, &[&dump.to_string_lossy()], "ip t c handle", "not understood");
    }
    // A chain that no hook reaches has no effect.
    run(&net, "nft flush ruleset; nft 'table ip t { chain c { dnat to numgen inc mod 2 offset 167772161; }; }'");
    let said = net.ok(&["audit", "--fail-on", "info", "--only", "F52"]);
    assert!(!said.stdout.contains("F52"), "{said:?}");
}

#[test]
fn a_dump_without_the_details_of_iptables_asks_for_iptables_save() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    run(&net, "iptables-nft -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 172.17.0.3:80");
    let listed = file(&net.state, &run(&net, "nft -j list ruleset")).to_string_lossy().into_owned();
    expect_named(&net, &[&listed], "ip nat PREROUTING", "give the output of iptables-save too");
    // With both dumps, the rule is known.
    let saved = net.state.path().join("saved");
    std::fs::write(&saved, run(&net, "iptables-nft-save")).expect("writes");
    let said = net.ok(&["audit", "--fail-on", "info", "--only", "F52", &listed, &saved.to_string_lossy()]);
    assert!(said.stdout.contains("172.17.0.3:80") && !said.stdout.contains("F52"), "{said:?}");
}
