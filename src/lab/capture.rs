//! Packet capture in a throw-away network: sends numbered packets from any namespace and watches all of them.
//!
//! Input: packets. Output: for each packet, the place where it was received, with its source and destination there.
//! Only the first packet of a connection is sent, so no route for answers is needed.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::raw_socket::{Datagram, Receiver, Sender};
use super::{LabError, Netns, Topology};
use crate::model::Packet;
use crate::model::meaning::Fate;

/// The capture ends if no packet arrives for this long.
const IDLE_TIMEOUT: Duration = Duration::from_millis(40);
/// The limit for the first packets to get through a new network.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of packets to send before the receive buffers are drained.
const BURST: u64 = 64;

/// The place where a packet was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// No namespace received the packet.
    NotSeen,
    /// The host under test delivered the packet to itself.
    Delivered {
        /// The destination of the packet on arrival.
        to: SocketAddr,
        /// The source of the packet as the host sees it.
        from: SocketAddr,
    },
    /// The packet left the host under test.
    Left {
        /// The egress interface of the host.
        by: String,
        /// The destination of the packet on arrival.
        to: SocketAddr,
        /// The source of the packet as the receiver sees it.
        from: SocketAddr,
    },
}

impl Observation {
    /// Returns true if `fate`, the expected result for `packet`, agrees with this observation.
    pub fn matches_fate(&self, packet: &Packet, fate: &Fate) -> bool {
        let sent = packet.source.port();
        match (fate, self) {
            (Fate::Dropped(_), Self::NotSeen) => true,
            (Fate::Local { address, port, source: seen }, Self::Delivered { to, from }) => {
                address.is_none_or(|address| address == to.ip()) && *port == to.port() && seen.allows(*from, sent)
            }
            (Fate::Sent { to, interface: by, source: seen }, Self::Left { by: left, to: found, from }) => {
                to == found && by.as_str() == left && seen.allows(*from, sent)
            }
            _ => false,
        }
    }
}

/// Senders and receivers in every namespace of a network.
pub struct Capture<'a> {
    topology: &'a Topology,
    senders: Vec<(&'a Netns, Sender)>,
    host: Receiver,
    peers: Vec<(&'a str, Receiver)>,
    /// The number of the next packet. Numbers are never reused, so a late packet is not taken for another one.
    next: Cell<u64>,
}

impl<'a> Capture<'a> {
    /// Opens the sockets, and waits until packets get through between the host and every other namespace. Call this
    /// before rules are applied.
    ///
    /// A new link drops packets until the kernel's link watcher has handled it. This can take longer than the timeout
    /// of a packet (seen on Linux 6.18 while many namespaces come and go).
    ///
    /// # Errors
    /// If the process may not open raw sockets, or packets do not get through.
    pub fn open(topology: &'a Topology) -> Result<Self, LabError> {
        let mut senders = vec![(&topology.host, Sender::open(&topology.host)?)];
        let mut peers = Vec::new();
        for (interface, namespace) in topology.peers() {
            senders.push((namespace, Sender::open(namespace)?));
            peers.push((interface, Receiver::ingress(namespace)?));
        }
        let host = Receiver::delivered(&topology.host)?;
        let capture = Self { topology, senders, host, peers, next: Cell::new(0) };
        let mut missing = topology.reachability_packets();
        let start = Instant::now();
        while !missing.is_empty() {
            if start.elapsed() > WARM_UP_TIMEOUT {
                let stuck = missing.iter().map(|packet| packet.destination.ip().to_string()).collect::<Vec<_>>();
                return Err(LabError::Topology(format!("no packet gets through to {}", stuck.join(", "))));
            }
            let seen = capture.send(&missing)?;
            let mut arrived = seen.into_iter().map(|observation| observation != Observation::NotSeen);
            missing.retain(|_| !arrived.next().unwrap_or(false));
        }
        Ok(capture)
    }

    /// Sends each packet from the namespace of its source, and returns where each was received.
    ///
    /// Each packet must belong to a connection of its own, also among all earlier calls for the same network.
    ///
    /// # Errors
    /// If a socket fails. A packet that the kernel refuses to send is no error: it counts as [`Observation::NotSeen`].
    pub fn send(&self, packets: &[Packet]) -> Result<Vec<Observation>, LabError> {
        let mut seen: HashMap<u64, Observation> = HashMap::new();
        let first = self.next.get();
        let numbers = first..;
        for (number, packet) in numbers.clone().zip(packets) {
            self.next.set(number + 1);
            let datagram =
                Datagram { protocol: packet.protocol, source: packet.source, destination: packet.destination, number };
            let namespace = self.topology.sender(packet);
            let sender =
                self.senders.iter().find(|(here, _)| namespace.is_some_and(|wanted| std::ptr::eq(*here, wanted)));
            if let Some((_, sender)) = sender {
                // Refusals by the kernel, such as "unreachable", are reported as `NotSeen`.
                let sent = sender.send(&datagram);
                drop(sent);
            }
            if number.is_multiple_of(BURST) {
                self.collect(first, &mut seen)?;
            }
        }
        let mut last = Instant::now();
        while seen.len() < packets.len() && last.elapsed() < IDLE_TIMEOUT {
            if self.collect(first, &mut seen)? > 0 {
                last = Instant::now();
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(numbers.zip(packets).map(|(number, _)| seen.remove(&number).unwrap_or(Observation::NotSeen)).collect())
    }

    /// Drains the receive buffers and records the packets numbered `first` and above. Returns the number of new
    /// records.
    fn collect(&self, first: u64, seen: &mut HashMap<u64, Observation>) -> Result<usize, LabError> {
        let failed = |error| LabError::Io("watching for packets", error);
        let before = seen.len();
        let new = |datagram: &Datagram| datagram.number >= first;
        for Datagram { number, source, destination, .. } in self.host.drain().map_err(failed)?.into_iter().filter(new) {
            seen.entry(number).or_insert(Observation::Delivered { to: destination, from: source });
        }
        for (interface, receiver) in &self.peers {
            for Datagram { number, source, destination, .. } in
                receiver.drain().map_err(failed)?.into_iter().filter(new)
            {
                let by = (*interface).to_owned();
                seen.entry(number).or_insert(Observation::Left { by, to: destination, from: source });
            }
        }
        Ok(seen.len() - before)
    }
}
