//! The connections that the kernel tracks: reading them, and ending those that must begin anew.
//!
//! Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h, `enum ctattr_type` and those behind it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use mnl::{Bus, Socket};

use super::netlink::{NESTED, attributes, message, messages, put_attribute};
use crate::model::{Family, Protocol};

/// `NFNL_SUBSYS_CTNETLINK` and the messages of it.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

/// Flags of a question. Source: include/uapi/linux/netlink.h.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;

/// Kinds of messages that are none of a subsystem's.
const ERROR: u16 = 2;
const DONE: u16 = 3;

mod key {
    pub const ORIGINAL: u16 = 1;
    pub const REPLY: u16 = 2;
    pub const STATUS: u16 = 3;
    pub const ID: u16 = 12;
    pub const ZONE: u16 = 18;
    pub const ADDRESSES: u16 = 1;
    pub const PROTOCOL: u16 = 2;
    pub const IPV4: [u16; 2] = [1, 2];
    pub const IPV6: [u16; 2] = [3, 4];
    pub const NUMBER: u16 = 1;
    pub const PORTS: [u16; 2] = [2, 3];
}

/// What the kernel gives at once at most: 32 KiB, and what came before it.
const BUFFER: usize = 1 << 16;

/// How many connections are ended by one message to the kernel; their acknowledgements must fit a socket of usual size.
const AT_ONCE: usize = 64;

/// How many connections of the network namespace are tracked.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// Whether none is tracked in the network namespace that the thread is in; false where that cannot be told.
///
/// For one question more it spares the dump, for which the kernel walks the table of all namespaces: 9 ms where that has
/// 262,144 places (measured, Linux 6.18).
pub fn is_empty() -> bool {
    std::fs::read_to_string(COUNT).is_ok_and(|count| count.trim() == "0")
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Who sends.
    pub source: SocketAddr,
    /// Who is sent to.
    pub destination: SocketAddr,
}

/// A connection of a protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The protocol.
    pub protocol: Protocol,
    /// What the first packet said when it came.
    pub original: Tuple,
    /// What answers say. Their source is where the connection was sent on to.
    pub reply: Tuple,
    /// The zone, which sets equal connections apart; mostly 0.
    zone: u16,
    /// The kernel's number of it.
    id: u32,
}

impl Entry {
    /// Its family.
    pub fn family(&self) -> Family {
        Family::of(self.original.destination.ip())
    }

    /// Reads a connection; the other direction of [`Entry::naming`]. Nothing where its protocol has no ports.
    fn read(body: &[u8]) -> Option<Self> {
        let (mut original, mut reply, mut zone, mut id) = (None, None, 0, 0);
        for (kind, value) in attributes(body) {
            match kind {
                key::ORIGINAL => original = tuple(value),
                key::REPLY => reply = tuple(value),
                key::ZONE => zone = u16::from_be_bytes(value.try_into().ok()?),
                key::ID => id = u32::from_be_bytes(value.try_into().ok()?),
                _ => {}
            }
        }
        let (original, reply): (Ends, Ends) = (original?, reply?);
        let protocol = Protocol::from_number(original.protocol)?;
        Some(Self { protocol, original: original.with_ports()?, reply: reply.with_ports()?, zone, id })
    }

    /// The attributes that name it, so that no other one that came in its place is meant.
    fn naming(&self) -> Vec<u8> {
        let Tuple { source, destination } = self.original;
        let (mut addresses, mut protocol) = (Vec::new(), Vec::new());
        put_attribute(&mut protocol, key::NUMBER, &[self.protocol.number()]);
        let keys = key::IPV4.into_iter().zip(key::IPV6).zip(key::PORTS);
        for (end, ((v4, v6), port)) in [source, destination].into_iter().zip(keys) {
            match end.ip() {
                IpAddr::V4(address) => put_attribute(&mut addresses, v4, &address.octets()),
                IpAddr::V6(address) => put_attribute(&mut addresses, v6, &address.octets()),
            }
            put_attribute(&mut protocol, port, &end.port().to_be_bytes());
        }
        let (mut tuple, mut naming) = (Vec::new(), Vec::new());
        put_attribute(&mut tuple, key::ADDRESSES | NESTED, &addresses);
        put_attribute(&mut tuple, key::PROTOCOL | NESTED, &protocol);
        put_attribute(&mut naming, key::ORIGINAL | NESTED, &tuple);
        put_attribute(&mut naming, key::ID, &self.id.to_be_bytes());
        if self.zone > 0 {
            put_attribute(&mut naming, key::ZONE, &self.zone.to_be_bytes());
        }
        naming
    }
}

/// A connection of any protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Any {
    /// The protocol's number.
    pub protocol: u8,
    /// What the first packet said when it came; ports are 0 where the protocol has none.
    pub original: Tuple,
    /// What answers say.
    pub reply: Tuple,
    /// `IPS_…` in include/uapi/linux/netfilter/nf_conntrack_common.h.
    pub status: u32,
}

impl Any {
    fn read(body: &[u8]) -> Option<Self> {
        let (mut original, mut reply, mut status) = (None, None, 0);
        for (kind, value) in attributes(body) {
            match kind {
                key::ORIGINAL => original = tuple(value),
                key::REPLY => reply = tuple(value),
                key::STATUS => status = u32::from_be_bytes(value.try_into().ok()?),
                _ => {}
            }
        }
        let (original, reply): (Ends, Ends) = (original?, reply?);
        Some(Self { protocol: original.protocol, original: original.or_zero(), reply: reply.or_zero(), status })
    }
}

/// One direction, with ports where the protocol has them.
struct Ends {
    protocol: u8,
    addresses: [IpAddr; 2],
    ports: [Option<u16>; 2],
}

impl Ends {
    fn with_ports(&self) -> Option<Tuple> {
        self.ports.iter().all(Option::is_some).then(|| self.or_zero())
    }

    fn or_zero(&self) -> Tuple {
        let ([source, destination], [from, to]) = (self.addresses, self.ports);
        let end = |address, port: Option<u16>| SocketAddr::new(address, port.unwrap_or(0));
        Tuple { source: end(source, from), destination: end(destination, to) }
    }
}

fn tuple(value: &[u8]) -> Option<Ends> {
    let (mut addresses, mut ports, mut protocol) = ([None; 2], [None; 2], None);
    for (kind, value) in attributes(value) {
        for (inner, value) in attributes(value) {
            let of = |keys: [u16; 2]| keys.iter().position(|key| *key == inner);
            match kind {
                key::ADDRESSES => {
                    let address = <[u8; 4]>::try_from(value).map(IpAddr::from);
                    let address = address.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok();
                    if let Some(end) = of(key::IPV4).or(of(key::IPV6)).and_then(|end| addresses.get_mut(end)) {
                        *end = address;
                    }
                }
                key::PROTOCOL if inner == key::NUMBER => protocol = value.first().copied(),
                key::PROTOCOL => {
                    let port = <[u8; 2]>::try_from(value).map(u16::from_be_bytes).ok();
                    if let Some(end) = of(key::PORTS).and_then(|end| ports.get_mut(end)) {
                        *end = port;
                    }
                }
                _ => {}
            }
        }
    }
    let [source, destination] = addresses;
    Some(Ends { protocol: protocol?, addresses: [source?, destination?], ports })
}

/// A conversation about the connections of the network namespace that the thread was in when it was opened.
pub struct Conntrack {
    socket: Socket,
    buffer: Vec<u8>,
    next: u32,
}

impl Conntrack {
    /// Opens one.
    ///
    /// # Errors
    /// Where the kernel has no netfilter netlink.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::new(Bus::Netfilter)?, buffer: vec![0; BUFFER], next: 1 })
    }

    /// The connections of both families, of protocols with ports.
    ///
    /// # Errors
    /// Where the kernel does not tell; of kind [`io::ErrorKind::InvalidInput`] where it cannot track connections.
    pub fn entries(&mut self) -> io::Result<Vec<Entry>> {
        self.read(Entry::read)
    }

    /// The connections of both families, of every protocol.
    ///
    /// # Errors
    /// As for [`Conntrack::entries`].
    pub fn all(&mut self) -> io::Result<Vec<Any>> {
        self.read(Any::read)
    }

    fn read<T>(&mut self, read: fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        let seq = self.seq();
        self.socket.send(&message(GET, REQUEST | DUMP, 0, 0, seq, &[]))?;
        let mut found = Vec::new();
        self.answers(|kind, at, body| {
            match kind {
                _ if at != seq => return None,
                DONE => return Some(Ok(())),
                ERROR => return Some(refusal(body)),
                _ => found.extend(body.get(4..).and_then(read)),
            }
            None
        })?;
        Ok(found)
    }

    /// Ends connections; gives how many were still there.
    ///
    /// # Errors
    /// Where the kernel refuses; some may be ended then.
    pub fn end(&mut self, entries: &[Entry]) -> io::Result<usize> {
        let mut ended = 0;
        for some in entries.chunks(AT_ONCE) {
            let mut request = Vec::new();
            let first = self.next;
            for entry in some {
                let family = match entry.family() {
                    Family::Ipv4 => nix::libc::AF_INET,
                    Family::Ipv6 => nix::libc::AF_INET6,
                };
                let family = u8::try_from(family).unwrap_or(0);
                request.extend(message(DELETE, REQUEST | ACK, family, 0, self.seq(), &entry.naming()));
            }
            self.socket.send(&request)?;
            let mut left = some.len();
            self.answers(|kind, at, body| {
                if kind != ERROR || at < first {
                    return None;
                }
                match refusal(body) {
                    Ok(()) => ended += 1,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Some(Err(error)),
                }
                left -= 1;
                (left == 0).then_some(Ok(()))
            })?;
        }
        Ok(ended)
    }

    fn seq(&mut self) -> u32 {
        let seq = self.next;
        self.next += 1;
        seq
    }

    /// Gives kind, number and body of every message that comes to `each`, until that has an answer.
    fn answers(&mut self, mut each: impl FnMut(u16, u32, &[u8]) -> Option<io::Result<()>>) -> io::Result<()> {
        loop {
            let received = match self.socket.recv_raw(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            let bytes = self.buffer.get(..received).unwrap_or_default();
            if let Some(answer) = messages(bytes).find_map(|message| each(message.kind, message.seq, message.body)) {
                return answer;
            }
        }
    }
}

/// What an error message says; that nothing went wrong where it only acknowledges.
fn refusal(body: &[u8]) -> io::Result<()> {
    let number = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if number == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(number.saturating_neg())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(source: &str, destination: &str, to: &str) -> Entry {
        let [source, destination, to] =
            [source, destination, to].map(|end| end.parse().expect("an address with a port"));
        Entry {
            protocol: Protocol::Udp,
            original: Tuple { source, destination },
            reply: Tuple { source: to, destination: source },
            zone: 7,
            id: 0x0102_0304,
        }
    }

    #[test]
    fn what_names_a_connection_is_read_back() {
        for entry in [
            entry("198.51.100.7:40000", "192.0.2.1:8080", "10.0.0.1:80"),
            entry("[2001:db8::7]:40000", "[2001:db8::1]:8080", "[fd00::1]:80"),
        ] {
            let mut bytes = entry.naming();
            let reply = Entry { original: entry.reply, ..entry }.naming();
            // The first attribute is the tuple, whose kind says which direction it is.
            let (_, tuple) = attributes(&reply).next().expect("a tuple");
            put_attribute(&mut bytes, key::REPLY | NESTED, tuple);
            assert_eq!(Entry::read(&bytes), Some(entry));
            for end in 0..bytes.len() {
                let _ = Entry::read(&bytes[..end]);
            }
        }
    }

    #[test]
    fn what_has_no_ports_is_left_out() {
        let mut naming = entry("198.51.100.7:40000", "192.0.2.1:8080", "10.0.0.1:80").naming();
        // The number of the protocol is that of ICMP.
        let at = naming.windows(5).position(|five| five == [5, 0, 1, 0, 17]).expect("the protocol");
        naming[at + 4] = 1;
        assert_eq!(Entry::read(&naming), None);
    }

    #[test]
    fn what_has_no_ports_is_a_connection_all_the_same() {
        let there = entry("198.51.100.7:40000", "192.0.2.1:8080", "10.0.0.1:80");
        let mut bytes = there.naming();
        let back = Entry { original: there.reply, ..there }.naming();
        let (_, tuple) = attributes(&back).next().expect("a tuple");
        put_attribute(&mut bytes, key::REPLY | NESTED, tuple);
        put_attribute(&mut bytes, key::STATUS, &0x18e_u32.to_be_bytes());
        let any = Any { protocol: 17, original: there.original, reply: there.reply, status: 0x18e };
        assert_eq!(Any::read(&bytes), Some(any));
        for end in 0..bytes.len() {
            let _ = Any::read(&bytes[..end]);
        }
        // Of ICMP there is a number where the ports would be, with a key of its own.
        for at in 0..bytes.len() - 4 {
            match bytes[at..at + 5] {
                [5, 0, 1, 0, 17] => bytes[at + 4] = 1,
                [6, 0, 2 | 3, 0, _] => bytes[at + 2] = 4,
                _ => {}
            }
        }
        let any = Any::read(&bytes).expect("a connection");
        assert_eq!((any.protocol, any.original.destination), (1, "192.0.2.1:0".parse().expect("address")));
    }
}
