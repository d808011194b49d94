//! Tests with hosts that have a fault of order, and with similar hosts without the fault.

use proptest::prelude::*;

use super::classify::{self, Class};
use crate::audit::finding::Severity;
use crate::audit::findings::context::Context;
use crate::audit::findings::hosts::{confidences, dump, facts, find, host, nat, of_order, with_nat};
use crate::model::Family;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::host::Host;
use crate::ruleset::region::{Field, Packet, Region, State};
use crate::ruleset::set::{Set, number_of, number_of_name};
use crate::ruleset::simulate::chains::{self, Which};
use crate::ruleset::table::{Action, Base, Case, Hook, Kind, Rewrite, Rule, Ruleset, Table, TableFamily, Tool};

use Confidence::{Likely, Proved, Unknown};

#[test]
fn f01_one_earlier_rule_takes_all() {
    let host = with_nat(
        "-A PREROUTING -p tcp -m tcp --dport 8000:8100 -j DNAT --to-destination 172.17.0.2:80\n\
         -A PREROUTING -s 10.0.0.0/8 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.3:80",
    );
    let all = find(&host, "F01");
    assert_eq!(all.len(), 1);
    assert_eq!(
        all[0].message,
        "`8080/tcp -> 172.17.0.3:80` is never reached: `8000-8100/tcp -> 172.17.0.2:80` comes first"
    );
    assert_eq!((all[0].confidence, all[0].severity), (Proved, Severity::Error));
    let places: Vec<String> = all[0].places.iter().map(ToString::to_string).collect();
    assert_eq!(places, ["ip nat PREROUTING line 8 (user)", "ip nat PREROUTING line 7 (user)"]);
    assert_eq!(
        all[0].fix,
        "iptables -t nat -D PREROUTING -s 10.0.0.0/8 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.3:80"
    );
    assert!(all[0].evidence.iter().any(|line| line.contains("tcp dport 8000-8100")), "{:?}", all[0].evidence);
    assert_eq!(of_order(&host), ["F01"]);
    let nearly = with_nat(
        "-A PREROUTING -s 10.0.0.0/8 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.3:80\n\
         -A PREROUTING -p tcp -m tcp --dport 8000:8100 -j DNAT --to-destination 172.17.0.2:80",
    );
    assert!(of_order(&nearly).is_empty(), "an exception before the rest");
}

#[test]
fn f01_several_earlier_rules_take_all_together() {
    let rules = |first: &str, second: &str| {
        with_nat(&format!(
            "-A PREROUTING -p tcp -m tcp --dport {first} -j DNAT --to-destination 172.17.0.2\n\
             -A PREROUTING -p tcp -m tcp --dport {second} -j DNAT --to-destination 172.17.0.3\n\
             -A PREROUTING -p tcp -m tcp --dport 10:20 -j DNAT --to-destination 172.17.0.4"
        ))
    };
    assert_eq!(of_order(&rules("10:15", "16:20")), ["F01"]);
    assert!(of_order(&rules("10:15", "17:20")).is_empty(), "port 16 is left");
    assert_eq!(find(&rules("10:15", "16:20"), "F01")[0].places.len(), 3);
}

#[test]
fn f01_accept_and_return_count_as_earlier_rules() {
    let accepted = with_nat(
        "-A PREROUTING -p tcp -j ACCEPT\n\
         -A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2\n\
         -A PREROUTING -p tcp -m tcp --dport 81 -j DNAT --to-destination 172.17.0.2",
    );
    let all = find(&accepted, "F01");
    assert_eq!(all.len(), 1, "one cause, one finding");
    assert_eq!(
        all[0].message,
        "`80/tcp -> 172.17.0.2`, `81/tcp -> 172.17.0.2` are never reached: `-A PREROUTING -p tcp -j ACCEPT` comes first"
    );
    // Packets that return from the chain skip its later forward.
    let returns = |from: &str| {
        with_nat(&format!(
            "-A PREROUTING -j DOCKER\n\
             -A PREROUTING -s 10.0.0.0/8 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.3\n\
             -A DOCKER {from} -j RETURN\n\
             -A DOCKER -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2"
        ))
    };
    assert!(of_order(&returns("-s 10.0.0.0/8")).is_empty());
    assert_eq!(of_order(&returns("-s 10.0.0.0/9")), ["F02"], "half of it");
    assert_eq!(of_order(&returns("-s 11.0.0.0/8")), ["F01"]);
}

#[test]
fn f01_is_never_proved_with_unknown_matches() {
    let asked = with_nat(
        "-A PREROUTING -p tcp -m tcp --dport 80 -m tomorrow -j DNAT --to-destination 172.17.0.2\n\
         -A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.3",
    );
    assert!(of_order(&asked).is_empty(), "an exception, whatever it is");
    let returns = with_nat(
        "-A PREROUTING -m tomorrow -j DOCKER\n\
         -A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.3\n\
         -A PREROUTING -p tcp -m tcp --dport 80 -m tomorrow -j DNAT --to-destination 172.17.0.2\n\
         -A DOCKER -j ACCEPT",
    );
    assert_eq!(confidences(&returns, "F01"), [Proved], "what asks for more than what is lost is lost");
    let foreign = with_nat(
        "-A PREROUTING -j TOMORROW\n\
         -A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2\n\
         -A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.3",
    );
    assert_eq!(confidences(&foreign, "F01"), [Likely]);
    let text = "-A PREROUTING -p tcp -j ACCEPT\n-A PREROUTING -p tcp -j DNAT --to-destination 172.17.0.2";
    assert_eq!(confidences(&dump(&nat(text)), "F01"), [Likely]);
}

#[test]
fn f01_a_forward_for_packets_of_this_host_only_is_reached() {
    let host = with_nat(
        "-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2\n\
         -A PREROUTING -j DOCKER\n-A OUTPUT -j DOCKER\n\
         -A DOCKER -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.3",
    );
    assert_eq!(of_order(&host), ["F02"]);
    assert!(find(&host, "F02")[0].message.ends_with("which comes first at prerouting"));
    let twice = with_nat(
        "-A PREROUTING -j DOCKER\n-A PREROUTING -j DOCKER\n\
         -A DOCKER -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.3",
    );
    assert!(of_order(&twice).is_empty(), "a rule is not shadowed by itself");
}

#[test]
fn f01_is_unknown_at_the_limits_of_the_search() {
    let mut rules = String::new();
    for number in 1..=200 {
        rules += &format!(
            "-A PREROUTING -s 10.0.0.{number}/32 -d 192.0.2.{number}/32 -p tcp -m tcp --sport {number} -j DNAT --to-destination 172.17.0.2\n"
        );
    }
    rules += "-A PREROUTING -p tcp -j DNAT --to-destination 172.17.0.3";
    let all = find(&with_nat(&rules), "F01");
    assert_eq!(all.iter().map(|it| (it.confidence, it.severity)).collect::<Vec<_>>(), [(Unknown, Severity::Info)]);
}

#[test]
fn f02_overlapping_ranges() {
    let rules = |second: &str, extra: &str| {
        with_nat(&format!(
            "-A PREROUTING -p tcp -m tcp --dport 80:90 {extra} -j DNAT --to-destination 172.17.0.2\n\
             -A PREROUTING -p tcp -m tcp --dport {second} -j DNAT --to-destination 172.17.0.3"
        ))
    };
    let host = rules("85:95", "");
    assert_eq!(of_order(&host), ["F02"]);
    let finding = &find(&host, "F02")[0];
    assert_eq!(finding.confidence, Proved);
    assert_eq!(
        finding.message,
        "`85-95/tcp -> 172.17.0.3` loses a part of its packets to `80-90/tcp -> 172.17.0.2`, which comes first at prerouting"
    );
    assert!(of_order(&rules("91:95", "")).is_empty());
    assert!(of_order(&rules("70:95", "")).is_empty(), "an exception");
    assert_eq!(confidences(&rules("85:95", "-m tomorrow"), "F02"), [Unknown]);
    let same = "-A PREROUTING -p tcp -m tcp --dport 80:90 -j DNAT --to-destination 172.17.0.2\n\
                -A PREROUTING -p tcp -m tcp --dport 85:95 -j DNAT --to-destination 172.17.0.2";
    assert!(of_order(&with_nat(same)).is_empty(), "both lead to the same place");
}

#[test]
fn f03_the_same_forward_twice() {
    let rules = |target: &str| {
        with_nat(&format!(
            "-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80\n\
             -A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination {target}"
        ))
    };
    assert_eq!(of_order(&rules("172.17.0.2:80")), ["F03"]);
    assert_eq!(of_order(&rules("172.17.0.2")), ["F03"], "port 80 stays port 80");
    assert_eq!(of_order(&rules("172.17.0.3:80")), ["F01"]);
    let finding = &find(&rules("172.17.0.2:80"), "F03")[0];
    assert_eq!((finding.confidence, finding.severity, finding.places.len()), (Proved, Severity::Warning, 2));
    let text = nat("-A PREROUTING -p tcp -j REDIRECT --to-ports 80\n-A PREROUTING -p tcp -j REDIRECT --to-ports 80");
    assert_eq!(confidences(&dump(&text), "F03"), [Likely]);
}

#[test]
fn f04_a_forward_of_all_addresses_before_one_address() {
    let rules = |first: &str, second: &str| {
        nat(&format!(
            "-A PREROUTING {first} -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2\n\
             -A PREROUTING {second} -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.3"
        ))
    };
    let (local, one) = ("-m addrtype --dst-type LOCAL", "-d 192.0.2.1/32");
    let host = |first, second| host(&rules(first, second), facts());
    for first in [local, ""] {
        assert_eq!(of_order(&host(first, one)), ["F04"], "{first}");
        assert_eq!(confidences(&host(first, one), "F04"), [Proved], "{first}");
        assert!(of_order(&host(one, first)).is_empty(), "{first}: the narrower first");
    }
    assert!(of_order(&host(local, "-d 192.0.2.7/32")).is_empty(), "that is not an address of this host");
    assert_eq!(confidences(&dump(&rules(local, one)), "F04"), [Likely], "whose address it is a dump does not tell");
    let part = "-A PREROUTING -p tcp -m tcp --dport 80:90 -j DNAT --to-destination 172.17.0.2\n\
                -A PREROUTING -d 192.0.2.1/32 -p tcp -m tcp --dport 85:95 -j DNAT --to-destination 172.17.0.3";
    assert_eq!(of_order(&with_nat(part)), ["F04"]);
    assert!(find(&with_nat(part), "F04")[0].message.contains("reached only in part"));
    let unknown = part.replace("80:90", "80:90 -m tomorrow");
    assert_eq!(confidences(&with_nat(&unknown), "F04"), [Unknown]);
}

/// Returns a host with two nft tables, each with one forward.
fn two_tables(priorities: (i32, i32), targets: (u8, u8), families: (TableFamily, TableFamily)) -> Host {
    let mut rules = Ruleset::default();
    for (number, (priority, target, family)) in
        [(priorities.0, targets.0, families.0), (priorities.1, targets.1, families.1)].into_iter().enumerate()
    {
        let mut table = Table::new(family, &format!("t{number}"), Tool::Nft);
        let chain = table.chains.entry("prerouting");
        let (kind, hook) = (Kind::Nat, Hook::Prerouting);
        chain.base = Some(Base { kind, hook, priority, drops: false, devices: Vec::new() });
        let address = [172, 17, 0, target].into();
        let to = Rewrite { addresses: Some((address, address)), ..Rewrite::default() };
        let region = Region::all().with(Field::Protocol, &Set::single(6)).with(Field::Port, &Set::single(80));
        let cases = vec![Case { region, actions: [Action::Dnat(to)].into() }];
        chain.rules.push(Rule { cases, handle: Some(4), ..Rule::default() });
        rules.tables.push(table);
    }
    Host::new(rules, Some(facts()))
}

#[test]
fn f05_two_tables_with_one_priority() {
    let (ip, inet) = (TableFamily::Ip, TableFamily::Inet);
    let host = two_tables((-100, -100), (2, 3), (ip, inet));
    assert_eq!(of_order(&host), ["F05"]);
    let finding = &find(&host, "F05")[0];
    assert_eq!(finding.confidence, Proved);
    assert!(finding.fix.contains("nft delete rule ip t0 prerouting handle 4"), "{}", finding.fix);
    assert_eq!(of_order(&two_tables((-100, -99), (2, 3), (ip, inet))), ["F01"], "an order that is known");
    assert!(of_order(&two_tables((-100, -100), (2, 2), (ip, inet))).is_empty(), "either is as good");
    assert!(of_order(&two_tables((-100, -100), (2, 3), (ip, TableFamily::Ip6))).is_empty());
    let mut asked = two_tables((-100, -100), (2, 3), (ip, inet)).rules;
    let rule = &mut asked.tables[0].chains.entry("prerouting").rules[0];
    rule.cases[0].region.add_condition(crate::ruleset::region::Condition::Unknown("numgen".into()));
    assert_eq!(confidences(&Host::new(asked, Some(facts())), "F05"), [Unknown]);
}

#[test]
fn f02_a_narrower_forward_of_another_table_is_no_exception() {
    let mut rules = two_tables((-100, -90), (2, 3), (TableFamily::Ip, TableFamily::Ip)).rules;
    let rule = &mut rules.tables[1].chains.entry("prerouting").rules[0];
    rule.cases[0].region = Region::all().with(Field::Protocol, &Set::single(6)).with(Field::Port, &Set::range(80, 90));
    assert_eq!(of_order(&Host::new(rules, Some(facts()))), ["F02"]);
}

/// Generates rules in two chains for a universe of 8 ports, 2 addresses and 2 protocols.
fn rules() -> impl Strategy<Value = Vec<(bool, String)>> {
    let ports = prop_oneof![
        (0..8u8).prop_map(|port| format!("--dport {port}")),
        (0..8u8, 0..4u8).prop_map(|(first, more)| format!("--dport {first}:{}", (first + more).min(7))),
        (0..8u8).prop_map(|port| format!("! --dport {port}")),
    ];
    let address = prop_oneof![2 => Just(""), 1 => Just("-d 192.0.2.1"), 1 => Just("-d 172.17.0.1"), 1 => Just("-m addrtype --dst-type LOCAL")];
    let protocol = prop_oneof![Just("tcp"), Just("udp")];
    let target = prop_oneof![
        5 => (2..5u8).prop_map(|host| format!("-j DNAT --to-destination 172.17.0.{host}")),
        1 => Just("-j ACCEPT".to_owned()),
        1 => Just("-j RETURN".to_owned()),
        1 => Just("-j DOCKER".to_owned()),
    ];
    let rule =
        (any::<bool>(), address, protocol, ports, target).prop_map(|(docker, address, protocol, ports, target)| {
            // A chain does not jump to itself.
            let target = if docker && target == "-j DOCKER" { "-j RETURN".to_owned() } else { target };
            (docker, format!("{address} -p {protocol} {ports} {target}"))
        });
    proptest::collection::vec(rule, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_forward_without_packets_is_found(rules in rules()) {
        let mut text = String::new();
        for (docker, rule) in &rules {
            text += &format!("-A {} {rule}\n", if *docker { "DOCKER" } else { "PREROUTING" });
        }
        let host = with_nat(&text);
        let mut won = std::collections::HashSet::new();
        for port in 0..8u128 {
            // Loopback addresses are local, but no rule matches them.
            for address in [[192, 0, 2, 1], [172, 17, 0, 1], [127, 0, 0, 1], [198, 51, 100, 1]] {
                for protocol in [6, 17, 1u128] {
                    let local = address != [198, 51, 100, 1];
                    let mut packet = Packet::new(Family::Ipv4)
                        .with(Field::State, State::New.number())
                        .with(Field::Direction, 0)
                        .with(Field::Input, number_of_name(b"eth0", 0))
                        .with(Field::Output, 0)
                        .with(Field::Destination, number_of(address.into()))
                        .with(Field::DestinationKind, if local { 2 } else { 1 })
                        .with(Field::Protocol, protocol)
                        .with(Field::Port, port);
                    let outcome = chains::hook(&host.rules, &mut packet, Hook::Prerouting, &Which::Nat);
                    prop_assert!(outcome.is_sure());
                    won.extend(outcome.rewritten.map(|(_, _, at)| at));
                }
            }
        }
        // `! --dport` also matches ports outside of the universe.
        let beyond = rules.iter().any(|(_, rule)| rule.contains("! --dport"));
        let mut lost = std::collections::HashSet::new();
        let of_whole = [Class::Shadowed, Class::Duplicate, Class::Wildcard, Class::Undecided];
        for judged in classify::all(&Context::new(&host)).iter().filter(|judged| judged.whole) {
            if of_whole.contains(&judged.class) {
                prop_assert_eq!(judged.confidence, Proved);
                prop_assert!(lost.insert(judged.forward.at), "only one finding of a forward of which nothing is left");
            }
        }
        for forward in crate::audit::forwards::Forward::all(&host.view) {
            prop_assert!(!(lost.contains(&forward.at) && won.contains(&forward.at)), "{:?} wins: {}", forward.at, text);
            prop_assert!(beyond || lost.contains(&forward.at) || won.contains(&forward.at), "{:?}: {}", forward.at, text);
        }
    }
}
