//! Matches that several kinds of rules share.

use ipnetwork::IpNetwork;

use crate::iptables::rule::Interface;
use crate::model::IfName;

pub(super) fn interface_match(name: &IfName, not: bool) -> Option<Interface> {
    Some(Interface { not, name: name.clone() })
}

/// Returns the network, or `None` if the prefix length is 0. iptables-save omits networks of prefix length 0.
pub(super) fn nonzero_prefix(network: Option<IpNetwork>) -> Option<IpNetwork> {
    network.filter(|network| network.prefix() > 0)
}
