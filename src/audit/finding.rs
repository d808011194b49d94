//! What an audit finds: one shape for all findings.

use crate::ruleset::confidence::Confidence;
use crate::ruleset::host::Place;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Good to know.
    Info,
    /// May hurt.
    Warning,
    /// Does hurt.
    Error,
}

impl Severity {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What kind of finding it is, and what its page says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// `F01` to `F52`, for good.
    pub id: &'static str,
    /// A few words.
    pub title: &'static str,
    /// How bad it is, unless the case is milder.
    pub severity: Severity,
    /// What it is, in a sentence or two.
    pub what: &'static str,
    /// Why it hurts.
    pub why: &'static str,
    /// How to mend it.
    pub fix: &'static str,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind it is.
    pub kind: &'static Kind,
    /// How bad this one is.
    pub severity: Severity,
    /// How sure it is.
    pub confidence: Confidence,
    /// What is wrong with what, in a sentence.
    pub message: String,
    /// The rules that it is about, the one that suffers first.
    pub places: Vec<Place>,
    /// What was read that shows it.
    pub evidence: Vec<String>,
    /// A command that mends it, or what to do.
    pub fix: String,
}

impl Kind {
    /// One of this kind, as bad as usual; places, evidence and fix are still to be told.
    pub fn found(&'static self, confidence: Confidence, message: impl Into<String>) -> Finding {
        Finding {
            kind: self,
            severity: self.severity,
            confidence,
            message: message.into(),
            places: Vec::new(),
            evidence: Vec::new(),
            fix: self.fix.to_owned(),
        }
    }
}

impl Finding {
    /// The same with one more place.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.places.push(place);
        self
    }

    /// The same with one more thing that was read.
    #[must_use]
    pub fn seen(mut self, evidence: impl Into<String>) -> Self {
        self.evidence.push(evidence.into());
        self
    }

    /// The same with a fix of its own.
    #[must_use]
    pub fn mended_by(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }

    /// The same, as bad as this.
    #[must_use]
    pub fn as_bad_as(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
}
