//! The network of the journey oracle: a host with two uplinks and a bridge, and a raw sender and receiver in every
//! namespace.
//!
//! ```text
//! 203.0.113.2, far hosts ── wan0 ┐        ┌ port2 ── 10.9.0.2
//!                                ├ [host] ┤ br0
//! 198.51.100.2, far hosts ─ wan1 ┘        └ port3 ── 10.9.0.3
//! ```
//! All neighbours are permanent, so rules that drop neighbour discovery do not change where packets go. The other
//! namespaces drop what arrives, so no kernel but the host's answers.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use portfwd::lab::raw_socket::{Datagram, Receiver, Sender};
use portfwd::lab::{Links, Netns};
use portfwd::model::Protocol;
use socket2::{Domain, Socket, Type};

use crate::support::{Said, feed};

/// The capture ends if no packet arrives for this long.
const IDLE: Duration = Duration::from_millis(25);

/// The first bytes of a numbered payload, as in [`portfwd::lab::raw_socket`].
const MAGIC: &[u8] = b"portfwd#";

/// A peer: the host's interface to it, its own name there, its MAC address and its addresses.
const PEERS: [(&str, &str, &str, [&str; 2]); 4] = [
    ("wan0", "wan0", "02:00:00:00:00:11", ["203.0.113.2/24", "2001:db8:a::2/64"]),
    ("wan1", "wan1", "02:00:00:00:00:12", ["198.51.100.2/24", "2001:db8:b::2/64"]),
    ("br0", "port2", "02:00:00:00:00:13", ["10.9.0.2/24", "fd00:9::2/64"]),
    ("br0", "port3", "02:00:00:00:00:14", ["10.9.0.3/24", "fd00:9::3/64"]),
];

/// The interfaces of the host with their MAC addresses and addresses.
const OWN: [(&str, &str, [&str; 2]); 3] = [
    ("wan0", "02:00:00:00:00:01", ["203.0.113.1/24", "2001:db8:a::1/64"]),
    ("wan1", "02:00:00:00:00:02", ["198.51.100.1/24", "2001:db8:b::1/64"]),
    ("br0", "02:00:00:00:00:03", ["10.9.0.1/24", "fd00:9::1/64"]),
];

/// The sender of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The host under test.
    Host,
    /// A peer, by its index.
    Peer(usize),
}

/// A packet to send.
#[derive(Debug, Clone, Copy)]
pub struct Shot {
    pub from: From,
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// The place where a packet was received, and its addresses there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub at: From,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

pub struct Network {
    pub host: Netns,
    peers: Vec<Netns>,
    senders: Vec<Sender>,
    receivers: Vec<Receiver>,
    delivered: Receiver,
    /// Sockets at all ports that packets may reach on the host. Without them the kernel answers with ICMP errors, whose
    /// rules can change the marks of the connection.
    _listeners: Vec<UdpSocket>,
    /// The sockets of packets that the host sends. They stay open until the next reset.
    sockets: Vec<UdpSocket>,
    next: u64,
}

/// Returns the host's interface to a peer.
pub fn interface(peer: usize) -> &'static str {
    PEERS[peer].0
}

/// Returns the peer with an address.
pub fn peer_of(address: IpAddr) -> Option<usize> {
    PEERS.iter().position(|peer| peer.3.iter().any(|own| own.split('/').next() == Some(&address.to_string())))
}

/// Returns true if a peer sends to an address without the host, because the address is in the peer's network.
pub fn is_direct(peer: usize, address: IpAddr) -> bool {
    let network = |text: &&str| text.parse::<IpNetwork>().expect("a network");
    let own = OWN.iter().flat_map(|own| own.2.iter().map(network)).any(|own| own.ip() == address);
    let second = address == IpAddr::from([203, 0, 113, 9]);
    !own && !second && PEERS[peer].3.iter().map(network).any(|network| network.contains(address))
}

fn run(netns: &Netns, script: &str) {
    let output = netns.run(|| Command::new("sh").args(["-ec", script]).output().expect("sh")).expect("the namespace");
    let said = Said::from(output);
    assert_eq!(said.code, 0, "{script}: {said:?}");
}

impl Network {
    pub fn new() -> Self {
        let host = Netns::new().expect("namespace");
        let peers: Vec<Netns> = PEERS.iter().map(|_| Netns::new().expect("namespace")).collect();
        let links = || {
            let links = Links::open().expect("rtnetlink");
            links.bridge("br0").expect("bridge");
            for ((_, name, ..), peer) in PEERS.iter().zip(&peers) {
                links.veth(name, "eth0", peer).expect("veth");
            }
            for port in ["port2", "port3"] {
                links.join(port, "br0").expect("joined");
            }
        };
        host.run(links).expect("the host");
        let quiet = "for f in /proc/sys/net/ipv4/conf/*/accept_redirects /proc/sys/net/ipv6/conf/*/accept_redirects \
            /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv4/conf/*/send_redirects \
            /proc/sys/net/ipv6/conf/*/accept_dad; do echo 0 > $f; done; ip link set lo up;";
        let mut script = format!("{quiet} ip link set port2 up; ip link set port3 up;");
        for (name, mac, addresses) in OWN {
            script += &format!("ip link set {name} address {mac} up;");
            for address in addresses {
                script += &format!("ip addr add {address} dev {name};");
            }
        }
        for (interface, _, mac, addresses) in PEERS {
            for address in addresses {
                let (address, _) = address.split_once('/').expect("a prefix");
                script += &format!("ip neigh replace {address} dev {interface} lladdr {mac} nud permanent;");
            }
        }
        script += "ip addr add 203.0.113.9/24 dev wan0;";
        run(&host, &script);
        for (index, (interface, _, mac, addresses)) in PEERS.iter().enumerate() {
            let (_, own_mac, own) = OWN.iter().find(|own| own.0 == *interface).expect("an interface");
            let mut script = format!("{quiet} ip link set eth0 address {mac} up;");
            for (address, gateway) in addresses.iter().zip(own) {
                let (gateway, _) = gateway.split_once('/').expect("a prefix");
                script += &format!(
                    "ip addr add {address} dev eth0; ip neigh replace {gateway} dev eth0 lladdr {own_mac} nud permanent;
                     ip route add default via {gateway};"
                );
            }
            for (_, _, mac, addresses) in PEERS.iter().filter(|peer| peer.0 == *interface && peer.2 != *mac) {
                for address in addresses {
                    let (address, _) = address.split_once('/').expect("a prefix");
                    script += &format!("ip neigh replace {address} dev eth0 lladdr {mac} nud permanent;");
                }
            }
            // The second address of the uplink's network.
            if *interface == "wan0" {
                script += &format!("ip neigh replace 203.0.113.9 dev eth0 lladdr {own_mac} nud permanent;");
            }
            run(&peers[index], &script);
            let drop = "table inet quiet { chain c { type filter hook input priority 0; policy drop; }; }";
            peers[index].run(|| feed("nft", &["-f", "-"], drop)).expect("a peer");
        }
        let senders = peers.iter().map(|peer| Sender::open(peer).expect("sender")).collect();
        let receivers = peers.iter().map(|peer| Receiver::ingress(peer).expect("receiver")).collect();
        let delivered = Receiver::delivered(&host).expect("receiver");
        let listen = || {
            let ports = (1000..1260).chain(2000..2012).chain(2100..2101).chain(3000..3020);
            ports.map(|port| udp(SocketAddr::from(([0; 16], port))).expect("bound")).collect()
        };
        let listeners = host.run(listen).expect("the host");
        let mut network =
            Self { host, peers, senders, receivers, delivered, _listeners: listeners, sockets: Vec::new(), next: 0 };
        network.warm_up();
        network
    }

    /// Waits until packets get through in every direction. A new link drops packets at first.
    fn warm_up(&mut self) {
        let address = |text: &str| SocketAddr::new(text.split('/').next().expect("one").parse().expect("address"), 9);
        let start = Instant::now();
        loop {
            let mut shots = Vec::new();
            for (index, peer) in PEERS.iter().enumerate() {
                let own = OWN.iter().find(|own| own.0 == peer.0).expect("an interface");
                for (there, here) in peer.3.iter().zip(own.2) {
                    let (there, here) = (address(there), address(here));
                    let protocol = Protocol::Udp;
                    shots.push(Shot { from: From::Peer(index), protocol, source: there, destination: here });
                    // Each socket of the host needs its own port.
                    let source = SocketAddr::new(here.ip(), 100 + u16::try_from(index).expect("few"));
                    shots.push(Shot { from: From::Host, protocol, source, destination: there });
                }
            }
            let seen = self.send(&shots);
            self.sockets.clear();
            if seen.iter().all(Option::is_some) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "no packets get through: {seen:?}");
        }
    }

    /// Runs a script in the host's namespace.
    pub fn run(&self, script: &str) {
        run(&self.host, script);
    }

    /// Closes the host's sockets.
    pub fn reset(&mut self) {
        self.sockets.clear();
        assert_eq!(self.peers.len(), PEERS.len());
    }

    /// Sends packets, and returns where each was received.
    pub fn send(&mut self, shots: &[Shot]) -> Vec<Option<Seen>> {
        let first = self.next;
        self.next += shots.len() as u64;
        let numbered: Vec<(u64, &Shot)> = (first..).zip(shots).collect();
        let own: Vec<(u64, &Shot)> = numbered.iter().filter(|(_, shot)| shot.from == From::Host).copied().collect();
        let opened =
            self.host.run(|| own.iter().filter_map(|(number, shot)| from_host(*number, shot)).collect::<Vec<_>>());
        self.sockets.extend(opened.expect("the host's namespace"));
        for (number, shot) in numbered {
            if let From::Peer(peer) = shot.from {
                let Shot { protocol, source, destination, .. } = *shot;
                // The kernel refuses some packets, for example to a broadcast address.
                drop(self.senders[peer].send(&Datagram { protocol, source, destination, number }));
            }
        }
        let mut seen: HashMap<u64, Seen> = HashMap::new();
        let mut last = Instant::now();
        while seen.len() < shots.len() && last.elapsed() < IDLE {
            if self.collect(first, &mut seen) {
                last = Instant::now();
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        (first..self.next).map(|number| seen.remove(&number)).collect()
    }

    fn collect(&self, first: u64, seen: &mut HashMap<u64, Seen>) -> bool {
        let before = seen.len();
        let places = (0..PEERS.len()).map(From::Peer).zip(&self.receivers);
        for (at, receiver) in places.chain([(From::Host, &self.delivered)]) {
            for datagram in receiver.drain().expect("drained").into_iter().filter(|datagram| datagram.number >= first) {
                let Datagram { source, destination, number, .. } = datagram;
                seen.entry(number).or_insert(Seen { at, source, destination });
            }
        }
        seen.len() > before
    }
}

/// Sends a packet of the host from a socket that is bound to the source, as a program does. A raw socket would not tell the
/// kernel the source before routing.
fn from_host(number: u64, shot: &Shot) -> Option<UdpSocket> {
    let socket = udp(shot.source).ok()?;
    let payload = [MAGIC, &number.to_be_bytes()].concat();
    drop(socket.send_to(&payload, shot.destination));
    Some(socket)
}

/// Binds a socket. Several answers come from the same address and port.
fn udp(at: SocketAddr) -> std::io::Result<UdpSocket> {
    let domain = if at.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}
