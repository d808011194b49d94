//! Tests that read rules of iptables-nft from nf_tables.

use std::collections::HashMap;

use portfwd::lab::Netns;
use portfwd::model::Family;
use portfwd::nft::transaction::Connection;
use portfwd::ruleset::describe;
use portfwd::ruleset::read::nft::{Ipsets, Numbers, read_with};
use portfwd::ruleset::read::save;
use portfwd::ruleset::region::{Condition, DST_NAT, Field, LOCAL, State, Truth};
use portfwd::ruleset::set::Set;
use portfwd::ruleset::table::{Action, Case, Hook, Kind, Rewrite, Rule, Ruleset, TableFamily, Tool};

use super::{actions_for, address, chain, feed, ipv4, name, number, only_case, restore, rewrite_to, table};
use crate::support::privileged;

#[test]
fn docker_rules_are_read() {
    if !privileged() {
        return;
    }
    let all = restore(
        "iptables",
        "*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -m comment --comment \"to itself\" -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A DOCKER -d 192.0.2.1/32 ! -i br-+ -p udp -m udp --dport 5000:5010 -j DNAT --to-destination 172.17.0.2:6000-6010/5000
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT
COMMIT
",
    );
    let nat = table(&all, "nat");
    assert_eq!((nat.family, nat.tool), (TableFamily::Ip, Tool::IptablesNft));
    let base = chain(nat, "PREROUTING").base.as_ref().expect("a base chain");
    assert_eq!((base.kind, base.hook, base.priority, base.drops), (Kind::Nat, Hook::Prerouting, -100, false));
    let local = only_case(&chain(nat, "PREROUTING").rules[0]);
    assert_eq!(local.region.get(Field::DestinationKind), &Set::single(LOCAL));
    assert_eq!(*local.actions, [Action::Jump("DOCKER".into())]);
    let docker = &chain(nat, "DOCKER").rules;
    assert_eq!(*only_case(&docker[0]).actions, [Action::Return]);
    let forward = only_case(&docker[1]);
    assert_eq!(*forward.actions, [Action::Dnat(rewrite_to("172.17.0.2", Some(80)))]);
    let packet = ipv4().with(Field::Protocol, 6).with(Field::Port, 8080).with(Field::Input, name("eth0"));
    assert_eq!(forward.region.has(&packet), Truth::Yes);
    assert_eq!(forward.region.has(&packet.clone().with(Field::Input, name("docker0"))), Truth::No);
    assert_eq!(forward.region.has(&packet.with(Field::Port, 8081)), Truth::No);
    let range = only_case(&docker[2]);
    let shifted = Rewrite { ports: Some((6000, 6010)), base: Some(5000), ..rewrite_to("172.17.0.2", None) };
    assert_eq!(*range.actions, [Action::Dnat(shifted)]);
    assert_eq!(range.region.get(Field::Port), &Set::range(5000, 5010));
    assert_eq!(range.region.get(Field::Destination), &Set::single(number("192.0.2.1")));
    assert_eq!(range.region.get(Field::Input), &Set::interface("br-+", '+').not());
    let masquerade = only_case(&chain(nat, "POSTROUTING").rules[0]);
    assert_eq!(masquerade.region.get(Field::Source), &Set::range(number("172.17.0.0"), number("172.17.255.255")));
    assert_eq!(masquerade.region.get(Field::Output), &Set::interface("docker0", '+').not());
    assert_eq!(*masquerade.actions, [Action::Masquerade(Rewrite::default())]);
    assert_eq!(chain(nat, "POSTROUTING").rules[1].comment.as_deref(), Some("to itself"));
    let forward = chain(table(&all, "filter"), "FORWARD");
    assert!(forward.base.as_ref().expect("a base chain").drops);
    let translated = ipv4().with(Field::Status, DST_NAT).with(Field::State, State::New.number());
    assert_eq!(only_case(&forward.rules[0]).region.has(&translated), Truth::No);
    assert_eq!(actions_for(&forward.rules[1], &translated), Some(&[Action::Accept][..]));
    assert!(nat.chains.iter().all(|chain| chain.rules.iter().all(|rule| rule.counter.is_some())));
}

#[test]
fn iptables_matches_and_targets_are_read() {
    if !privileged() {
        return;
    }
    let all = restore(
        "iptables",
        "*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 53 -j MARK --set-xmark 0x2/0xff
-A PREROUTING -m mark --mark 0x2/0xff -j CONNMARK --save-mark
-A PREROUTING -m connmark ! --mark 0x5 -j CONNMARK --restore-mark
-A PREROUTING -m iprange --src-range 10.0.0.3-10.0.0.9 -j ACCEPT
-A PREROUTING -p tcp -m multiport --dports 1,2,5:9 -j DROP
-A PREROUTING -m limit --limit 3/min -j ACCEPT
-A PREROUTING -m mac --mac-source 00:11:22:33:44:55 -j ACCEPT
-A PREROUTING -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT
-A PREROUTING -j LOG
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 7 -j CT --notrack
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -d 203.0.113.0/24 -j NETMAP --to 10.9.0.0/24
-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080
-A POSTROUTING -s 10.9.0.0/24 -j NETMAP --to 203.0.113.0/24
-A POSTROUTING -p tcp -j SNAT --to-source 192.0.2.1-192.0.2.9:1000-2000
-A POSTROUTING ! -d 127.0.0.0/8 -p tcp -j MASQUERADE --to-ports 1000-2000
COMMIT
",
    );
    let mangle = &chain(table(&all, "mangle"), "PREROUTING").rules;
    assert_eq!(*only_case(&mangle[0]).actions, [Action::Mark { field: Field::Mark, mask: 0xff, value: 2 }]);
    let marked = Condition::Bits { field: Field::Mark, mask: 0xff, value: 2, not: false };
    assert_eq!(only_case(&mangle[1]).region.conditions(), [marked]);
    assert_eq!(*only_case(&mangle[1]).actions, [Action::CopyMark { to: Field::ConnectionMark }]);
    assert_eq!(only_case(&mangle[2]).region.get(Field::ConnectionMark), &Set::single(5).not());
    assert_eq!(*only_case(&mangle[2]).actions, [Action::CopyMark { to: Field::Mark }]);
    assert_eq!(only_case(&mangle[3]).region.get(Field::Source), &Set::range(number("10.0.0.3"), number("10.0.0.9")));
    assert_eq!(only_case(&mangle[4]).region.get(Field::Port), &Set::from_ranges([(1, 2), (5, 9)]));
    let syn = Condition::Bits { field: Field::TcpFlags, mask: 0x17, value: 2, not: false };
    assert_eq!(only_case(&mangle[7]).region.conditions(), [syn]);
    for unknown in &mangle[5..7] {
        assert!(!only_case(unknown).region.is_known(), "{unknown:#?}");
    }
    assert!(only_case(&mangle[8]).actions.is_empty());
    assert_eq!(*only_case(&chain(table(&all, "raw"), "PREROUTING").rules[0]).actions, [Action::Untracked]);
    let nat = table(&all, "nat");
    let netmap = |first: &str, last: &str| Rewrite {
        addresses: Some((address(first), address(last))),
        prefix: Some(24),
        ..Rewrite::default()
    };
    let before = &chain(nat, "PREROUTING").rules;
    assert_eq!(*only_case(&before[0]).actions, [Action::Netmap(netmap("10.9.0.0", "10.9.0.255"))]);
    let redirect = Rewrite { ports: Some((8080, 8080)), ..Rewrite::default() };
    assert_eq!(*only_case(&before[1]).actions, [Action::Redirect(redirect)]);
    let after = &chain(nat, "POSTROUTING").rules;
    assert_eq!(*only_case(&after[0]).actions, [Action::Netmap(netmap("203.0.113.0", "203.0.113.255"))]);
    let ports = Some((1000, 2000));
    let snat = Rewrite { addresses: Some((address("192.0.2.1"), address("192.0.2.9"))), ports, ..Rewrite::default() };
    assert_eq!(*only_case(&after[1]).actions, [Action::Snat(snat)]);
    assert_eq!(*only_case(&after[2]).actions, [Action::Masquerade(Rewrite { ports, ..Rewrite::default() })]);
    assert!(!only_case(&after[2]).region.get(Field::Destination).has(number("127.1.2.3")));
}

#[test]
fn ip6tables_rules_are_read() {
    if !privileged() {
        return;
    }
    let all = restore(
        "ip6tables",
        "*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -d fd00::/60 -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00::2]:80
-A PREROUTING -p tcp -m tcp --dport 81 -j REDIRECT --to-ports 8081
-A POSTROUTING -s fd00::/64 -j MASQUERADE
COMMIT
",
    );
    let nat = table(&all, "nat");
    assert_eq!((nat.family, nat.tool), (TableFamily::Ip6, Tool::IptablesNft));
    let forward = only_case(&chain(nat, "PREROUTING").rules[0]);
    assert_eq!(forward.region.get(Field::Destination), &Set::network("fd00::/60".parse().expect("network")));
    assert_eq!(*forward.actions, [Action::Dnat(rewrite_to("fd00::2", Some(80)))]);
    let redirect = Rewrite { ports: Some((8081, 8081)), ..Rewrite::default() };
    assert_eq!(*only_case(&chain(nat, "PREROUTING").rules[1]).actions, [Action::Redirect(redirect)]);
    assert_eq!(*only_case(&chain(nat, "POSTROUTING").rules[0]).actions, [Action::Masquerade(Rewrite::default())]);
}

#[test]
fn the_kernel_and_a_dump_give_the_same_rules() {
    if !privileged() {
        return;
    }
    let text = "*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate RELATED,DNAT -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,DNAT,SNAT -j ACCEPT
-A FORWARD -m conntrack ! --ctstate NEW,DNAT -j DROP
-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT
-A FORWARD -m conntrack --ctstate SNAT,DNAT -j ACCEPT
-A FORWARD -m conntrack ! --ctstate SNAT,DNAT -j ACCEPT
-A FORWARD -m conntrack --ctstate INVALID,UNTRACKED -j DROP
-A FORWARD -p tcp -m multiport --ports 80,443,5000:5010 -j ACCEPT
-A FORWARD -p udp -m multiport ! --ports 53 -m conntrack --ctstate NEW,DNAT -j ACCEPT
COMMIT
";
    let all = restore("iptables", text);
    let saved = save::parse(text, Some(Family::Ipv4)).expect("a dump");
    let rules = |all: &Ruleset| chain(table(all, "filter"), "FORWARD").rules.clone();
    for (live, dumped) in rules(&all).iter().zip(rules(&saved)) {
        let shown = |rule: &Rule| {
            let words = |case: &Case| describe::region(&case.region, Family::Ipv4);
            rule.cases.iter().map(words).collect::<Vec<_>>()
        };
        assert_eq!(shown(live), shown(&dumped), "{:?}", dumped.words);
        assert_eq!(live.cases, dumped.cases, "{:?}", dumped.words);
        assert!(live.cases.iter().all(|case| case.region.is_known()), "{:?}", dumped.words);
    }
}

#[test]
fn ipset_matches_are_read_with_the_names_of_the_sets() {
    if !privileged() {
        return;
    }
    let rules = "*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -m set --match-set portfwd-second dst,src -j ACCEPT
-A PREROUTING -p tcp -m set ! --match-set portfwd-first src -j DNAT --to-destination 10.0.0.1:80
COMMIT
";
    let job = || {
        feed("ipset", &["create", "portfwd-first", "hash:ip"], "");
        feed("ipset", &["create", "portfwd-second", "hash:ip,port"], "");
        feed("iptables-nft-restore", &[], rules);
        let numbers = Numbers { links: &HashMap::new(), ipsets: &Ipsets::of_kernel() };
        read_with(&mut Connection::open().expect("netlink"), numbers).expect("readable")
    };
    let live = Netns::new().expect("namespace").run(job).expect("the namespace");
    let words = |all: &Ruleset| -> Vec<String> {
        let rules = &chain(table(all, "nat"), "PREROUTING").rules;
        rules.iter().map(|rule| describe::region(&only_case(rule).region, Family::Ipv4)).collect()
    };
    let found = words(&live);
    assert_eq!(found[0], "[-m set --match-set portfwd-second dst,src]");
    assert!(found[1].contains("[-m set ! --match-set portfwd-first src]"), "{found:?}");
    assert_eq!(words(&save::parse(rules, Some(Family::Ipv4)).expect("a dump")), found);
}
