//! The state of a step in the kernel.

/// What is there of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Presence {
    /// What it makes, and we made it.
    Here,
    /// What we made, but not all of it, or not as it should be.
    Part,
    /// Nothing.
    Absent,
    /// Something else of its name.
    Foreign,
}
