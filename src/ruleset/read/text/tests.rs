use super::commands::XT;
use super::gaps::MAX_GAPS;
use super::*;
use crate::ruleset::read::dump;
use crate::ruleset::table::{Action, Hook, Rule};

/// Docker's rules in nftables, with the shapes that other programs add.
const TEXT: &str = r#"table ip nat { # handle 4
	map ports { # handle 7
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { tcp . 8080 : 10.9.0.2 . 80,
			     udp . 53 : 10.9.0.3 . 53 }
	}
	chain PREROUTING { # handle 1
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local counter packets 7 bytes 420 jump DOCKER # handle 9
	}
	chain DOCKER { # handle 2
		iif "docker0" counter packets 0 bytes 0 return comment "no # hairpin" # handle 10
		iifname != "docker0" tcp dport 8080 dnat to 172.17.0.2:80 # handle 11
		dnat ip to meta l4proto . th dport map @ports # handle 12
	}
}
"#;

fn parsed(text: &str) -> Option<Ruleset> {
    match dump(text, None) {
        Err(crate::ruleset::read::DumpError::Text(TextError::Sandbox(error))) => {
            let message = format!("SKIPPED: needs user namespaces: {error}");
            assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{message}");
            eprintln!("{message}");
            None
        }
        other => Some(other.unwrap_or_else(|error| panic!("{error:#} in {text}"))),
    }
}

/// Orders the cases of rules, because the kernel gives the elements of a map in any order.
fn in_order(mut rules: Ruleset) -> Ruleset {
    let order = |rule: &mut Rule| rule.cases.sort_by_key(|case| format!("{case:?}"));
    rules.tables.iter_mut().for_each(|table| table.chains.each(|chain| chain.rules.iter_mut().for_each(order)));
    rules
}

fn chain<'a>(rules: &'a Ruleset, name: &str) -> &'a [Rule] {
    rules.tables.iter().find_map(|table| table.chains.named(name)).map_or(&[], |chain| &chain.rules)
}

fn is_unknown(rule: &Rule) -> bool {
    matches!(rule.cases.as_slice(), [case] if matches!(&*case.actions, [Action::Unknown(_)]))
}

#[test]
fn a_text_is_read_with_lines_and_handles() {
    let Some(rules) = parsed(TEXT) else { return };
    assert_eq!(rules.gaps, []);
    let docker = chain(&rules, "DOCKER");
    let places: Vec<_> = docker.iter().map(|rule| (rule.line, rule.handle)).collect();
    assert_eq!(places, [(Some(12), Some(10)), (Some(13), Some(11)), (Some(14), Some(12))]);
    assert_eq!(docker[0].comment.as_deref(), Some("no # hairpin"));
    assert_eq!(chain(&rules, "PREROUTING")[0].counter.map(|counter| counter.packets), Some(7));
    assert_eq!(docker[2].cases.len(), 2, "the map has two elements");
    assert!(!docker.iter().any(is_unknown), "{docker:?}");
}

#[test]
fn a_text_is_found_in_what_surrounds_it() {
    let Some(plain) = parsed(TEXT) else { return };
    for text in [
        format!("\u{feff}{TEXT}"),
        TEXT.replace('\n', "\r\n"),
        format!("# nft list ruleset\n{TEXT}"),
        format!("Here it is:\n```\n{TEXT}```\nthanks\n"),
        format!("root@fw:~# nft -a list ruleset\n{TEXT}root@fw:~#\n"),
    ] {
        let mut found = parsed(&text).expect("as before");
        let shift = found.tables[0].chains.named("DOCKER").expect("there").rules[0].line.expect("a line") - 12;
        found.tables[0]
            .chains
            .each(|chain| chain.rules.iter_mut().for_each(|rule| rule.line = rule.line.map(|line| line - shift)));
        assert_eq!(in_order(found), in_order(plain.clone()), "{text}");
    }
}

#[test]
fn commands_and_file_accesses_are_refused() {
    let inside = |words: &str| format!("table ip a {{\n chain c {{\n  {words}\n }}\n}}\n");
    let texts = [
        "include \"/etc/passwd\"\ntable ip a {\n}\n".to_owned(),
        "table ip a {\n include \"/etc/passwd\"\n}\n".into(),
        "table ip a { include\t\"/etc/passwd\"; }\n".into(),
        inside("include \"/etc/passwd\""),
        inside("include \\\n \"/etc/passwd\""),
        inside("accept; include\"/etc/passwd\""),
        inside("jump { include \"/etc/passwd\"; }"),
        inside("ip saddr { include /etc/passwd }"),
        inside("#\n include\"/etc/passwd\""),
        "table ip a {\n set s {\n  type ipv4_addr\n  elements = { include \"/etc/passwd\" }\n }\n}\n".into(),
        "define x = 1\ntable ip a {\n}\n".into(),
        inside("define x = 1"),
        inside("redefine x = 1"),
        inside("undefine x"),
        inside("ip saddr $x accept"),
        "flush ruleset\ntable ip a {\n}\n".into(),
        "add table ip b\ntable ip a {\n}\n".into(),
        "delete table ip b; table ip a {\n}\n".into(),
        "table ip a {\n}\nlist ruleset\n".into(),
        "add table ip b { flags dormant; }\ntable ip a {\n}\n".into(),
    ];
    for text in texts {
        let error = parse(&text).expect_err(&text);
        assert!(matches!(error, TextError::Command { .. }), "{error}: {text}");
    }
    for (text, line) in
        [("table ip a {\n", 1), ("table ip a {\n}\n}\n", 3), ("table a b c {\n}\n", 1), ("table ip \"a\" {\n}\n", 1)]
    {
        let error = parse(text).expect_err(text);
        assert!(error.to_string().starts_with(&format!("line {line}: ")), "{error}: {text}");
    }
}

#[test]
fn a_continued_or_quoted_command_stays_a_part_of_its_line() {
    // `incl\` and `ude` do not become one word.
    let text = "table ip a {\n chain c {\n  incl\\\n  ude \"/etc/passwd\"\n  counter comment \"include /etc/passwd; $x\"\n  log prefix \"a\n  include_b\"\n  accept\n }\n}\n";
    let Some(rules) = parsed(text) else { return };
    let unknown: Vec<_> = chain(&rules, "c").iter().map(|rule| (rule.line, is_unknown(rule))).collect();
    assert_eq!(
        unknown,
        [(Some(3), true), (Some(4), true), (Some(5), false), (Some(6), true), (Some(7), true), (Some(8), false)]
    );
    let shown = format!("{:?}", rules.gaps);
    assert!(!shown.contains("root:"), "{shown}");
}

#[test]
fn a_refused_line_is_unknown_in_its_place_and_the_others_are_read() {
    let text = "table inet t {\n set bad {\n  type nosuch\n }\n set good {\n  type ipv4_addr\n  flags timeout\n  timeout 1s\n  elements = { 1.2.3.4 timeout 1s expires 20ms, 1.2.3.5 }\n }\n chain c {\n  type nat hook prerouting priority dstnat; policy accept;\n  tcp dport 1 accept\n  foo bar\n  ip saddr @bad accept\n  ip saddr @good dnat ip to 10.0.0.1\n  tcp dport 2 jump nowhere\n  jump {\n   accept\n  }\n  udp dport 3 accept\n }\n}\n";
    let Some(rules) = parsed(text) else { return };
    let found: Vec<_> = chain(&rules, "c").iter().map(|rule| (rule.line.unwrap_or(0), is_unknown(rule))).collect();
    assert_eq!(found, [(13, false), (14, true), (15, true), (16, false), (17, true), (18, true), (21, false)]);
    let lines: Vec<&str> = rules.gaps.iter().filter_map(|gap| gap.what.split(['`']).next()).collect();
    assert_eq!(lines, [2, 14, 15, 17, 18].map(|line| format!("inet t, line {line}: ")), "{:?}", rules.gaps);
}

#[test]
fn rules_of_iptables_extensions_ask_for_iptables_save() {
    for rule in [
        "tcp dport 80 counter packets 0 bytes 0 xt target \"DNAT\"",
        "meta l4proto tcp # xt_tcp # xt_DNAT",
        "xt match \"statistic\" accept",
    ] {
        let text = format!(
            "# Warning: table ip nat is managed by iptables-nft, do not touch!\ntable ip nat {{\n chain PREROUTING {{\n  type nat hook prerouting priority dstnat; policy accept;\n  {rule}\n }}\n}}\n"
        );
        let Some(listed) = parsed(&text) else { return };
        assert!(is_unknown(&chain(&listed, "PREROUTING")[0]));
        assert_eq!(listed.gaps[0].why, XT, "{rule}");
        let saved = dump("*nat\n:PREROUTING ACCEPT\n-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1\nCOMMIT\n", None).expect("a dump");
        let both = crate::ruleset::read::together(vec![listed, saved]);
        assert!(both.gaps.is_empty() && !is_unknown(&chain(&both, "PREROUTING")[0]), "{both:?}");
    }
}

#[test]
fn thousands_of_bad_lines_take_seconds() {
    let bad = "  tcp dport nosuch accept\n".repeat(2000);
    let text = format!("table ip t {{\n chain c {{\n{bad}  tcp dport 80 accept\n }}\n}}\n");
    let start = std::time::Instant::now();
    let Some(rules) = parsed(&text) else { return };
    assert!(start.elapsed() < std::time::Duration::from_secs(60), "{:?}", start.elapsed());
    assert_eq!(chain(&rules, "c").len(), 2001);
    assert_eq!(rules.gaps.len(), MAX_GAPS + 1);
}

#[test]
fn devices_of_flowtables_are_read_from_the_text() {
    let text = "table inet t {\n flowtable f {\n  hook ingress priority filter\n  devices = { eth0, \"wan0\" }\n  flags offload\n }\n chain c {\n  flow add @f\n }\n}\n";
    let Some(rules) = parsed(text) else { return };
    assert_eq!(rules.tables[0].flow_devices, ["eth0", "wan0"]);
    assert_eq!(chain(&rules, "c").len(), 1);
    // Some kernels have no flowtables.
    let refused = rules.gaps.first().is_none_or(|gap| gap.why.ends_with("No such file or directory"));
    assert!(refused && is_unknown(&chain(&rules, "c")[0]) != rules.gaps.is_empty(), "{:?}", rules.gaps);
}

#[test]
fn a_chain_that_nft_refuses_makes_its_hook_unknown() {
    use crate::model::Family;
    use crate::ruleset::view::{Fate, View};
    for spec in [
        "type nat hook prerouting priority nosuch; policy accept;",
        "type nat hook prerouting priority -100; policy nosuch;",
    ] {
        let text = format!("table ip t {{\n chain c {{\n  {spec}\n  tcp dport 80 dnat to 10.0.0.1\n }}\n}}\n");
        let Some(rules) = parsed(&text) else { return };
        let view = View::new(&rules, |_| None);
        let steps = &view.way(Family::Ipv4, Hook::Prerouting).expect("a way").steps;
        assert!(matches!(steps.first().map(|step| &step.fate), Some(Fate::Unknown(_))), "{spec}: {steps:?}");
        assert_eq!(rules.gaps.len(), 1, "{:?}", rules.gaps);
    }
}

#[test]
fn rules_with_sets_are_unknown_in_a_terse_text() {
    let text =
        "table ip t {\n set s {\n  type ipv4_addr\n }\n chain c {\n  ip saddr @s drop\n  @th,0,16 80 drop\n }\n}\n";
    for (command, expected) in [
        ("", false),
        ("# nft list ruleset\n", false),
        ("$ nft -t list ruleset\n", true),
        ("# nft -st list ruleset\n", true),
        ("# nft --terse list ruleset\n", true),
    ] {
        let Some(rules) = parsed(&format!("{command}{text}")) else { return };
        let unknown: Vec<bool> = chain(&rules, "c").iter().map(is_unknown).collect();
        assert_eq!(unknown, [expected, false], "{command}");
    }
}

#[test]
fn a_set_is_read_whole_or_not_at_all() {
    let elements =
        |last: &str| (0..3000).map(|at| format!("10.0.{}.{}, ", at / 250, at % 250)).collect::<String>() + last;
    let text = |last: &str| {
        format!(
            "table ip t {{\n map m {{\n  type ipv4_addr : verdict\n  elements = {{ {} }}\n }}\n chain d {{\n }}\n chain c {{\n  type nat hook prerouting priority 0\n  ip daddr vmap @m\n  accept\n }}\n}}\n",
            elements(last).replace(", ", " : jump d, ")
        )
    };
    let Some(whole) = parsed(&text("10.1.0.0 : jump d")) else { return };
    assert_eq!(chain(&whole, "c")[0].cases.len(), 3001, "{:?}", whole.gaps);
    let part = parsed(&text("10.1.0.0 : jump nowhere")).expect("as before");
    assert!(is_unknown(&chain(&part, "c")[0]) && !is_unknown(&chain(&part, "c")[1]));
    let lines: Vec<&str> = part.gaps.iter().map(|gap| gap.what.as_str()).collect();
    assert_eq!(lines, ["ip t, line 2: `map m`", "ip t, line 10: `ip daddr vmap @m`"]);
}
