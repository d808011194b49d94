//! Addresses that stand for one host, and those that do not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::Family;

/// Why an address cannot be one host's; `None` where it can, the loopback addresses included.
pub(super) fn no_host(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("is the unspecified address")
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
}
