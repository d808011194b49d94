//! What a kernel holds of ours, read back into the model.

use super::Asked;

/// How often something was met: by the first packet of every new connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets, which for NAT are connections.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
}

impl Counter {
    /// Adds what another one counted.
    pub fn add(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// What our rules in a kernel mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// The model; its settings are empty, for the kernel does not hold them.
    pub asked: Asked,
    /// What each binding counted, in the order of [`Asked::bindings`].
    pub counters: Vec<Counter>,
    /// What is among our rules and cannot be ours, by name.
    pub foreign: Vec<String>,
}
