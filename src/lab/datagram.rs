//! Numbered packets: encodes them to bytes, and decodes them again.
//!
//! The payload carries the packet's number. No NAT changes it.
//!
//! ```text
//! tcp      a SYN with a payload                        magic, number
//! udp      a datagram                                  magic, number
//! sctp     an INIT with a padding parameter             magic, number     (RFC 4820, section 4)
//! dccp     a Request with a payload                    magic, number
//! udplite  a datagram with full checksum coverage      magic, number
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::model::Protocol;

/// The first bytes of each payload.
const MAGIC: &[u8] = b"portfwd#";

/// The payload length in bytes: the magic and the number.
const PAYLOAD_LENGTH: usize = 16;

/// The head of the parameter that carries the payload in an INIT chunk. The parameter follows 20 bytes of fixed fields.
/// Its type is 0x8005 (padding). Its length covers this head and the payload.
const PADDING: &[u8] = &[0x80, 0x05, 0, 20];

/// A numbered packet of a transport protocol.
///
/// Source and destination have the same family. A packet has no zone and no flow label, so a decoded IPv6 address has
/// neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Datagram {
    /// The transport protocol in the IP header.
    pub protocol: Protocol,
    /// The source address and port.
    pub source: SocketAddr,
    /// The destination address and port.
    pub destination: SocketAddr,
    /// The packet's number. NAT does not change it.
    pub number: u64,
}

impl Datagram {
    /// Encodes the packet from its IP header on, with all checksums.
    ///
    /// If the families differ, this returns an IPv6 packet that contains the IPv4 address in mapped form
    /// (`::ffff:192.0.2.1`).
    pub fn encode(&self) -> Vec<u8> {
        let (source, destination) = (self.source.ip(), self.destination.ip());
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) else {
            return self.encode_v6(to_ipv6(source), to_ipv6(destination));
        };
        let protocol = self.protocol.number();
        let segment = self.segment(&source.octets(), &destination.octets());
        let total = length_field(20 + segment.len());
        // Version and header length, type of service, length; identification 0, don't fragment; TTL 64.
        let start: &[u8] = &[0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol];
        let end = [source.octets(), destination.octets()].concat();
        let checksum = internet_checksum(&[start, &end]).to_be_bytes();
        [start, &checksum, &end, &segment].concat()
    }

    fn encode_v6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let segment = self.segment(&source.octets(), &destination.octets());
        let payload = length_field(segment.len());
        // Version 6, traffic class and flow label 0; payload length, next header, hop limit 64.
        let start: &[u8] = &[0x60, 0, 0, 0, payload[0], payload[1], self.protocol.number(), 64];
        [start, &source.octets(), &destination.octets(), &segment].concat()
    }

    /// Encodes the transport header and payload, with a checksum.
    fn segment(&self, source: &[u8], destination: &[u8]) -> Vec<u8> {
        if self.protocol == Protocol::Sctp {
            // SCTP's checksum does not cover the addresses, and is sent with its lowest byte first (RFC 9260, appendix
            // A).
            return self.segment_with(&crc32c(&self.segment_with(&[0; 4])).to_le_bytes());
        }
        let bare = self.segment_with(&[0; 2]);
        let pseudo = [0, self.protocol.number()];
        let sum = internet_checksum(&[source, destination, &pseudo, &length_field(bare.len()), &bare]);
        // For UDP and UDP-Lite zero means "no checksum" (RFC 768). For the other protocols both forms of zero are
        // valid.
        let sum = if sum == 0 { u16::MAX } else { sum };
        self.segment_with(&sum.to_be_bytes())
    }

    fn segment_with(&self, checksum: &[u8]) -> Vec<u8> {
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        let payload = [MAGIC, &self.number.to_be_bytes()].concat();
        match self.protocol {
            // Sequence number 1, acknowledgement 0, header of 5 words, SYN, window; urgent pointer 0. The sequence
            // number is constant, so connection tracking takes a second packet for a retransmission.
            Protocol::Tcp => {
                let fields: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff];
                [&ports, fields, checksum, &[0, 0], &payload].concat()
            }
            Protocol::Udp => [&ports, &length_field(8 + PAYLOAD_LENGTH)[..], checksum, &payload].concat(),
            // A checksum coverage of 0 covers the whole packet.
            Protocol::Udplite => [&ports, &[0, 0][..], checksum, &payload].concat(),
            // Header of 5 words, full checksum coverage; Request with a long sequence number; service code.
            Protocol::Dccp => {
                let fields: &[u8] = &[0x01, 0, 0, 0, 0, 0, 0, 1, b'p', b'f', b'w', b'd'];
                [&ports, &[5, 0][..], checksum, fields, &payload].concat()
            }
            // Verification tag 0; INIT of 40 bytes: own tag, window, streams out and in, initial sequence number.
            Protocol::Sctp => {
                let init: &[u8] = &[1, 0, 0, 40, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
                [&ports, &[0; 4][..], checksum, init, PADDING, &payload].concat()
            }
        }
    }

    /// Decodes a packet from its IP header on. Ignores bytes after the packet's end, and does not verify checksums.
    ///
    /// Returns `None` for packets that [`Datagram::encode`] does not make: another protocol, no magic or number, a
    /// fragment, a truncated packet, IPv6 extension headers.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::decode_v4(bytes),
            6 => Self::decode_v6(bytes),
            _ => None,
        }
    }

    fn decode_v4(bytes: &[u8]) -> Option<Self> {
        let (fixed, _) = bytes.split_first_chunk::<20>()?;
        let [start, _, total @ .., _, _, fragment, offset, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *fixed;
        let header = usize::from(start & 0x0f) * 4;
        // The more-fragments flag and the fragment offset must be zero.
        if header < fixed.len() || fragment & 0x3f != 0 || offset != 0 {
            return None;
        }
        let segment = bytes.get(header..usize::from(u16::from_be_bytes(total)))?;
        let (source, destination) = (Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3));
        Self::from_segment(Protocol::from_number(protocol)?, source.into(), destination.into(), segment)
    }

    fn decode_v6(bytes: &[u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_first_chunk::<8>()?;
        let [_, _, _, _, payload @ .., protocol, _] = *fixed;
        let (source, rest) = rest.split_first_chunk::<16>()?;
        let (destination, rest) = rest.split_first_chunk::<16>()?;
        let segment = rest.get(..usize::from(u16::from_be_bytes(payload)))?;
        let (source, destination) = (Ipv6Addr::from(*source), Ipv6Addr::from(*destination));
        Self::from_segment(Protocol::from_number(protocol)?, source.into(), destination.into(), segment)
    }

    /// Decodes the transport header and payload.
    pub(super) fn from_segment(
        protocol: Protocol,
        source: IpAddr,
        destination: IpAddr,
        segment: &[u8],
    ) -> Option<Self> {
        let (&[s0, s1, d0, d1], _) = segment.split_first_chunk::<4>()?;
        let payload = match protocol {
            Protocol::Udp | Protocol::Udplite => 8,
            Protocol::Tcp => usize::from(segment.get(12)? >> 4) * 4,
            Protocol::Dccp => usize::from(*segment.get(4)?) * 4,
            Protocol::Sctp if segment.get(12) == Some(&1) && segment.get(32..36) == Some(PADDING) => 36,
            Protocol::Sctp => return None,
        };
        let number = segment.get(payload..)?.strip_prefix(MAGIC)?;
        Some(Self {
            protocol,
            source: SocketAddr::new(source, u16::from_be_bytes([s0, s1])),
            destination: SocketAddr::new(destination, u16::from_be_bytes([d0, d1])),
            number: u64::from_be_bytes(number.try_into().ok()?),
        })
    }
}

fn to_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// Returns a length in network byte order.
fn length_field(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).expect("a packet is short").to_be_bytes()
}

/// Returns the checksum of RFC 1071. Each part must have an even length.
fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let sum = words.fold(0u32, |sum, word| match *word {
        [high, low] => sum + u32::from(u16::from_be_bytes([high, low])),
        _ => sum,
    });
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).expect("two folds leave 16 bits")
}

/// Returns the CRC32c of RFC 9260, appendix A. It works bit by bit because the packets are short.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 0 { sum >> 1 } else { sum >> 1 ^ 0x82f6_3b78 })
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two addresses of each family.
    pub(in crate::lab) const V4: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
    pub(in crate::lab) const V6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];

    /// Returns one packet of each protocol and family.
    pub(in crate::lab) fn all_protocols([v4, v6]: [[&str; 2]; 2]) -> Vec<Datagram> {
        let at = |address: &str, port| SocketAddr::new(address.parse().expect("address"), port);
        let mut all = Vec::new();
        for [source, destination] in [v4, v6] {
            for protocol in Protocol::ALL {
                let number = all.last().map_or(0xfedc_ba98_7654_3210, |last: &Datagram| last.number + 1);
                all.push(Datagram { protocol, source: at(source, 40_000), destination: at(destination, 80), number });
            }
        }
        all
    }

    #[test]
    fn an_encoded_packet_decodes_to_itself() {
        for datagram in all_protocols([V4, V6]) {
            assert_eq!(Datagram::decode(&datagram.encode()), Some(datagram));
        }
    }

    #[test]
    fn trailing_bytes_are_ignored_and_options_are_skipped() {
        for datagram in all_protocols([V4, V6]) {
            let mut bytes = datagram.encode();
            bytes.extend([0; 7]);
            assert_eq!(Datagram::decode(&bytes), Some(datagram));
        }
        for datagram in all_protocols([V4, V4]) {
            let mut bytes = datagram.encode();
            bytes[0] = 0x46;
            bytes[3] += 4;
            bytes.splice(20..20, [1, 1, 1, 0]);
            assert_eq!(Datagram::decode(&bytes), Some(datagram));
        }
    }

    #[test]
    fn a_truncated_packet_is_rejected() {
        for datagram in all_protocols([V4, V6]) {
            let bytes = datagram.encode();
            for end in 0..bytes.len() {
                assert_eq!(Datagram::decode(&bytes[..end]), None, "{datagram:?} cut at {end}");
            }
            // The length field of the IP header says the same.
            let (header, at) = if datagram.source.is_ipv4() { (20, 3) } else { (40, 5) };
            for end in header..bytes.len() {
                let mut bytes = bytes.clone();
                bytes.truncate(end);
                bytes[at] = u8::try_from(if at == 3 { end } else { end - header }).expect("short");
                assert_eq!(Datagram::decode(&bytes), None, "{datagram:?} ending at {end}");
            }
        }
    }

    /// Sets every byte to every value. Decoding must not panic, and at most one field may differ.
    #[test]
    fn a_damaged_packet_is_rejected_or_differs_in_one_field() {
        for datagram in all_protocols([V4, V6]) {
            let whole = datagram.encode();
            for (at, value) in (0..whole.len()).flat_map(|at| (0..=u8::MAX).map(move |value| (at, value))) {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let Some(read) = Datagram::decode(&bytes) else { continue };
                let differs = [
                    read.protocol != datagram.protocol,
                    read.source != datagram.source,
                    read.destination != datagram.destination,
                    read.number != datagram.number,
                ];
                assert!(differs.into_iter().filter(|differs| *differs).count() <= 1, "{read:?}");
            }
        }
    }

    #[test]
    fn fragments_and_other_packets_are_rejected() {
        let datagram = all_protocols([V4, V6])[1];
        for (at, value) in [(6, 0x20), (6, 0x01), (7, 1), (9, 1), (0, 0x44), (0, 0x55), (28, b'P')] {
            let mut bytes = datagram.encode();
            bytes[at] = value;
            assert_eq!(Datagram::decode(&bytes), None, "byte {at} is {value}");
        }
        let extended = all_protocols([V6, V6])[1];
        for next in [0, 43, 44, 60, 59, 58] {
            let mut bytes = extended.encode();
            bytes[6] = next;
            assert_eq!(Datagram::decode(&bytes), None, "next header {next}");
        }
    }

    #[test]
    fn checksums_are_correct() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // RFC 1071, section 3.
        assert_eq!(internet_checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        for datagram in all_protocols([V4, V6]) {
            let bytes = datagram.encode();
            let (addresses, segment) =
                if datagram.source.is_ipv4() { (&bytes[12..20], &bytes[20..]) } else { (&bytes[8..40], &bytes[40..]) };
            if datagram.source.is_ipv4() {
                assert_eq!(internet_checksum(&[&bytes[..20]]), 0);
            }
            if datagram.protocol != Protocol::Sctp {
                let pseudo = [0, datagram.protocol.number()];
                let sum = internet_checksum(&[addresses, &pseudo, &length_field(segment.len()), segment]);
                assert_eq!(sum, 0, "{datagram:?}");
            }
        }
    }
}
