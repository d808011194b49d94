//! The size of a bench run: the numbers of forwards and of rounds.

/// The size of a run: full or quick.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// True for a quick run.
    pub quick: bool,
}

impl Effort {
    /// Returns the largest number of forwards.
    pub fn most(self) -> u32 {
        if self.quick { 6_000 } else { 60_000 }
    }

    /// Returns how many forwards a host has before a bench adds one more. The cost must not depend on this number.
    pub fn numbers(self) -> [u32; 3] {
        [1, 1_000, self.most()]
    }

    /// Returns the number of rounds for an operation on `count` forwards.
    pub fn loads(self, count: u32) -> usize {
        match (self.quick, count) {
            (true, _) => 3,
            (false, ..10_000) => 15,
            (false, _) => 7,
        }
    }

    /// Returns the number of rounds for an operation on one forward.
    pub fn small(self) -> usize {
        if self.quick { 5 } else { 101 }
    }
}
