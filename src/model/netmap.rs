//! 1:1 translation of whole networks.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::address::reserved_in_network;
use super::{Family, ParseError};

/// A 1:1 translation between two networks, for all protocols and ports.
///
/// Each address of `listen` maps to the address of `to` with the same host part. Packets to the `listen` address go to
/// the `to` address. Packets from the `to` address leave with the `listen` address as their source. portfwd masquerades
/// clients in the target's network (hairpin), as for a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Netmap {
    /// The network that clients outside use.
    pub listen: IpNetwork,
    /// The network of the hosts.
    pub to: IpNetwork,
}

impl Netmap {
    /// Checks that the two networks fit together.
    ///
    /// # Errors
    /// If the families or sizes differ, if both contain the same address, or if one contains a reserved address.
    pub fn check(&self) -> Result<(), ParseError> {
        let (listen, to) = (Family::of_network(self.listen), Family::of_network(self.to));
        if listen != to {
            return Err(ParseError::new(
                format!("`{}` is {listen} but `{}` is {to}", self.listen, self.to),
                "give both networks the same address family; NAT does not translate between them",
            ));
        }
        if self.listen.prefix() != self.to.prefix() {
            return Err(ParseError::new(
                format!("`{}` and `{}` have different sizes", self.listen, self.to),
                format!("write `{}/{}`, or another network of that length", self.to.network(), self.listen.prefix()),
            ));
        }
        if self.listen.prefix() == 0 || self.listen == self.to {
            return Err(ParseError::new(
                format!("`{}` and `{}` have addresses in common", self.listen, self.to),
                "write two networks without a common address",
            ));
        }
        for network in [self.listen, self.to] {
            if let Some(name) = reserved_in_network(network) {
                return Err(ParseError::new(
                    format!("`{network}` is not a network of hosts: it contains {name}"),
                    "write a network in which every address can be a host",
                ));
            }
        }
        Ok(())
    }
}

/// Returns the address in `into` that has the same host part as `address`. The prefix length of `into` applies to both.
pub fn translate(address: IpAddr, into: IpNetwork) -> IpAddr {
    match (address, into) {
        (IpAddr::V4(address), IpNetwork::V4(into)) => {
            let mask = u32::from(into.mask());
            std::net::Ipv4Addr::from(u32::from(into.network()) & mask | u32::from(address) & !mask).into()
        }
        (IpAddr::V6(address), IpNetwork::V6(into)) => {
            let mask = u128::from(into.mask());
            std::net::Ipv6Addr::from(u128::from(into.network()) & mask | u128::from(address) & !mask).into()
        }
        _ => address,
    }
}

impl fmt::Display for Netmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "netmap {} to {}", self.listen, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn netmap(listen: &str, to: &str) -> Netmap {
        Netmap { listen: listen.parse().expect(listen), to: to.parse().expect(to) }
    }

    #[test]
    fn the_host_part_stays() {
        for (address, into, expected) in [
            ("192.0.2.77", "10.0.0.0/24", "10.0.0.77"),
            ("192.0.2.77", "10.1.0.9/32", "10.1.0.9"),
            ("2001:db8::7:1", "fd00:1::/64", "fd00:1::7:1"),
        ] {
            let into = into.parse().expect(into);
            assert_eq!(translate(address.parse().expect(address), into).to_string(), expected);
        }
    }

    #[test]
    fn networks_that_do_not_fit_together_are_refused() {
        assert_eq!(netmap("192.0.2.0/24", "10.0.0.0/24").check(), Ok(()));
        for (listen, to) in [
            ("192.0.2.0/24", "10.0.0.0/25"),
            ("192.0.2.0/24", "fd00::/24"),
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("127.0.0.0/24", "10.0.0.0/24"),
            ("192.0.2.0/24", "224.0.0.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("240.0.0.0/24", "10.0.0.0/24"),
            ("192.0.2.0/24", "0.0.1.0/24"),
            // The network contains loopback addresses, but its first address is not one.
            ("64.0.0.0/2", "128.0.0.0/2"),
            ("2001:db8::/64", "fe80::/64"),
        ] {
            assert!(netmap(listen, to).check().is_err(), "{listen} {to}");
        }
    }
}
