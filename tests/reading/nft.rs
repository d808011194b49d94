//! Tests that read rules of nft(8) from the kernel.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portfwd::lab::Netns;
use portfwd::model::{DesiredState, Forward, RuleSet, SetName};
use portfwd::nft::transaction::{Connection, KernelError};
use portfwd::nft::{compile::compile, decode::decode, diff::diff, encode::encode};
use portfwd::ruleset::read::nft::{Ipsets, Numbers, read, read_with};
use portfwd::ruleset::region::{Condition, DST_NAT, Field, LOCAL, State};
use portfwd::ruleset::reject::Rejection;
use portfwd::ruleset::set::Set;
use portfwd::ruleset::table::{Action, Hook, Rewrite, Rule, Tool};

use super::{actions_for, address, chain, chain_of, feed, ipv4, load, number, only_case, rewrite_to, rules, table};
use crate::support::privileged;

#[test]
fn maps_become_one_case_per_element() {
    if !privileged() {
        return;
    }
    // CRI-O's layout has one map for ports of all addresses, and one map for ports of one address.
    let all = chain_of(
        "ip",
        "map any { type inet_proto . inet_service : ipv4_addr . inet_service
             elements = { tcp . 80 : 10.0.0.2 . 8080, udp . 53 : 10.0.0.3 . 5353 } }
         map some { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
             elements = { 192.0.2.1 . tcp . 81 : 10.0.0.4 . 8081 } }
         map addresses { type inet_service : ipv4_addr; elements = { 1 : 10.0.0.1, 2 : 10.0.0.2, 3 : 10.0.0.3 } }
         map ports { type inet_service : inet_service; elements = { 1 : 11, 2 : 12 } }
         chain c { type nat hook prerouting priority -100
             fib daddr type local dnat ip to ip daddr . ip protocol . th dport map @some
             fib daddr type local dnat ip to ip protocol . th dport map @any
             ip protocol tcp dnat ip to tcp dport map @addresses : tcp dport map @ports
         }",
    );
    let [some, any, two] = rules(&all) else { panic!("{all:#?}") };
    let case = only_case(some);
    assert_eq!(case.region.get(Field::Destination), &Set::single(number("192.0.2.1")));
    assert_eq!(case.region.get(Field::Protocol), &Set::single(6));
    assert_eq!(case.region.get(Field::Port), &Set::single(81));
    assert_eq!(case.region.get(Field::DestinationKind), &Set::single(LOCAL));
    assert_eq!(*case.actions, [Action::Dnat(rewrite_to("10.0.0.4", Some(8081)))]);
    assert_eq!(any.cases.len(), 2);
    let dns = ipv4().with(Field::Protocol, 17).with(Field::Port, 53).with(Field::DestinationKind, LOCAL);
    assert_eq!(actions_for(any, &dns), Some(&[Action::Dnat(rewrite_to("10.0.0.3", Some(5353)))][..]));
    // A port in only one of the two maps does not match the rule.
    assert_eq!(two.cases.len(), 2, "{two:#?}");
    for (port, target) in [(1, "10.0.0.1"), (2, "10.0.0.2")] {
        let packet = ipv4().with(Field::Protocol, 6).with(Field::Port, port);
        let wanted = rewrite_to(target, u16::try_from(port + 10).ok());
        assert_eq!(actions_for(two, &packet), Some(&[Action::Dnat(wanted)][..]));
    }
}

#[test]
fn verdict_maps_are_read() {
    if !privileged() {
        return;
    }
    // In kube-proxy's layout, a map selects the service, and a random number selects the endpoint.
    let all = load(
        "table ip kube-proxy {
         map services { type ipv4_addr . inet_proto . inet_service : verdict
             elements = { 10.96.0.1 . tcp . 443 : goto service-a, 10.96.0.10 . udp . 53 : jump service-b } }
         map nodes { type inet_proto . inet_service : verdict; elements = { tcp . 30000 : goto service-a, * : drop } }
         map unused { type ipv4_addr : verdict; elements = { 10.0.0.1 : goto elsewhere } }
         set foreign { type ipv4_addr; elements = { 10.0.0.1 }; }
         chain elsewhere { ip saddr @foreign drop; }
         chain endpoint { meta l4proto tcp dnat to 10.0.0.2:6443; }
         chain service-a { numgen random mod 2 vmap { 0 : goto endpoint, 1 : goto endpoint }; }
         chain service-b { udp dport 53 meta mark set meta mark or 0x4000; }
         chain c { type nat hook prerouting priority -100
             ip daddr . meta l4proto . th dport vmap @services
             meta l4proto . th dport vmap @nodes
         }
         chain f { type filter hook forward priority 0; ip saddr @foreign drop; ip saddr vmap @unused; }
     }
",
    );
    let table = table(&all, "kube-proxy");
    let [services, nodes] = chain(table, "c").rules.as_slice() else { panic!("{all:#?}") };
    let packet = ipv4().with(Field::Destination, number("10.96.0.1")).with(Field::Protocol, 6).with(Field::Port, 443);
    assert_eq!(actions_for(services, &packet), Some(&[Action::Goto("service-a".into())][..]));
    assert_eq!(actions_for(nodes, &packet), Some(&[Action::Drop][..]));
    assert_eq!(actions_for(nodes, &packet.with(Field::Port, 30000)), Some(&[Action::Goto("service-a".into())][..]));
    let drawn = &chain(table, "service-a").rules[0].cases;
    assert_eq!(drawn.len(), 2);
    assert!(drawn.iter().all(|case| !case.region.is_known() && *case.actions == [Action::Goto("endpoint".into())]));
    let marked = only_case(&chain(table, "service-b").rules[0]);
    assert_eq!(*marked.actions, [Action::Mark { field: Field::Mark, mask: 0x4000, value: 0x4000 }]);
    // Sets that no NAT rule needs are not read.
    let filter = &chain(table, "f").rules;
    let unread = |rule: &Rule| format!("{:?}", only_case(rule)).contains("which was not read");
    assert!(unread(&filter[0]) && unread(&filter[1]) && unread(&chain(table, "elsewhere").rules[0]), "{filter:#?}");
}

#[test]
fn intervals_are_read_as_sets() {
    if !privileged() {
        return;
    }
    let all = chain_of(
        "ip",
        "set ports { type inet_service; flags interval; elements = { 1-5, 80, 100-200, 65000-65535 } }
         set pairs { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 1-5, 192.0.2.1 . 7 } }
         map nets { type ipv4_addr : interval ipv4_addr; flags interval; elements = { 10.1.0.0/24 : 10.2.0.0/24 } }
         chain c { type nat hook prerouting priority -100
             tcp dport @ports redirect to :99
             tcp dport != @ports accept
             ip daddr . tcp dport @pairs accept
             ip daddr . tcp dport != @pairs accept
             dnat ip prefix to ip daddr map @nets
             iifname { \"eth0\", \"veth*\" } accept
             tcp dport vmap { 1-9 : accept, * : drop }
             ip saddr != 10.0.0.0/12 ip daddr 10.0.0.3-10.0.0.7 accept
         }",
    );
    let rules = rules(&all);
    let ports = Set::from_ranges([(1, 5), (80, 80), (100, 200), (65000, 65535)]);
    assert_eq!(only_case(&rules[0]).region.get(Field::Port), &ports);
    assert_eq!(
        *only_case(&rules[0]).actions,
        [Action::Redirect(Rewrite { ports: Some((99, 99)), ..Rewrite::default() })]
    );
    assert_eq!(only_case(&rules[1]).region.get(Field::Port), &ports.not());
    let at =
        |to: &str, port| ipv4().with(Field::Protocol, 6).with(Field::Destination, number(to)).with(Field::Port, port);
    for (packet, is) in [(at("10.9.9.9", 3), true), (at("10.9.9.9", 6), false), (at("192.0.2.1", 7), true)] {
        assert_eq!(actions_for(&rules[2], &packet).is_some(), is, "{packet:?}");
        assert_eq!(actions_for(&rules[3], &packet).is_some(), !is, "{packet:?}");
    }
    let prefix = Rewrite {
        addresses: Some((address("10.2.0.0"), address("10.2.0.255"))),
        prefix: Some(24),
        ..Rewrite::default()
    };
    assert_eq!(*only_case(&rules[4]).actions, [Action::Dnat(prefix)]);
    assert_eq!(
        only_case(&rules[4]).region.get(Field::Destination),
        &Set::network("10.1.0.0/24".parse().expect("network"))
    );
    let names = Set::interface("eth0", '*').or(&Set::interface("veth*", '*'));
    assert_eq!(only_case(&rules[5]).region.get(Field::Input), &names);
    assert_eq!(actions_for(&rules[6], &at("10.0.0.1", 5)), Some(&[Action::Accept][..]));
    assert_eq!(actions_for(&rules[6], &at("10.0.0.1", 10)), Some(&[Action::Drop][..]));
    assert!(!only_case(&rules[7]).region.get(Field::Source).has(number("10.15.0.1")));
    assert_eq!(
        only_case(&rules[7]).region.get(Field::Destination),
        &Set::range(number("10.0.0.3"), number("10.0.0.7"))
    );
}

#[test]
fn dynamic_sets_are_unknown() {
    if !privileged() {
        return;
    }
    // The dynamic set is empty now, but packets can add elements at any time.
    let all = chain_of(
        "ip",
        "set seen { type ipv4_addr; flags dynamic,timeout; timeout 1h; }
         set none { type ipv4_addr; flags timeout; timeout 1h; }
         chain c { type nat hook prerouting priority -100
             ip saddr @seen tcp dport 80 dnat to 10.0.0.1
             ip saddr @none tcp dport 80 dnat to 10.0.0.2
             update @seen { ip saddr } dnat to 10.0.0.3
         }",
    );
    let [seen, none, _] = rules(&all) else { panic!("{all:#?}") };
    assert!(!only_case(seen).region.is_known());
    assert!(none.cases.iter().all(|case| case.region.is_empty()));
}

#[test]
fn inet_tables_are_read() {
    if !privileged() {
        return;
    }
    let all = chain_of(
        "inet",
        "chain c { type nat hook prerouting priority -100
             ip daddr 192.0.2.1 tcp dport 80 dnat ip to 10.0.0.2
             ip6 daddr 2001:db8::/32 tcp dport 80 dnat ip6 to [fd00::2]:8080
             tcp dport 81 redirect
             meta nfproto != ipv4 udp sport 5 udp dport 6 accept
             meta protocol ip6 return
         }",
    );
    let rules = rules(&all);
    assert_eq!(only_case(&rules[0]).region.get(Field::Family), &Set::single(4));
    assert_eq!(*only_case(&rules[0]).actions, [Action::Dnat(rewrite_to("10.0.0.2", None))]);
    assert_eq!(only_case(&rules[1]).region.get(Field::Family), &Set::single(6));
    assert_eq!(
        only_case(&rules[1]).region.get(Field::Destination),
        &Set::network("2001:db8::/32".parse().expect("network"))
    );
    assert_eq!(*only_case(&rules[1]).actions, [Action::Dnat(rewrite_to("fd00::2", Some(8080)))]);
    assert_eq!(only_case(&rules[2]).region.get(Field::Family), &Set::ALL);
    assert_eq!(only_case(&rules[3]).region.get(Field::Family), &Set::single(6));
    assert_eq!(only_case(&rules[3]).region.get(Field::SourcePort), &Set::single(5));
    assert_eq!(only_case(&rules[4]).region.get(Field::Family), &Set::single(6));
}

#[test]
fn marks_states_and_unknown_expressions_are_read() {
    if !privileged() {
        return;
    }
    // The rules contain netavark's marks, and matches of fw4 and other programs.
    let all = chain_of(
        "inet",
        "chain c { type filter hook prerouting priority -150; policy drop
             meta mark & 0x2000 == 0x2000 accept
             meta mark & 0xf0 != 0 accept
             meta mark > 5 accept
             meta mark set meta mark or 0x2000
             meta mark set ct mark
             meta mark set 0x7 ct mark set meta mark
             ct state established,related accept
             ct state vmap { invalid : drop, new : continue }
             ct status dnat accept
             ct direction reply accept
             ct original ip daddr 192.0.2.1 accept
             fib daddr . iif type local accept
             meta skuid 1000 accept
             tcp flags syn accept
             limit rate 3/minute accept
             meta mark set 0x1 tcp dport 80 accept
             iif lo accept
             notrack
             ct mark set jhash ip saddr mod 8
             log prefix \"x\" counter
             reject
         }",
    );
    let rules = rules(&all);
    assert!(chain(table(&all, "t"), "c").base.as_ref().expect("a base chain").drops);
    let mark = |mask, value, not| Condition::Bits { field: Field::Mark, mask, value, not };
    assert_eq!(only_case(&rules[0]).region.conditions(), [mark(0x2000, 0x2000, false)]);
    assert_eq!(only_case(&rules[1]).region.conditions(), [mark(0xf0, 0, true)]);
    let above = only_case(&rules[2]).region.get(Field::Mark);
    assert!(above.has(6) && !above.has(5) && !above.has(0));
    assert_eq!(*only_case(&rules[3]).actions, [Action::Mark { field: Field::Mark, mask: 0x2000, value: 0x2000 }]);
    assert_eq!(*only_case(&rules[4]).actions, [Action::CopyMark { to: Field::Mark }]);
    let set = |field| Action::Mark { field, mask: 0xffff_ffff, value: 7 };
    assert_eq!(*only_case(&rules[5]).actions, [set(Field::Mark), set(Field::ConnectionMark)]);
    let states = |states: &[State]| portfwd::ruleset::region::states(states.iter().copied());
    assert_eq!(only_case(&rules[6]).region.get(Field::State), &states(&[State::Established, State::Related]));
    assert_eq!(actions_for(&rules[7], &ipv4().with(Field::State, State::Invalid.number())), Some(&[Action::Drop][..]));
    assert_eq!(actions_for(&rules[7], &ipv4().with(Field::State, State::New.number())), Some(&[][..]));
    let status = Condition::Bits { field: Field::Status, mask: DST_NAT, value: DST_NAT, not: false };
    assert_eq!(only_case(&rules[8]).region.conditions(), [status]);
    assert_eq!(only_case(&rules[9]).region.get(Field::Direction), &Set::single(1));
    assert_eq!(only_case(&rules[10]).region.get(Field::OriginalDestination), &Set::single(number("192.0.2.1")));
    let syn = Condition::Bits { field: Field::TcpFlags, mask: 2, value: 2, not: false };
    assert_eq!(only_case(&rules[13]).region.conditions(), [syn]);
    for unknown in [11, 12, 14].map(|number| &rules[number]) {
        assert!(
            !only_case(unknown).region.is_known() && *only_case(unknown).actions == [Action::Accept],
            "{unknown:#?}"
        );
    }
    // A statement before a match applies to all packets.
    let tcp = |port| ipv4().with(Field::Protocol, 6).with(Field::Port, port);
    let marked = Action::Mark { field: Field::Mark, mask: 0xffff_ffff, value: 1 };
    assert_eq!(actions_for(&rules[15], &tcp(80)), Some(&[marked.clone(), Action::Accept][..]));
    assert_eq!(actions_for(&rules[15], &tcp(81)), Some(&[marked][..]));
    assert!(!only_case(&rules[16]).region.is_known(), "this test reads no interface names");
    assert_eq!(*only_case(&rules[17]).actions, [Action::Untracked]);
    assert_eq!(*only_case(&rules[18]).actions, [Action::MarkUnknown { field: Field::ConnectionMark }]);
    assert!(only_case(&rules[19]).actions.is_empty() && rules[19].counter.is_some());
    assert_eq!(*only_case(&rules[20]).actions, [Action::Reject(Rejection::Icmpx(1))]);
}

#[test]
fn properties_of_tables_and_chains_are_read() {
    if !privileged() {
        return;
    }
    let namespace = Netns::new().expect("namespace");
    let job = || {
        feed(
            "nft",
            &["-f", "-"],
            "table inet a { flags dormant; chain c { type filter hook input priority 5; policy drop; }; }
             table netdev b { chain i { type filter hook ingress device lo priority 0; }; }
             table ip nat { chain mine { iif lo accept comment \"of mine\"; jump { tcp dport 1 accept; }; }; }
             table bridge d { chain f { type filter hook forward priority 0; ip saddr 10.0.0.1 drop; }; }
             table arp e { chain f { type filter hook input priority 0; arp operation request drop; }; }",
        );
        let links = HashMap::from([(1, "lo".to_owned())]);
        let numbers = Numbers { links: &links, ipsets: &Ipsets::default() };
        read_with(&mut Connection::open().expect("netlink"), numbers).expect("readable")
    };
    let all = namespace.run(job).expect("the namespace");
    assert!(table(&all, "a").dormant && !table(&all, "b").dormant);
    let base = |of: &str, name: &str| chain(table(&all, of), name).base.clone().expect("a base chain");
    assert_eq!((base("a", "c").hook, base("a", "c").priority, base("a", "c").drops), (Hook::Input, 5, true));
    assert_eq!((base("b", "i").hook, base("b", "i").devices), (Hook::Ingress, vec!["lo".to_owned()]));
    assert_eq!(base("e", "f").hook, Hook::Input);
    let nat = table(&all, "nat");
    assert_eq!(nat.tool, Tool::Nft, "the name `nat` alone does not prove iptables-nft");
    let mine = chain(nat, "mine");
    assert!(mine.base.is_none() && mine.handle.is_some() && mine.rules[0].handle.is_some());
    assert_eq!(mine.rules[0].comment.as_deref(), Some("of mine"));
    assert_eq!(only_case(&mine.rules[0]).region.get(Field::Input), &Set::interface("lo", '*'));
    let [Action::Jump(within)] = &*only_case(&mine.rules[1]).actions else { panic!("{mine:#?}") };
    assert_eq!(chain(nat, within).rules.len(), 1);
}

#[test]
fn large_maps_are_read_in_time() {
    if !privileged() {
        return;
    }
    let elements: Vec<String> =
        (1..=60_000).map(|port| format!("{port} : 10.{}.{}.1 . {port}", port >> 8, port & 255)).collect();
    let all = format!(
        "table ip t {{ map m {{ type inet_service : ipv4_addr . inet_service; elements = {{ {} }} }}
         chain c {{ type nat hook prerouting priority -100; dnat ip to tcp dport map @m; }}; }}",
        elements.join(", ")
    );
    let namespace = Netns::new().expect("namespace");
    let job = || {
        feed("nft", &["-f", "-"], &all);
        let start = Instant::now();
        let read = read(&mut Connection::open().expect("netlink")).expect("readable");
        (read, start.elapsed())
    };
    let (all, took) = namespace.run(job).expect("the namespace");
    assert_eq!(rules(&all)[0].cases.len(), 60_000);
    let limit = if cfg!(debug_assertions) { Duration::from_secs(5) } else { Duration::from_millis(300) };
    assert!(took < limit, "{took:?}");
    eprintln!("60,000 elements: {took:?}");
}

#[test]
fn numgen_modulo_1_is_constant() {
    if !privileged() {
        return;
    }
    let all = chain_of(
        "ip",
        "map none { type mark : ipv4_addr; }
         chain x { accept; }
         chain c { type nat hook prerouting priority dstnat
             tcp dport 80 dnat to numgen inc mod 1 map { 0 : 10.0.0.1 }
             tcp dport 81 dnat to numgen random mod 1 offset 7 map { 0 : 10.0.0.1, 7 : 10.0.0.2 }
             tcp dport 82 numgen random mod 1 vmap { 0 : goto x }
             tcp dport 83 numgen inc mod 1 == 1 accept
             tcp dport 84 dnat to numgen inc mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }
         }",
    );
    let rules = rules(&all);
    let sure = |rule: &Rule| rule.cases.iter().all(|case| case.region.is_known());
    let tcp = |port| ipv4().with(Field::Protocol, 6).with(Field::Port, port);
    assert!(rules[..4].iter().all(sure), "{rules:#?}");
    assert_eq!(actions_for(&rules[0], &tcp(80)), Some(&[Action::Dnat(rewrite_to("10.0.0.1", None))][..]));
    assert_eq!(actions_for(&rules[1], &tcp(81)), Some(&[Action::Dnat(rewrite_to("10.0.0.2", None))][..]));
    assert_eq!(actions_for(&rules[2], &tcp(82)), Some(&[Action::Goto("x".into())][..]));
    assert_eq!(actions_for(&rules[3], &tcp(83)), None);
    assert!(!sure(&rules[4]), "{:#?}", rules[4]);
}

/// Commits to table `inet portfwd` without a pause until `stop` is set. Returns the number of commits.
fn commit_without_pause(stop: &AtomicBool) -> u32 {
    let program = |target: &str| {
        let mut set = RuleSet::new(SetName::cli());
        set.forwards.push(Forward::new("80".parse().expect("listen"), target.parse().expect("target")));
        let mut desired = DesiredState::default();
        desired.add(&set).expect("valid");
        compile(&desired).expect("compiles")
    };
    let programs = [program("10.0.0.1"), program("10.0.0.2")];
    let mut connection = Connection::open().expect("netlink");
    let (live, mut generation) = decode(&mut connection).expect("readable");
    connection.commit(&encode(&diff(&live, &programs[0]), generation)).expect("commits");
    let changes = [diff(&programs[0], &programs[1]), diff(&programs[1], &programs[0])];
    let mut batches = changes.each_ref().map(|changes| encode(changes, generation));
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        for batch in &mut batches {
            generation = generation.wrapping_add(1);
            batch.move_to(generation);
            connection.commit(batch).expect("commits");
            count += 1;
        }
    }
    count
}

#[test]
fn rules_are_read_or_reported_as_interrupted_during_constant_commits() {
    if !privileged() {
        return;
    }
    // The reader can read a few rules between two commits. A read of many rules fails while commits go on, because each
    // commit makes the kernel's dump incomplete. The reader must report the failure in time.
    for (count, may_fail) in [(20, false), (5000, true)] {
        let namespace = Netns::new().expect("namespace");
        let load = || {
            let rules = (0..count).map(|n| format!("tcp dport {} dnat to 10.0.0.1\n", n + 1));
            let rules: String = rules.collect();
            let chain = format!("chain c {{ type nat hook prerouting priority -100;\n{rules}}}");
            feed("nft", &["-f", "-"], &format!("table ip t {{ {chain}; }}"));
        };
        namespace.run(load).expect("the namespace");
        let stop = AtomicBool::new(false);
        let (found, time) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| namespace.run(|| commit_without_pause(&stop)).expect("the namespace"));
            let read = || {
                std::thread::sleep(Duration::from_millis(100));
                let mut connection = Connection::open().expect("netlink");
                let start = Instant::now();
                (read(&mut connection).map(|all| rules(&all).len()), start.elapsed())
            };
            let found = namespace.run(read);
            stop.store(true, Ordering::Relaxed);
            let commits = writer.join().expect("no panic");
            eprintln!("{found:?} of {count} rules beside {commits} commits");
            found.expect("the namespace")
        });
        match found {
            Ok(read) => assert_eq!(read, count),
            Err(KernelError::Interrupted) => assert!(may_fail && time < Duration::from_secs(20), "{time:?}"),
            Err(error) => panic!("{error}"),
        }
        // Without commits, all rules are read.
        let again = namespace.run(|| read(&mut Connection::open().expect("netlink")).expect("readable"));
        assert_eq!(rules(&again.expect("the namespace")).len(), count);
    }
}
