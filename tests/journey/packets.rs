//! Random packets of the journey oracle.

use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;
use portfwd::model::Protocol;

use super::network::{From, Shot, peer_of};

/// The addresses of the host, of the peers, and of hosts behind the uplinks.
const OWN: [&str; 7] =
    ["203.0.113.1", "203.0.113.1", "203.0.113.9", "198.51.100.1", "10.9.0.1", "2001:db8:a::1", "fd00:9::1"];
const OTHERS: [&str; 9] = [
    "10.9.0.2",
    "10.9.0.3",
    "203.0.113.2",
    "198.51.100.2",
    "192.0.2.7",
    "100.64.0.9",
    "fd00:9::2",
    "2001:db8:a::2",
    "2001:db8:f::7",
];

/// Returns a random packet. `ports` are destination ports that rules name.
pub fn shot(rng: &mut Rng, ports: &[u16], source_port: u16) -> Option<Shot> {
    let from = match rng.u8(..20) {
        0..=8 => From::Peer(0),
        9..=12 => From::Peer(1),
        13..=14 => From::Peer(2),
        15..=16 => From::Peer(3),
        _ => From::Host,
    };
    let sources: &[&str] = match from {
        From::Host => &["203.0.113.1", "203.0.113.1", "198.51.100.1", "10.9.0.1", "127.0.0.1", "2001:db8:a::1", "::1"],
        From::Peer(0) => {
            &["203.0.113.2", "203.0.113.2", "192.0.2.7", "192.0.2.7", "198.51.100.77", "2001:db8:a::2", "2001:db8:f::7"]
        }
        From::Peer(1) => &["198.51.100.2", "198.51.100.2", "192.0.2.7", "192.0.2.130", "203.0.113.2", "2001:db8:b::2"],
        From::Peer(2) => &["10.9.0.2", "10.9.0.2", "10.9.0.2", "fd00:9::2"],
        From::Peer(_) => &["10.9.0.3", "10.9.0.3", "10.9.0.3", "fd00:9::3"],
    };
    let address = |text: &&str| text.parse::<IpAddr>().expect("an address");
    let source = address(&sources[rng.usize(..sources.len())]);
    let to = if rng.u8(..10) < 7 { &OWN[..] } else { &OTHERS[..] };
    let mut to: Vec<IpAddr> = to.iter().map(address).filter(|to| to.is_ipv4() == source.is_ipv4()).collect();
    if from == From::Host && rng.bool() {
        to.push(if source.is_ipv4() { [127, 0, 0, 1].into() } else { address(&"::1") });
    }
    let destination = to[rng.usize(..to.len())];
    // A loopback source only sends to loopback addresses, and a packet to the sender itself stays there.
    let stays = matches!(from, From::Peer(peer) if peer_of(destination) == Some(peer));
    if source.is_loopback() && !destination.is_loopback() || stays {
        return None;
    }
    let protocol = match rng.u8(..20) {
        // The host's own packets come from UDP sockets.
        _ if from == From::Host => Protocol::Udp,
        0..=11 => Protocol::Udp,
        12..=18 => Protocol::Tcp,
        _ => Protocol::Sctp,
    };
    let port = if rng.u8(..6) == 0 || ports.is_empty() { rng.u16(1000..1010) } else { ports[rng.usize(..ports.len())] };
    let (source, destination) = (SocketAddr::new(source, source_port), SocketAddr::new(destination, port));
    Some(Shot { from, protocol, source, destination })
}
