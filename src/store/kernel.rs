//! The kernel file of a store, `state.kernel`: JSON about the running kernel, which is invalid after a reboot.
//!
//! portfwd writes the file without fsync, so a command needs only the fsync of its commit. The file contains the number of
//! the commit that it belongs to. If the file is missing, unreadable or older, that commit may be unfinished.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file;
use super::state::{State, StateError, Verified};
use crate::model::{Binding, SetName, SetRule};
use crate::sys::boot;

/// The contents of a kernel file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KernelRecord {
    /// The id of the boot in which `committed` and `verified` are valid.
    boot: String,
    /// The number of the commit in the database that is finished.
    pub(super) commit: u64,
    committed: Option<u32>,
    verified: Option<Verified>,
    representatives: Vec<(SetName, Binding)>,
}

impl KernelRecord {
    /// Returns the record of a finished state.
    pub(super) fn new(commit: u64, state: &State) -> Self {
        Self {
            boot: boot_id(),
            commit,
            committed: state.committed,
            verified: state.verified.clone(),
            representatives: state
                .representatives
                .iter()
                .map(|owned| (owned.set.clone(), owned.rule.clone()))
                .collect(),
        }
    }

    /// Reads the kernel file. Returns `None` if the file is missing or unreadable.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        file::open_to_read(path).ok()?.read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Writes the kernel file in place. If the process is killed during the write, the file contains parts of two records and
    /// is unreadable.
    pub(super) fn write(&self, path: &Path) -> Result<(), StateError> {
        let io = |error: std::io::Error| StateError::Io(path.to_owned(), error);
        let bytes = serde_json::to_vec(self).map_err(|error| io(error.into()))?;
        let file = file::open(path)?;
        // The file is not truncated first: ext4 flushes a truncated file to the disk when it is closed (auto_da_alloc).
        file.write_all_at(&bytes, 0).map_err(io)?;
        file.set_len(bytes.len().try_into().unwrap_or(u64::MAX)).map_err(io)
    }

    /// Adds the record to a state from the database, and marks the last change as finished.
    pub(super) fn complete(self, state: &mut State) {
        state.unfinished = None;
        state.representatives = self.representatives.into_iter().map(|(set, rule)| SetRule { set, rule }).collect();
        if !self.boot.is_empty() && self.boot == boot_id() {
            (state.committed, state.verified) = (self.committed, self.verified);
        }
    }
}

/// Returns true if two states have different kernel records.
pub(super) fn differs(before: &State, after: &State) -> bool {
    (&before.committed, &before.verified, &before.representatives)
        != (&after.committed, &after.verified, &after.representatives)
}

/// Returns the id of this boot, or an empty text if `/proc` cannot be read.
fn boot_id() -> String {
    boot::id().unwrap_or_default().to_owned()
}
