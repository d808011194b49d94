//! Tools beside each other.

use super::{Fault, all, expect, finds, found, make, none, not_found, run};
use crate::support::{Net, privileged};

#[test]
fn of_both_kinds_of_iptables() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let legacy = "printf '*nat\\n-A PREROUTING -d 192.0.2.1 -p tcp --dport 80 -j DNAT --to 172.17.0.3\\nCOMMIT\\n' | iptables-legacy-restore\n";
    make(&net, legacy);
    none(&net, "F32");
    let xt = "xt nat '-A PREROUTING -d 192.0.2.1 -p tcp --dport 81 -j DNAT --to 172.17.0.3'\n";
    make(&net, &format!("{legacy}{xt}"));
    expect(&net, "F32", ["proved", "error", ""]);
    // Who writes rules of nft(8) knows that there are others.
    make(&net, &format!("{legacy}nat 'ip daddr 192.0.2.1 tcp dport 81 dnat to 172.17.0.3'"));
    expect(&net, "F32", ["proved", "warning", ""]);
    // At other hooks none meets the other.
    make(&net, &format!("{legacy}filter input 'tcp dport 22 accept'"));
    none(&net, "F32");
    run(&net, "iptables-legacy -t nat -F");
    run(&net, xt);
    none(&net, "F32");
}

#[test]
fn of_which_iptables_a_rule_is_can_be_read() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let rules =
        "'*nat\n:DOCKER -\n-A PREROUTING -j DOCKER\n-A DOCKER -p tcp --dport 80 -j DNAT --to TARGET:80\nCOMMIT\n'";
    let of = |program: &str, target: &str| format!("printf {} | {program}-restore\n", rules.replace("TARGET", target));
    make(&net, &of("iptables-nft", "172.17.0.3"));
    run(&net, &(of("iptables-legacy", "172.17.0.3") + &of("ip6tables-legacy", "[fd00:17::3]")));
    let report = super::json(&net.ok(&["audit", "--json"]).stdout);
    let told = |row: &serde_json::Value| {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("table"), text("chain"))
    };
    let mut tables: Vec<String> = report["forwards"].as_array().expect("a list").iter().map(told).collect();
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
    // Of a dump it is the line.
    let save = net.state.path().join("save");
    std::fs::write(&save, run(&net, "iptables-legacy-save")).expect("written");
    let said = crate::support::portfwd(&["audit", &save.to_string_lossy()]);
    assert!(said.stdout.contains("iptables-legacy nat DOCKER line "), "{said:?}");
}

#[test]
fn of_rules_that_a_tool_cannot_show_or_forgot() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let xt = "xt nat '-A PREROUTING -d 192.0.2.1 -p tcp --dport 81 -j DNAT --to 172.17.0.3'\n";
    let native = Fault {
        id: "F33",
        made_by: "xt nat '-A PREROUTING -d 192.0.2.1 -p tcp --dport 81 -j DNAT --to 172.17.0.3'
            nft 'add rule ip nat PREROUTING dnat to tcp dport map { 80 : 172.17.0.3, 82 : 172.17.0.4 }'",
        found: ["proved", "error", "ip nat PREROUTING handle"],
        nearly: "xt nat '-A PREROUTING -d 192.0.2.1 -p tcp --dport 81 -j DNAT --to 172.17.0.3'
            nat 'dnat to tcp dport map { 80 : 172.17.0.3, 82 : 172.17.0.4 }'",
    };
    // iptables itself is the judge.
    let refuses = "iptables-nft -t nat -S 2>&1 || :";
    found(&net, &native);
    assert!(run(&net, refuses).contains("incompatible"));
    not_found(&net, &native);
    assert!(!run(&net, refuses).contains("incompatible"));
    // Of two kinds of packets are matches of iptables, too.
    make(
        &net,
        "xt filter '-A FORWARD -m conntrack --ctstate RELATED,DNAT -j ACCEPT
            -A FORWARD -p tcp -m multiport --ports 80,90 -j ACCEPT'",
    );
    none(&net, "F33");
    assert!(!run(&net, "iptables-nft -S 2>&1").contains("incompatible"));
    // Rules that nft(8) makes of what iptables knows are shown.
    make(
        &net,
        &format!("{xt}nft 'add rule ip nat PREROUTING ip daddr 192.0.2.1 tcp dport 82 counter dnat to 172.17.0.3'"),
    );
    assert_eq!(finds(&net, "F33").is_empty(), !run(&net, refuses).contains("incompatible"));

    all(
        &net,
        &[Fault {
            id: "F44",
            made_by: "xt nat ':DOCKER -
                -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
                -A DOCKER ! -i br-gone -p tcp --dport 80 -j DNAT --to 172.31.0.2:80'",
            found: ["likely", "warning", "ip nat DOCKER handle"],
            nearly: "xt nat ':DOCKER -
                -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
                -A DOCKER ! -i docker0 -p tcp --dport 80 -j DNAT --to 172.17.0.3:80'",
        }],
    );
}

#[test]
fn of_our_own_rules_that_somebody_changed() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    make(&net, "");
    none(&net, "F46");
    net.ok(&["add", "8080", "172.17.0.3:80"]);
    none(&net, "F46");
    make(&net, "");
    let finding = expect(&net, "F46", ["proved", "warning", ""]);
    assert_eq!(finding["fix"], "portfwd plan, then portfwd apply");
    net.ok(&["flush"]);
    none(&net, "F46");
}

#[test]
fn of_containers_that_are_gone() {
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
    make(&net, &docker.replace("TARGET", "172.18.0.2:80"));
    let finding = expect(&net, "F45", ["proved", "warning", "ip nat DOCKER handle"]);
    super::silent(&net.client, "192.0.2.1:80");
    // Who writes rules by hand has nobody who makes containers of them.
    run(&net, "iptables -t nat -E DOCKER WEB");
    none(&net, "F45");
    run(&net, "iptables -t nat -E WEB DOCKER");
    super::mend(&net, &finding);
    none(&net, "F45");
    assert_eq!(net.tcp("192.0.2.1:80"), "ConnectionRefused");
    // There is something in the bridge of this one.
    make(&net, &docker.replace("TARGET", "172.17.0.3:80"));
    none(&net, "F45");
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.3:80 saw 192.0.2.2");
}
