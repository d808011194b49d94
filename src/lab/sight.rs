//! Where packets go: numbered packets sent from everywhere in a throw-away network, and watched for everywhere.
//!
//! Comes in: packets. Goes out: for each, whether this host got it, whom it left for, or that nobody saw it, and with which
//! source. Only the first packet of a connection is sent, so answers need not find their way back.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::wire::{Datagram, Receiver, Sender};
use super::{LabError, Netns, Topology};
use crate::model::Packet;
use crate::model::meaning::Fate;

/// How long nothing must have been seen for everything to have arrived.
const IDLE_TIMEOUT: Duration = Duration::from_millis(40);
/// How long a network may take until packets get through.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// How many packets are sent before what arrived is taken out of the buffers.
const BURST: u64 = 64;

/// Where a packet was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// By nobody.
    NotSeen,
    /// This host got it.
    Delivered {
        /// Whom it was sent to in the end.
        to: SocketAddr,
        /// Who had sent it, as this host sees it.
        from: SocketAddr,
    },
    /// It left this host.
    Left {
        /// The interface it left by.
        by: String,
        /// Whom it was sent to in the end.
        to: SocketAddr,
        /// Who had sent it, as the receiver sees it.
        from: SocketAddr,
    },
}

impl Observation {
    /// Whether this is what should become of `packet`.
    pub fn matches_fate(&self, packet: &Packet, fate: &Fate) -> bool {
        let sent = packet.source.port();
        match (fate, self) {
            (Fate::Dropped(_), Self::NotSeen) => true,
            (Fate::Here { address, port, seen }, Self::Delivered { to, from }) => {
                address.is_none_or(|address| address == to.ip()) && *port == to.port() && seen.allows(*from, sent)
            }
            (Fate::Leaves { to, by, seen }, Self::Left { by: left, to: found, from }) => {
                to == found && by.as_str() == left && seen.allows(*from, sent)
            }
            _ => false,
        }
    }
}

/// Senders and watchers in every namespace of a network.
pub struct Capture<'a> {
    topology: &'a Topology,
    senders: Vec<(&'a Netns, Sender)>,
    host: Receiver,
    peers: Vec<(&'a str, Receiver)>,
    /// The number of the next packet: what arrives late must not be taken for another.
    next: Cell<u64>,
}

impl<'a> Capture<'a> {
    /// Opens them, and waits until packets really get through between the host and everybody else. Rules must not have
    /// been applied yet.
    ///
    /// A link that was made a moment ago swallows packets until the kernel's link watcher has been at it, which may take
    /// longer than anybody waits for a packet (seen on Linux 6.18 while many namespaces come and go).
    ///
    /// # Errors
    /// Where raw sockets cannot be had, or packets do not get through.
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

    /// Sends packets, each from where it comes from, and says where each was seen. The packets of a run, and of earlier
    /// runs in the same network, must be of different connections.
    ///
    /// # Errors
    /// Where the sockets fail. That a packet cannot be sent is no error: nobody sees it.
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
                // Unreachable, forbidden: either way nobody gets it, which is what is reported.
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

    /// Takes what arrived out of the buffers, and keeps what was numbered from `first` on; gives how much that was.
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
