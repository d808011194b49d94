//! The results of an audit, for output as text, JSON or SARIF.

use std::path::PathBuf;

use crate::audit::finding::{Finding, Severity};
use crate::audit::findings;
use crate::audit::listing::Row;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::host::Host;
use crate::ruleset::table::Gap;

/// The rules, findings and gaps to print.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) host: &'a Host,
    /// The dumps that portfwd read; empty if it read the kernel.
    pub(super) files: &'a [PathBuf],
    pub(super) forwards: Vec<Row>,
    pub(super) sources: Vec<Row>,
    pub(super) findings: Vec<Finding>,
    /// The rules, sets and tables that portfwd could not read or understand.
    pub(super) unread_rules: Vec<Gap>,
    /// The interfaces, routes, sysctls, sockets and connections that portfwd could not read.
    pub(super) unknown_facts: Vec<Gap>,
}

impl Report<'_> {
    /// Returns the number of rows and findings that are unknown because portfwd could not read or understand a rule.
    pub(super) fn unknown(&self) -> usize {
        let rows = self.forwards.iter().chain(&self.sources).filter(|row| !row.understood).count();
        let findings =
            self.findings.iter().filter(|finding| is_unknown_rule(finding) && finding.kind.id != "F52").count();
        rows + findings + self.unread_rules.len()
    }

    /// Returns true if `--fail-on` with this severity fails.
    pub(super) fn fails(&self, level: Severity, on_unknown: bool) -> bool {
        let counts =
            |finding: &&Finding| finding.confidence != Confidence::Unknown || (on_unknown && is_unknown_rule(finding));
        let row = |row: &Row| !row.understood;
        let unknown = !self.unread_rules.is_empty() || self.forwards.iter().chain(&self.sources).any(row);
        (on_unknown && unknown) || self.findings.iter().filter(counts).any(|finding| finding.severity >= level)
    }
}

/// Returns true if a finding is unknown because portfwd does not understand a rule.
fn is_unknown_rule(finding: &Finding) -> bool {
    finding.confidence == Confidence::Unknown && findings::depends_on_rules(finding.kind)
}
