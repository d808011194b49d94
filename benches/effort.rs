//! The number of forwards and of rounds.

/// A full run or a quick one.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// True for a quick run.
    pub quick: bool,
}

impl Effort {
    /// The largest number of forwards.
    pub fn most(self) -> u32 {
        if self.quick { 6_000 } else { 60_000 }
    }

    /// The numbers of forwards for operations whose cost must not depend on it.
    pub fn numbers(self) -> [u32; 3] {
        [1, 1_000, self.most()]
    }

    /// The rounds of an operation on all forwards.
    pub fn loads(self, count: u32) -> usize {
        match (self.quick, count) {
            (true, _) => 3,
            (false, ..10_000) => 15,
            (false, _) => 7,
        }
    }

    /// The rounds of an operation on one forward.
    pub fn small(self) -> usize {
        if self.quick { 5 } else { 101 }
    }
}
