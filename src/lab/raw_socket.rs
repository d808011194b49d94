//! Raw sockets: sends packets from one namespace, and receives them in another one.
//!
//! Input: numbered packets ([`Datagram`]). Output: each packet that reached a namespace, as NAT on its path changed it.
//! The senders open no connections and nothing answers, so connection tracking sees each packet as a new connection.
//! Thousands of packets a second can be sent and told apart.
//!
//! Be aware: a kernel answers a packet to a closed port with a TCP reset or an ICMP error. Such an answer has no
//! number, so it is not received here, but it can end the connection in connection tracking.
//!
//! A link to an unresolved neighbour queues about 250 packets until the neighbour answers, and drops older ones
//! silently. So send one packet first and wait for it.
//!
//! Measured on Linux 6.18: incoming UDP-Lite packets are invalid to connection tracking unless
//! `net.netfilter.nf_conntrack_checksum` is 0, because it verifies them as UDP. This also holds for packets of the
//! kernel's own sockets. UDP-Lite packets that a host sends itself are tracked. DCCP is tracked by addresses alone, so
//! NAT never translates its ports. NAT of a DCCP address leaves a wrong checksum.

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

/// The port in the address of a raw socket. The packet itself has the real port.
const RAW_PORT: u16 = 0;

/// `IPPROTO_RAW`: the sender supplies the IP header in both families, and the socket receives nothing.
const IPPROTO_RAW: i32 = 255;

/// The socket buffer size in bytes, for packets that wait to be drained or for a neighbour to answer. Each packet takes
/// about 1 kB.
const BUFFER_SIZE: usize = 64 << 20;

/// A length in bytes above that of each packet, with all options that an IPv4 header can have.
const MAX_PACKET: usize = 256;

/// Raw sockets that send from one namespace. Its output rules and NAT apply.
#[derive(Debug)]
pub struct Sender {
    v4: Socket,
    v6: Socket,
}

impl Sender {
    /// Opens sockets in a namespace. The sockets stay in it, so any thread can then send packets.
    ///
    /// # Errors
    /// If the thread cannot enter the namespace, or the process may not open raw sockets.
    pub fn open(netns: &Netns) -> Result<Self, LabError> {
        let opened = netns.run(|| -> io::Result<Self> {
            let socket = |domain| -> io::Result<Socket> {
                let socket = Socket::new(domain, Type::RAW, Some(IPPROTO_RAW.into()))?;
                socket.set_nonblocking(true)?;
                // With the default of 200 kB, one neighbour that does not answer stops all sending for seconds.
                if setsockopt(&socket, SndBufForce, &BUFFER_SIZE).is_err() {
                    socket.set_send_buffer_size(BUFFER_SIZE)?;
                }
                Ok(socket)
            };
            Ok(Self { v4: socket(Domain::IPV4)?, v6: socket(Domain::IPV6)? })
        })?;
        opened.map_err(|error| LabError::Io("opening sockets to send packets", error))
    }

    /// Sends a packet. Its source may be an address that the namespace does not have.
    ///
    /// On links between namespaces the packet has usually arrived when this function returns.
    ///
    /// # Errors
    /// `ENETUNREACH` if there is no route, or `EADDRNOTAVAIL` if there is no IPv6 address either. `EPERM` if the
    /// namespace's own rules drop the packet. `EAGAIN` if too many packets wait for neighbours. `EINVAL` if the
    /// families of the addresses differ.
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

/// Sockets that receive the packets that reach one namespace.
#[derive(Debug)]
pub struct Receiver(Vec<Listener>);

impl Receiver {
    /// Receives incoming packets of all links, before NAT, whether the namespace then delivers, forwards or drops them.
    ///
    /// This excludes outgoing packets, packets on `lo`, and packets for another hardware address. A packet that comes
    /// in through a bridge of this namespace is received once, from the bridge. Packets that the bridge only switches
    /// are not received.
    ///
    /// # Errors
    /// If the thread cannot enter the namespace, or the process may not open packet sockets.
    pub fn ingress(netns: &Netns) -> Result<Self, LabError> {
        // Not ETH_P_ALL: it delivers each packet of a bridge twice, from the port and from the bridge. It also puts
        // outgoing packets into the same receive buffer (measured, Linux 6.18).
        let listeners = || [ETH_P_IP, ETH_P_IPV6].into_iter().map(Listener::open_packet).collect::<io::Result<_>>();
        let opened = netns.run(listeners)?;
        opened.map(Self).map_err(|error| LabError::Io("opening sockets to see packets arrive", error))
    }

    /// Receives packets that this namespace delivers to itself, from any link and from `lo`, after its NAT and filters.
    ///
    /// The packet needs no listening socket.
    ///
    /// # Errors
    /// If the thread cannot enter the namespace, or the process may not open raw sockets.
    pub fn delivered(netns: &Netns) -> Result<Self, LabError> {
        let listeners = || {
            let both = |protocol| [Listener::open_raw_ipv4(protocol), Listener::open_raw_ipv6(protocol)];
            Protocol::ALL.into_iter().flat_map(both).collect::<io::Result<_>>()
        };
        let opened = netns.run(listeners)?;
        opened.map(Self).map_err(|error| LabError::Io("opening sockets to see packets delivered", error))
    }

    /// Returns the received packets without waiting. Packets of one protocol and family are in the order of arrival.
    ///
    /// # Errors
    /// `ENOBUFS` if the receive buffer overflowed and packets were lost. The kernel reports the loss only with the next
    /// packet that it delivers. The packets of this call are discarded, so a missing packet proves nothing. The next
    /// call works normally.
    pub fn drain(&self) -> io::Result<Vec<Datagram>> {
        let (mut seen, mut result) = (Vec::new(), Ok(()));
        // Drain every socket, even if one has failed.
        for listener in &self.0 {
            result = result.and(listener.drain(&mut seen));
        }
        result.map(|()| seen)
    }
}

/// The kind of a socket, which decides the form of its packets.
#[derive(Debug, Clone, Copy)]
enum SocketKind {
    /// A packet socket at the links: starts at the IP header. Also receives packets for other hosts.
    Packet,
    /// A raw IPv4 socket at delivery: starts at the IP header.
    RawIpv4,
    /// A raw IPv6 socket at delivery: starts after the IP header. The addresses are ancillary data.
    RawIpv6(Protocol),
}

/// A socket that receives packets.
#[derive(Debug)]
struct Listener {
    socket: Socket,
    socket_kind: SocketKind,
    /// The number of lost packets that the caller already knows. The kernel counts from the opening of the socket.
    lost: AtomicU32,
}

/// A message that a socket received.
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
        // Root of a user namespace may not exceed `net.core.rmem_max`.
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

    /// Receives the next packet and the kernel's count of lost packets. Returns `None` if no packet waits. The inner
    /// packet is `None` if it is not a numbered one.
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

    /// Receives a packet without waiting.
    fn receive<S: SockaddrLike>(&self, buffer: &mut [u8], control: &mut [u8]) -> io::Result<Option<Received<S>>> {
        let socket = self.socket.as_raw_fd();
        loop {
            let mut parts = [IoSliceMut::new(buffer)];
            let message = match recvmsg::<S>(socket, &mut parts, Some(control), MsgFlags::MSG_DONTWAIT) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(None),
                // The kernel reports a link that went down once, as an error without a packet.
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

/// Returns true if a packet came in on a link other than `lo` and is addressed to this host.
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
    fn mixed_families_are_refused() {
        let v4 = all_protocols([V4, V6])[1];
        let mixed = Datagram { source: all_protocols([V6, V6])[1].source, ..v4 };
        assert_eq!(Datagram::decode(&mixed.encode()).map(|read| read.number), Some(mixed.number));
        let Some(netns) = namespace() else { return };
        let sent = Sender::open(&netns).expect("sender").send(&mixed);
        assert_eq!(sent.map_err(|error| error.kind()), Err(io::ErrorKind::InvalidInput));
    }

    /// Creates a namespace. Returns `None` and prints a message if that is not allowed, or panics if CI is set.
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

    /// Creates two namespaces joined by a veth pair, with the addresses of `V4` and `V6`. The second namespace has its
    /// addresses on a bridge.
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

    /// Returns the packets received until the expected number has arrived or three seconds have passed.
    fn seen(receiver: &Receiver, expected: usize) -> Vec<Datagram> {
        let (mut seen, start) = (Vec::new(), Instant::now());
        while seen.len() < expected && start.elapsed() < Duration::from_secs(3) {
            seen.extend(receiver.drain().expect("drained"));
            thread::sleep(Duration::from_millis(1));
        }
        // A surplus packet would arrive at once.
        seen.extend(receiver.drain().expect("drained"));
        seen.sort_by_key(|datagram| datagram.number);
        seen
    }

    #[test]
    fn a_packet_is_received_once_and_only_at_its_destination() {
        let Some((here, there)) = pair() else { return };
        let sender = Sender::open(&here).expect("sender");
        let (ingress, delivered) =
            (Receiver::ingress(&there).expect("receiver"), Receiver::delivered(&there).expect("receiver"));
        let leaving = [Receiver::ingress(&here).expect("receiver"), Receiver::delivered(&here).expect("receiver")];
        let sent = all_protocols([V4, V6]);
        for datagram in &sent {
            sender.send(datagram).expect("sent");
        }
        assert_eq!(seen(&delivered, sent.len()), sent);
        assert_eq!(seen(&ingress, sent.len()), sent);
        for receiver in leaving {
            assert_eq!(receiver.drain().expect("drained"), []);
        }
    }

    #[test]
    fn loopback_packets_are_delivered_but_are_not_ingress() {
        let Some((here, there)) = pair() else { return };
        let sender = Sender::open(&here).expect("sender");
        let (ingress, delivered) =
            (Receiver::ingress(&here).expect("receiver"), Receiver::delivered(&here).expect("receiver"));
        let own = [V4, V6].map(|[own, _]| [own, own]);
        for sent in [all_protocols([["127.0.0.1"; 2], ["::1"; 2]]), all_protocols(own)] {
            for datagram in &sent {
                sender.send(datagram).expect("sent");
            }
            assert_eq!(seen(&delivered, sent.len()), sent);
            assert_eq!(seen(&ingress, 0), []);
        }
        drop(there);
    }

    #[test]
    fn a_packet_without_a_route_is_refused() {
        let Some((here, there)) = pair() else { return };
        let sender = Sender::open(&here).expect("sender");
        for datagram in all_protocols([[V4[0], "198.51.100.1"], [V6[0], "2001:db8:1::1"]]) {
            let sent = sender.send(&datagram);
            assert_eq!(sent.map_err(|error| error.kind()), Err(io::ErrorKind::NetworkUnreachable), "{datagram:?}");
        }
        drop(there);
    }

    #[test]
    fn lost_packets_are_reported() {
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
        // The kernel reports the loss with the next packet that it delivers.
        let first = receiver.drain().expect("drained").len();
        assert!((1..100).contains(&first), "{first}");
        sender.send(&datagram).expect("sent");
        assert_eq!(receiver.drain().expect_err("lost").raw_os_error(), Some(Errno::ENOBUFS as i32));
        sender.send(&datagram).expect("sent");
        assert_eq!(receiver.drain().expect("drained"), [datagram]);
    }
}
