//! A finding of the audit: its kind, severity, confidence, places, evidence and fix.

use crate::ruleset::confidence::Confidence;
use crate::ruleset::host::Place;

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A remark. Traffic works.
    Info,
    /// May break traffic, or admits more traffic than intended.
    Warning,
    /// Breaks traffic.
    Error,
}

impl Severity {
    /// Returns the name in reports, for example `warning`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A kind of finding, with the texts of its page in docs/findings.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// `F01` to `F52`. An ID never changes its meaning.
    pub id: &'static str,
    /// A short title without a full stop.
    pub title: &'static str,
    /// The usual severity.
    pub severity: Severity,
    /// The condition, in one or two sentences.
    pub what: &'static str,
    /// The effect on traffic.
    pub why: &'static str,
    /// The usual fix: a command or an instruction.
    pub fix: &'static str,
}

/// A finding about certain rules or facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The kind.
    pub kind: &'static Kind,
    /// The severity of this case, which can be lower than the usual one.
    pub severity: Severity,
    /// The confidence.
    pub confidence: Confidence,
    /// A sentence that names the object and the fault.
    pub message: String,
    /// The rules, the affected rule first.
    pub places: Vec<Place>,
    /// Rules, settings and sample packets that prove the finding.
    pub evidence: Vec<String>,
    /// The command that removes the fault, or an instruction.
    pub fix: String,
}

impl Kind {
    /// Returns a finding of this kind with the usual severity and fix, without places and evidence.
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
    /// Adds a place.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.places.push(place);
        self
    }

    /// Adds evidence.
    #[must_use]
    pub fn seen(mut self, evidence: impl Into<String>) -> Self {
        self.evidence.push(evidence.into());
        self
    }

    /// Replaces the fix.
    #[must_use]
    pub fn mended_by(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }

    /// Replaces the severity.
    #[must_use]
    pub fn as_bad_as(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
}
