//! Finds new forwards that would take the clients of a listening socket of this host, or the user's SSH connection.
//!
//! The functions compare the old and the new desired state with the sockets. If a forward of the old state already takes
//! a socket, the socket is no finding. So portfwd never refuses a rule set that was applied before.
//!
//! Be aware: a forward takes a socket even if it takes only some clients. A forward on one interface does not take a socket
//! that is bound to the address of another interface. Linux delivers a packet to such an address even if the packet
//! arrives on the forward's interface (weak host model, measured on Linux 6.18), but the service's clients use the
//! interface with the address.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::{Binding, DesiredState, Family, IfName, Protocol};
use crate::sys::rtnetlink::{Link, Rtnetlink, interfaces_to};
use crate::sys::sockets::Socket;
use crate::sys::ssh::Ssh;

/// A new forward, and the sockets that would lose clients to the forward.
#[derive(Debug, PartialEq, Eq)]
pub struct Taking<'a> {
    /// The new forward.
    pub binding: &'a Binding,
    /// The sockets that lose clients, sorted by port.
    pub sockets: Vec<&'a Socket>,
    /// The user's SSH connection, if the forward would take it.
    pub ssh: Option<Ssh>,
}

/// Returns the protocols of all forwards. Only sockets of these protocols can lose clients.
pub fn protocols(after: &DesiredState) -> BTreeSet<Protocol> {
    after.bindings.iter().map(|owned| owned.rule.protocol).collect()
}

/// The interfaces of this host. The default value knows no interface; then a forward on one interface counts as a
/// forward on all interfaces.
#[derive(Debug, Default)]
pub struct Interfaces {
    /// The interfaces by index: name, and index of the master device.
    links: HashMap<u32, (String, Option<u32>)>,
    /// The interfaces of each address, without interfaces that have no clients of their own.
    addresses: HashMap<IpAddr, Vec<u32>>,
    /// The egress interface to the SSH client.
    to_ssh_client: Option<IfName>,
}

impl Interfaces {
    /// Reads the interfaces, if a forward needs them. What cannot be read is unknown.
    pub fn read(after: &DesiredState, ssh: Option<Ssh>) -> Self {
        let mut interfaces = Self::default();
        if after.bindings.iter().all(|owned| owned.rule.interface.is_none()) {
            return interfaces;
        }
        let Ok(kernel) = Rtnetlink::open() else { return interfaces };
        let links = kernel.links().map(|dump| dump.objects).unwrap_or_default();
        // Clients of an address on `lo` or on a dummy interface use other interfaces.
        let own_clients = |link: &&Link| !link.loopback && link.kind.as_deref() != Some("dummy");
        let with_clients: HashSet<u32> = links.iter().filter(own_clients).map(|link| link.index).collect();
        interfaces.links = links.into_iter().map(|link| (link.index, (link.name, link.master))).collect();
        let addresses = Family::ALL.into_iter().filter_map(|family| kernel.addresses(family).ok());
        let addresses = addresses.flat_map(|dump| dump.objects);
        for address in addresses.filter(|address| with_clients.contains(&address.index)) {
            interfaces.addresses.entry(address.own.ip()).or_default().push(address.index);
        }
        let client = ssh.map(|ssh| ssh.client);
        let routes = interfaces_to(client).unwrap_or_default();
        interfaces.to_ssh_client = routes.into_values().next().flatten();
        interfaces
    }

    /// Returns false if clients of the socket certainly use other interfaces than the forward's.
    fn may_share(&self, binding: &Binding, socket: &Socket) -> bool {
        let Some(name) = &binding.interface else { return true };
        let is_name = |index: &u32| self.links.get(index).is_none_or(|(known, _)| known == name.as_str());
        let own = self.links.values().find(|(known, _)| known == name.as_str());
        // A socket that is bound to a VRF device serves clients of the device's ports.
        let is_master = own.is_none_or(|(_, master)| *master == Some(socket.interface));
        if socket.interface != 0 && !is_name(&socket.interface) && !is_master {
            return false;
        }
        self.addresses.get(&socket.address).is_none_or(|indexes| indexes.iter().any(is_name))
    }

    /// Returns false if packets of the SSH client certainly arrive on another interface than the forward's.
    fn may_carry_ssh(&self, binding: &Binding) -> bool {
        self.to_ssh_client.as_ref().is_none_or(|known| binding.interface.as_ref().is_none_or(|name| name == known))
    }
}

/// Returns the forwards of `after` that take a socket or `ssh`. Leaves out sockets that a forward of `before` already
/// takes.
pub fn takings<'a>(
    before: &'a DesiredState,
    after: &'a DesiredState,
    sockets: &'a [Socket],
    ssh: Option<Ssh>,
    interfaces: &Interfaces,
) -> Vec<Taking<'a>> {
    let sockets = Sockets::new(sockets);
    let found: Vec<Taking<'_>> = all(after, &sockets, ssh, interfaces).collect();
    if found.is_empty() {
        return found;
    }
    let mut taken = HashSet::new();
    let mut taken_ssh = HashSet::new();
    for taking in all(before, &sockets, ssh, interfaces) {
        taken.extend(taking.sockets.iter().map(|socket| (*socket, Place::for_binding(taking.binding))));
        taken_ssh.extend(taking.ssh.map(|_| Place::for_binding(taking.binding)));
    }
    let new = |mut taking: Taking<'a>| {
        let places = Place::for_binding(taking.binding).and_wider();
        taking.sockets.retain(|socket| !places.iter().any(|place| taken.contains(&(*socket, *place))));
        taking.ssh = taking.ssh.filter(|_| !places.iter().any(|place| taken_ssh.contains(place)));
        (!taking.sockets.is_empty() || taking.ssh.is_some()).then_some(taking)
    };
    found.into_iter().filter_map(new).collect()
}

/// Returns every forward that takes a socket or `ssh`, whether it is new or old.
fn all<'a>(
    desired: &'a DesiredState,
    sockets: &Sockets<'a>,
    ssh: Option<Ssh>,
    interfaces: &Interfaces,
) -> impl Iterator<Item = Taking<'a>> {
    desired.bindings.iter().filter_map(move |owned| {
        let binding = &owned.rule;
        let taken = |socket: &&Socket| takes(binding, socket) && interfaces.may_share(binding, socket);
        let sockets: Vec<&Socket> = sockets.at_ports_of(binding).filter(taken).collect();
        let ssh = ssh.filter(|ssh| takes_ssh(binding, *ssh) && interfaces.may_carry_ssh(binding));
        (!sockets.is_empty() || ssh.is_some()).then_some(Taking { binding, sockets, ssh })
    })
}

/// Sockets sorted by protocol and port, for fast lookups.
struct Sockets<'a>(Vec<&'a Socket>);

impl<'a> Sockets<'a> {
    fn new(sockets: &'a [Socket]) -> Self {
        let mut sorted: Vec<&Socket> = sockets.iter().collect();
        sorted.sort_by_key(|socket| (socket.protocol, socket.port, socket.address));
        Self(sorted)
    }

    fn at_ports_of(&self, binding: &Binding) -> impl Iterator<Item = &'a Socket> {
        let key = |socket: &&Socket| (socket.protocol, socket.port);
        let first = self.0.partition_point(|socket| key(socket) < (binding.protocol, binding.ports.first()));
        let last = (binding.protocol, binding.ports.last());
        self.0.iter().skip(first).copied().take_while(move |socket| key(socket) <= last)
    }
}

/// The match conditions of a forward, except its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place<'a> {
    family: Family,
    address: Option<IpAddr>,
    interface: Option<&'a IfName>,
    from: Option<IpNetwork>,
    loopback: bool,
}

impl<'a> Place<'a> {
    fn for_binding(binding: &'a Binding) -> Self {
        Self {
            family: binding.family,
            address: binding.address,
            interface: binding.interface.as_ref(),
            from: binding.from,
            loopback: binding.loopback,
        }
    }

    /// Returns two sets of match conditions: the unchanged one, and the one with loopback addresses included.
    fn and_wider(self) -> [Self; 2] {
        [self, Self { loopback: true, ..self }]
    }
}

/// Returns true if a forward takes clients from a socket. The caller has already compared protocol and port.
fn takes(binding: &Binding, socket: &Socket) -> bool {
    let own = !socket.address.is_unspecified();
    let stays_there = binding.target_port(socket.port) == socket.port
        && binding.to.address.is_none_or(|target| own && target == socket.address);
    let there = if own { is_about(binding, socket.address) } else { true };
    // portfwd never forwards packets to a multicast group.
    let to_group = socket.address.is_multicast();
    socket.serves(binding.family) && there && !to_group && !stays_there
}

/// Returns true if a forward would take a new SSH connection between the same client and server.
fn takes_ssh(binding: &Binding, ssh: Ssh) -> bool {
    let port = ssh.server.port();
    let stays_there =
        binding.target_port(port) == port && binding.to.address.is_none_or(|target| target == ssh.server.ip());
    binding.protocol == Protocol::Tcp
        && binding.family == Family::of_address(ssh.server.ip())
        && (binding.ports.first()..=binding.ports.last()).contains(&port)
        && binding.from.is_none_or(|from| from.contains(ssh.client))
        && is_about(binding, ssh.server.ip())
        && !stays_there
}

/// Returns true if a forward matches packets to an address of this host; see `listens_at` in `model/meaning.rs`.
fn is_about(binding: &Binding, address: IpAddr) -> bool {
    match binding.address {
        Some(own) if own == address => true,
        Some(own) => binding.loopback && address.is_loopback() && !own.is_loopback(),
        None => binding.loopback || !address.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::model::{Forward, SetName, SetRule};

    fn desired(forwards: &[&str]) -> DesiredState {
        let mut desired = DesiredState::default();
        for text in forwards {
            let words: Vec<&str> = text.split_whitespace().collect();
            let [listen, to, options @ ..] = words.as_slice() else { panic!("{text}") };
            let mut forward = Forward::new(listen.parse().expect(listen), to.parse().expect(to));
            for option in options {
                match option.split_once('=') {
                    Some(("from", prefix)) => forward.from.push(prefix.parse().expect(prefix)),
                    Some(("interface", name)) => forward.interface = Some(name.parse().expect(name)),
                    _ => forward.loopback = true,
                }
            }
            let own = |rule| SetRule { set: SetName::cli(), rule };
            desired.bindings.extend(forward.bindings().expect(text).into_iter().map(own));
        }
        desired
    }

    /// Parses a socket such as `0.0.0.0:22/tcp`. The suffix ` only` marks an IPv6-only socket: `[::]:22/tcp only`.
    fn socket(text: &str) -> Socket {
        let (text, only_ipv6) = text.strip_suffix(" only").map_or((text, false), |text| (text, true));
        let (at, protocol) = text.split_once('/').expect(text);
        let at: SocketAddr = at.parse().expect(at);
        let protocol = protocol.parse().expect(protocol);
        Socket { protocol, address: at.ip(), port: at.port(), only_ipv6, interface: 0, inode: 1 }
    }

    fn taken(before: &[&str], after: &[&str], sockets: &[&str]) -> Vec<String> {
        let sockets: Vec<Socket> = sockets.iter().map(|text| socket(text)).collect();
        let (before, after) = (desired(before), desired(after));
        let takings = takings(&before, &after, &sockets, None, &Interfaces::default());
        takings.iter().flat_map(|taking| &taking.sockets).map(ToString::to_string).collect()
    }

    #[test]
    fn a_forward_takes_only_the_sockets_that_it_matches() {
        for (forward, taken_from, not_from) in [
            ("22 10.0.0.1", "0.0.0.0:22/tcp", "0.0.0.0:23/tcp"),
            ("22 10.0.0.1", "[::]:22/tcp", "[::]:22/tcp only"),
            ("22 fd00::1", "[::]:22/tcp only", "0.0.0.0:22/tcp"),
            ("22/udp 10.0.0.1", "0.0.0.0:22/udp", "0.0.0.0:22/tcp"),
            ("20-22 10.0.0.1", "0.0.0.0:22/tcp", "0.0.0.0:23/tcp"),
            ("20-22 10.0.0.1", "0.0.0.0:20/tcp", "0.0.0.0:19/tcp"),
            ("22 10.0.0.1", "192.0.2.1:22/tcp", "127.0.0.1:22/tcp"),
            ("22 fd00::1", "[2001:db8::1]:22/tcp", "[::1]:22/tcp"),
            ("192.0.2.1:22 10.0.0.1", "192.0.2.1:22/tcp", "192.0.2.2:22/tcp"),
            ("192.0.2.1:22 10.0.0.1", "0.0.0.0:22/tcp", "127.0.0.1:22/tcp"),
            ("192.0.2.1:22 10.0.0.1 loopback", "127.0.0.1:22/tcp", "192.0.2.2:22/tcp"),
            ("22 10.0.0.1 loopback", "127.0.0.53:22/tcp", "[::1]:22/tcp"),
            ("127.0.0.1:22 10.0.0.1 loopback", "127.0.0.1:22/tcp", "127.0.0.2:22/tcp"),
            ("127.0.0.1:22 10.0.0.1 loopback", "0.0.0.0:22/tcp", "192.0.2.1:22/tcp"),
            ("22 10.0.0.1 from=198.51.100.0/24", "0.0.0.0:22/tcp", "[::]:22/tcp only"),
            ("22 10.0.0.1 interface=eth0", "0.0.0.0:22/tcp", "127.0.0.1:22/tcp"),
            ("5353/udp 10.0.0.1", "0.0.0.0:5353/udp", "224.0.0.251:5353/udp"),
            ("22 :2222", "0.0.0.0:22/tcp", "0.0.0.0:2222/tcp"),
            ("22 192.0.2.1:22", "192.0.2.2:22/tcp", "192.0.2.1:22/tcp"),
            ("22 192.0.2.1:22", "0.0.0.0:22/tcp", "192.0.2.1:22/tcp"),
            ("20-30 :23", "0.0.0.0:22/tcp", "0.0.0.0:23/tcp"),
        ] {
            assert_eq!(
                taken(&[], &[forward], &[taken_from, not_from]).first().map(String::as_str),
                Some(taken_from.trim_end_matches(" only")),
                "{forward}"
            );
            assert_eq!(taken(&[], &[forward], &[not_from]), [""; 0], "{forward}: {not_from}");
        }
        for same in ["22 :22", "20-30 :20-30", "22 :22 loopback"] {
            assert_eq!(taken(&[], &[same], &["0.0.0.0:22/tcp", "192.0.2.1:22/tcp", "[::]:22/tcp"]), [""; 0], "{same}");
        }
    }

    #[test]
    fn a_socket_that_an_old_forward_already_takes_is_no_finding() {
        let sockets = ["0.0.0.0:22/tcp", "127.0.0.1:22/tcp", "0.0.0.0:25/tcp"];
        for (before, after, expected) in [
            (&["22 10.0.0.1"][..], &["22 10.0.0.1"][..], &[][..]),
            (&["22 10.0.0.1"], &["22 10.0.0.2:80"], &[]),
            (&["20-30 10.0.0.1"], &["22 10.0.0.1"], &[]),
            (&["20-24 10.0.0.1"], &["20-30 10.0.0.1"], &["0.0.0.0:25/tcp"]),
            (&["22 10.0.0.1"], &["22 10.0.0.1 loopback"], &["0.0.0.0:22/tcp", "127.0.0.1:22/tcp"]),
            (&["22 10.0.0.1 loopback"], &["22 10.0.0.1"], &[]),
            (&["22 10.0.0.1 from=198.51.100.0/24"], &["22 10.0.0.1"], &["0.0.0.0:22/tcp"]),
            (&["22 10.0.0.1"], &["192.0.2.1:22 10.0.0.1"], &["0.0.0.0:22/tcp"]),
            (&["22 10.0.0.1"], &["22 10.0.0.1 interface=eth0"], &["0.0.0.0:22/tcp"]),
            // The old forward sent port 22 to the socket itself, so it took nothing.
            (&["22 :22"], &["22 10.0.0.1"], &["0.0.0.0:22/tcp"]),
            (&["22 10.0.0.1"], &[], &[]),
        ] {
            assert_eq!(taken(before, after, &sockets), expected, "{before:?} {after:?}");
        }
    }

    #[test]
    fn only_a_forward_that_matches_the_ssh_connection_takes_it() {
        for (connection, forward, is_taken) in [
            ("198.51.100.7 50000 192.0.2.1 22", "22 10.0.0.1", true),
            ("198.51.100.7 50000 192.0.2.1 22", "20-22 10.0.0.1", true),
            ("198.51.100.7 50000 192.0.2.1 22", "23 10.0.0.1", false),
            ("198.51.100.7 50000 192.0.2.1 22", "22/udp 10.0.0.1", false),
            ("198.51.100.7 50000 192.0.2.1 22", "22 fd00::1", false),
            ("198.51.100.7 50000 192.0.2.1 22", "22 :22", false),
            ("198.51.100.7 50000 192.0.2.1 22", "22 192.0.2.1", false),
            ("198.51.100.7 50000 192.0.2.1 22", "22 :2222", true),
            ("198.51.100.7 50000 192.0.2.1 22", "192.0.2.1:22 10.0.0.1", true),
            ("198.51.100.7 50000 192.0.2.1 22", "192.0.2.2:22 10.0.0.1", false),
            ("198.51.100.7 50000 192.0.2.1 22", "22 10.0.0.1 from=198.51.100.0/24", true),
            ("198.51.100.7 50000 192.0.2.1 22", "22 10.0.0.1 from=198.51.101.0/24", false),
            ("127.0.0.1 50000 127.0.0.1 22", "22 10.0.0.1", false),
            ("127.0.0.1 50000 127.0.0.1 22", "22 10.0.0.1 loopback", true),
            ("::ffff:198.51.100.7 50000 ::ffff:192.0.2.1 22", "22 10.0.0.1", true),
            ("fe80::1%eth0 50000 fe80::2%eth0 22", "22 fd00::1", true),
        ] {
            let ssh = Ssh::parse(connection).expect(connection);
            let (before, after) = (desired(&[]), desired(&[forward]));
            let found = takings(&before, &after, &[], Some(ssh), &Interfaces::default());
            assert_eq!(found.iter().any(|taking| taking.ssh == Some(ssh)), is_taken, "{connection}: {forward}");
            assert_eq!(takings(&after, &after, &[], Some(ssh), &Interfaces::default()), [], "{connection}: {forward}");
        }
    }
}
