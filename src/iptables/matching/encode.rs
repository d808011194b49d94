//! Writes a match as the structure of the kernel, for tests. The inverse of [`Match::decode`].

use std::net::IpAddr;

use super::{Match, Side};

/// The name, the revision and the bytes of a match. Returns `None` for a match without a structure of its own.
fn encode(found: &Match) -> Option<(&'static str, u32, Vec<u8>)> {
    let mut bytes = Bytes(vec![0; 300]);
    let (name, revision, size) = match found {
        Match::Port { protocol, source, not, ports } => {
            let (first, last) = *ports;
            let (bit, not) = (if *source { 1u8 } else { 2 }, *not);
            let (name, source_at, size) = match protocol {
                6 => ("tcp", 0, 12),
                17 => ("udp", 0, 10),
                132 => ("sctp", 4, 292),
                _ => ("dccp", 4, 16),
            };
            let destination_at = 4 - source_at;
            match name {
                "tcp" | "udp" => {
                    // Without ports the range has all of them.
                    bytes.short(source_at + 2, u16::MAX);
                    bytes.short(destination_at + 2, u16::MAX);
                    bytes.0[if name == "tcp" { 11 } else { 8 }] = if not { bit } else { 0 };
                }
                "sctp" => (bytes.0[284], bytes.0[288]) = (bit, if not { bit } else { 0 }),
                _ => (bytes.0[8], bytes.0[10]) = (bit, if not { bit } else { 0 }),
            }
            let at = if *source { source_at } else { destination_at };
            bytes.short(at, first);
            bytes.short(at + 2, last);
            (name, 0, size)
        }
        Match::TcpFlags { not, mask, set } => {
            bytes.short(2, u16::MAX);
            bytes.short(6, u16::MAX);
            (bytes.0[9], bytes.0[10], bytes.0[11]) = (*mask, *set, if *not { 4 } else { 0 });
            ("tcp", 0, 12)
        }
        Match::Multiport { side, not, ranges } => {
            bytes.0[0] = match side {
                Side::Source => 0,
                Side::Destination => 1,
                Side::Either => 2,
            };
            let mut at = 0;
            for (first, last) in ranges {
                bytes.short(2 + 2 * at, *first);
                if first != last {
                    bytes.0[32 + at] = 1;
                    at += 1;
                    bytes.short(2 + 2 * at, *last);
                }
                at += 1;
            }
            (bytes.0[1], bytes.0[47]) = (u8::try_from(at).ok()?, u8::from(*not));
            ("multiport", 1, 48)
        }
        Match::AddressType { source, not, kinds } => {
            bytes.short(if *source { 0 } else { 2 }, *kinds);
            bytes.0[4..8].copy_from_slice(&(if *not { 2 - u32::from(*source) } else { 0 }).to_ne_bytes());
            ("addrtype", 1, 8)
        }
        Match::State { not, states } => {
            bytes.short(150, states.0);
            bytes.conntrack(1, *not)
        }
        Match::OriginalDestination { not, network } => {
            bytes.address(32, network.address);
            bytes.address(48, network.mask);
            bytes.conntrack(1 << 3, *not)
        }
        Match::OriginalPort { not, ports } => {
            bytes.short(140, ports.0);
            bytes.short(156, ports.1);
            bytes.conntrack(1 << 9, *not)
        }
        Match::Status { not, bits } => {
            bytes.short(152, *bits);
            bytes.conntrack(1 << 6, *not)
        }
        Match::Direction { reply } => bytes.conntrack(1 << 12, *reply),
        Match::Mark { connection, not, value, mask } => {
            bytes.0[0..4].copy_from_slice(&value.to_ne_bytes());
            bytes.0[4..8].copy_from_slice(&mask.to_ne_bytes());
            bytes.0[8] = u8::from(*not);
            (if *connection { "connmark" } else { "mark" }, 1, 12)
        }
        Match::Range { source, not, first, last } => {
            let (at, bit) = if *source { (0, 1) } else { (32, 2) };
            bytes.address(at, *first);
            bytes.address(at + 16, *last);
            bytes.0[64] = bit | if *not { bit << 4 } else { 0 };
            ("iprange", 1, 68)
        }
        Match::Label { bit, not } => {
            bytes.short(0, (*bit).into());
            bytes.short(2, u16::from(*not));
            ("connlabel", 0, 4)
        }
        Match::SetLabel(bit) => {
            bytes.short(0, (*bit).into());
            bytes.short(2, 2);
            ("connlabel", 0, 4)
        }
        Match::Comment(text) => {
            bytes.0[..text.len()].copy_from_slice(text.as_bytes());
            ("comment", 0, 256)
        }
        Match::Address { .. } | Match::Interface { .. } | Match::Protocol { .. } | Match::Unknown(_) => return None,
    };
    bytes.0.truncate(size);
    Some((name, revision, bytes.0))
}

struct Bytes(Vec<u8>);

impl Bytes {
    fn short(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }

    fn address(&mut self, at: usize, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.0[at..at + 4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => self.0[at..at + 16].copy_from_slice(&address.octets()),
        }
    }

    fn conntrack(&mut self, flag: u16, not: bool) -> (&'static str, u32, usize) {
        self.short(146, flag);
        self.short(148, if not { flag } else { 0 });
        ("conntrack", 3, 168)
    }
}

#[test]
fn structures_and_text_give_the_same_match() {
    use super::write::SAVED;
    use super::{LabelNames, parse};
    use crate::iptables::quoting::{Words, split};

    let mut encoded = 0;
    for (family, text) in SAVED {
        let words = split(text).expect(text);
        let parsed = parse::matches(&mut Words::new(&words), *family, &LabelNames::default()).expect(text);
        for found in parsed.matches {
            let Some((name, revision, bytes)) = encode(&found) else { continue };
            let decoded = Match::decode(name, revision, &bytes, Some(*family), |_| None);
            assert_eq!(decoded, std::slice::from_ref(&found), "{text}");
            encoded += 1;
            // A structure that is too short is unknown.
            if name != "comment" {
                let cut = Match::decode(name, revision, &bytes[..1], Some(*family), |_| None);
                assert!(matches!(*cut, [Match::Unknown(_)]), "{text}: {cut:?}");
            }
        }
    }
    assert!(encoded > 20, "only {encoded} structures");
}
