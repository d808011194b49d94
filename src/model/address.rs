//! Addresses that stand for one host, and those that do not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::Family;

/// Why an address cannot be one host's; `None` where it can, the loopback addresses included.
pub fn no_host(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("is the unspecified address")
    } else if matches!(address, IpAddr::V4(v4) if v4.octets().starts_with(&[0])) {
        // Linux routes there like anywhere (measured, 6.18); others drop it.
        Some("is in 0.0.0.0/8, which is nobody's address (RFC 6890)")
    } else if address.is_multicast() {
        Some("is a multicast address")
    } else if address == IpAddr::from([255; 4]) {
        Some("is the broadcast address")
    } else if matches!(address, IpAddr::V6(v6) if is_mapped(v6)) {
        Some("is an IPv4 address in IPv6 clothes")
    } else {
        None
    }
}

/// Why an address cannot be the source of what leaves this host; `None` where it can.
pub(super) fn no_source(address: IpAddr) -> Option<&'static str> {
    if let Some(what) = no_host(address) {
        Some(what)
    } else if address.is_loopback() {
        Some("is a loopback address")
    } else if is_link_local(address) {
        Some("is link-local, which means nothing without an interface")
    } else if unsendable(address, address).is_some() {
        Some("is in 240.0.0.0/4, which is reserved (RFC 6890)")
    } else {
        None
    }
}

/// IPv4 addresses that no packet on a wire has: from, to, and what they are. Source: RFC 6890.
const UNSENDABLE_IPV4: [(u32, u32, &str); 4] = [
    (0x0000_0000, 0x00ff_ffff, "addresses in 0.0.0.0/8"),
    (0x7f00_0000, 0x7fff_ffff, "loopback addresses"),
    (0xe000_0000, 0xefff_ffff, "multicast addresses"),
    (0xf000_0000, 0xffff_ffff, "reserved addresses in 240.0.0.0/4"),
];

/// The same of IPv6, and the link-local ones, which mean nothing without an interface.
const UNSENDABLE_IPV6: [(u128, u128, &str); 5] = [
    (0, 0, "the unspecified address"),
    (1, 1, "the loopback address"),
    (0xffff_0000_0000, 0xffff_ffff_ffff, "IPv4 addresses in IPv6 clothes"),
    (0xfe80 << 112, (0xfec0 << 112) - 1, "link-local addresses"),
    (0xff00 << 112, u128::MAX, "multicast addresses"),
];

/// What from `first` to `last`, both included and of one family, cannot be the address of a host on a wire; `None` where
/// every one can.
pub(super) fn unsendable(first: IpAddr, last: IpAddr) -> Option<&'static str> {
    fn meets<T: PartialOrd + Copy>(first: T, last: T, ranges: &[(T, T, &'static str)]) -> Option<&'static str> {
        ranges.iter().find(|(from, to, _)| first <= *to && *from <= last).map(|(_, _, what)| *what)
    }
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => meets(first.to_bits(), last.to_bits(), &UNSENDABLE_IPV4),
        (IpAddr::V6(first), IpAddr::V6(last)) => meets(first.to_bits(), last.to_bits(), &UNSENDABLE_IPV6),
        _ => None,
    }
}

/// What in a network cannot be the address of a host on a wire; `None` where every address can.
pub(super) fn unsendable_in(network: IpNetwork) -> Option<&'static str> {
    unsendable(network.network(), network.broadcast())
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Whether an address is of the form `::ffff:192.0.2.1`, which no packet carries.
fn is_mapped(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

/// The addresses that a host keeps for itself: `127.0.0.0/8` and `::1`.
pub fn loopback(family: Family) -> IpNetwork {
    let network = match family {
        Family::Ipv4 => Ipv4Network::new(Ipv4Addr::new(127, 0, 0, 0), 8).map(IpNetwork::V4),
        Family::Ipv6 => Ipv6Network::new(Ipv6Addr::LOCALHOST, 128).map(IpNetwork::V6),
    };
    network.expect("both lengths fit their family")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_networks_hold_the_loopback_addresses() {
        for (family, inside) in [(Family::Ipv4, "127.255.255.254"), (Family::Ipv6, "::1")] {
            let address: IpAddr = inside.parse().expect(inside);
            assert!(loopback(family).contains(address) && address.is_loopback() && no_host(address).is_none());
        }
    }

    #[test]
    fn reserved_addresses_are_found_between_others() {
        for (first, last, found) in [
            ("10.0.0.0", "10.255.255.255", None),
            ("126.255.255.255", "128.0.0.0", Some("loopback addresses")),
            ("223.255.255.255", "224.0.0.0", Some("multicast addresses")),
            ("240.0.0.1", "240.0.0.1", Some("reserved addresses in 240.0.0.0/4")),
            ("0.0.0.1", "1.0.0.0", Some("addresses in 0.0.0.0/8")),
            ("2001:db8::", "fe7f:ffff::", None),
            ("2001:db8::", "fe80::1", Some("link-local addresses")),
            ("fec0::", "fec0::1", None),
            ("::1", "::2", Some("the loopback address")),
        ] {
            assert_eq!(unsendable(first.parse().expect(first), last.parse().expect(last)), found, "{first}-{last}");
        }
    }
}
