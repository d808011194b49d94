use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::Parseable;
use netlink_packet_route::link::LinkMessage;
use proptest::prelude::{any, prop, proptest};

use super::super::socket::*;
use super::super::*;
use super::{address, network};
use crate::model::Family;
use crate::sys::netlink::message::{DONE, put_message};
use crate::sys::netlink::wire::Wire;
use crate::sys::netlink::{Socket, flag, put_attribute, put_nested, put_text};

fn octets(text: &str) -> Vec<u8> {
    match address(text) {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A wire that answers each request with the next datagram, and sets the lowest byte of the sequence number.
struct Recorded {
    answers: VecDeque<Vec<u8>>,
    seq: u8,
}

impl Wire for Recorded {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.seq = bytes[8];
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let answer = self.answers.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        buffer[..answer.len()].copy_from_slice(&answer);
        let mut at = 0;
        while at < answer.len() {
            buffer[at + 8] = self.seq;
            at += usize::from(answer[at]).next_multiple_of(4);
        }
        Ok(answer.len())
    }

    fn reserve(&mut self, _: usize) -> io::Result<()> {
        Ok(())
    }
}

fn recorded(answers: impl IntoIterator<Item = Vec<u8>>) -> Rtnetlink {
    Rtnetlink::over(Socket::over(Box::new(Recorded { answers: answers.into_iter().collect(), seq: 0 })))
}

/// Makes the answer to a dump of these rules, `struct fib_rule_hdr`.
fn rules(flags: u16, rules: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    rules.iter().for_each(|rule| put_message(&mut bytes, 32, flags, 0, rule));
    put_message(&mut bytes, DONE, 0, 0, &[0; 4]);
    bytes
}

const RULE: [u8; 12] = [2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0];

#[test]
fn an_interrupted_dump_is_repeated() {
    let (torn, whole) = (rules(flag::DUMP_INTERRUPTED, &[&RULE, &RULE]), rules(0, &[&RULE]));
    let dump = recorded([torn.clone(), torn.clone(), whole]).rules(Family::Ipv4).expect("rules");
    assert_eq!((dump.objects.len(), dump.interrupted), (1, false));
    let dump = recorded(vec![torn; ATTEMPTS]).rules(Family::Ipv4).expect("rules");
    assert_eq!((dump.objects.len(), dump.interrupted), (2, true));
    assert_eq!(dump.complete().expect_err("interrupted").kind(), io::ErrorKind::Interrupted);
}

#[test]
fn an_unreadable_message_is_skipped_and_counted() {
    let other_family = [&[10], &RULE[1..]].concat();
    let dump = recorded([rules(0, &[&RULE, &RULE[..8], &other_family, &RULE])]).rules(Family::Ipv4).expect("rules");
    assert_eq!((dump.objects.len(), dump.unread), (2, 1));
    // EAFNOSUPPORT (97) means that the kernel lacks the family; EPERM (1) is an error.
    for (number, found) in [(-97, Some(0)), (-1, None)] {
        let mut refused = i32::to_ne_bytes(number).to_vec();
        put_message(&mut refused, 34, 0, 0, &RULE);
        let mut bytes = Vec::new();
        put_message(&mut bytes, 2, 0, 0, &refused);
        assert_eq!(recorded([bytes]).rules(Family::Ipv4).ok().map(|dump| dump.objects.len()), found);
    }
}

/// Makes a message of a header and attributes.
fn body(header: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = header.to_vec();
    attributes.iter().for_each(|(kind, value)| put_attribute(&mut bytes, *kind, value));
    bytes
}

#[test]
fn a_link_of_an_unknown_format_is_read() {
    let mut bytes = body(&[0, 0, 1, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], &[(3, b"w\xe4n\0"), (13, &[1; 3])]);
    put_nested(&mut bytes, 18, |info| {
        put_text(info, 1, "veth");
        put_text(info, 4, "bridge");
        put_nested(info, 5, |port| put_attribute(port, 4, &[1]));
    });
    put_nested(&mut bytes, 43, |xdp| put_attribute(xdp, 2, &[2]));
    let link = Link::read(&bytes).expect("a link");
    assert_eq!((link.name.as_str(), link.kind.as_deref(), link.hairpin), ("w\u{fffd}n", Some("veth"), Some(true)));
    assert!(link.has_xdp && link.up && !link.carrier);
    // The crate drops the link because of its name, and because of its queue length.
    assert!(LinkMessage::parse(&bytes).is_err());
    // A port of a bond has no hairpin mode.
    let mut bytes = body(&[0; 16], &[(3, b"eth0\0")]);
    put_nested(&mut bytes, 18, |info| {
        put_text(info, 4, "bond");
        put_nested(info, 5, |port| put_attribute(port, 4, &[1]));
    });
    assert_eq!(Link::read(&bytes).map(|link| (link.hairpin, link.is_bridge_port)), Some((None, false)));
    assert_eq!(Link::read(&[0; 16]), None);
}

#[test]
fn an_address_of_a_point_to_point_link_has_a_peer() {
    let read = |flags: u8, attributes: &[(u16, &[u8])]| {
        Address::read(&body(&[2, 24, flags, 0, 7, 0, 0, 0], attributes))
            .map(|read| (read.own, read.peer, read.duplicate))
    };
    let (own, peer) = (octets("10.8.0.1"), octets("10.8.0.2"));
    assert_eq!(read(0, &[(1, &own), (2, &own)]), Some((network("10.8.0.1/24"), None, false)));
    assert_eq!(read(8, &[(1, &peer), (2, &own)]), Some((network("10.8.0.1/24"), Some(address("10.8.0.2")), true)));
    assert_eq!((read(0, &[]), read(0, &[(1, &[1, 2, 3])])), (None, None));
}

fn route_header(family: u8, length: u8, table: u8, kind: u8, flags: u32) -> Vec<u8> {
    [&[family, length, 0, 0, table, 0, 0, kind][..], &flags.to_ne_bytes()].concat()
}

#[test]
fn a_route_is_read_with_each_of_its_hops() {
    let (seven, thousand) = (7_u32.to_ne_bytes(), 1000_u32.to_ne_bytes());
    let (router, v6_router) = (octets("192.0.2.254"), octets("fe80::1"));
    let via = [&[10, 0][..], &v6_router].concat();
    let read = |header: Vec<u8>, attributes: &[(u16, &[u8])]| Route::read(&body(&header, attributes));
    let hop = |output, gateway: &str, dead| Hop { output, gateway: Some(address(gateway)), dead };

    let default = read(route_header(2, 0, 254, 1, 0), &[(4, &seven), (5, &router), (6, &seven)]).expect("a route");
    assert_eq!((default.to, default.metric, default.table), (network("0.0.0.0/0"), 7, 254));
    assert_eq!(default.hops, [hop(Some(7), "192.0.2.254", false)]);
    let other_family = read(route_header(2, 0, 254, 1, 0), &[(18, &via), (30, &seven)]).expect("a route");
    assert_eq!((other_family.object, other_family.hops), (Some(7), vec![hop(None, "fe80::1", false)]));
    let high_table = read(route_header(10, 0, 252, 7, 0x200), &[(15, &thousand)]).expect("a route");
    assert_eq!((high_table.to, high_table.table, high_table.cloned), (network("::/0"), 1000, true));
    assert!(read(route_header(2, 0, 254, 1, 1), &[(4, &seven)]).is_some_and(|route| route.hops[0].dead));

    let hop_of = |flags: u8, output: u8, attributes: &[(u16, &[u8])]| {
        let mut bytes = body(&[0, 0, flags, 0, output, 0, 0, 0], attributes);
        bytes[0] = u8::try_from(bytes.len()).expect("short");
        bytes
    };
    let hops = [hop_of(0, 1, &[(5, &router)]), hop_of(1, 2, &[(18, &via)])].concat();
    let destination = octets("10.0.0.0");
    let several = read(route_header(2, 8, 254, 1, 0), &[(1, &destination), (9, &hops)]).expect("a route");
    assert_eq!(several.hops, [hop(Some(1), "192.0.2.254", false), hop(Some(2), "fe80::1", true)]);
    for length in [0, 4, 200] {
        let mut hops = hop_of(0, 1, &[]);
        hops[0] = length;
        assert_eq!(read(route_header(2, 8, 254, 1, 0), &[(1, &destination), (9, &hops)]), None, "{length}");
    }
    assert_eq!(read(route_header(2, 8, 254, 1, 0), &[(1, &[1, 2, 3])]), None);
    assert_eq!(read(route_header(2, 33, 254, 1, 0), &[]), None);
}

#[test]
fn a_rule_with_a_condition_is_not_unconditional() {
    let read = |header: &[u8], more: &[(u16, &[u8])]| {
        let usual: [(u16, &[u8]); 4] = [(6, &[100, 0, 0, 0]), (14, &[0xff; 4]), (15, &[0, 1, 0, 0]), (21, &[2])];
        let rule = Rule::read(&body(header, &[&usual, more].concat()));
        rule.map(|rule| (rule.priority, rule.table, rule.unconditional))
    };
    let plain = (100, 256, true);
    let limited = Some((100, 256, false));
    assert_eq!(read(&RULE, &[]), Some(plain));
    // A mark, a suppressed prefix length, an unknown attribute.
    for condition in [(10, &[1, 0, 0, 0]), (14, &[0; 4]), (99, &[0; 4])] {
        assert_eq!(read(&RULE, &[(condition.0, condition.1)]), limited, "{condition:?}");
    }
    // A type of service, another action, an inverted rule.
    for (at, value) in [(3, 4), (7, 6), (8, 2)] {
        let mut header = RULE;
        header[at] = value;
        assert_eq!(read(&header, &[]), limited, "{at}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..96), short in any::<bool>()) {
        // Small numbers are plausible lengths and kinds.
        let bytes: Vec<u8> = bytes.into_iter().map(|byte| if short { byte % 24 } else { byte }).collect();
        let _ = (Link::read(&bytes), Address::read(&bytes), Route::read(&bytes), Neighbour::read(&bytes), Rule::read(&bytes));
    }
}
