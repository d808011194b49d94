//! The normal form of a forward: one family, one client prefix, one protocol, one contiguous span of ports.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{Comment, Family, IfName, PortRange, Protocol, Source};

/// What becomes of the port that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortMap {
    /// It stays as it is.
    Keep,
    /// The range begins here instead; one to one.
    Shift(u16),
    /// All go to this one.
    One(u16),
}

impl PortMap {
    /// The map that keeps every port of `range`. For a single port that is [`PortMap::One`], the only form it has.
    pub fn kept(range: PortRange) -> Self {
        if range.is_single() { Self::One(range.first()) } else { Self::Keep }
    }
}

/// Where a binding leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Destination {
    /// The target's address; none: this host.
    pub address: Option<IpAddr>,
    /// The target's port.
    pub port: PortMap,
}

/// One element of what is asked: the atom that is compiled, stored, listed and compared.
///
/// The JSON form is a part of the store's format; a field that JSON leaves out has its usual value.
///
/// Canonical: a single port is always [`PortMap::One`], a range that is not moved is always [`PortMap::Keep`], so two
/// bindings mean the same exactly when they are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Binding {
    /// The family of the packets it is about.
    pub family: Family,
    /// The address it listens at; none: every address of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Only what arrives here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<IfName>,
    /// Only these clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpNetwork>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The ports it listens at.
    pub ports: PortRange,
    /// Where it leads.
    pub to: Destination,
    /// What the target sees as the client.
    #[serde(default, skip_serializing_if = "Source::is_keep")]
    pub source: Source,
    /// Whether clients in the target's own network are masqueraded. True where it makes no difference: of a redirect, with
    /// another source than the client, at a loopback address.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub hairpin: bool,
    /// Whether it serves this host at its loopback addresses; where [`Binding::address`] is one of them, only there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub loopback: bool,
    /// The forward's remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Comment>,
}

fn yes() -> bool {
    true
}

/// What decides, before any port is looked at, which of two bindings wins.
///
/// Ordered by precedence: the class that is asked first is the least. An address wins over none, then an interface
/// over none, then the longer client prefix over the shorter and any over none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Class {
    /// The family.
    pub family: Family,
    /// Whether an address is given.
    pub address: bool,
    /// Whether an interface is given.
    pub interface: bool,
    /// The length of the client prefix in bits, if one is given.
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

/// The order in which bindings are listed.
pub type SortKey<'a> = (Family, bool, Protocol, u16, Option<IpAddr>, Option<&'a IfName>, Option<IpNetwork>);

impl Binding {
    /// The class that decides its precedence.
    pub fn class(&self) -> Class {
        Class {
            family: self.family,
            address: self.address.is_some(),
            interface: self.interface.is_some(),
            from: self.from.map(|from| from.prefix()),
        }
    }

    /// Whether it is about one port only; such a binding wins over a range of its class.
    pub fn is_exact(&self) -> bool {
        self.ports.is_single()
    }

    /// The port that `port`, one of [`Binding::ports`], is sent to.
    pub fn target_port(&self, port: u16) -> u16 {
        match self.to.port {
            PortMap::Keep => port,
            PortMap::One(to) => to,
            PortMap::Shift(first) => first.saturating_add(port.saturating_sub(self.ports.first())),
        }
    }

    /// Whether it serves packets to other than the loopback addresses.
    pub fn serves_others(&self) -> bool {
        !self.address.is_some_and(|address| address.is_loopback())
    }

    /// The one loopback address that it serves, if it serves only one.
    pub fn loopback_address(&self) -> Option<IpAddr> {
        self.address.filter(IpAddr::is_loopback)
    }

    /// Whether both are about the same packets with the same precedence, so that nothing says which of them wins.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.family == other.family
            && self.is_exact() == other.is_exact()
            && self.protocol == other.protocol
            && self.from == other.from
            && self.ports.overlaps(other.ports)
            && (self.same_place(other) || self.same_loopback(other))
    }

    /// Whether both listen at the same place, to the same clients, with the same protocol; at whichever ports.
    pub fn listens_like(&self, other: &Self) -> bool {
        let same_clients = self.protocol == other.protocol && self.from == other.from;
        self.family == other.family && same_clients && self.same_place(other)
    }

    fn same_place(&self, other: &Self) -> bool {
        self.address == other.address && self.interface == other.interface
    }

    /// At a loopback address it does not matter which other address or interface they name, only that they do.
    fn same_loopback(&self, other: &Self) -> bool {
        let apart = matches!((self.loopback_address(), other.loopback_address()), (Some(a), Some(b)) if a != b);
        self.loopback && other.loopback && self.class() == other.class() && !apart
    }

    /// The listening half: `192.0.2.1:8080/tcp on eth0 from 10.0.0.0/8`.
    pub fn listen(&self) -> ListenText<'_> {
        ListenText(self)
    }

    /// What it asks besides its two ends: ` source masquerade`, ` no-hairpin`, ` loopback`; nothing where that is as
    /// usual.
    pub fn options(&self) -> OptionsText<'_> {
        OptionsText(self)
    }

    /// The target half: `172.17.0.3:80`.
    pub fn target(&self) -> TargetText<'_> {
        TargetText(self)
    }
}

/// Prints the listening half of a [`Binding`].
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

/// Prints the target half of a [`Binding`].
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

/// Prints what a [`Binding`] asks besides its two ends, each word behind a space: ` source masquerade loopback`.
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
        if binding.loopback && binding.serves_others() { f.write_str(" loopback") } else { Ok(()) }
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
    /// The key to sort by: single ports before ranges, and the ports of a protocol rise.
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
