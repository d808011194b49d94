//! What is kept of one network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::database::VERSION;
use super::unconfirmed::{Deadline, Unconfirmed, boot};
use crate::iptables::command::Variant;
use crate::model::{Asked, Binding, Owned, SetName};
use crate::sys::sysctl;

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// What all sets ask. Shared, because it is large and there are always several states of which it is a part.
    pub asked: Arc<Asked>,
    /// The file that each set was last applied from; none for sets made on the command line.
    pub origins: BTreeMap<SetName, PathBuf>,
    /// The sysctls that we changed, in order.
    pub sysctls: Vec<sysctl::Change>,
    /// The variants of iptables that may hold rules of ours.
    pub iptables: BTreeSet<Variant>,
    /// Why nf_tables is not used, where the kernel was found to lack a part of it.
    pub unusable: Option<Unusable>,
    /// A change that may not have come to its end.
    pub unfinished: Option<Unfinished>,
    /// What was before a change that is taken back unless it is confirmed in time.
    pub unconfirmed: Option<Unconfirmed>,
    /// The change that was confirmed last, by its deadline.
    pub confirmed: Option<Deadline>,
    /// The generation of the kernel's rules that our last commit made; none before one, and of iptables.
    pub committed: Option<u32>,
    /// When the kernel's nf_tables was last known to hold all that is asked, and nothing else in our table.
    pub whole: Option<Whole>,
    /// An atom of each sort that is compiled to other rules and maps than the others; none: not known.
    pub samples: Vec<Owned<Binding>>,
}

/// What is kept of a change until it is done, besides what is asked, which is kept first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// Whether the connections that it makes wrong are left to finish.
    pub keep_connections: bool,
    /// The forwards that go or change, for what they sent somewhere to be ended.
    pub gone: Arc<[Binding]>,
}

/// A moment of a kernel's rules, and how our table was laid out then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    /// The boot; generations begin anew with each. Empty where it could not be told, which is the same as none.
    boot: String,
    /// The generation.
    generation: u32,
    /// What was left in the kernel, elements aside, see [`Program::layout`](crate::nft::program::Program::layout).
    pub layout: u64,
}

impl Whole {
    /// The moment of a generation since this boot.
    pub fn at(generation: u32, layout: u64) -> Self {
        Self { boot: boot(), generation, layout }
    }

    /// The moment after a change that was decided on at `generation`, where that is this one: nobody else was in between.
    pub fn then(&self, generation: u32, layout: u64) -> Option<Self> {
        let same = self.generation == generation;
        same.then(|| Self { boot: self.boot.clone(), generation: generation.wrapping_add(1), layout })
    }

    /// Whether this is the moment of a generation since this boot.
    pub fn is(&self, generation: u32) -> bool {
        self.generation == generation && !self.boot.is_empty() && self.boot == boot()
    }
}

/// What a kernel was found to lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// The kernel's release; another one may have it.
    pub kernel: String,
    /// What it lacks.
    pub why: String,
}

/// Why state cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory or file cannot be made or opened.
    #[error("cannot open the state in `{}`", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// Another process had it for too long.
    #[error("another portfwd is using the state in `{}`", .0.display())]
    Busy(PathBuf),
    /// The store failed.
    #[error("the state in `{}` cannot be read or written", .0.display())]
    Store(PathBuf, #[source] Box<rusqlite::Error>),
    /// It is not what was written there.
    #[error("the state in `{}` is damaged: {}", .0.display(), .1)]
    Damaged(PathBuf, String),
    /// A newer program wrote it.
    #[error("the state in `{}` has version {}; this program reads version {VERSION}", .0.display(), .1)]
    Version(PathBuf, String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_of_one_generation_and_one_boot() {
        let moment = Whole::at(7, 1);
        assert!(moment.is(7) && !moment.is(8));
        assert_eq!(moment.then(7, 2), Some(Whole::at(8, 2)));
        assert_eq!(moment.then(6, 2), None);
        for boot in ["", "another"] {
            assert!(!Whole { boot: boot.into(), generation: 7, layout: 1 }.is(7), "{boot:?}");
        }
    }
}
