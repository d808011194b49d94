//! The state of one network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::unconfirmed::{Deadline, Unconfirmed};
use crate::iptables::command::Variant;
use crate::model::{Binding, DesiredState, SetName, SetRule};
use crate::sys::sysctl;

/// The version of the store's format. A store of another version is an error.
pub(super) const VERSION: u32 = 1;

/// The state of one network namespace: the desired rules, and the changes that portfwd made for them.
///
/// The last three fields describe the running kernel and are lost with the kernel file; the others are durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The desired rules of all sets, shared between states because they are large.
    pub desired: Arc<DesiredState>,
    /// The file that each set was last applied from; no entry for a set from the command line.
    pub origins: BTreeMap<SetName, PathBuf>,
    /// The sysctls that portfwd changed, in order.
    pub sysctls: Vec<sysctl::Change>,
    /// The variants of iptables that may contain rules of portfwd.
    pub iptables: BTreeSet<Variant>,
    /// The reason not to use nf_tables, if the kernel lacks a part of it.
    pub unusable: Option<Unusable>,
    /// The change that the kernel may have applied only in part, or not at all.
    pub unfinished: Option<Unfinished>,
    /// The state to return to if a change is not confirmed in time.
    pub unconfirmed: Option<Unconfirmed>,
    /// The deadline of the change that was confirmed last.
    pub confirmed: Option<Deadline>,
    /// The generation of the ruleset after portfwd's last commit. `None` before the first commit, and with iptables.
    pub committed: Option<u32>,
    /// The last generation at which portfwd's table contained exactly the desired rules.
    pub verified: Option<Verified>,
    /// Examples: one binding for each group of bindings that compile to the same rules and maps; empty if unknown.
    pub representatives: Vec<SetRule<Binding>>,
}

/// The details of an unfinished change that the desired rules do not show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// True if the connections of `gone` stay.
    pub keep_connections: bool,
    /// The bindings that the change removes or replaces. Their connections are deleted, unless `keep_connections` is true.
    pub gone: Arc<[Binding]>,
}

/// A generation of the ruleset in this boot, and the layout of portfwd's table at that generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The generation id, which grows with every commit of any program.
    generation: u32,
    /// A hash of the table without its elements, see [`Program::layout`](crate::nft::program::Program::layout).
    pub layout: u64,
}

impl Verified {
    /// Returns the value for a generation.
    pub fn new(generation: u32, layout: u64) -> Self {
        Self { generation, layout }
    }

    /// Returns the value after portfwd's commit to `generation`. Returns `None` if this value has another generation, because
    /// another program committed in between.
    pub fn then(&self, generation: u32, layout: u64) -> Option<Self> {
        self.is(generation).then(|| Self::new(generation.wrapping_add(1), layout))
    }

    /// Returns true if the generations are equal.
    pub fn is(&self, generation: u32) -> bool {
        self.generation == generation
    }
}

/// A part of nf_tables that a kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// The release of the kernel. Another release may have the part.
    pub kernel: String,
    /// The missing part, as a phrase for messages.
    pub why: String,
}

/// An error of a store.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory or a file cannot be created, opened or written.
    #[error("cannot open the state in `{}`", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// Another process held the lock for too long.
    #[error("cannot lock the state in `{}`: another portfwd process holds the lock", .0.display())]
    Busy(PathBuf),
    /// SQLite reports another error, for example a failed read.
    #[error("the state in `{}` cannot be read or written", .0.display())]
    Store(PathBuf, #[source] Box<rusqlite::Error>),
    /// The file was changed or truncated after portfwd wrote it.
    #[error("the state in `{}` is damaged: {}", .0.display(), .1)]
    Damaged(PathBuf, String),
    /// Another version of portfwd wrote the file.
    #[error("the state in `{}` has version {}; this program reads version {VERSION}", .0.display(), .1)]
    Version(PathBuf, String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_of_the_same_generation_gives_the_next_one() {
        let verified = Verified::new(7, 1);
        assert!(verified.is(7) && !verified.is(8));
        assert_eq!(verified.then(7, 2), Some(Verified::new(8, 2)));
        assert_eq!(verified.then(6, 2), None);
        assert_eq!(Verified::new(u32::MAX, 1).then(u32::MAX, 2), Some(Verified::new(0, 2)));
    }
}
