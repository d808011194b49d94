//! The properties of a host that affect the compiled rules.

use std::collections::BTreeSet;

use crate::model::IfName;

/// The properties of a host that affect the compiled rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// The network interfaces of the host.
    pub interfaces: BTreeSet<IfName>,
    /// True if iptables can shift a range of ports (`--to-destination ADDR:LO-HI/BASE`).
    pub shifts: bool,
}
