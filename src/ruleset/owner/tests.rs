use std::path::Path;

use super::*;
use crate::ruleset::read::{json, save};
use crate::ruleset::table::{Ruleset, TableFamily};

fn recorded(path: &str) -> Ruleset {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path);
    save::parse(&std::fs::read_to_string(path).expect("recorded"), None).expect("a dump")
}

/// The owners of all rules, each with how many it has, and of each rule that has none of those its words.
fn owners(rules: &Ruleset, but: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for table in &rules.tables {
        for chain in table.chains.iter() {
            for (number, rule) in chain.rules.iter().enumerate() {
                let owner = of_rule(table, chain, number);
                if !but.contains(&owner) {
                    found.push(format!("{owner}: {}", rule.words.as_deref().unwrap_or_default()));
                }
            }
        }
    }
    found
}

fn of_rules(text: &str) -> Vec<&'static str> {
    let rules = save::parse(text, None).expect("a dump");
    let all = rules.tables.iter().flat_map(|table| table.chains.iter().map(move |chain| (table, chain)));
    all.flat_map(|(table, chain)| (0..chain.rules.len()).map(move |number| of_rule(table, chain, number))).collect()
}

#[test]
fn whole_layouts_are_of_their_owners_but_for_what_users_wrote() {
    for (file, owner, others) in [
        ("neighbours/docker.v4", "docker", &["user: -A DOCKER-USER -s 198.51.100.0/24 -i eth0 -j DROP"][..]),
        ("neighbours/docker.v6", "docker", &[]),
        ("neighbours/firewalld.v4", "firewalld", &[]),
        ("neighbours/firewalld.v6", "firewalld", &[]),
        ("audit/peers/cni-iptables.v4.save", "cni", &[]),
        ("audit/peers/cni-iptables.v6.save", "cni", &[]),
        ("audit/peers/netavark-iptables.v4.save", "podman", &[]),
        ("audit/peers/netavark-iptables.v6.save", "podman", &[]),
        ("audit/peers/crio-iptables.v4.save", "cri-o", &[]),
        ("audit/peers/kube-proxy-iptables.v4.save", "kube-proxy", &[]),
        ("audit/peers/docker-iptables.v6.save", "docker", &[]),
        (
            "audit/peers/docker-iptables.v4.save",
            "docker",
            &[
                "user: -A PREROUTING -d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 5432 -j DROP",
                "user: -A PREROUTING -d 192.0.2.1/32 -p tcp -m tcp --dport 2222 -j DNAT --to-destination 10.9.9.9:22",
                "user: -A POSTROUTING -s 10.9.9.0/24 -o eth0 -j MASQUERADE",
                "user: -A DOCKER-USER -s 198.51.100.0/24 -i eth0 -j DROP",
            ],
        ),
        (
            "audit/peers/libvirt-iptables.v4.save",
            "libvirt",
            &["user: -A PREROUTING -i eth0 -p tcp -m tcp --dport 2201 -j DNAT --to-destination 192.168.122.10:22"],
        ),
    ] {
        assert_eq!(owners(&recorded(file), &[owner]), others, "{file}");
    }
}

#[test]
fn what_users_write_into_chains_of_all_is_theirs() {
    let host = |rules: &str| {
        of_rules(&format!("*nat\n:PREROUTING ACCEPT\n:POSTROUTING ACCEPT\n:DOCKER -\n:IN_x -\n{rules}COMMIT\n"))
    };
    for (rule, owner) in [
        ("-A PREROUTING -j IN_x", "user"),
        ("-A PREROUTING -p tcp --dport 1 -j DNAT --to-destination 10.0.0.1", "user"),
        ("-A PREROUTING -p tcp --dport 1 -m comment --comment \"for kubernetes \" -j ACCEPT", "user"),
        ("-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER", "docker"),
        ("-A POSTROUTING -o eth0 -j MASQUERADE", "user"),
        ("-A POSTROUTING ! -o eth0 -s 10.0.0.0/8 -j MASQUERADE", "user"),
        ("-A POSTROUTING ! -o docker0 -j MASQUERADE", "user"),
        ("-A POSTROUTING -o docker0 -j MASQUERADE", "user"),
        ("-A POSTROUTING ! -o docker0 -s 172.17.0.0/16 -j MASQUERADE", "docker"),
        ("-A POSTROUTING ! -o br-0123456789ab -s 172.18.0.0/16 -j SNAT --to-source 192.0.2.1", "docker"),
        ("-A POSTROUTING ! -o br-0123456789xy -s 172.18.0.0/16 -j MASQUERADE", "user"),
        ("-A POSTROUTING ! -o web0 -s 172.18.0.0/16 -j MASQUERADE\n-A DOCKER -i web0 -j RETURN", "docker"),
        ("-A POSTROUTING -s 10.0.0.1 -d 10.0.0.1 -p tcp --dport 80 -j MASQUERADE", "docker"),
        ("-A POSTROUTING -s 10.0.0.0/8 -d 10.0.0.0/8 -p tcp --dport 80 -j MASQUERADE", "user"),
        (
            "-A POSTROUTING -s 10.0.3.0/24 -m comment --comment \"generated for Incus network lo1\" -j MASQUERADE",
            "incus",
        ),
        ("-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING", "kube-proxy"),
    ] {
        assert_eq!(host(&format!("{rule}\n")).first(), Some(&owner), "{rule}");
    }
}

#[test]
fn names_alone_tell_of_firewalld_only_where_its_zones_are() {
    let text =
        |zones: &str| format!("*filter\n:INPUT ACCEPT\n:IN_x -\n{zones}-A INPUT -j IN_x\n-A IN_x -j ACCEPT\nCOMMIT\n");
    assert_eq!(of_rules(&text("")), ["user"; 2]);
    assert_eq!(of_rules(&text(":INPUT_ZONES -\n")), ["firewalld"; 2]);
}

#[test]
fn a_rule_of_a_user_among_those_of_firewalld_is_the_users() {
    let rules = "*filter\n:INPUT ACCEPT\n:INPUT_ZONES -\n-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -i lo -j ACCEPT\n\
                 -A INPUT -j INPUT_ZONES\n-A INPUT -j REJECT\nCOMMIT\n";
    assert_eq!(of_rules(rules), ["user", "firewalld", "firewalld", "firewalld"]);
}

#[test]
fn chains_that_are_left_to_the_user_have_rules_of_the_user() {
    let rules = "*filter\n:FORWARD DROP\n:DOCKER-USER -\n:ufw-user-forward -\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j ufw-user-forward\n\
                 -A DOCKER-USER -i eth0 -j RETURN\n-A DOCKER-USER -j RETURN\nCOMMIT\n";
    assert_eq!(of_rules(rules), ["docker", "ufw", "user", "docker"]);
}

#[test]
fn tables_of_nft_are_told_by_name_and_others_are_unknown() {
    for (name, owner) in [
        ("docker-bridges", "docker"),
        ("netavark", "podman"),
        ("cni_hostport", "cni"),
        ("cni_plugins_masquerade", "cni"),
        ("crio-hostports", "cri-o"),
        ("kube-proxy", "kube-proxy"),
        ("firewalld", "firewalld"),
        ("fw4", "fw4"),
        ("incus", "incus"),
        ("libvirt_network", "libvirt"),
        ("portfwd", "portfwd"),
        ("nat", "unknown"),
        ("my-docker-bridges", "unknown"),
    ] {
        let mut table = Table::new(TableFamily::Inet, name, Tool::Nft);
        table.chains.entry("c");
        let chain = table.chains.named("c").expect("there");
        assert_eq!((of_table(&table), of_chain(&table, chain), of_rule(&table, chain, 0)), (owner, owner, owner));
    }
    let text = r#"{"nftables": [
        {"table": {"family": "ip", "name": "mine", "handle": 1}},
        {"chain": {"family": "ip", "table": "mine", "name": "pre", "handle": 1, "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}},
        {"chain": {"family": "ip", "table": "mine", "name": "DOCKER-x", "handle": 2}},
        {"rule": {"family": "ip", "table": "mine", "chain": "pre", "handle": 3, "expr": [{"accept": null}]}},
        {"rule": {"family": "ip", "table": "mine", "chain": "pre", "handle": 4, "expr": [{"jump": {"target": "DOCKER-x"}}]}}
    ]}"#;
    let rules = json::parse(text).expect("a dump");
    let table = &rules.tables[0];
    let chain = table.chains.named("pre").expect("there");
    assert_eq!((of_rule(table, chain, 0), of_rule(table, chain, 1)), ("unknown", "docker"));
}
