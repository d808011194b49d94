//! Messages made by hand: what this kernel has not, and what no kernel says.

use super::dump::{self, Dump};
use super::*;
use crate::nft::message::Message;
use crate::ruleset::region::{Condition, Field};
use crate::ruleset::set::Set;
use crate::ruleset::table::{Action, Rewrite, Rule};
use crate::sys::netlink::message::{netfilter_header, put_message};
use crate::sys::netlink::{NESTED, put_attribute};

/// The value of an attribute.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u32),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// What a register holds.
    Data(&'a [u8]),
    /// A verdict, and where it leads.
    Verdict(i32, &'a str),
}
use Value::{Bytes, Data, Number, Text, Verdict};

fn attributes(of: &[(u16, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in of {
        match value {
            Number(number) => put_attribute(&mut bytes, *kind, &number.to_be_bytes()),
            Text(text) => put_attribute(&mut bytes, *kind, &[text.as_bytes(), &[0]].concat()),
            Bytes(value) => put_attribute(&mut bytes, *kind, value),
            Data(value) => put_attribute(&mut bytes, *kind | NESTED, &attributes(&[(1, Bytes(value))])),
            Verdict(code, chain) => {
                let verdict = attributes(&[(1, Number(code.cast_unsigned())), (2, Text(chain))]);
                put_attribute(&mut bytes, *kind | NESTED, &attributes(&[(2, Bytes(&verdict))]));
            }
        }
    }
    bytes
}

type Expr<'a> = (&'a str, &'a [(u16, Value<'a>)]);

/// A rule of chain `c` of table `t`.
fn rule(exprs: &[Expr<'_>]) -> Vec<u8> {
    let mut list = Vec::new();
    for (name, of) in exprs {
        let expr = attributes(&[(1, Text(name)), (2, Bytes(&attributes(of)))]);
        put_attribute(&mut list, 1 | NESTED, &expr);
    }
    whole(&[
        (1, Text("t")),
        (2, Text("c")),
        (3, Bytes(&7u64.to_be_bytes())),
        (4, Bytes(&list)),
        (7, Bytes(b"\0\x02x\0")),
    ])
}

/// A message about something in a table of family inet.
fn whole(of: &[(u16, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let body = [&netfilter_header(1, 0), attributes(of).as_slice()].concat();
    put_message(&mut bytes, 0, 0, 0, &body);
    bytes
}

/// Reads messages as the kernel's answers, with and without reading rules ahead, which must be the same; those that cannot be
/// read are left out.
fn read(rules: &[Vec<u8>], sets: &[Vec<u8>], elements: &[Vec<u8>]) -> Ruleset {
    let [ahead, behind] = [true, false].map(|ahead| read_either(ahead, rules, sets, elements));
    assert_eq!(ahead, behind);
    behind
}

fn read_either(ahead: bool, rules: &[Vec<u8>], sets: &[Vec<u8>], elements: &[Vec<u8>]) -> Ruleset {
    let (links, ipsets) = (HashMap::new(), Ipsets::default());
    let numbers = Numbers { links: &links, ipsets: &ipsets };
    let mut dump = Dump { tables: vec![dump::Table { key: (1, "t".into()), dormant: false }], ..Dump::default() };
    let hook = attributes(&[(1, Number(0)), (2, Number(5))]);
    let base = whole(&[(1, Text("t")), (3, Text("c")), (4, Bytes(&hook)), (5, Number(0)), (7, Text("nat"))]);
    dump.chains.extend(Message::split(&base).and_then(|(message, _)| dump::chain(message)));
    dump.rules = rules.iter().filter_map(|bytes| dump::rule(Message::split(bytes)?.0)).collect();
    if ahead {
        dump.rules.iter_mut().for_each(|rule| parallel::read(rule, numbers));
    }
    dump.sets = sets.iter().filter_map(|bytes| dump::set(Message::split(bytes)?.0)).collect();
    let mut found = Vec::new();
    for bytes in elements {
        let _ = Message::split(bytes).and_then(|(message, _)| dump::elements_of(message, &mut found));
    }
    let reached = reach::reach(&dump, |_| Ok(found.clone())).expect("nothing is asked");
    ruleset(dump, &reached, numbers)
}

fn read_one(exprs: &[Expr<'_>]) -> Rule {
    let rules = read(&[rule(exprs)], &[], &[]);
    rules.tables[0].chains.named("c").expect("the chain").rules[0].clone()
}

const TCP: [Expr<'_>; 2] =
    [("meta", &[(1, Number(1)), (2, Number(16))]), ("cmp", &[(1, Number(1)), (2, Number(0)), (3, Data(&[6]))])];
const PORT: Expr<'_> = ("payload", &[(1, Number(9)), (2, Number(2)), (3, Number(2)), (4, Number(2))]);
const INFO: [u8; 200] = [1; 200];

/// One of each.
const ALL: [Expr<'_>; 36] = [
    TCP[0],
    TCP[1],
    PORT,
    ("lookup", &[(1, Text("s")), (2, Number(9))]),
    ("lookup", &[(1, Text("s")), (2, Number(9)), (3, Number(1))]),
    ("lookup", &[(1, Text("s")), (2, Number(9)), (5, Number(1))]),
    (
        "bitwise",
        &[(1, Number(9)), (2, Number(1)), (3, Number(2)), (4, Data(&[0xff, 0])), (5, Data(&[0, 0])), (6, Number(0))],
    ),
    ("bitwise", &[(1, Number(9)), (2, Number(1)), (3, Number(4)), (6, Number(1)), (7, Data(&[0, 0, 0, 3]))]),
    ("byteorder", &[(1, Number(1)), (2, Number(1)), (3, Number(1)), (4, Number(4)), (5, Number(4))]),
    ("range", &[(1, Number(9)), (2, Number(0)), (3, Data(&[0, 1])), (4, Data(&[0, 9]))]),
    ("cmp", &[(1, Number(9)), (2, Number(4)), (3, Data(&[0, 3]))]),
    ("match", &[(1, Text("conntrack")), (2, Number(3)), (3, Bytes(&INFO))]),
    ("match", &[(1, Text("comment")), (2, Number(0)), (3, Bytes(b"text"))]),
    ("fib", &[(1, Number(1)), (2, Number(3)), (3, Number(2))]),
    ("ct", &[(1, Number(1)), (2, Number(9)), (3, Bytes(&[0]))]),
    ("ct", &[(1, Number(1)), (2, Number(3))]),
    ("meta", &[(2, Number(3)), (3, Number(1))]),
    ("ct", &[(2, Number(3)), (4, Number(1))]),
    ("numgen", &[(1, Number(2)), (2, Number(3)), (3, Number(1))]),
    ("hash", &[(2, Number(2)), (4, Number(3)), (7, Number(1))]),
    ("socket", &[(1, Number(0)), (2, Number(1))]),
    ("exthdr", &[(1, Number(1)), (2, Bytes(&[1]))]),
    ("rt", &[(1, Number(1)), (2, Number(1))]),
    ("payload", &[(2, Number(1)), (3, Number(8)), (4, Number(2)), (5, Number(1))]),
    ("limit", &[]),
    ("counter", &[(1, Bytes(&9u64.to_be_bytes())), (2, Bytes(&2u64.to_be_bytes()))]),
    ("objref", &[(1, Number(4)), (2, Text("l"))]),
    ("dynset", &[(1, Text("s")), (7, Bytes(&[8, 0, 1, 0, b'l', 0, 0, 0]))]),
    ("immediate", &[(1, Number(1)), (2, Data(&[10, 0, 0, 1]))]),
    ("immediate", &[(1, Number(2)), (2, Data(&[0, 80]))]),
    ("tproxy", &[]),
    ("notrack", &[]),
    ("inner", &[]),
    ("target", &[(1, Text("LOG")), (2, Number(0)), (3, Bytes(&INFO))]),
    ("nat", &[(1, Number(1)), (2, Number(2)), (3, Number(1)), (5, Number(2)), (7, Number(3))]),
    ("immediate", &[(1, Number(0)), (2, Verdict(-3, "d"))]),
];

#[test]
fn targets_in_registers() {
    let dnat = [TCP[0], TCP[1], ALL[28], ALL[29], ALL[34]];
    let rule = read_one(&dnat);
    let [case] = rule.cases.as_slice() else { panic!("{rule:#?}") };
    let address = "10.0.0.1".parse().expect("address");
    let to = Rewrite { addresses: Some((address, address)), ports: Some((80, 80)), ..Rewrite::default() };
    assert_eq!(*case.actions, [Action::Dnat(to)]);
    assert_eq!((case.region.get(Field::Protocol), case.region.get(Field::Family)), (&Set::single(6), &Set::single(4)));
    assert_eq!((rule.handle, rule.comment.as_deref()), (Some(7), Some("x")));
    // What comes from the packet is no address that is known.
    let unknown = read_one(&[ALL[19], ("nat", &[(1, Number(0)), (2, Number(2)), (3, Number(2))])]);
    assert_eq!(*unknown.cases[0].actions, [Action::Unknown("snat to what is not known".into())]);
}

#[test]
fn what_is_to_come_is_not_known() {
    let accept: Expr<'_> = ("immediate", &[(1, Number(0)), (2, Verdict(1, ""))]);
    for name in ["tomorrow", ""] {
        let rule = read_one(&[(name, &[]), accept]);
        let case = &rule.cases[0];
        assert!(!case.region.is_known());
        assert!(matches!(&*case.actions, [Action::Unknown(_), Action::Accept]), "{case:#?}");
    }
    // An attribute that is missing, too: what is compared, and with what.
    let rule = read_one(&[PORT, ("cmp", &[(1, Number(99)), (2, Number(0)), (3, Data(&[0, 1]))]), accept]);
    assert!(!rule.cases[0].region.is_known());
}

#[test]
fn verdicts() {
    let of = |code| read_one(&[("immediate", &[(1, Number(0)), (2, Verdict(code, "d"))])]).cases[0].actions.to_vec();
    assert_eq!(of(0), [Action::Drop]);
    assert_eq!(of(1), [Action::Accept]);
    assert_eq!(of(3 | 7 << 16), [Action::Queue]);
    assert_eq!(of(-1), []);
    assert_eq!(of(-3), [Action::Jump("d".into())]);
    assert_eq!(of(-4), [Action::Goto("d".into())]);
    assert_eq!(of(-5), [Action::Return]);
    assert!(matches!(of(77).as_slice(), [Action::Unknown(_)]));
    assert_eq!(*read_one(&[("queue", &[])]).cases[0].actions, [Action::Queue]);
}

#[test]
fn marks_that_were_set_before() {
    let load: Expr<'_> = ("meta", &[(1, Number(1)), (2, Number(3))]);
    let set: Expr<'_> = ("meta", &[(2, Number(3)), (3, Number(1))]);
    let save: Expr<'_> = ("ct", &[(2, Number(3)), (4, Number(1))]);
    let or: Expr<'_> =
        ("bitwise", &[(1, Number(1)), (2, Number(1)), (3, Number(4)), (4, Data(&[0xff; 4])), (5, Data(&[0; 4]))]);
    let seven: Expr<'_> = ("immediate", &[(1, Number(2)), (2, Data(&[7; 4]))]);
    let set_seven: Expr<'_> = ("meta", &[(2, Number(3)), (3, Number(2))]);
    let actions = |exprs: &[Expr<'_>]| read_one(exprs).cases[0].actions.to_vec();
    let all = |field| Action::Mark { field, mask: 0xffff_ffff, value: 0x0707_0707 };
    assert_eq!(actions(&[load, save]), [Action::CopyMark { to: Field::ConnectionMark }]);
    // The mark that was loaded is no longer the packet's.
    let old = [all(Field::Mark), Action::MarkUnknown { field: Field::ConnectionMark }];
    assert_eq!(actions(&[load, seven, set_seven, save]), old);
    assert_eq!(actions(&[seven, set_seven, load, save]), [all(Field::Mark), all(Field::ConnectionMark)]);
    let kept = Action::Mark { field: Field::Mark, mask: 0, value: 0 };
    assert_eq!(actions(&[load, or, set, load, save]), [kept, Action::CopyMark { to: Field::ConnectionMark }]);
}

/// A map `s` of ports, to addresses, with three elements, one of which is for all others.
fn map() -> (Vec<u8>, Vec<u8>) {
    let set = whole(&[(1, Text("t")), (2, Text("s")), (3, Number(8)), (5, Number(2))]);
    let element = |of: &[(u16, Value<'_>)]| attributes(of);
    let mut list = Vec::new();
    put_attribute(&mut list, 1, &element(&[(1, Data(&[0, 80])), (2, Data(&[10, 0, 0, 1]))]));
    put_attribute(&mut list, 1, &element(&[(1, Data(&[0, 81])), (2, Data(&[10, 0, 0, 2])), (7, Bytes(&[]))]));
    put_attribute(&mut list, 1, &element(&[(2, Data(&[10, 0, 0, 3])), (3, Number(2))]));
    (set, whole(&[(3, Bytes(&list))]))
}

#[test]
fn an_element_for_all_others() {
    let (set, elements) = map();
    let nat: Expr<'_> = ("nat", &[(1, Number(1)), (2, Number(2)), (3, Number(1))]);
    let rules = read(&[rule(&[TCP[0], TCP[1], PORT, ALL[4], nat])], &[set], &[elements]);
    let rule = &rules.tables[0].chains.named("c").expect("the chain").rules[0];
    assert_eq!(rule.cases.len(), 3);
    assert!(!rule.cases[1].region.is_known(), "what is asked with the element is not known");
    let others = &rule.cases[2].region;
    assert!(others.conditions().iter().any(|condition| matches!(condition, Condition::Unknown(_))));
}

#[test]
fn any_bytes_are_rules_or_none() {
    let (set, elements) = map();
    let messages = [rule(&ALL), rule(&ALL[..12]), rule(&ALL[20..]), set, elements];
    let mut dice = fastrand::Rng::with_seed(7);
    let all = |messages: &[Vec<u8>]| {
        read(&messages[..3], &messages[3..4], &messages[4..]);
        let chains = messages.iter().filter_map(|bytes| Message::split(bytes));
        chains.for_each(|(message, _)| drop((dump::table(message), dump::chain(message))));
    };
    all(&messages);
    for (at, message) in messages.iter().enumerate() {
        for end in (20..message.len()).step_by(4) {
            let mut cut = messages.clone();
            cut[at].truncate(end);
            let length = u32::try_from(end).expect("small").to_ne_bytes();
            cut[at][..4].copy_from_slice(&length);
            all(&cut);
        }
    }
    for _ in 0..4_000 {
        let mut changed = messages.clone();
        for _ in 0..dice.usize(1..6) {
            let message = &mut changed[dice.usize(..5)];
            let at = dice.usize(20..message.len());
            message[at] = *dice.choice([0, 1, 2, 4, 9, 0x7f, 0x80, 0xff].iter()).expect("one");
        }
        all(&changed);
    }
}
