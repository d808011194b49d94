//! The normal form of a forward: one family, at most one client prefix, one protocol, one contiguous range of ports.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{Comment, Family, IfName, PortRange, Protocol, Source};

/// The rule that maps a listen port to a target port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortMap {
    /// The target port equals the listen port.
    Keep,
    /// Ports map one to one to a range that begins at this port.
    Shift(u16),
    /// Every listen port maps to this port.
    One(u16),
}

impl PortMap {
    /// Returns the map that keeps every port of `range`. For a single port this is [`PortMap::One`], its canonical
    /// form.
    pub fn identity(range: PortRange) -> Self {
        if range.is_single() { Self::One(range.first()) } else { Self::Keep }
    }
}

/// The target of a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Destination {
    /// The target's address, or `None` for this host (a redirect).
    pub address: Option<IpAddr>,
    /// The map to the target's ports.
    pub port: PortMap,
}

/// An entry of the desired state: the unit that portfwd compiles, stores, lists and compares.
///
/// The JSON form is a part of the store's format. JSON leaves a field out if it has its default.
///
/// The form is canonical: a single port is always [`PortMap::One`], and a range that keeps its ports is always
/// [`PortMap::Keep`]. Two bindings have the same meaning only if they are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Binding {
    /// The family of the packets that the binding matches.
    pub family: Family,
    /// The listen address, or `None` for every address of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The ingress interface, or `None` for every interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<IfName>,
    /// The client prefix, or `None` for every client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpNetwork>,
    /// The transport protocol that the binding matches.
    pub protocol: Protocol,
    /// The listen ports, at least one.
    pub ports: PortRange,
    /// The target's address and ports.
    pub to: Destination,
    /// The source address that the target sees.
    #[serde(default, skip_serializing_if = "Source::is_keep")]
    pub source: Source,
    /// Masquerade clients in the target's network (hairpin).
    ///
    /// Always true if the value has no effect: for a redirect, a source other than [`Source::Keep`] or a loopback
    /// listen address.
    #[serde(default = "default_hairpin", skip_serializing_if = "Clone::clone")]
    pub hairpin: bool,
    /// Forward connections of this host to its loopback addresses. If [`Binding::address`] is a loopback address, the
    /// binding matches no other packets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub loopback: bool,
    /// The comment of the forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Comment>,
}

fn default_hairpin() -> bool {
    true
}

/// The precedence class of a binding. If two bindings of different classes match a packet, the lesser class wins.
///
/// An address wins over none, then an interface over none, then the longer client prefix over the shorter one, and a
/// prefix over none. Ports have no influence on the class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Class {
    /// The family of the binding.
    pub family: Family,
    /// True if the binding has a listen address.
    pub address: bool,
    /// True if the binding has an ingress interface.
    pub interface: bool,
    /// The length of the client prefix in bits, or `None` if the binding has no client prefix.
    pub from: Option<u8>,
}

impl Ord for Class {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.family.cmp(&other.family))
            .then(other.address.cmp(&self.address))
            .then(other.interface.cmp(&self.interface))
            .then(other.from.cmp(&self.from))
    }
}

impl PartialOrd for Class {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The key that sorts bindings for `list` and the store, see [`Binding::sort_key`].
pub type SortKey<'a> = (Family, bool, Protocol, u16, Option<IpAddr>, Option<&'a IfName>, Option<IpNetwork>);

impl Binding {
    /// Returns the precedence class.
    pub fn class(&self) -> Class {
        Class {
            family: self.family,
            address: self.address.is_some(),
            interface: self.interface.is_some(),
            from: self.from.map(|from| from.prefix()),
        }
    }

    /// Returns true if the binding listens at a single port. It then wins over a port range of the same class.
    pub fn is_exact(&self) -> bool {
        self.ports.is_single()
    }

    /// Returns the target port for the listen port `port`, which must be one of [`Binding::ports`].
    pub fn target_port(&self, port: u16) -> u16 {
        match self.to.port {
            PortMap::Keep => port,
            PortMap::One(to) => to,
            PortMap::Shift(first) => first.saturating_add(port.saturating_sub(self.ports.first())),
        }
    }

    /// Returns true if the binding matches packets to addresses other than loopback addresses.
    pub fn serves_non_loopback(&self) -> bool {
        !self.address.is_some_and(|address| address.is_loopback())
    }

    /// Returns the listen address if it is a loopback address.
    pub fn loopback_address(&self) -> Option<IpAddr> {
        self.address.filter(IpAddr::is_loopback)
    }

    /// Returns true if a packet can match both bindings and both have the same precedence, so that neither wins.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        self.family == other.family
            && self.is_exact() == other.is_exact()
            && self.protocol == other.protocol
            && self.from == other.from
            && self.ports.overlaps(other.ports)
            && (self.same_address_and_interface(other) || self.overlaps_at_loopback(other))
    }

    /// Returns true if both bindings have the same family, address, interface, client prefix and protocol.
    pub fn listens_like(&self, other: &Self) -> bool {
        let same_clients = self.protocol == other.protocol && self.from == other.from;
        self.family == other.family && same_clients && self.same_address_and_interface(other)
    }

    fn same_address_and_interface(&self, other: &Self) -> bool {
        self.address == other.address && self.interface == other.interface
    }

    /// Returns true if a packet to a loopback address can match both bindings with the same precedence.
    ///
    /// A binding with `loopback` matches these packets whatever its listen address and interface are. Only their
    /// presence counts, because it determines the class.
    fn overlaps_at_loopback(&self, other: &Self) -> bool {
        let different = matches!((self.loopback_address(), other.loopback_address()), (Some(a), Some(b)) if a != b);
        self.loopback && other.loopback && self.class() == other.class() && !different
    }

    /// Returns the text of the listening side: `192.0.2.1:8080/tcp on eth0 from 10.0.0.0/8`.
    pub fn listen(&self) -> ListenText<'_> {
        ListenText(self)
    }

    /// Returns the text of the options that differ from their defaults, for example ` source masquerade loopback`.
    pub fn options(&self) -> OptionsText<'_> {
        OptionsText(self)
    }

    /// Returns the text of the target: `172.17.0.3:80`.
    pub fn target(&self) -> TargetText<'_> {
        TargetText(self)
    }
}

/// The [`Display`](fmt::Display) form of the listening side of a [`Binding`].
pub struct ListenText<'a>(&'a Binding);

impl fmt::Display for ListenText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binding = self.0;
        match binding.address {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        write!(f, "{}/{}", binding.ports, binding.protocol)?;
        if let Some(interface) = &binding.interface {
            write!(f, " on {interface}")?;
        }
        if let Some(from) = binding.from {
            write!(f, " from {from}")?;
        }
        Ok(())
    }
}

/// The [`Display`](fmt::Display) form of the target of a [`Binding`].
pub struct TargetText<'a>(&'a Binding);

impl fmt::Display for TargetText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binding = self.0;
        match (binding.to.address, binding.to.port) {
            (Some(address), PortMap::Keep) => return write!(f, "{address}"),
            (Some(IpAddr::V4(address)), _) => write!(f, "{address}")?,
            (Some(IpAddr::V6(address)), _) => write!(f, "[{address}]")?,
            (None, _) => {}
        }
        match binding.to.port {
            PortMap::Keep => write!(f, ":{}", binding.ports),
            PortMap::One(port) => write!(f, ":{port}"),
            PortMap::Shift(first) => write!(f, ":{first}-{}", binding.target_port(binding.ports.last())),
        }
    }
}

/// The [`Display`](fmt::Display) form of the options of a [`Binding`]. Each option begins with a space.
pub struct OptionsText<'a>(&'a Binding);

impl fmt::Display for OptionsText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binding = self.0;
        if !binding.source.is_keep() {
            write!(f, " source {}", binding.source)?;
        }
        if !binding.hairpin {
            f.write_str(" no-hairpin")?;
        }
        if binding.loopback && binding.serves_non_loopback() { f.write_str(" loopback") } else { Ok(()) }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}{}", self.listen(), self.target(), self.options())?;
        if self.address.is_none() && self.from.is_none() && self.to.address.is_none() {
            write!(f, " ({})", self.family)?;
        }
        Ok(())
    }
}

impl Binding {
    /// Returns the sort key: single ports before ranges, then by protocol and ascending port.
    pub fn sort_key(&self) -> SortKey<'_> {
        (
            self.family,
            !self.is_exact(),
            self.protocol,
            self.ports.first(),
            self.address,
            self.interface.as_ref(),
            self.from,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(address: bool, interface: bool, from: Option<u8>) -> Class {
        Class { family: Family::Ipv4, address, interface, from }
    }

    #[test]
    fn precedence_is_address_then_interface_then_longer_prefix() {
        let order = [
            class(true, true, Some(24)),
            class(true, true, None),
            class(true, false, Some(8)),
            class(true, false, None),
            class(false, true, Some(8)),
            class(false, true, None),
            class(false, false, Some(32)),
            class(false, false, Some(8)),
            class(false, false, Some(0)),
            class(false, false, None),
        ];
        assert!(order.is_sorted());
    }
}
