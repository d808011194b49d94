use super::super::dump::{ADDRESSES, NEIGHBOURS, ROUTES, RULES, Subject};
use super::*;
use crate::sys::netlink::put_attribute;

/// Reads one thing, and every beginning of it, which must not panic.
fn one<T>(
    subject: Subject,
    header: &[u8],
    attributes: &[(u16, &[u8])],
    read: fn(Message<'_>, &mut Vec<T>) -> Option<()>,
) -> Option<Vec<T>> {
    let mut bytes = header.to_vec();
    attributes.iter().for_each(|(key, value)| put_attribute(&mut bytes, *key, value));
    let read = |bytes: &[u8]| {
        let mut found = Vec::new();
        read(Message::new(subject, bytes)?, &mut found)?;
        Some(found)
    };
    for end in 0..bytes.len() {
        read(&bytes[..end]);
    }
    read(&bytes)
}

fn network(text: &str) -> IpNetwork {
    text.parse().expect(text)
}

fn octets(text: &str) -> Vec<u8> {
    match text.parse().expect(text) {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[test]
fn an_address_is_our_end() {
    let read = |flags: u8, attributes: &[(u16, &[u8])]| {
        let mut header = vec![2, 24, flags, 0];
        header.extend(7_u32.to_ne_bytes());
        one(ADDRESSES, &header, attributes, address)
    };
    let (ours, theirs) = (octets("10.8.0.1"), octets("10.8.0.2"));
    assert_eq!(read(0, &[(1, &ours), (2, &ours)]), Some(vec![(7, network("10.8.0.1/24"))]));
    assert_eq!(read(0, &[(1, &theirs), (2, &ours)]), Some(vec![(7, network("10.8.0.1/32"))]));
    assert_eq!(read(0, &[(1, &octets("2001:db8::1"))]), Some(vec![(7, network("2001:db8::1/24"))]));
    assert_eq!(read(0x08, &[(1, &octets("2001:db8::1"))]), Some(Vec::new()));
    assert_eq!(read(0, &[]), None);
    assert_eq!(read(0, &[(1, &[1, 2, 3])]), None);
}

fn header(family: u8, length: u8, from: u8, service: u8, table: u8, kind: u8, flags: u32) -> Vec<u8> {
    let mut header = vec![family, length, from, service, table, 0, 0, kind];
    header.extend(flags.to_ne_bytes());
    header
}

fn way(flags: u8, output: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0, 0, flags, 0];
    bytes.extend(output.to_ne_bytes());
    attributes.iter().for_each(|(key, value)| put_attribute(&mut bytes, *key, value));
    let length = u16::try_from(bytes.len()).expect("short");
    bytes[..2].copy_from_slice(&length.to_ne_bytes());
    bytes
}

fn plain(to: &str, output: Option<u32>, gateway: Option<&str>, kind: u8, table: u32, metric: u32) -> Route {
    let gateway = gateway.map(|text| text.parse().expect(text));
    Route { to: network(to), output, gateway, kind, table, metric }
}

#[test]
fn a_route_is_read_with_each_of_its_ways() {
    let seven = 7_u32.to_ne_bytes();
    let thousand = 1000_u32.to_ne_bytes();
    let router = octets("192.0.2.254");
    let v6_router = octets("fe80::1");
    let via: Vec<u8> = [&[10, 0][..], &v6_router].concat();
    let default = one(ROUTES, &header(2, 0, 0, 0, 254, 1, 0), &[(4, &seven), (5, &router), (6, &seven)], route);
    assert_eq!(default, Some(vec![Told::Route(plain("0.0.0.0/0", Some(7), Some("192.0.2.254"), 1, 254, 7))]));
    let other_family = one(ROUTES, &header(2, 0, 0, 0, 254, 1, 0), &[(4, &seven), (18, &via)], route);
    assert_eq!(other_family, Some(vec![Told::Route(plain("0.0.0.0/0", Some(7), Some("fe80::1"), 1, 254, 0))]));
    let high_table = one(ROUTES, &header(10, 0, 0, 0, 252, 7, 0), &[(15, &thousand)], route);
    assert_eq!(high_table, Some(vec![Told::Route(plain("::/0", None, None, 7, 1000, 0))]));

    let ways = [way(0, 1, &[(5, &router)]), way(1, 2, &[(5, &router)]), way(0, 3, &[(18, &via)])].concat();
    let several = one(ROUTES, &header(2, 8, 0, 0, 254, 1, 0), &[(1, &octets("10.0.0.0")), (9, &ways)], route);
    let expected = [(1, "192.0.2.254"), (3, "fe80::1")]
        .map(|(output, gateway)| Told::Route(plain("10.0.0.0/8", Some(output), Some(gateway), 1, 254, 0)));
    assert_eq!(several, Some(expected.into()));
    for length in [0_u8, 4, 200] {
        let mut ways = way(0, 1, &[]);
        ways[..2].copy_from_slice(&u16::from(length).to_ne_bytes());
        let broken = one(ROUTES, &header(2, 8, 0, 0, 254, 1, 0), &[(1, &octets("10.0.0.0")), (9, &ways)], route);
        assert_eq!(broken, None, "{length}");
    }
}

#[test]
fn routes_that_not_the_destination_alone_decides_are_told_apart() {
    let seven = 7_u32.to_ne_bytes();
    let read = |header: Vec<u8>, attributes: &[(u16, &[u8])]| one(ROUTES, &header, attributes, route);
    let from_some = Told::FromSome(plain("::/0", Some(7), None, 1, 254, 0));
    assert_eq!(read(header(10, 0, 64, 0, 254, 1, 0), &[(4, &seven)]), Some(vec![from_some]));
    assert_eq!(read(header(2, 0, 0, 8, 254, 1, 0), &[(4, &seven)]), Some(vec![Told::OfService]));
    let object = Told::Object(plain("0.0.0.0/0", None, None, 1, 254, 0), 7);
    assert_eq!(read(header(2, 0, 0, 0, 254, 1, 0), &[(30, &seven)]), Some(vec![object]));
    // One that drops needs no way.
    let drops = Told::Route(plain("0.0.0.0/0", None, None, 6, 254, 0));
    assert_eq!(read(header(2, 0, 0, 0, 254, 6, 0), &[(30, &seven)]), Some(vec![drops]));
    assert_eq!(read(header(2, 0, 0, 0, 254, 1, 1), &[(4, &seven)]), Some(Vec::new()));
    assert_eq!(read(header(10, 0, 0, 0, 254, 1, 0x200), &[(4, &seven)]), Some(Vec::new()));
    assert_eq!(read(header(2, 33, 0, 0, 254, 1, 0), &[(4, &seven)]), None);
}

#[test]
fn neighbours_that_do_not_answer_are_known() {
    for (state, expected) in [(0_u16, None), (0x01, Some(true)), (0x02, Some(false)), (0x20, Some(true)), (0x40, None)]
    {
        let mut header = vec![2, 0, 0, 0];
        header.extend(7_u32.to_ne_bytes());
        header.extend(state.to_ne_bytes());
        header.extend([0; 2]);
        let found = one(NEIGHBOURS, &header, &[(1, &octets("192.0.2.9"))], neighbour).expect("understood");
        assert_eq!(found.first().map(|found| found.failed), expected, "{state:#x}");
        assert!(found.iter().all(|found| (found.link, found.address) == (7, [192, 0, 2, 9].into())));
    }
}

#[test]
fn rules_that_are_not_the_usual_ones_are_seen() {
    let read = |priority: u32, table: u8, from: u8, action: u8, more: &[(u16, &[u8])]| {
        let header = header(2, 0, from, 0, table, action, 0);
        let usual: [(u16, &[u8]); 4] =
            [(6, &priority.to_ne_bytes()), (14, &[0xff; 4]), (15, &u32::from(table).to_ne_bytes()), (21, &[2])];
        let attributes = [&usual, more].concat();
        one(RULES, &header, &attributes, lookup).and_then(|found| found.first().copied())
    };
    let usual = [read(0, 255, 0, 1, &[]), read(32766, 254, 0, 1, &[]), read(32767, 253, 0, 1, &[])];
    assert_eq!(usual, [Some(Lookup::Local), Some(Lookup::Main), Some(Lookup::Default)]);
    let mark: &[(u16, &[u8])] = &[(10, &[1, 0, 0, 0])];
    for other in [
        read(100, 254, 0, 1, &[]),
        read(0, 254, 0, 1, &[]),
        read(32766, 254, 24, 1, &[]),
        read(32766, 254, 0, 6, &[]),
        read(32766, 254, 0, 1, mark),
        read(32766, 254, 0, 1, &[(14, &[0; 4])]),
    ] {
        assert_eq!(other, Some(Lookup::Other));
    }
    assert!(!unusual(&[]) && !unusual(&[Lookup::Local, Lookup::Main]));
    assert!(unusual(&[Lookup::Main, Lookup::Default]));
    assert!(unusual(&[Lookup::Local, Lookup::Main, Lookup::Default, Lookup::Other]));
}
