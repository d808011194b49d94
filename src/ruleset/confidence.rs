//! How certain a verdict is.

/// How sure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Confidence {
    /// It could not be decided, for a reason that the evidence names.
    Unknown,
    /// So it is where what is usual is so.
    Likely,
    /// So it is, by what was read.
    Proved,
}

impl Confidence {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Likely => "likely",
            Self::Proved => "proved",
        }
    }
}
