//! Rule-set files from the paths of a command line.

use std::path::PathBuf;
use std::sync::Arc;

use super::Failure;
use crate::config::{self, Loaded, source};
use crate::model::Asked;

/// Where rule sets are when no path is given.
pub const DEFAULT: &str = "/etc/portfwd";

/// Loads all files that the paths name.
///
/// # Errors
/// Every mistake in every one of them.
pub fn load(paths: &[PathBuf]) -> anyhow::Result<Vec<Loaded>> {
    let default = [PathBuf::from(DEFAULT)];
    let paths = if paths.is_empty() { &default } else { paths };
    let mut sets = Vec::new();
    let mut problems = Vec::new();
    for path in paths {
        for file in source::files(path)? {
            let (loaded, found) = config::load(&Arc::new(source::read(&file)?));
            sets.extend(loaded);
            problems.extend(found);
        }
    }
    if problems.is_empty() {
        return Ok(sets);
    }
    // What contradicts each other in the valid rest belongs to the same run.
    problems.extend(config::union(Asked::default(), &sets).err().unwrap_or_default());
    Err(Failure::Problems(problems).into())
}
