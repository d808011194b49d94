use std::fmt::Write as _;

use super::*;
use crate::model::Family;
use crate::ruleset::region::{Condition, Field, Packet, Region, Truth};
use crate::ruleset::reject::Rejection;
use crate::ruleset::set::Set;
use crate::ruleset::table::{Action, At, Case, Hook, Rewrite, Rule, TableFamily, Tool};

/// `nft -j list ruleset` of nft 1.0.6 on Linux 6.18, one element a line.
const NFT: &str = include_str!("../../../../tests/audit/nft-1.0.6.json");

/// The same of rules of iptables-nft 1.8.9.
const IPTABLES: &str = include_str!("../../../../tests/audit/iptables-nft-1.8.9.json");

/// The same of rules laid out as those of kube-proxy and of firewalld.
const LAYOUTS: &str = include_str!("../../../../tests/audit/layouts.json");

const TABLE: &str = r#"{"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
    {"table": {"family": "inet", "name": "t", "handle": 1}},
    {"chain": {"family": "inet", "table": "t", "name": "c", "handle": 1, "type": "nat", "hook": "prerouting", "prio": -100}}"#;

/// A dump with one rule and what else there is.
fn dump(more: &str, statements: &str) -> String {
    let rule =
        format!(r#"{{"rule": {{"family": "inet", "table": "t", "chain": "c", "handle": 9, "expr": [{statements}]}}}}"#);
    format!(r#"{{"nftables": [{TABLE}{more}, {rule}]}}"#)
}

/// The rule of such a dump.
fn rule_of(more: &str, statements: &str) -> Rule {
    let rules = parse(&dump(more, statements)).expect("a dump");
    let at = At { table: 0, chain: 0, rule: 0, case: 0 };
    rules.at(at).expect("a rule").2.clone()
}

fn cases_of(statements: &str) -> Vec<Case> {
    rule_of("", statements).cases
}

fn matching(left: &str, operator: &str, right: &str) -> String {
    format!(r#"{{"match": {{"op": "{operator}", "left": {left}, "right": {right}}}}}"#)
}

const DPORT: &str = r#"{"payload": {"protocol": "tcp", "field": "dport"}}"#;
const DADDR: &str = r#"{"payload": {"protocol": "ip", "field": "daddr"}}"#;

fn tcp(port: u128) -> Packet {
    Packet::new(Family::Ipv4).with(Field::Protocol, 6).with(Field::Port, port)
}

/// A ruleset in words, a line for each case.
fn shown(rules: &Ruleset) -> String {
    let mut text = String::new();
    for gap in &rules.gaps {
        writeln!(text, "gap: {}: {}", gap.what, gap.why).expect("text");
    }
    for table in &rules.tables {
        writeln!(text, "table {table} {:?}{}", table.tool, if table.dormant { " dormant" } else { "" }).expect("text");
        for chain in table.chains.iter() {
            writeln!(text, "  chain {} {:?}", chain.name, chain.base).expect("text");
            for rule in &chain.rules {
                let counter = rule.counter.filter(|counter| counter.packets > 0);
                let handle = rule.handle.expect("a handle");
                writeln!(text, "    handle {handle}, comment {:?}, counter {counter:?}", rule.comment).expect("text");
                for Case { region, actions } in &rule.cases {
                    writeln!(text, "      {region:?} -> {actions:?}").expect("text");
                }
            }
        }
    }
    text
}

#[test]
fn every_construct_is_brought_into_the_normal_form() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/audit/nft-1.0.6.txt");
    expect_test::expect_file![file].assert_eq(&shown(&parse(NFT).expect("a dump")));
}

#[test]
fn layouts_of_others_are_understood() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/audit/layouts.txt");
    let rules = parse(LAYOUTS).expect("a dump");
    expect_test::expect_file![file].assert_eq(&shown(&rules));
    let rules = rules.tables.iter().flat_map(|table| table.chains.iter()).flat_map(|chain| &chain.rules);
    let mut actions = rules.flat_map(|rule| &rule.cases).flat_map(|case| &case.actions);
    assert!(!actions.any(|action| matches!(action, Action::Unknown(_))));
}

#[test]
fn what_is_implied_is_asked() {
    let cases = cases_of(&format!(r#"{}, {{"accept": null}}"#, matching(DPORT, "==", "80")));
    let [case] = &*cases else { panic!("{cases:?}") };
    assert_eq!(case.region.get(Field::Protocol), &Set::single(6));
    assert_eq!(case.region.has(&tcp(80).with(Field::Protocol, 17)), Truth::No);
    let cases = cases_of(&matching(DADDR, "!=", r#""10.0.0.1""#));
    assert_eq!(cases[0].region.has(&Packet::new(Family::Ipv6).with(Field::Destination, 5)), Truth::No);
    assert_eq!(cases[0].region.has(&Packet::new(Family::Ipv4).with(Field::Destination, 5)), Truth::Yes);
}

#[test]
fn what_was_done_before_something_is_asked_is_done() {
    let mark = r#"{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}}"#;
    let statements = format!(r#"{mark}, {}, {{"accept": null}}"#, matching(DPORT, "==", "80"));
    let cases = cases_of(&statements);
    let set = Action::Mark { field: Field::Mark, mask: 0xffff_ffff, value: 1 };
    assert_eq!(*cases[0].actions, [set.clone(), Action::Accept]);
    assert_eq!((cases[1].region.has(&tcp(81)), &*cases[1].actions), (Truth::Yes, [set].as_slice()));
    let after = format!(r#"{mark}, {}, {{"accept": null}}"#, matching(r#"{"meta": {"key": "mark"}}"#, "==", "1"));
    let cases = cases_of(&after);
    assert_eq!(cases[0].region.has(&tcp(1).with(Field::Mark, 0)), Truth::Maybe, "the mark is the one that was set");
}

#[test]
fn connection_labels_are_bits() {
    let label = r#"{"ct": {"key": "label"}}"#;
    let bit = |number: u32| 1_u128 << (120 - number / 8 * 8 + number % 8);
    assert_eq!((bit(0), bit(120), bit(127)), (1 << 120, 1, 1 << 7), "label 0 is in the first of 16 bytes");
    let has = |statement: &str, labels: u128| {
        cases_of(statement)[0].region.has(&Packet::new(Family::Ipv4).with(Field::Label, labels))
    };
    let one = matching(label, "in", "120");
    assert_eq!((has(&one, bit(120) | bit(3)), has(&one, bit(3))), (Truth::Yes, Truth::No));
    let none = matching(label, "!", "7");
    assert_eq!((has(&none, bit(7)), has(&none, 0)), (Truth::No, Truth::Yes));
    // `ct label & (121 | 119 | 117) == 121`
    let masked = matching(&format!(r#"{{"&": [{label}, {{"|": [{{"|": [121, 119]}}, 117]}}]}}"#), "==", "121");
    assert_eq!((has(&masked, bit(121) | bit(1)), has(&masked, bit(121) | bit(119))), (Truth::Yes, Truth::No));
    let address = matching(&format!(r#"{{"&": [{label}, {{"|": [120, 121]}}]}}"#), "==", r#""::2""#);
    assert_eq!((has(&address, bit(121)), has(&address, bit(120))), (Truth::Yes, Truth::No));
    let sets =
        |value: &str| cases_of(&format!(r#"{{"mangle": {{"key": {label}, "value": {value}}}}}"#))[0].actions.to_vec();
    let adds = |labels| vec![Action::Mark { field: Field::Label, mask: labels, value: labels }];
    assert_eq!(sets("121"), adds(bit(121)));
    assert_eq!(sets(r#"{"|": [120, 121]}"#), adds(bit(120) | bit(121)));
    assert_eq!(sets(r#""::3""#), adds(bit(120) | bit(121)));
    for unknown in ["128", r#""name""#, r#"{"ct": {"key": "mark"}}"#] {
        assert_eq!(sets(unknown), [Action::MarkUnknown { field: Field::Label }], "{unknown}");
        assert_eq!(has(&matching(label, "in", unknown), 0), Truth::Maybe, "{unknown}");
    }
}

#[test]
fn maps_are_as_many_cases_as_they_have_elements() {
    let map = r#", {"map": {"family": "inet", "table": "t", "name": "m", "type": ["ipv4_addr", "inet_service"],
        "map": "ipv4_addr . inet_service", "elem": [
        [{"concat": ["1.2.3.4", 80]}, {"concat": ["10.0.0.1", 8080]}],
        [{"elem": {"val": {"concat": [{"prefix": {"addr": "2.0.0.0", "len": 8}}, {"range": [1, 9]}]}, "comment": "x",
          "counter": {"packets": 1, "bytes": 2}}}, {"concat": ["10.0.0.2", 8081]}]]}}"#;
    let key = format!(r#"{{"concat": [{DADDR}, {DPORT}]}}"#);
    let dnat = format!(r#"{{"dnat": {{"family": "ip", "addr": {{"map": {{"key": {key}, "data": "@m"}}}}}}}}"#);
    let rule = rule_of(map, &dnat);
    let to = |address: [u8; 4], port| {
        Action::Dnat(Rewrite {
            addresses: Some((address.into(), address.into())),
            ports: Some((port, port)),
            ..Rewrite::default()
        })
    };
    assert_eq!(*rule.cases[0].actions, [to([10, 0, 0, 1], 8080)]);
    assert_eq!(*rule.cases[1].actions, [to([10, 0, 0, 2], 8081)]);
    let packet = |address: u128, port| tcp(port).with(Field::Destination, address);
    assert_eq!(rule.cases[0].region.has(&packet(0x0102_0304, 80)), Truth::Yes);
    assert_eq!(rule.cases[0].region.has(&packet(0x0102_0304, 81)), Truth::No);
    assert_eq!(rule.cases[1].region.has(&packet(0x0201_0304, 9)), Truth::Yes);
    assert_eq!(rule.cases.len(), 2);
}

#[test]
fn the_element_for_the_rest_is_about_the_rest() {
    let vmap = format!(
        r#"{{"vmap": {{"key": {DPORT}, "data": {{"set": [["*", {{"drop": null}}], [22, {{"accept": null}}]]}}}}}}"#
    );
    let cases = cases_of(&vmap);
    assert_eq!((&*cases[0].actions, cases[0].region.has(&tcp(22))), ([Action::Accept].as_slice(), Truth::Yes));
    assert_eq!((&*cases[1].actions, cases[1].region.has(&tcp(22))), ([Action::Drop].as_slice(), Truth::No));
    assert_eq!(cases[1].region.has(&tcp(23)), Truth::Yes);
    let key = format!(r#"{{"concat": [{DADDR}, {DPORT}]}}"#);
    let set = r#"{"set": [["*", {"drop": null}], [{"concat": ["1.2.3.4", 22]}, {"accept": null}]]}"#;
    let cases = cases_of(&format!(r#"{{"vmap": {{"key": {key}, "data": {set}}}}}"#));
    let packet = |port| tcp(port).with(Field::Destination, 0x0102_0304);
    assert_eq!((cases[1].region.has(&packet(22)), cases[1].region.has(&packet(23))), (Truth::No, Truth::Yes));
}

#[test]
fn a_number_of_one_is_always_the_same() {
    let numgen = |mode: &str, of: u32, offset: u32| {
        format!(r#"{{"numgen": {{"mode": "{mode}", "mod": {of}, "offset": {offset}}}}}"#)
    };
    let targets = r#"{"set": [[0, "10.0.0.1"], [7, "10.0.0.2"]]}"#;
    let address = |key: &str| {
        let dnat = format!(r#"{{"dnat": {{"family": "ip", "addr": {{"map": {{"key": {key}, "data": {targets}}}}}}}}}"#);
        let told = |case: &Case| match &*case.actions {
            [Action::Dnat(to)] => to.addresses.map(|(first, _)| (first.to_string(), case.region.is_known())),
            _ => None,
        };
        cases_of(&dnat).iter().map(told).collect::<Vec<_>>()
    };
    let sure = |text: &str| vec![Some((text.to_owned(), true))];
    assert_eq!(address(&numgen("inc", 1, 0)), sure("10.0.0.1"));
    assert_eq!(address(&numgen("random", 1, 7)), sure("10.0.0.2"));
    assert_eq!(address(&numgen("inc", 1, 5)), [None; 0], "no element, and so no packet");
    assert_eq!(address(&numgen("inc", 2, 0)).iter().flatten().filter(|(_, known)| *known).count(), 0);
    let case = |right: &str| {
        let text = format!(r#"{}, {{"accept": null}}"#, matching(&numgen("inc", 1, 3), "==", right));
        cases_of(&text)[0].region.clone()
    };
    assert_eq!(case("3"), Region::all());
    assert!(case("0").is_empty());
    let vmap = format!(r#"{{"vmap": {{"key": {}, "data": {{"set": [[0, {{"drop": null}}]]}}}}}}"#, numgen("inc", 1, 0));
    assert_eq!(*cases_of(&vmap)[0].actions, [Action::Drop]);
}

#[test]
fn what_is_not_understood_is_unknown_and_never_missing() {
    let unknown = |case: &Case| matches!(&*case.actions, [Action::Unknown(_)]);
    for statement in [
        r#""jump {\n accept\n}""#,
        r#"{"brandnew": 1}"#,
        r#"{"a": 1, "b": 2}"#,
        "7",
        r#"{"jump": {"target": "gone"}}"#,
        r#"{"dnat": {"family": "ip", "addr": "10.0.0.1", "port": 65536}}"#,
        r#"{"dnat": {"family": "ip", "addr": "10.0.0.1", "port": -1}}"#,
        r#"{"dnat": {"family": "ip", "addr": "fd00::1"}}"#,
        r#"{"dnat": {"family": "ip7", "addr": "10.0.0.1"}}"#,
        r#"{"dnat": {"addr": {"range": ["10.0.0.2", "10.0.0.1"]}}}"#,
        r#"{"dnat": {"addr": {"range": ["10.0.0.2"]}}}"#,
        r#"{"dnat": {"addr": {"prefix": {"addr": "10.0.0.0", "len": 300}}}}"#,
        r#"{"dnat": {"addr": {"map": {"key": {"meta": {"key": "mark"}}, "data": "@gone"}}}}"#,
        r#"{"redirect": {"port": {"jhash": {"mod": 4}}}}"#,
        r#"{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 4294967296}}"#,
        r#"{"mangle": {"key": {"payload": {"protocol": "ip", "field": "daddr"}}, "value": "10.0.0.1"}}"#,
        r#"{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"ct": {"key": "zone"}}}}"#,
        r#"{"vmap": {"key": {"meta": {"key": "mark"}}, "data": "@gone"}}"#,
        r#"{"vmap": {}}"#,
        r#"{"xt": null}"#,
        r#"{"fwd": {"dev": "lo"}}"#,
    ] {
        let cases = cases_of(statement);
        assert!(cases.len() == 1 && unknown(&cases[0]), "{statement}: {cases:?}");
    }
    for left in [
        r#"{"meta": {"key": "skuid"}}"#,
        r#"{"rt": {"key": "classid"}}"#,
        r#"{"fib": {"result": "type", "flags": ["daddr", "iif"]}}"#,
        r#"{"ct": {"key": "daddr", "dir": "reply", "family": "ip"}}"#,
        r#"{"<<": [{"meta": {"key": "mark"}}, 1]}"#,
        "7",
    ] {
        for (operator, right) in
            [("==", "1"), ("!=", r#"{"set": [1, 2]}"#), ("in", "[]"), ("~", "null"), ("==", "\"@x\"")]
        {
            let rule = rule_of("", &format!(r#"{}, {{"accept": null}}"#, matching(left, operator, right)));
            assert!(!rule.cases.is_empty(), "{left} {operator} {right}");
            for case in rule.cases {
                let sure = case.region.conditions().iter().all(|condition| match condition {
                    Condition::Outside(regions) => regions.iter().all(Region::is_known),
                    condition => !matches!(condition, Condition::Unknown(_)),
                });
                assert!(!sure, "{left} {operator} {right}: {:?}", case.region);
            }
        }
    }
}

#[test]
fn sets_that_packets_change_are_not_known() {
    let set = r#", {"set": {"family": "inet", "table": "t", "name": "s", "type": "ipv4_addr", "elem": ["1.1.1.1"]}}"#;
    let asks = matching(r#"{"payload": {"protocol": "ip", "field": "saddr"}}"#, "==", r#""@s""#);
    assert!(rule_of(set, &asks).cases[0].region.is_known());
    let adds = format!(r#"{asks}, {{"set":  {{"op": "add", "elem": {DADDR}, "set" :"@s"}}}}"#);
    assert!(!rule_of(set, &adds).cases[0].region.is_known());
    assert!(!rule_of(&set.replace("\"elem\"", "\"flags\": \"dynamic\", \"elem\""), &asks).cases[0].region.is_known());
}

#[test]
fn rules_of_iptables_are_seen_as_such() {
    let rules = parse(IPTABLES).expect("a dump");
    assert!(rules.tables.iter().all(|table| table.tool == Tool::IptablesNft));
    let chain = rules.tables[0].chains.named("PREROUTING").expect("a chain");
    let last = |rule: &Rule| rule.cases[0].actions.last().cloned();
    let Some(Action::Unknown(words)) = last(&chain.rules[0]) else { panic!("{:?}", chain.rules[0]) };
    assert!(words.starts_with("xt DNAT"), "{words}");
    assert_eq!(chain.rules[0].cases[0].region.get(Field::Port), &Set::single(80));
    let conditions = chain.rules[1].cases[0].region.conditions();
    assert_eq!(conditions, [Condition::Unknown("xt match multiport".into())], "a comment asks nothing");
    assert_eq!(last(&chain.rules[2]), Some(Action::Jump("DOCKER".into())));
    let forward = rules.tables[1].chains.named("FORWARD").expect("a chain");
    assert!(forward.base.as_ref().is_some_and(|base| base.drops && base.hook == Hook::Forward));
    assert_eq!(last(&forward.rules[4]), Some(Action::Reject(Rejection::Unknown)));
    assert!(forward.rules[3].cases[0].actions.is_empty(), "a log decides nothing");
}

#[test]
fn a_text_that_is_cut_off_is_an_error_anywhere() {
    for text in [NFT.trim_end(), IPTABLES.trim_end()] {
        for end in (0..text.len()).step_by(50) {
            match parse(&text[..end]) {
                Err(JsonError::CutOff { line, .. }) => assert!(line <= text[..end].matches('\n').count() + 1, "{end}"),
                Err(JsonError::Empty) => assert_eq!(end, 0),
                other => panic!("{end}: {other:?}"),
            }
        }
    }
    let sleepy = r#"{"nftables": [{"table": {"family": "ip", "name": "p2", "handle": 2, "flags": "#;
    let error = parse(sleepy).expect_err("cut off").to_string();
    assert!(error.starts_with("line 1 column ") && error.contains("dormant"), "{error}");
}

#[test]
fn a_text_that_is_damaged_is_read_without_a_panic() {
    let mut text = IPTABLES.as_bytes().to_vec();
    for at in (0..text.len()).step_by(23) {
        for damage in [b'0', b'9', b'-', b'"', b'{', b',', b'@', b' '] {
            let before = std::mem::replace(&mut text[at], damage);
            if let Ok(rules) = parse(std::str::from_utf8(&text).expect("text")) {
                assert!(rules.tables.len() <= 30);
            }
            text[at] = before;
        }
    }
}

#[test]
fn masks_of_networks_are_networks() {
    let masked = |mask: &str, operator, right: &str| {
        let left = format!(r#"{{"&": [{DADDR}, "{mask}"]}}"#);
        cases_of(&matching(&left, operator, right))[0].region.clone()
    };
    let region = masked("255.255.255.0", "==", r#""10.0.0.0""#);
    assert_eq!(region.get(Field::Destination), &Set::range(0x0a00_0000, 0x0a00_00ff));
    assert!(masked("255.255.255.0", "==", r#""10.0.0.1""#).is_empty(), "no address is so");
    assert_eq!(masked("255.255.255.255", "!=", r#""0.0.0.1""#).get(Field::Destination), &Set::single(1).not());
    let bits = Condition::Bits { field: Field::Destination, mask: 255, value: 1, not: true };
    assert_eq!(masked("0.0.0.255", "!=", r#""0.0.0.1""#).conditions(), [bits]);
    let port = format!(r#"{{"&": [{DPORT}, 61440]}}"#);
    let cases = cases_of(&matching(&port, "==", "4096"));
    assert_eq!(cases[0].region.get(Field::Port), &Set::range(0x1000, 0x1fff));
    let low = r#"{"&": [{"payload": {"protocol": "ip6", "field": "daddr"}}, "::ffff:ffff"]}"#;
    assert!(!cases_of(&matching(low, "==", r#""::1""#))[0].region.is_known());
}

#[test]
fn what_is_no_dump_is_an_error_that_says_what_was_expected() {
    let chain =
        |more: &str| format!(r#"{{"nftables": [{{"chain": {{"family": "ip", "table": "t", "name": "c"{more}}}}}]}}"#);
    for (text, wanted) in [
        ("table ip nat {\n}".to_owned(), "line 1 column 2: this is not what `nft -j list ruleset` prints: expected"),
        ("[]".into(), "an object with the key `nftables`"),
        ("{}".into(), "an object with the key `nftables`"),
        (r#"{"nftables": {}}"#.into(), "an array of objects"),
        (r#"{"nftables": [7]}"#.into(), "an object such as"),
        (r#"{"nftables": []} x"#.into(), "line 1 column 18: this is not what `nft -j list ruleset` prints: trailing"),
        ("{\"nftables\": [\n{\"table\": {\"family\": \"ip\"}}]}".into(), "line 2 column 27"),
        (r#"{"nftables": [{"table": {"family": "x", "name": "t"}}]}"#.into(), "a family of nft(8)"),
        (r#"{"nftables": [{"rule": {"family": "ip", "table": "t", "chain": "c"}}]}"#.into(), "`expr` in `rule`"),
        (r#"{"nftables": [{"table": null}]}"#.into(), "a name as `name` of `table`"),
        (chain(r#", "hook": "input", "type": "filter", "prio": 2147483648"#), "32 bits as `prio`"),
        (chain(r#", "hook": "input", "type": "filter""#), "32 bits as `prio`"),
    ] {
        let error = parse(&text).expect_err(&text).to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    }
    assert_eq!(parse(" \n"), Err(JsonError::Empty));
}

#[test]
fn what_is_not_known_is_a_gap() {
    let text = r#"{"nftables": [{"metainfo": {"json_schema_version": 2}}, {"teapot": {}}, {"add": {"table": {}}},
        {"table": {"family": "ip", "name": "t", "flags": ["sleepy"]}}, {"table": {"family": "ip", "name": "d", "flags": "dormant"}},
        {"chain": {"family": "ip", "table": "t", "name": "c", "hook": "tea", "type": "nat", "prio": 0}},
        {"rule": {"family": "ip6", "table": "u", "chain": "v", "expr": [{"accept": null}]}},
        {"flowtable": {"family": "ip", "table": "t", "name": "f", "hook": "ingress", "prio": 0, "dev": ["eth0", "eth1"]}}]}"#;
    let rules = parse(text).expect("a dump");
    let what: Vec<&str> = rules.gaps.iter().map(|gap| &*gap.what).collect();
    assert_eq!(what, ["the whole dump", "object `teapot`", "command `add`", "table ip t", "chain c", "chain v"]);
    assert_eq!(rules.tables[0].flow_devices, ["eth0", "eth1"]);
    assert!(rules.tables[1].dormant && rules.tables[2].family == TableFamily::Ip6);
    assert_eq!(*rules.tables[2].chains.named("v").expect("a chain").rules[0].cases[0].actions, [Action::Accept]);
}

#[test]
fn deep_nesting_is_refused() {
    for (open, close) in [("[", "]"), (r#"{"&": ["#, "]}"), (r#"{"elem": {"val": "#, "}}")] {
        let deep = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        let error = parse(&dump("", &matching(&deep, "==", "1"))).expect_err("too deep").to_string();
        assert!(error.contains("recursion limit"), "{error}");
        let deep = format!("{}1{}", open.repeat(45), close.repeat(45));
        assert!(parse(&dump("", &matching(&deep, "==", &deep))).is_ok());
    }
}

#[test]
fn too_many_cases_are_unknown_and_take_no_memory() {
    let elements: Vec<String> = (1..=1000).map(|port| format!(r#"[{port}, "10.0.0.1"]"#)).collect();
    let map = format!(r#"{{"map": {{"key": {DPORT}, "data": {{"set": [{}]}}}}}}"#, elements.join(", "));
    let twice = dump("", &format!(r#"{{"dnat": {{"addr": {map}, "port": {map}}}}}, {{"accept": null}}"#));
    let rules = parse_within(&twice, 100_000).expect("a dump");
    assert_eq!(rules.gaps.len(), 1);
    let cases = &rules.at(At { table: 0, chain: 0, rule: 0, case: 0 }).expect("a rule").2.cases;
    assert!(
        matches!(&**cases, [Case { region, actions }] if !region.is_known() && matches!(**actions, [Action::Unknown(_)]))
    );
    assert!(parse(&twice).expect("a dump").gaps.is_empty(), "of one key only the pairs of equal ports are left");
}

/// A dump of a map of 60,000 elements, and of one rule that asks it.
fn large() -> String {
    let element = |n: u32| {
        let (from, to) = (std::net::Ipv4Addr::from(0x0a00_0000 + n / 60), std::net::Ipv4Addr::from(0xac10_0000 + n));
        let ports = (1 + n % 60, 1024 + n % 60);
        format!(r#"[{{"concat": ["{from}", {}]}}, {{"concat": ["{to}", {}]}}]"#, ports.0, ports.1)
    };
    let elements: Vec<String> = (0..60_000).map(element).collect();
    let map = format!(
        r#", {{"map": {{"family": "inet", "name": "m", "table": "t", "type": ["ipv4_addr", "inet_service"], "handle": 3,
        "map": "ipv4_addr . inet_service", "elem": [{}]}}}}"#,
        elements.join(", ")
    );
    let key = format!(r#"{{"concat": [{DADDR}, {DPORT}]}}"#);
    dump(&map, &format!(r#"{{"dnat": {{"family": "ip", "addr": {{"map": {{"key": {key}, "data": "@m"}}}}}}}}"#))
}

/// Runs something, and says how long it took and how many kilobytes it needed at once.
fn measured<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let memory = |key: &str| -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak is forgotten");
    let (before, start) = (memory("VmRSS:"), std::time::Instant::now());
    let result = run();
    eprintln!("{what}: {:?}, {} kB", start.elapsed(), memory("VmHWM:") - before);
    result
}

#[test]
#[ignore = "a measurement, to be run alone"]
fn measure_sixty_thousand_elements() {
    let text = large();
    eprintln!("text: {} kB", text.len() / 1024);
    let rules = measured("parse", || parse(&text)).expect("a dump");
    assert!(rules.gaps.is_empty());
    assert_eq!(rules.at(At { table: 0, chain: 0, rule: 0, case: 0 }).expect("a rule").2.cases.len(), 60_000);
}

#[test]
#[ignore = "a measurement, to be run alone"]
fn measure_the_same_as_value() {
    let text = large();
    drop(measured("serde_json::Value", || serde_json::from_str::<serde_json::Value>(&text)).expect("JSON"));
}
