//! Host facts that the compiler needs besides the model.

use std::collections::BTreeSet;

use crate::model::IfName;

/// What of a host the rules depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// The interfaces that packets are routed by.
    pub interfaces: BTreeSet<IfName>,
    /// Whether its iptables can shift a range of ports (`--to-destination ADDR:LO-HI/BASE`).
    pub shifts: bool,
}
