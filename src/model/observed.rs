//! The live state: portfwd's own rules, read back from the kernel.

use super::{Binding, DesiredState};

/// The counter of a rule or map element. In NAT chains it counts the first packet of each connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    /// The number of packets. In NAT chains this is the number of connections.
    pub packets: u64,
    /// The size of the counted packets in bytes.
    pub bytes: u64,
}

impl Counter {
    /// Adds the values of another counter. Stops at the maximum.
    pub fn add(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// The live rules of portfwd in the form of the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The rules in normal form. The settings are empty, because the kernel does not store them.
    pub desired: DesiredState,
    /// The counter of each binding, in the order of [`DesiredState::bindings`].
    pub counters: Vec<Counter>,
    /// Descriptions of the objects in portfwd's table or chains that portfwd did not create.
    pub foreign: Vec<String>,
    /// The forwards of other programs' elements in portfwd's maps, with their counters. [`Observed::foreign`] contains
    /// a description of each of these elements too.
    pub foreign_bindings: Vec<(Binding, Counter)>,
}
