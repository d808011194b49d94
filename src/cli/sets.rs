//! Rule-set files from the paths of a command line.

use std::path::PathBuf;
use std::sync::Arc;

use super::Failure;
use crate::config::{self, Loaded, source};

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
            match config::load(&Arc::new(source::read(&file)?)) {
                Ok(loaded) => sets.push(loaded),
                Err(found) => problems.extend(found),
            }
        }
    }
    if problems.is_empty() { Ok(sets) } else { Err(Failure::Problems(problems).into()) }
}
