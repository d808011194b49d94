//! The number and size of the messages to and from the kernel.

/// The number and size of some messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// The number of messages.
    pub messages: usize,
    /// The bytes of all messages, including headers.
    pub bytes: usize,
}

impl Amount {
    /// Adds messages with their bytes.
    pub fn add(&mut self, messages: usize, bytes: usize) {
        self.messages = self.messages.saturating_add(messages);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// The messages of a socket in both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The messages to the kernel.
    pub sent: Amount,
    /// The messages from the kernel.
    pub received: Amount,
}

impl Traffic {
    /// Adds the traffic of another socket.
    pub fn add(&mut self, other: Self) {
        self.sent.add(other.sent.messages, other.sent.bytes);
        self.received.add(other.received.messages, other.received.bytes);
    }

    /// Returns the traffic since an earlier reading.
    pub fn since(self, before: Self) -> Self {
        let less = |now: Amount, before: Amount| Amount {
            messages: now.messages.saturating_sub(before.messages),
            bytes: now.bytes.saturating_sub(before.bytes),
        };
        Self { sent: less(self.sent, before.sent), received: less(self.received, before.received) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_since_a_reading_is_the_traffic_added_after_it() {
        let amount = |messages, bytes| Amount { messages, bytes };
        let before = Traffic { sent: amount(1, 20), received: amount(0, 0) };
        let more = Traffic { sent: amount(2, 44), received: amount(3, 100) };
        let mut now = before;
        now.add(more);
        assert_eq!(now, Traffic { sent: amount(3, 64), received: amount(3, 100) });
        assert_eq!(now.since(before), more);
        assert_eq!(before.since(now), Traffic::default());
    }
}
