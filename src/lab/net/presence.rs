//! The state of a step in the kernel.

/// What is there of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Presence {
    /// What it makes, and we made it.
    Present,
    /// What we made, but not all of it, or not as it should be.
    Partial,
    /// Nothing.
    Absent,
    /// Something else of its name.
    Foreign,
}
