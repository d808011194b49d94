//! How certain a verdict is.

/// The certainty of a verdict or finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Confidence {
    /// Undecided. The evidence gives the reason.
    Unknown,
    /// True under the usual assumptions.
    Likely,
    /// True for all that was read. A real packet behaves like this.
    Proved,
}

impl Confidence {
    /// Returns the name in reports, for example `proved`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Likely => "likely",
            Self::Proved => "proved",
        }
    }
}
