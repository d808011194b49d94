//! The state of a step compared with the kernel.

/// The live state of a step's object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Presence {
    /// The object is complete, and the lab created it.
    Present,
    /// The lab created the object, but part of it is missing or changed.
    Partial,
    /// No object has the name.
    Absent,
    /// An object of another program has the name.
    Foreign,
}
