//! How much was said to the kernel, and by it.

/// A number of messages, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Messages.
    pub messages: usize,
    /// Bytes of all of them together, headers included.
    pub bytes: usize,
}

impl Amount {
    /// Adds a number of messages that have so many bytes together.
    pub fn add(&mut self, messages: usize, bytes: usize) {
        self.messages = self.messages.saturating_add(messages);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What went over a wire in both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// To the kernel.
    pub sent: Amount,
    /// From the kernel.
    pub received: Amount,
}

impl Traffic {
    /// Adds what went over it another time.
    pub fn add(&mut self, other: Self) {
        self.sent.add(other.sent.messages, other.sent.bytes);
        self.received.add(other.received.messages, other.received.bytes);
    }

    /// What went over it since it was `before`.
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
    fn what_was_added_is_what_it_is_more_since() {
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
