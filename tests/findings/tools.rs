//! Findings about several tools on one host.

use super::{
    Fault, check_all, expect_fault, expect_finding, expect_no_fault, expect_none, findings_of, reset_and_run, run,
};
use crate::support::{Net, privileged};

#[test]
fn finds_rules_of_both_iptables_variants() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let legacy = "printf '*nat\\n-A PREROUTING -d 192.0.2.1 -p tcp --dport 80 -j DNAT --to 172.17.0.3\\nCOMMIT\\n' | iptables-legacy-restore\n";
    reset_and_run(&net, legacy);
    expect_none(&net, "F32");
    let xt = "xt nat '-A PREROUTING -d 192.0.2.1 -p tcp --dport 81 -j DNAT --to 172.17.0.3'\n";
    reset_and_run(&net, &format!("{legacy}{xt}"));
    expect_finding(&net, "F32", ["proved", "error", ""]);
    // If the second tool is nft(8) and not iptables-nft, the severity is lower.
    reset_and_run(&net, &format!("{legacy}nat 'ip daddr 192.0.2.1 tcp dport 81 dnat to 172.17.0.3'"));
    expect_finding(&net, "F32", ["proved", "warning", ""]);
    // Rules at different hooks do not conflict.
    reset_and_run(&net, &format!("{legacy}filter input 'tcp dport 22 accept'"));
    expect_none(&net, "F32");
    run(&net, "iptables-legacy -t nat -F");
    run(&net, xt);
    expect_none(&net, "F32");
}

#[test]
fn the_place_of_a_finding_names_the_iptables_variant() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let rules =
        "'*nat\n:DOCKER -\n-A PREROUTING -j DOCKER\n-A DOCKER -p tcp --dport 80 -j DNAT --to TARGET:80\nCOMMIT\n'";
    let load =
        |program: &str, target: &str| format!("printf {} | {program}-restore\n", rules.replace("TARGET", target));
    reset_and_run(&net, &load("iptables-nft", "172.17.0.3"));
    run(&net, &(load("iptables-legacy", "172.17.0.3") + &load("ip6tables-legacy", "[fd00:17::3]")));
    let report = super::json(&net.ok(&["audit", "--json"]).stdout);
    let place = |row: &serde_json::Value| {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("table"), text("chain"))
    };
    let mut tables: Vec<String> = report["forwards"].as_array().expect("a list").iter().map(place).collect();
    tables.sort();
    assert_eq!(tables, ["ip nat DOCKER", "ip6tables-legacy nat DOCKER", "iptables-legacy nat DOCKER"]);
    let text = net.ok(&["audit"]).stdout;
    for place in ["iptables-legacy nat DOCKER rule 1", "ip6tables-legacy nat DOCKER rule 1", "ip nat DOCKER handle "] {
        assert!(
            text.lines().any(|line| line.starts_with("  --> ") && line.contains(&format!(" {place}"))),
            "{place}: {text}"
        );
        let of_rows = text.lines().take_while(|line| !line.is_empty());
        assert_eq!(of_rows.filter(|line| line.contains(&format!(" {place}"))).count(), 1, "{place}: {text}");
    }
    let log = net.ok(&["audit", "--sarif"]).stdout;
    assert!(log.contains("\"fullyQualifiedName\":\"iptables-legacy nat DOCKER rule 1\""), "{log}");
    let said = net.ok(&["explain", "tcp 192.0.2.2:5000 -> 192.0.2.1:80 -i eth0"]).stdout;
    assert!(said.contains("iptables-legacy nat DOCKER") || said.contains("ip nat DOCKER"), "{said}");
    // In a dump, the place of a finding is a line.
    let save = net.state.path().join("save");
    std::fs::write(&save, run(&net, "iptables-legacy-save")).expect("written");
    let said = crate::support::portfwd(&["audit", &save.to_string_lossy()]);
    assert!(said.stdout.contains("iptables-legacy nat DOCKER line "), "{said:?}");
}

#[test]
fn finds_rules_that_a_tool_cannot_show_or_has_forgotten() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let xt = "xt nat '-A PREROUTING -d 192.0.2.1 -p tcp --dport 81 -j DNAT --to 172.17.0.3'\n";
    let native = Fault {
        id: "F33",
        fault_script: "xt nat '-A PREROUTING -d 192.0.2.1 -p tcp --dport 81 -j DNAT --to 172.17.0.3'
            nft 'add rule ip nat PREROUTING dnat to tcp dport map { 80 : 172.17.0.3, 82 : 172.17.0.4 }'",
        found: ["proved", "error", "ip nat PREROUTING handle"],
        near_miss_script: "xt nat '-A PREROUTING -d 192.0.2.1 -p tcp --dport 81 -j DNAT --to 172.17.0.3'
            nat 'dnat to tcp dport map { 80 : 172.17.0.3, 82 : 172.17.0.4 }'",
    };
    // iptables-nft itself decides which rules it cannot show.
    let refuses = "iptables-nft -t nat -S 2>&1 || :";
    expect_fault(&net, &native);
    assert!(run(&net, refuses).contains("incompatible"));
    expect_no_fault(&net, &native);
    assert!(!run(&net, refuses).contains("incompatible"));
    // Each of these iptables matches covers two kinds of packets. iptables-nft can show the rules.
    reset_and_run(
        &net,
        "xt filter '-A FORWARD -m conntrack --ctstate RELATED,DNAT -j ACCEPT
            -A FORWARD -p tcp -m multiport --ports 80,90 -j ACCEPT'",
    );
    expect_none(&net, "F33");
    assert!(!run(&net, "iptables-nft -S 2>&1").contains("incompatible"));
    // `audit` reports no finding for an nft(8) rule that iptables-nft can show.
    reset_and_run(
        &net,
        &format!("{xt}nft 'add rule ip nat PREROUTING ip daddr 192.0.2.1 tcp dport 82 counter dnat to 172.17.0.3'"),
    );
    assert_eq!(findings_of(&net, "F33").is_empty(), !run(&net, refuses).contains("incompatible"));

    check_all(
        &net,
        &[Fault {
            id: "F44",
            fault_script: "xt nat ':DOCKER -
                -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
                -A DOCKER ! -i br-gone -p tcp --dport 80 -j DNAT --to 172.31.0.2:80'",
            found: ["likely", "warning", "ip nat DOCKER handle"],
            near_miss_script: "xt nat ':DOCKER -
                -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
                -A DOCKER ! -i docker0 -p tcp --dport 80 -j DNAT --to 172.17.0.3:80'",
        }],
    );
}

#[test]
fn finds_drift_of_portfwd_rules() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    reset_and_run(&net, "");
    expect_none(&net, "F46");
    net.ok(&["add", "8080", "172.17.0.3:80"]);
    expect_none(&net, "F46");
    reset_and_run(&net, "");
    let finding = expect_finding(&net, "F46", ["proved", "warning", ""]);
    assert_eq!(finding["fix"], "portfwd plan, then portfwd apply");
    net.ok(&["flush"]);
    expect_none(&net, "F46");
}

#[test]
fn finds_forwards_to_removed_containers() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    let docker = "ip link add br-0123456789ab group 7 type bridge; ip addr add 172.18.0.1/16 dev br-0123456789ab
        ip link set br-0123456789ab up
        xt nat ':DOCKER -
            -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
            -A DOCKER ! -i br-0123456789ab -p tcp --dport 80 -j DNAT --to TARGET'\n";
    reset_and_run(&net, &docker.replace("TARGET", "172.18.0.2:80"));
    let finding = expect_finding(&net, "F45", ["proved", "warning", "ip nat DOCKER handle"]);
    super::expect_timeout(&net.client, "192.0.2.1:80");
    // `audit` attributes a chain with the name WEB to no container engine.
    run(&net, "iptables -t nat -E DOCKER WEB");
    expect_none(&net, "F45");
    run(&net, "iptables -t nat -E WEB DOCKER");
    super::apply_fix(&net, &finding);
    expect_none(&net, "F45");
    assert_eq!(net.tcp("192.0.2.1:80"), "ConnectionRefused");
    // The bridge of this target has a port, so `audit` reports no finding.
    reset_and_run(&net, &docker.replace("TARGET", "172.17.0.3:80"));
    expect_none(&net, "F45");
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.3:80 saw 192.0.2.2");
}
