//! The results of an audit, for output as text, JSON or SARIF.

use std::path::PathBuf;

use crate::audit::finding::Finding;
use crate::audit::listing::Row;
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
    pub(super) gaps: Vec<Gap>,
}
