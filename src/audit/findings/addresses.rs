//! Classes of addresses: global, private, loopback, and the wildcard of this host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::Family;
use crate::ruleset::facts::Facts;
use crate::ruleset::region::{Field, LOCAL, Region};
use crate::ruleset::set::Set;

/// Returns the address of a remote client, from the ranges for documentation (RFC 5737, RFC 3849).
pub(super) fn far(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7)),
    }
}

/// Returns the loopback addresses.
pub(in crate::audit) fn loopback(family: Family) -> Set {
    match family {
        Family::Ipv4 => Set::range(0x7f00_0000, 0x7fff_ffff),
        Family::Ipv6 => Set::single(1),
    }
}

/// Returns true if an address is not routed on the internet.
///
/// Sources: RFC 1918, RFC 3927, RFC 6598, RFC 4193, RFC 4291 2.5.6.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => {
            let [a, b, ..] = four.octets();
            four.is_private() || four.is_link_local() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(six) => six.is_unique_local() || six.is_unicast_link_local(),
    }
}

/// Returns true if the internet may reach an address: not private (RFC 1918, RFC 4193), carrier NAT (RFC 6598), link-local
/// (RFC 3927), loopback or multicast. Addresses for documentation count as global.
pub(super) fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            let of_carrier = a == 100 && (64..128).contains(&b);
            !(address.is_private() || address.is_loopback() || address.is_link_local() || of_carrier)
                && !(address.is_multicast() || address.is_broadcast() || a == 0)
        }
        IpAddr::V6(address) => {
            let of_this_host = address.is_loopback() || address.is_unspecified() || address.is_multicast();
            !(of_this_host || address.is_unique_local() || address.is_unicast_link_local())
        }
    }
}

/// Returns the global addresses of a host.
pub(super) fn global(facts: &Facts, family: Family) -> Vec<IpAddr> {
    let all = facts.addresses.iter().map(|(_, network)| network.ip());
    all.filter(|address| Family::of_address(*address) == family && is_global(*address)).collect()
}

/// Returns true if a set contains more than half of the field's values: no condition, or a condition that excludes a few.
pub(super) fn is_open(set: &Set, field: Field, family: Family) -> bool {
    let all = match (field, family) {
        (Field::Source | Field::Destination, Family::Ipv4) => u32::MAX.into(),
        _ => u128::MAX,
    };
    set.and(&Set::range(0, all)).size() > all / 2
}

/// Returns true if a region contains packets to all addresses of this host, or to all addresses.
pub(super) fn is_wildcard(region: &Region, family: Family) -> bool {
    region.get(Field::DestinationKind).only() == Some(LOCAL)
        || is_open(region.get(Field::Destination), Field::Destination, family)
}

#[cfg(test)]
mod tests {
    use super::super::hosts::facts;
    use super::*;

    #[test]
    fn the_whole_internet_reaches_global_addresses() {
        for (text, is) in [
            ("192.0.2.1", true),
            ("8.8.8.8", true),
            ("10.1.2.3", false),
            ("172.31.0.1", false),
            ("172.32.0.1", true),
            ("192.168.1.1", false),
            ("169.254.1.1", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("127.0.0.1", false),
            ("2001:db8::1", true),
            ("fd00::1", false),
            ("fe80::1", false),
            ("::1", false),
        ] {
            assert_eq!(is_global(text.parse().expect("address")), is, "{text}");
        }
        assert_eq!(global(&facts(), Family::Ipv4), [IpAddr::from([192, 0, 2, 1])]);
    }
}
