//! The results of an audit, before a command prints them as text, JSON or SARIF.

use std::path::PathBuf;

use crate::audit::finding::Finding;
use crate::audit::host::Host;
use crate::audit::listing::Row;
use crate::audit::ruleset::Gap;

/// What is printed, in one form or another.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) host: &'a Host,
    /// The dumps; none of the host itself.
    pub(super) files: &'a [PathBuf],
    pub(super) forwards: Vec<Row>,
    pub(super) sources: Vec<Row>,
    pub(super) findings: Vec<Finding>,
    pub(super) gaps: Vec<Gap>,
}
