//! 1:1 translation of whole networks.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::address::unsendable_in;
use super::{Family, ParseError};

/// Each address of `listen` stands for the address of `to` at the same place in its network, all protocols and ports,
/// in both directions: what is sent to the one reaches the other, and what the other sends leaves as the one. Neighbours of
/// the other that reach it by the one are masqueraded, as with a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Netmap {
    /// The network that is seen outside.
    pub listen: IpNetwork,
    /// The network that is really there.
    pub to: IpNetwork,
}

impl Netmap {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// Where the networks are of different families or sizes, have an address in common, or one that no host can have.
    pub fn check(&self) -> Result<(), ParseError> {
        let (one, other) = (Family::of_network(self.listen), Family::of_network(self.to));
        if one != other {
            return Err(ParseError::new(
                format!("`{}` is {one} but `{}` is {other}", self.listen, self.to),
                "give both networks the same address family; NAT does not translate between them",
            ));
        }
        if self.listen.prefix() != self.to.prefix() {
            return Err(ParseError::new(
                format!("`{}` and `{}` are not of the same size", self.listen, self.to),
                format!("write `{}/{}`, or another network of that length", self.to.network(), self.listen.prefix()),
            ));
        }
        if self.listen.prefix() == 0 || self.listen == self.to {
            return Err(ParseError::new(
                format!("`{}` and `{}` have addresses in common", self.listen, self.to),
                "give two networks without a common address",
            ));
        }
        for network in [self.listen, self.to] {
            if let Some(what) = unsendable_in(network) {
                return Err(ParseError::new(
                    format!("`{network}` is not a network of hosts: it holds {what}"),
                    "write the network of the hosts that are to be reached",
                ));
            }
        }
        Ok(())
    }
}

/// The address at the same place in `into` as `address` has in a network of that length.
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
    fn the_place_in_the_network_stays() {
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
    fn networks_that_do_not_fit_are_refused() {
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
            // Loopback addresses are behind its first one.
            ("64.0.0.0/2", "128.0.0.0/2"),
            ("2001:db8::/64", "fe80::/64"),
        ] {
            assert!(netmap(listen, to).check().is_err(), "{listen} {to}");
        }
    }
}
