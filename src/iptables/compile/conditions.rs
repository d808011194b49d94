//! Conditions that rules of several kinds have.

use ipnetwork::IpNetwork;

use crate::iptables::rule::Interface;
use crate::model::IfName;

pub(super) fn interface(name: &IfName, not: bool) -> Option<Interface> {
    Some(Interface { not, name: name.clone() })
}

/// The prefix where it says more than none would; iptables leaves out that of everybody.
pub(super) fn narrowed(network: Option<IpNetwork>) -> Option<IpNetwork> {
    network.filter(|network| network.prefix() > 0)
}
