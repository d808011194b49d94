//! Numbered packets, made by hand, sent from one namespace and seen where they arrive.
//!
//! Comes in: a protocol, two addresses with ports, a number. Goes out: the same of each packet that got to a namespace,
//! as the rules on its way changed it. A packet has its number in its payload, which no NAT touches:
//!
//! ```text
//! tcp      a SYN with a payload                        magic, number
//! udp      a datagram                                  magic, number
//! sctp     an INIT with one parameter to be skipped    magic, number     (padding: RFC 4820, section 4)
//! dccp     a Request with a payload                    magic, number
//! udplite  a datagram, its checksum covers all of it   magic, number
//! ```
//! Nothing is connected and nobody answers, so connection tracking sees each packet as a new connection, and thousands
//! a second can be sent and told apart.
//!
//! Be aware: a kernel that is asked at a port without a socket does answer, with a TCP reset or an ICMP error. Those
//! carry no number and are not seen here, but they can end what connection tracking knows. And a link whose neighbour
//! is not known yet keeps some 250 packets until the neighbour answers and silently drops older ones: send one and wait
//! for it first.
//!
//! Measured, Linux 6.18: what comes in of UDP-Lite is invalid to connection tracking, also from the kernel's own
//! sockets, unless `net.netfilter.nf_conntrack_checksum` is 0, because it is checked as if it were UDP; what a host
//! sends itself is tracked. DCCP is tracked by addresses alone, so its ports are never translated, and with its address
//! translated it keeps a checksum that is wrong from then on.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{ARPHRD_LOOPBACK, ETH_P_IP, ETH_P_IPV6, PACKET_BROADCAST, PACKET_HOST, PACKET_MULTICAST, in6_pktinfo};
use nix::sys::socket::sockopt::{Ipv6RecvPacketInfo, RcvBufForce, RxqOvfl, SndBufForce};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, SockaddrIn6, SockaddrLike, recvmsg, setsockopt};
use socket2::{Domain, Socket, Type};

use super::{LabError, Netns};
use crate::model::Protocol;

/// What a payload of ours starts with.
const MAGIC: &[u8] = b"portfwd#";

/// The length of a payload: the magic and the number.
const PAYLOAD: usize = 16;

/// What an INIT chunk of ours is told by: its fixed part is 20 bytes long, then comes a parameter of type 0x8005
/// (padding) that is as long as its own head and a payload.
const PADDING: &[u8] = &[0x80, 0x05, 0, 20];

/// Takes the place of the port in the address of a raw socket: the packet itself says what it is.
const RAW_PORT: u16 = 0;

/// `IPPROTO_RAW`: what is sent begins with its IP header, in both families, and nothing is received.
const IPPROTO_RAW: i32 = 255;

/// Room for packets that nobody has drained yet, and for those that wait for a neighbour to answer, in bytes. A packet
/// takes about 1 kB of it.
const BUFFER: usize = 64 << 20;

/// Longer than any packet of ours, with all options that an IPv4 header can have.
const LONGEST: usize = 256;

/// A numbered packet of a transport protocol.
///
/// Both addresses are of the same family. Zone and flow label of an IPv6 address are not part of a packet: one that was
/// decoded has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Datagram {
    /// The protocol.
    pub protocol: Protocol,
    /// Whom it comes from.
    pub source: SocketAddr,
    /// Whom it is for.
    pub destination: SocketAddr,
    /// Its number, which survives every NAT.
    pub number: u64,
}

impl Datagram {
    /// The packet from its IP header on, with all checksums.
    ///
    /// Addresses of two families give an IPv6 packet in which the IPv4 one is mapped (`::ffff:192.0.2.1`).
    pub fn encode(&self) -> Vec<u8> {
        let (source, destination) = (self.source.ip(), self.destination.ip());
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) else {
            return self.encode_v6(mapped(source), mapped(destination));
        };
        let protocol = self.protocol.number();
        let segment = self.segment(&source.octets(), &destination.octets());
        let total = length(20 + segment.len());
        // Version and header length, type of service; no identification, may not be fragmented; hops.
        let start: &[u8] = &[0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol];
        let end = [source.octets(), destination.octets()].concat();
        let checksum = internet_checksum(&[start, &end]).to_be_bytes();
        [start, &checksum, &end, &segment].concat()
    }

    fn encode_v6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let segment = self.segment(&source.octets(), &destination.octets());
        let payload = length(segment.len());
        // Version, class and flow label; hops.
        let start: &[u8] = &[0x60, 0, 0, 0, payload[0], payload[1], self.protocol.number(), 64];
        [start, &source.octets(), &destination.octets(), &segment].concat()
    }

    /// What comes behind the IP header.
    fn segment(&self, source: &[u8], destination: &[u8]) -> Vec<u8> {
        if self.protocol == Protocol::Sctp {
            // The only checksum that knows nothing of the addresses, and that goes out with its lowest byte first
            // (RFC 9260, appendix A).
            return self.segment_with(&crc32c(&self.segment_with(&[0; 4])).to_le_bytes());
        }
        let bare = self.segment_with(&[0; 2]);
        let pseudo = [0, self.protocol.number()];
        let sum = internet_checksum(&[source, destination, &pseudo, &length(bare.len()), &bare]);
        // For UDP and its sister zero means that there is none (RFC 768); for the others both forms of zero are right.
        let sum = if sum == 0 { u16::MAX } else { sum };
        self.segment_with(&sum.to_be_bytes())
    }

    fn segment_with(&self, checksum: &[u8]) -> Vec<u8> {
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        let payload = [MAGIC, &self.number.to_be_bytes()].concat();
        match self.protocol {
            // Sequence number, nothing acknowledged, 5 words of header, SYN, window; nothing urgent. The sequence
            // number is always the same, so a second packet of a connection is a repetition and not an intruder.
            Protocol::Tcp => {
                let fields: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff];
                [&ports, fields, checksum, &[0, 0], &payload].concat()
            }
            Protocol::Udp => [&ports, &length(8 + PAYLOAD)[..], checksum, &payload].concat(),
            // A coverage of 0 is all of it.
            Protocol::Udplite => [&ports, &[0, 0][..], checksum, &payload].concat(),
            // 5 words of header, all is covered; a Request with a long sequence number; the service code.
            Protocol::Dccp => {
                let fields: &[u8] = &[0x01, 0, 0, 0, 0, 0, 0, 1, b'p', b'f', b'w', b'd'];
                [&ports, &[5, 0][..], checksum, fields, &payload].concat()
            }
            // No tag yet; INIT with a length of 40: own tag, window, streams out and in, first sequence number.
            Protocol::Sctp => {
                let init: &[u8] = &[1, 0, 0, 40, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
                [&ports, &[0; 4][..], checksum, init, PADDING, &payload].concat()
            }
        }
    }

    /// Reads a packet from its IP header on; what follows its end is ignored, checksums are not looked at.
    ///
    /// None for whatever is no whole packet of ours: of another protocol, without magic and number, a fragment, cut
    /// short, with IPv6 extension headers.
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
        // Neither may more fragments follow nor any come before.
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

    /// Reads what comes behind an IP header.
    fn from_segment(protocol: Protocol, source: IpAddr, destination: IpAddr, segment: &[u8]) -> Option<Self> {
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

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// A length as a header has it.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).expect("our packets are short").to_be_bytes()
}

/// The sum of RFC 1071 over parts of an even length each.
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

/// The checksum of RFC 9260, appendix A, bit by bit: our packets are short.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 0 { sum >> 1 } else { sum >> 1 ^ 0x82f6_3b78 })
    })
}

/// Sends from one namespace, through its own output rules and NAT.
#[derive(Debug)]
pub struct Sender {
    v4: Socket,
    v6: Socket,
}

impl Sender {
    /// Opens sockets in a namespace; they stay there, so packets can then be sent by any thread.
    ///
    /// # Errors
    /// Where the namespace cannot be entered or no raw sockets can be had in it.
    pub fn open(netns: &Netns) -> Result<Self, LabError> {
        let opened = netns.run(|| -> io::Result<Self> {
            let socket = |domain| -> io::Result<Socket> {
                let socket = Socket::new(domain, Type::RAW, Some(IPPROTO_RAW.into()))?;
                socket.set_nonblocking(true)?;
                // With the usual 200 kB one neighbour that does not answer stops all sending for seconds.
                if setsockopt(&socket, SndBufForce, &BUFFER).is_err() {
                    socket.set_send_buffer_size(BUFFER)?;
                }
                Ok(socket)
            };
            Ok(Self { v4: socket(Domain::IPV4)?, v6: socket(Domain::IPV6)? })
        })?;
        opened.map_err(|error| LabError::Io("opening sockets to send packets", error))
    }

    /// Sends a packet; its source need not be an address of the namespace.
    ///
    /// On links between namespaces it has usually arrived when this returns.
    ///
    /// # Errors
    /// `ENETUNREACH` where there is no route (`EADDRNOTAVAIL` where there is no IPv6 address either), `EPERM` where the
    /// namespace's own rules drop it, `EAGAIN` where too many packets wait for neighbours, `EINVAL` where the
    /// addresses are of two families.
    pub fn send(&self, datagram: &Datagram) -> io::Result<()> {
        let socket = match (datagram.source, datagram.destination) {
            (SocketAddr::V4(_), SocketAddr::V4(_)) => &self.v4,
            (SocketAddr::V6(_), SocketAddr::V6(_)) => &self.v6,
            _ => return Err(Errno::EINVAL.into()),
        };
        let mut to = datagram.destination;
        to.set_port(RAW_PORT);
        let (bytes, to) = (datagram.encode(), to.into());
        loop {
            match socket.send_to(&bytes, &to) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Sees what reaches one namespace, from when it was opened.
#[derive(Debug)]
pub struct Watch(Vec<Ear>);

impl Watch {
    /// Sees what comes in by any link, before any NAT, whether it is then delivered, forwarded or dropped.
    ///
    /// What leaves, what loops on `lo`, and what a link carries for another's hardware address is not seen. What comes
    /// in through a bridge of this namespace is seen once, as of the bridge; what the bridge only switches is not.
    ///
    /// # Errors
    /// Where the namespace cannot be entered or no packet sockets can be had in it.
    pub fn arriving(netns: &Netns) -> Result<Self, LabError> {
        // Not ETH_P_ALL: that hears everything twice, when it comes in by a bridge port and when the bridge hands it
        // up, and keeps what leaves in the same receive buffer (measured, Linux 6.18).
        let ears = || [ETH_P_IP, ETH_P_IPV6].into_iter().map(Ear::of_links).collect::<io::Result<_>>();
        let opened = netns.run(ears)?;
        opened.map(Self).map_err(|error| LabError::Io("opening sockets to see packets arrive", error))
    }

    /// Sees what this namespace delivers to itself, by whichever link and by `lo`, after its NAT and filters.
    ///
    /// There need be no socket that the packet is for.
    ///
    /// # Errors
    /// Where the namespace cannot be entered or no raw sockets can be had in it.
    pub fn delivered(netns: &Netns) -> Result<Self, LabError> {
        let ears = || {
            let both = |protocol| [Ear::of_ipv4(protocol), Ear::of_ipv6(protocol)];
            Protocol::ALL.into_iter().flat_map(both).collect::<io::Result<_>>()
        };
        let opened = netns.run(ears)?;
        opened.map(Self).map_err(|error| LabError::Io("opening sockets to see packets delivered", error))
    }

    /// Everything of ours that is there now, without waiting. Packets of one protocol and family are in the order in
    /// which they came.
    ///
    /// # Errors
    /// `ENOBUFS` where packets were lost because they were not drained in time. The kernel says so only with the next
    /// packet that is not lost. What else was there is gone, so nothing can be concluded from what is missing; the next
    /// call starts afresh.
    pub fn drain(&self) -> io::Result<Vec<Datagram>> {
        let (mut seen, mut result) = (Vec::new(), Ok(()));
        // All are emptied, even if one has failed.
        for ear in &self.0 {
            result = result.and(ear.drain(&mut seen));
        }
        result.map(|()| seen)
    }
}

/// Where packets are heard, which decides what a socket gives of them.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// At the links: from the IP header on, whether they are for us or not.
    Links,
    /// At delivery: from the IP header on.
    Ipv4,
    /// At delivery: from behind the IP header on, the addresses apart.
    Ipv6(Protocol),
}

/// A socket that hears packets.
#[derive(Debug)]
struct Ear {
    socket: Socket,
    place: Place,
    /// How many packets were lost of which the caller knows; the kernel counts from the socket's beginning.
    lost: AtomicU32,
}

/// What a socket gave.
struct Heard<S> {
    length: usize,
    sender: Option<S>,
    destination: Option<Ipv6Addr>,
    lost: Option<u32>,
}

impl Ear {
    fn of_links(ether_type: i32) -> io::Result<Self> {
        let ether_type = u16::try_from(ether_type).map_err(io::Error::other)?;
        Self::open(Domain::PACKET, Type::DGRAM, i32::from(ether_type.to_be()), Place::Links)
    }

    fn of_ipv4(protocol: Protocol) -> io::Result<Self> {
        Self::open(Domain::IPV4, Type::RAW, protocol.number().into(), Place::Ipv4)
    }

    fn of_ipv6(protocol: Protocol) -> io::Result<Self> {
        let ear = Self::open(Domain::IPV6, Type::RAW, protocol.number().into(), Place::Ipv6(protocol))?;
        setsockopt(&ear.socket, Ipv6RecvPacketInfo, &true)?;
        Ok(ear)
    }

    fn open(domain: Domain, kind: Type, protocol: i32, place: Place) -> io::Result<Self> {
        let socket = Socket::new(domain, kind, Some(protocol.into()))?;
        // Root of a user namespace may not go beyond `net.core.rmem_max`.
        if setsockopt(&socket, RcvBufForce, &BUFFER).is_err() {
            socket.set_recv_buffer_size(BUFFER)?;
        }
        setsockopt(&socket, RxqOvfl, &1)?;
        Ok(Self { socket, place, lost: AtomicU32::new(0) })
    }

    fn drain(&self, seen: &mut Vec<Datagram>) -> io::Result<()> {
        let mut buffer = [0; LONGEST];
        let mut control = cmsg_space!(in6_pktinfo, u32);
        let known = self.lost.load(Ordering::Relaxed);
        while let Some((datagram, lost)) = self.next(&mut buffer, &mut control)? {
            seen.extend(datagram);
            if let Some(lost) = lost {
                self.lost.store(lost, Ordering::Relaxed);
            }
        }
        if self.lost.load(Ordering::Relaxed) == known { Ok(()) } else { Err(Errno::ENOBUFS.into()) }
    }

    /// The next packet, if it is one of ours, and how many were lost before it; none where there is no next.
    fn next(&self, buffer: &mut [u8], control: &mut [u8]) -> io::Result<Option<(Option<Datagram>, Option<u32>)>> {
        Ok(match self.place {
            Place::Links => self.receive::<LinkAddr>(buffer, control)?.map(|heard| {
                let bytes = buffer.get(..heard.length).filter(|_| heard.sender.is_some_and(|link| is_arrival(&link)));
                (bytes.and_then(Datagram::decode), heard.lost)
            }),
            Place::Ipv4 => self.receive::<()>(buffer, control)?.map(|heard| {
                let bytes = buffer.get(..heard.length);
                (bytes.and_then(Datagram::decode), heard.lost)
            }),
            Place::Ipv6(protocol) => self.receive::<SockaddrIn6>(buffer, control)?.map(|heard| {
                let addresses = heard.sender.zip(heard.destination).zip(buffer.get(..heard.length));
                let datagram = addresses.and_then(|((sender, destination), segment)| {
                    Datagram::from_segment(protocol, sender.ip().into(), destination.into(), segment)
                });
                (datagram, heard.lost)
            }),
        })
    }

    /// Receives a packet without waiting for it.
    fn receive<S: SockaddrLike>(&self, buffer: &mut [u8], control: &mut [u8]) -> io::Result<Option<Heard<S>>> {
        let socket = self.socket.as_raw_fd();
        loop {
            let mut parts = [IoSliceMut::new(buffer)];
            let message = match recvmsg::<S>(socket, &mut parts, Some(control), MsgFlags::MSG_DONTWAIT) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(None),
                // A link that went down is told once, and says nothing of the packets.
                Err(Errno::EINTR | Errno::ENETDOWN) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut heard = Heard { length: message.bytes, sender: None, destination: None, lost: None };
            for extra in message.cmsgs()? {
                match extra {
                    ControlMessageOwned::Ipv6PacketInfo(info) => {
                        heard.destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                    }
                    ControlMessageOwned::RxqOvfl(lost) => heard.lost = Some(lost),
                    _ => {}
                }
            }
            heard.sender = message.address;
            return Ok(Some(heard));
        }
    }
}

/// Whether a packet came in by a real link and is for this host.
fn is_arrival(link: &LinkAddr) -> bool {
    [PACKET_HOST, PACKET_BROADCAST, PACKET_MULTICAST].contains(&link.pkttype()) && link.hatype() != ARPHRD_LOOPBACK
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::super::Links;
    use super::*;

    const V4: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
    const V6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];

    /// One packet of each protocol and family.
    fn all([v4, v6]: [[&str; 2]; 2]) -> Vec<Datagram> {
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
    fn what_is_encoded_is_decoded() {
        for datagram in all([V4, V6]) {
            assert_eq!(Datagram::decode(&datagram.encode()), Some(datagram));
        }
    }

    #[test]
    fn what_follows_a_packet_is_ignored_and_options_are_skipped() {
        for datagram in all([V4, V6]) {
            let mut bytes = datagram.encode();
            bytes.extend([0; 7]);
            assert_eq!(Datagram::decode(&bytes), Some(datagram));
        }
        for datagram in all([V4, V4]) {
            let mut bytes = datagram.encode();
            bytes[0] = 0x46;
            bytes[3] += 4;
            bytes.splice(20..20, [1, 1, 1, 0]);
            assert_eq!(Datagram::decode(&bytes), Some(datagram));
        }
    }

    #[test]
    fn what_is_cut_short_is_none_of_ours() {
        for datagram in all([V4, V6]) {
            let bytes = datagram.encode();
            for end in 0..bytes.len() {
                assert_eq!(Datagram::decode(&bytes[..end]), None, "{datagram:?} cut at {end}");
            }
            // The same where the IP header owns up to it.
            let (header, at) = if datagram.source.is_ipv4() { (20, 3) } else { (40, 5) };
            for end in header..bytes.len() {
                let mut bytes = bytes.clone();
                bytes.truncate(end);
                bytes[at] = u8::try_from(if at == 3 { end } else { end - header }).expect("short");
                assert_eq!(Datagram::decode(&bytes), None, "{datagram:?} ending at {end}");
            }
        }
    }

    /// Every byte takes every value: nothing panics, and what is still ours differs in nothing but what was changed.
    #[test]
    fn what_is_damaged_is_none_of_ours_or_says_what_it_is() {
        for datagram in all([V4, V6]) {
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
    fn fragments_and_other_packets_are_none_of_ours() {
        let datagram = all([V4, V6])[1];
        for (at, value) in [(6, 0x20), (6, 0x01), (7, 1), (9, 1), (0, 0x44), (0, 0x55), (28, b'P')] {
            let mut bytes = datagram.encode();
            bytes[at] = value;
            assert_eq!(Datagram::decode(&bytes), None, "byte {at} is {value}");
        }
        let extended = all([V6, V6])[1];
        for next in [0, 43, 44, 60, 59, 58] {
            let mut bytes = extended.encode();
            bytes[6] = next;
            assert_eq!(Datagram::decode(&bytes), None, "next header {next}");
        }
    }

    #[test]
    fn checksums_are_right() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // RFC 1071, section 3.
        assert_eq!(internet_checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        for datagram in all([V4, V6]) {
            let bytes = datagram.encode();
            let (addresses, segment) =
                if datagram.source.is_ipv4() { (&bytes[12..20], &bytes[20..]) } else { (&bytes[8..40], &bytes[40..]) };
            if datagram.source.is_ipv4() {
                assert_eq!(internet_checksum(&[&bytes[..20]]), 0);
            }
            if datagram.protocol != Protocol::Sctp {
                let pseudo = [0, datagram.protocol.number()];
                let sum = internet_checksum(&[addresses, &pseudo, &length(segment.len()), segment]);
                assert_eq!(sum, 0, "{datagram:?}");
            }
        }
    }

    #[test]
    fn two_families_are_refused() {
        let v4 = all([V4, V6])[1];
        let mixed = Datagram { source: all([V6, V6])[1].source, ..v4 };
        assert_eq!(Datagram::decode(&mixed.encode()).map(|read| read.number), Some(mixed.number));
        let Some(netns) = namespace() else { return };
        let sent = Sender::open(&netns).expect("sender").send(&mixed);
        assert_eq!(sent.map_err(|error| error.kind()), Err(io::ErrorKind::InvalidInput));
    }

    /// None where namespaces cannot be had, and says so; with CI set that is a failure.
    fn namespace() -> Option<Netns> {
        let error = match Netns::new() {
            Ok(netns) => return Some(netns),
            Err(error) => error,
        };
        let message = format!("SKIPPED: needs network namespaces, run as root: {error}");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{message}");
        eprintln!("{message}");
        None
    }

    /// Two namespaces and the link between them, with our addresses; the second has its own behind a bridge.
    fn pair() -> Option<(Netns, Netns)> {
        let (here, there) = (namespace()?, namespace()?);
        let wire = |links: &Links, name: &str, side: usize| {
            links.up(name).expect("up");
            links.address(name, V4[side].parse().expect("address"), 24).expect("address");
            links.address(name, V6[side].parse().expect("address"), 64).expect("address");
        };
        let wire_here = || {
            let links = Links::open().expect("rtnetlink");
            links.up("lo").expect("up");
            links.veth("eth0", "eth0", &there).expect("veth");
            wire(&links, "eth0", 0);
        };
        here.run(wire_here).expect("inside");
        let wire_there = || {
            let links = Links::open().expect("rtnetlink");
            links.up("lo").expect("up");
            links.bridge("br0").expect("bridge");
            links.join("eth0", "br0").expect("join");
            wire(&links, "br0", 1);
        };
        there.run(wire_there).expect("inside");
        Some((here, there))
    }

    /// What was seen when there are as many as expected, or no more come.
    fn seen(watch: &Watch, expected: usize) -> Vec<Datagram> {
        let (mut seen, start) = (Vec::new(), Instant::now());
        while seen.len() < expected && start.elapsed() < Duration::from_secs(3) {
            seen.extend(watch.drain().expect("drained"));
            thread::sleep(Duration::from_millis(1));
        }
        // One too many would come at once.
        seen.extend(watch.drain().expect("drained"));
        seen.sort_by_key(|datagram| datagram.number);
        seen
    }

    #[test]
    fn what_is_sent_is_seen_once_where_it_arrives_and_not_where_it_leaves() {
        let Some((here, there)) = pair() else { return };
        let sender = Sender::open(&here).expect("sender");
        let (arriving, delivered) = (Watch::arriving(&there).expect("watch"), Watch::delivered(&there).expect("watch"));
        let leaving = [Watch::arriving(&here).expect("watch"), Watch::delivered(&here).expect("watch")];
        let sent = all([V4, V6]);
        for datagram in &sent {
            sender.send(datagram).expect("sent");
        }
        assert_eq!(seen(&delivered, sent.len()), sent);
        assert_eq!(seen(&arriving, sent.len()), sent);
        for watch in leaving {
            assert_eq!(watch.drain().expect("drained"), []);
        }
    }

    #[test]
    fn what_a_namespace_sends_to_itself_is_delivered_but_does_not_arrive() {
        let Some((here, there)) = pair() else { return };
        let sender = Sender::open(&here).expect("sender");
        let (arriving, delivered) = (Watch::arriving(&here).expect("watch"), Watch::delivered(&here).expect("watch"));
        let own = [V4, V6].map(|[own, _]| [own, own]);
        for sent in [all([["127.0.0.1"; 2], ["::1"; 2]]), all(own)] {
            for datagram in &sent {
                sender.send(datagram).expect("sent");
            }
            assert_eq!(seen(&delivered, sent.len()), sent);
            assert_eq!(seen(&arriving, 0), []);
        }
        drop(there);
    }

    #[test]
    fn what_has_no_route_is_refused() {
        let Some((here, there)) = pair() else { return };
        let sender = Sender::open(&here).expect("sender");
        for datagram in all([[V4[0], "198.51.100.1"], [V6[0], "2001:db8:1::1"]]) {
            let sent = sender.send(&datagram);
            assert_eq!(sent.map_err(|error| error.kind()), Err(io::ErrorKind::NetworkUnreachable), "{datagram:?}");
        }
        drop(there);
    }

    #[test]
    fn lost_packets_are_owned_up_to() {
        let Some(netns) = namespace() else { return };
        netns.run(|| Links::open().expect("rtnetlink").up("lo").expect("up")).expect("inside");
        let (sender, watch) = (Sender::open(&netns).expect("sender"), Watch::delivered(&netns).expect("watch"));
        for ear in &watch.0 {
            ear.socket.set_recv_buffer_size(1).expect("smallest");
        }
        let datagram = all([["127.0.0.1"; 2]; 2])[1];
        for _ in 0..100 {
            sender.send(&datagram).expect("sent");
        }
        // The loss is known with the next that is not lost.
        let first = watch.drain().expect("drained").len();
        assert!((1..100).contains(&first), "{first}");
        sender.send(&datagram).expect("sent");
        assert_eq!(watch.drain().expect_err("lost").raw_os_error(), Some(Errno::ENOBUFS as i32));
        sender.send(&datagram).expect("sent");
        assert_eq!(watch.drain().expect("drained"), [datagram]);
    }
}
