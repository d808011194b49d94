//! Matches that several kinds of rules share.

use ipnetwork::IpNetwork;

use crate::iptables::rule::Interface;
use crate::model::IfName;

pub(super) fn interface_match(name: &IfName, not: bool) -> Option<Interface> {
    Some(Interface { not, name: name.clone() })
}

/// Returns `None` for prefixes of length 0, because iptables-save omits them.
pub(super) fn nonzero_prefix(network: Option<IpNetwork>) -> Option<IpNetwork> {
    network.filter(|network| network.prefix() > 0)
}
