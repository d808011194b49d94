//! Checks of addresses: which addresses one host can have, and which ranges are reserved.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::Family;

/// Returns why no host can have `address`, or `None` if a host can. Loopback addresses are valid.
///
/// The text completes a sentence that begins with the address: "is a multicast address".
pub fn invalid_host(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("is the unspecified address")
    } else if matches!(address, IpAddr::V4(v4) if v4.octets().starts_with(&[0])) {
        // Linux routes packets to 0.0.0.0/8 like all others (measured, Linux 6.18); other systems drop these packets.
        Some("is in 0.0.0.0/8, which is reserved (RFC 6890)")
    } else if address.is_multicast() {
        Some("is a multicast address")
    } else if address == IpAddr::from([255; 4]) {
        Some("is the broadcast address")
    } else if matches!(address, IpAddr::V6(v6) if is_ipv4_mapped(v6)) {
        Some("is an IPv4-mapped IPv6 address")
    } else {
        None
    }
}

/// Returns why `address` cannot be the source address of a packet that leaves this host, or `None` if it can.
pub(super) fn invalid_source(address: IpAddr) -> Option<&'static str> {
    if let Some(reason) = invalid_host(address) {
        Some(reason)
    } else if address.is_loopback() {
        Some("is a loopback address")
    } else if is_link_local(address) {
        Some("is link-local, so it needs an interface")
    } else if reserved_in_range(address, address).is_some() {
        Some("is in 240.0.0.0/4, which is reserved (RFC 6890)")
    } else {
        None
    }
}

/// Ranges of IPv4 addresses that no packet on the network has: first, last, name. Source: RFC 6890.
const RESERVED_IPV4: [(u32, u32, &str); 4] = [
    (0x0000_0000, 0x00ff_ffff, "addresses in 0.0.0.0/8"),
    (0x7f00_0000, 0x7fff_ffff, "loopback addresses"),
    (0xe000_0000, 0xefff_ffff, "multicast addresses"),
    (0xf000_0000, 0xffff_ffff, "reserved addresses in 240.0.0.0/4"),
];

/// Ranges of IPv6 addresses that no packet on the network has, and the link-local range, which needs an interface.
const RESERVED_IPV6: [(u128, u128, &str); 5] = [
    (0, 0, "the unspecified address"),
    (1, 1, "the loopback address"),
    (0xffff_0000_0000, 0xffff_ffff_ffff, "IPv4-mapped IPv6 addresses"),
    (0xfe80 << 112, (0xfec0 << 112) - 1, "link-local addresses"),
    (0xff00 << 112, u128::MAX, "multicast addresses"),
];

/// Returns the name of the first reserved range that overlaps `first` to `last`, or `None` if no range does.
///
/// Both addresses are included and have the same family.
pub(super) fn reserved_in_range(first: IpAddr, last: IpAddr) -> Option<&'static str> {
    fn overlap<T: PartialOrd + Copy>(first: T, last: T, ranges: &[(T, T, &'static str)]) -> Option<&'static str> {
        ranges.iter().find(|(from, to, _)| first <= *to && *from <= last).map(|(_, _, name)| *name)
    }
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => overlap(first.to_bits(), last.to_bits(), &RESERVED_IPV4),
        (IpAddr::V6(first), IpAddr::V6(last)) => overlap(first.to_bits(), last.to_bits(), &RESERVED_IPV6),
        _ => None,
    }
}

/// Returns the name of the first reserved range that overlaps `network`, or `None` if no range does.
pub(super) fn reserved_in_network(network: IpNetwork) -> Option<&'static str> {
    reserved_in_range(network.network(), network.broadcast())
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Returns true if the address has the form `::ffff:192.0.2.1`, which no packet carries.
fn is_ipv4_mapped(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

/// Returns the loopback network of a family: `127.0.0.0/8` or `::1/128`.
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
    fn loopback_networks_contain_the_loopback_addresses() {
        for (family, inside) in [(Family::Ipv4, "127.255.255.254"), (Family::Ipv6, "::1")] {
            let address: IpAddr = inside.parse().expect(inside);
            assert!(loopback(family).contains(address) && address.is_loopback() && invalid_host(address).is_none());
        }
    }

    #[test]
    fn reserved_ranges_inside_a_range_are_found() {
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
            assert_eq!(
                reserved_in_range(first.parse().expect(first), last.parse().expect(last)),
                found,
                "{first}-{last}"
            );
        }
    }
}
