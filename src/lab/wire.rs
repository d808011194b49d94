//! Packets sent from one namespace, and seen where they arrive.
//!
//! Comes in: a protocol, two addresses with ports, a number ([`Datagram`]). Goes out: the same of each packet that got to a
//! namespace, as the rules on its way changed it. Nothing is connected and nobody answers, so connection tracking sees
//! each packet as a new connection, and thousands a second can be sent and told apart.
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
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{ARPHRD_LOOPBACK, ETH_P_IP, ETH_P_IPV6, PACKET_BROADCAST, PACKET_HOST, PACKET_MULTICAST, in6_pktinfo};
use nix::sys::socket::sockopt::{Ipv6RecvPacketInfo, RcvBufForce, RxqOvfl, SndBufForce};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, SockaddrIn6, SockaddrLike, recvmsg, setsockopt};
use socket2::{Domain, Socket, Type};

pub use super::datagram::Datagram;
use super::{LabError, Netns};
use crate::model::Protocol;

/// Takes the place of the port in the address of a raw socket: the packet itself says what it is.
const RAW_PORT: u16 = 0;

/// `IPPROTO_RAW`: what is sent begins with its IP header, in both families, and nothing is received.
const IPPROTO_RAW: i32 = 255;

/// Room for packets that nobody has drained yet, and for those that wait for a neighbour to answer, in bytes. A packet
/// takes about 1 kB of it.
const BUFFER_SIZE: usize = 64 << 20;

/// Longer than any packet of ours, with all options that an IPv4 header can have.
const MAX_PACKET: usize = 256;

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
                if setsockopt(&socket, SndBufForce, &BUFFER_SIZE).is_err() {
                    socket.set_send_buffer_size(BUFFER_SIZE)?;
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
pub struct Receiver(Vec<Listener>);

impl Receiver {
    /// Sees what comes in by any link, before any NAT, whether it is then delivered, forwarded or dropped.
    ///
    /// What leaves, what loops on `lo`, and what a link carries for another's hardware address is not seen. What comes
    /// in through a bridge of this namespace is seen once, as of the bridge; what the bridge only switches is not.
    ///
    /// # Errors
    /// Where the namespace cannot be entered or no packet sockets can be had in it.
    pub fn ingress(netns: &Netns) -> Result<Self, LabError> {
        // Not ETH_P_ALL: that hears everything twice, when it comes in by a bridge port and when the bridge hands it
        // up, and keeps what leaves in the same receive buffer (measured, Linux 6.18).
        let listeners = || [ETH_P_IP, ETH_P_IPV6].into_iter().map(Listener::open_packet).collect::<io::Result<_>>();
        let opened = netns.run(listeners)?;
        opened.map(Self).map_err(|error| LabError::Io("opening sockets to see packets arrive", error))
    }

    /// Sees what this namespace delivers to itself, by whichever link and by `lo`, after its NAT and filters.
    ///
    /// There need be no socket that the packet is for.
    ///
    /// # Errors
    /// Where the namespace cannot be entered or no raw sockets can be had in it.
    pub fn delivered(netns: &Netns) -> Result<Self, LabError> {
        let listeners = || {
            let both = |protocol| [Listener::open_raw_ipv4(protocol), Listener::open_raw_ipv6(protocol)];
            Protocol::ALL.into_iter().flat_map(both).collect::<io::Result<_>>()
        };
        let opened = netns.run(listeners)?;
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
        for listener in &self.0 {
            result = result.and(listener.drain(&mut seen));
        }
        result.map(|()| seen)
    }
}

/// Where packets are received, which decides what a socket gives of them.
#[derive(Debug, Clone, Copy)]
enum SocketKind {
    /// At the links: from the IP header on, whether they are for us or not.
    Packet,
    /// At delivery: from the IP header on.
    RawIpv4,
    /// At delivery: from behind the IP header on, the addresses apart.
    RawIpv6(Protocol),
}

/// A socket that hears packets.
#[derive(Debug)]
struct Listener {
    socket: Socket,
    socket_kind: SocketKind,
    /// How many packets were lost of which the caller knows; the kernel counts from the socket's beginning.
    lost: AtomicU32,
}

/// What a socket gave.
struct Received<S> {
    length: usize,
    sender: Option<S>,
    destination: Option<Ipv6Addr>,
    lost: Option<u32>,
}

impl Listener {
    fn open_packet(ether_type: i32) -> io::Result<Self> {
        let ether_type = u16::try_from(ether_type).map_err(io::Error::other)?;
        Self::open(Domain::PACKET, Type::DGRAM, i32::from(ether_type.to_be()), SocketKind::Packet)
    }

    fn open_raw_ipv4(protocol: Protocol) -> io::Result<Self> {
        Self::open(Domain::IPV4, Type::RAW, protocol.number().into(), SocketKind::RawIpv4)
    }

    fn open_raw_ipv6(protocol: Protocol) -> io::Result<Self> {
        let listener = Self::open(Domain::IPV6, Type::RAW, protocol.number().into(), SocketKind::RawIpv6(protocol))?;
        setsockopt(&listener.socket, Ipv6RecvPacketInfo, &true)?;
        Ok(listener)
    }

    fn open(domain: Domain, kind: Type, protocol: i32, socket_kind: SocketKind) -> io::Result<Self> {
        let socket = Socket::new(domain, kind, Some(protocol.into()))?;
        // Root of a user namespace may not go beyond `net.core.rmem_max`.
        if setsockopt(&socket, RcvBufForce, &BUFFER_SIZE).is_err() {
            socket.set_recv_buffer_size(BUFFER_SIZE)?;
        }
        setsockopt(&socket, RxqOvfl, &1)?;
        Ok(Self { socket, socket_kind, lost: AtomicU32::new(0) })
    }

    fn drain(&self, seen: &mut Vec<Datagram>) -> io::Result<()> {
        let mut buffer = [0; MAX_PACKET];
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
        Ok(match self.socket_kind {
            SocketKind::Packet => self.receive::<LinkAddr>(buffer, control)?.map(|received| {
                let bytes =
                    buffer.get(..received.length).filter(|_| received.sender.is_some_and(|link| is_arrival(&link)));
                (bytes.and_then(Datagram::decode), received.lost)
            }),
            SocketKind::RawIpv4 => self.receive::<()>(buffer, control)?.map(|received| {
                let bytes = buffer.get(..received.length);
                (bytes.and_then(Datagram::decode), received.lost)
            }),
            SocketKind::RawIpv6(protocol) => self.receive::<SockaddrIn6>(buffer, control)?.map(|received| {
                let addresses = received.sender.zip(received.destination).zip(buffer.get(..received.length));
                let datagram = addresses.and_then(|((sender, destination), segment)| {
                    Datagram::from_segment(protocol, sender.ip().into(), destination.into(), segment)
                });
                (datagram, received.lost)
            }),
        })
    }

    /// Receives a packet without waiting for it.
    fn receive<S: SockaddrLike>(&self, buffer: &mut [u8], control: &mut [u8]) -> io::Result<Option<Received<S>>> {
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
            let mut received = Received { length: message.bytes, sender: None, destination: None, lost: None };
            for extra in message.cmsgs()? {
                match extra {
                    ControlMessageOwned::Ipv6PacketInfo(info) => {
                        received.destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                    }
                    ControlMessageOwned::RxqOvfl(lost) => received.lost = Some(lost),
                    _ => {}
                }
            }
            received.sender = message.address;
            return Ok(Some(received));
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
    use super::super::datagram::tests::{V4, V6, all_protocols};
    use super::*;

    #[test]
    fn two_families_are_refused() {
        let v4 = all_protocols([V4, V6])[1];
        let mixed = Datagram { source: all_protocols([V6, V6])[1].source, ..v4 };
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
    fn seen(receiver: &Receiver, expected: usize) -> Vec<Datagram> {
        let (mut seen, start) = (Vec::new(), Instant::now());
        while seen.len() < expected && start.elapsed() < Duration::from_secs(3) {
            seen.extend(receiver.drain().expect("drained"));
            thread::sleep(Duration::from_millis(1));
        }
        // One too many would come at once.
        seen.extend(receiver.drain().expect("drained"));
        seen.sort_by_key(|datagram| datagram.number);
        seen
    }

    #[test]
    fn what_is_sent_is_seen_once_where_it_arrives_and_not_where_it_leaves() {
        let Some((here, there)) = pair() else { return };
        let sender = Sender::open(&here).expect("sender");
        let (arriving, delivered) =
            (Receiver::ingress(&there).expect("receiver"), Receiver::delivered(&there).expect("receiver"));
        let leaving = [Receiver::ingress(&here).expect("receiver"), Receiver::delivered(&here).expect("receiver")];
        let sent = all_protocols([V4, V6]);
        for datagram in &sent {
            sender.send(datagram).expect("sent");
        }
        assert_eq!(seen(&delivered, sent.len()), sent);
        assert_eq!(seen(&arriving, sent.len()), sent);
        for receiver in leaving {
            assert_eq!(receiver.drain().expect("drained"), []);
        }
    }

    #[test]
    fn what_a_namespace_sends_to_itself_is_delivered_but_does_not_arrive() {
        let Some((here, there)) = pair() else { return };
        let sender = Sender::open(&here).expect("sender");
        let (arriving, delivered) =
            (Receiver::ingress(&here).expect("receiver"), Receiver::delivered(&here).expect("receiver"));
        let own = [V4, V6].map(|[own, _]| [own, own]);
        for sent in [all_protocols([["127.0.0.1"; 2], ["::1"; 2]]), all_protocols(own)] {
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
        for datagram in all_protocols([[V4[0], "198.51.100.1"], [V6[0], "2001:db8:1::1"]]) {
            let sent = sender.send(&datagram);
            assert_eq!(sent.map_err(|error| error.kind()), Err(io::ErrorKind::NetworkUnreachable), "{datagram:?}");
        }
        drop(there);
    }

    #[test]
    fn lost_packets_are_owned_up_to() {
        let Some(netns) = namespace() else { return };
        netns.run(|| Links::open().expect("rtnetlink").up("lo").expect("up")).expect("inside");
        let (sender, receiver) =
            (Sender::open(&netns).expect("sender"), Receiver::delivered(&netns).expect("receiver"));
        for listener in &receiver.0 {
            listener.socket.set_recv_buffer_size(1).expect("smallest");
        }
        let datagram = all_protocols([["127.0.0.1"; 2]; 2])[1];
        for _ in 0..100 {
            sender.send(&datagram).expect("sent");
        }
        // The loss is known with the next that is not lost.
        let first = receiver.drain().expect("drained").len();
        assert!((1..100).contains(&first), "{first}");
        sender.send(&datagram).expect("sent");
        assert_eq!(receiver.drain().expect_err("lost").raw_os_error(), Some(Errno::ENOBUFS as i32));
        sender.send(&datagram).expect("sent");
        assert_eq!(receiver.drain().expect("drained"), [datagram]);
    }
}
