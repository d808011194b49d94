//! How much is done: all of it, or what fits in two minutes.

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Whether it is to be over soon.
    pub quick: bool,
}

impl Effort {
    /// The largest number of forwards.
    pub fn most(self) -> u32 {
        if self.quick { 6_000 } else { 60_000 }
    }

    /// The numbers of forwards that the charts are made of; one of them is a tenth of [`Effort::most`].
    pub fn numbers(self) -> &'static [u32] {
        if self.quick { &[1, 10, 100, 600, 6_000] } else { &[1, 10, 100, 1_000, 6_000, 10_000, 60_000] }
    }

    /// How often everybody's whole set is loaded.
    pub fn loads(self, count: u32) -> usize {
        match (self.quick, count) {
            (true, _) => 3,
            (false, ..10_000) => 15,
            (false, _) => 7,
        }
    }

    /// How often something small is done.
    pub fn small(self) -> usize {
        if self.quick { 5 } else { 101 }
    }
}
