//! The gap that an error of the kernel leaves.

use std::io;

use crate::ruleset::table::Gap;

/// Returns a gap for something that could not be read.
pub(super) fn gap(what: &str, error: &io::Error) -> Gap {
    let why = match error.kind() {
        io::ErrorKind::PermissionDenied => "only root may read it".to_owned(),
        _ => error.to_string(),
    };
    Gap { what: what.to_owned(), why }
}
