use super::*;
use crate::ruleset::read::save;
use crate::ruleset::region::packet;
use crate::ruleset::table::Ruleset;

fn rules(text: &str) -> Ruleset {
    save::parse(&format!("*filter\n:FORWARD DROP\n:LATER -\n{text}COMMIT\n"), None).expect("a dump")
}

fn forward(rules: &Ruleset) -> Outcome {
    let mut packet = packet(Family::Ipv4, Some("eth0")).with(Field::Protocol, 6).with(Field::Port, 80);
    hook(rules, &mut packet, Hook::Forward, &Which::Filter(AFTER_DNAT))
}

#[test]
fn only_what_may_let_go_makes_a_drop_unsure() {
    for (text, sure) in [
        ("", true),
        ("-A FORWARD -m tomorrow -j DROP\n", true),
        ("-A FORWARD -m tomorrow -j LATER\n-A LATER -p udp -j RETURN\n-A LATER -j DROP\n", true),
        ("-A FORWARD -m tomorrow -j LATER\n-A LATER -p tcp -j ACCEPT\n", false),
        ("-A FORWARD -m tomorrow -j ACCEPT\n", false),
        ("-A FORWARD -m tomorrow -j RETURN\n", false),
    ] {
        let rules = rules(text);
        let outcome = forward(&rules);
        assert!(matches!(outcome.verdict, Verdict::Dropped(..)), "{text}");
        assert_eq!(Tracer::new(&rules).drops_surely(&outcome), sure, "{text}");
    }
}

#[test]
fn without_a_rule_the_others_decide() {
    let rules = rules("-A FORWARD -p tcp -j ACCEPT\n");
    let accepted = forward(&rules).accepted;
    let mut packet = packet(Family::Ipv4, Some("eth0")).with(Field::Protocol, 6);
    let which = Which::Filter(AFTER_DNAT);
    let without = Tracer::new(&rules).without(&mut packet, Hook::Forward, &which, accepted[0]);
    assert!(matches!(without.verdict, Verdict::Dropped(..)));
}

#[test]
fn a_mark_that_one_of_two_of_the_same_priority_sets_is_not_sure() {
    let of = |rule: &str| {
        let text = format!("*filter\n:FORWARD ACCEPT\n:LATER -\n-A FORWARD {rule}\nCOMMIT\n");
        save::parse(&text, None).expect("a dump").tables
    };
    for (rule, sure) in [("-j MARK --set-xmark 0x2/0x2", false), ("-p tcp --dport 80 -j LATER", true)] {
        let mut both = Ruleset { tables: of(rule), ..Ruleset::default() };
        both.tables.extend(of("-m mark --mark 0x2/0x2 -j DROP"));
        let mut packet = packet(Family::Ipv4, Some("eth0")).with(Field::Protocol, 6).with(Field::Port, 80);
        packet.put(Field::Mark, 0);
        let outcome = hook(&both, &mut packet, Hook::Forward, &Which::Filter(AFTER_DNAT));
        assert_eq!(outcome.is_sure(), sure, "{rule}: {outcome:?}");
    }
}

#[test]
fn an_index_changes_nothing() {
    let many: String = (0..100).map(|port| format!("-A FORWARD -p tcp --dport {port} -j LATER\n")).collect();
    let rules = rules(&format!("{many}-A LATER -p tcp --dport 80 -j ACCEPT\n"));
    assert_eq!(forward(&rules).accepted.len(), 1);
    let chains = &rules.tables[0].chains;
    assert!(chains.index(chains.position("FORWARD").expect("there")).is_some());
}

#[test]
fn chains_are_followed_deeper_than_nf_tables_allows() {
    let deep = |depth: usize| {
        let heads: String = (0..depth).map(|at| format!(":C{at} -\n")).collect();
        let jumps: String = (1..depth).map(|at| format!("-A C{} -j C{at}\n", at - 1)).collect();
        let text =
            format!("*filter\n:FORWARD DROP\n{heads}-A FORWARD -j C0\n{jumps}-A C{} -j ACCEPT\nCOMMIT\n", depth - 1);
        let outcome = forward(&save::parse(&text, None).expect("a dump"));
        (outcome.accepted.len(), outcome.is_sure())
    };
    assert_eq!([deep(3), deep(17), deep(200), deep(300)], [(1, true), (1, true), (1, true), (0, false)]);
    // A dump can contain chains that jump in circles.
    let circle = "*filter\n:FORWARD ACCEPT\n:A -\n-A FORWARD -j A\n-A A -j A\n-A A -j A\nCOMMIT\n";
    assert!(!forward(&save::parse(circle, None).expect("a dump")).is_sure());
}

#[test]
fn a_reject_rule_has_an_answer() {
    for (options, answer) in [
        ("-p tcp -j REJECT --reject-with tcp-reset", "tcp reset"),
        ("-j REJECT --reject-with icmp-port-unreachable", "icmp port unreachable"),
        ("-j REJECT", "icmp port unreachable"),
        ("-j REJECT --reject-with icmp-admin-prohibited", "icmp admin prohibited"),
    ] {
        let Verdict::Dropped(_, Some(found)) = forward(&rules(&format!("-A FORWARD {options}\n"))).verdict else {
            panic!("{options}")
        };
        assert_eq!(found.to_string(), answer, "{options}");
    }
    assert!(matches!(forward(&rules("-A FORWARD -j DROP\n")).verdict, Verdict::Dropped(_, None)));
}

#[test]
fn a_tie_matters_only_if_the_order_changes_the_result() {
    let of = |rules: &str| {
        let text = format!("*nat\n:PREROUTING ACCEPT\n{rules}COMMIT\n");
        save::parse(&text, None).expect("a dump").tables
    };
    let to = |address: &str| format!("-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination {address}\n");
    for (other, tied) in [
        ("", false),
        ("-A PREROUTING -p tcp --dport 81 -j DNAT --to-destination 10.0.0.9\n", false),
        ("-A PREROUTING -p udp -j ACCEPT\n", false),
        ("-A PREROUTING -p tcp -j ACCEPT\n", false),
        (to("10.0.0.1").as_str(), false),
        (to("10.0.0.2").as_str(), true),
        ("-A PREROUTING -p tcp -j REDIRECT --to-ports 81\n", true),
        ("-A PREROUTING -p tcp -j DROP\n", true),
        ("-A PREROUTING -m tomorrow -j DROP\n", true),
    ] {
        let mut both = Ruleset { tables: of(&to("10.0.0.1")), ..Ruleset::default() };
        both.tables.extend(of(other));
        for _ in 0..2 {
            both.tables.reverse();
            let mut packet = packet(Family::Ipv4, Some("eth0")).with(Field::Protocol, 6).with(Field::Port, 80);
            let outcome = hook(&both, &mut packet, Hook::Prerouting, &Which::Nat);
            assert_eq!(outcome.is_sure(), !tied, "{other}: {outcome:?}");
        }
    }
}
