//! The durable state: the rules that users configured, and portfwd's knowledge of the running kernel. Each network namespace
//! has its own store.
//!
//! ```text
//! state.db            the durable part of a State (SQLite); other namespaces: netns/NAME.db, and so on
//! state.db-wal, -shm  SQLite's log and its index
//! state.kernel        the part of a State that is invalid after a reboot (JSON); see `kernel.rs`
//! state.lock          the lock that processes queue for
//! state.unconfirmed   exists while a change waits to be confirmed
//! ```
//! A command saves twice: the intent before it changes the kernel, and the result afterwards. The intent is one commit with
//! one fsync. The result of most commands differs only in the kernel file, which needs no fsync.
//!
//! Be aware: if the process is killed between the two, [`State::unfinished`] is set, and the kernel's rules are unknown.

mod database;
mod file;
mod forwards;
mod kernel;
mod lock;
mod records;
mod row;
pub mod state;
pub mod unconfirmed;

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use lock::Lock;
pub(crate) use lock::acquire_lock;
pub use state::{State, StateError, Unfinished, Unusable, Verified};
pub use unconfirmed::{Deadline, Unconfirmed};

use crate::model::{Binding, SetName, SetRule};
use crate::sys::namespace::Identity;
use database::{Changes, Database};
use kernel::KernelRecord;
use state::VERSION;

/// The number of bindings from which a full load takes much longer than a partial load.
const MANY: usize = 1_000;

/// The most bindings of a partial load. For more bindings, a full load is as fast.
const PARTIAL: usize = 1_024;

/// An open and locked store of one network namespace.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    database: Option<Database>,
    /// The lock, which is dropped after the database is closed.
    _lock: Option<Lock>,
}

impl Store {
    /// Opens the store of a network namespace. Waits for `wait` for another process, and longer if the queue moves.
    ///
    /// If `write` is false, a missing store is empty, no file is created, and the file system may be read-only.
    ///
    /// # Errors
    /// [`StateError::Busy`] if another process holds the lock; other errors if the store cannot be opened, is damaged, or has
    /// another version.
    pub fn open(directory: &Path, identity: &Identity, write: bool, wait: Duration) -> Result<Self, StateError> {
        let (path, incarnation) = place(directory, identity);
        if !write && !path.exists() {
            return Ok(Self::in_memory());
        }
        let lock = if write {
            let parent = path.parent().unwrap_or(directory);
            let created = DirBuilder::new().recursive(true).mode(0o700).create(parent);
            created.map_err(|error| StateError::Io(parent.to_owned(), error))?;
            Some(acquire_lock(&path, wait)?)
        } else {
            lock::acquire_existing_lock(&path, wait)?
        };
        // A missing database is a new store; the live rules show if an old store was lost. A damaged database is an error.
        let is_new = fs::metadata(&path).map_or(true, |file| file.len() == 0);
        let database = Database::open(&path, write)?;
        let store = Self { path, database: Some(database), _lock: lock };
        store.begin(is_new, incarnation, write)
    }

    /// Renames the database `damaged` and opens a new store. Also returns the new name of the file.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn reset_damaged(
        directory: &Path,
        identity: &Identity,
        damaged: &Path,
        wait: Duration,
    ) -> Result<(Self, PathBuf), StateError> {
        let lock = acquire_lock(&place(directory, identity).0, wait)?;
        let renamed = file::quarantine(damaged)?;
        drop(lock);
        Ok((Self::open(directory, identity, true, wait)?, renamed))
    }

    /// Returns a store without files. It loads as empty, and saves nothing.
    pub fn in_memory() -> Self {
        Self { path: PathBuf::new(), database: None, _lock: None }
    }

    /// Checks the version and the namespace, and creates missing tables. Empties a store of an earlier namespace with the same
    /// name, because the new namespace has no rules.
    fn begin(mut self, is_new: bool, incarnation: Option<&str>, write: bool) -> Result<Self, StateError> {
        let (path, kernel_file) = (self.path.clone(), self.path.with_extension("kernel"));
        let damaged = |what: &str| StateError::Damaged(path.clone(), what.to_owned());
        let Some(database) = &mut self.database else { return Ok(self) };
        // The number of the commit is valid in every boot.
        let known = KernelRecord::read(&kernel_file).map_or(0, |record| record.commit);
        if database.commit > 0 {
            let meta = database.meta()?;
            let version = meta.get("version").map_or("", String::as_str);
            if version != VERSION.to_string() {
                return Err(StateError::Version(path, version.to_owned()));
            }
            if database.commit < known {
                return Err(damaged("the last commit is missing"));
            }
            let namespace: Option<String> =
                records::value(&meta, "namespace").map_err(|error| damaged(&error.to_string()))?;
            if namespace.as_deref() == incarnation {
                return Ok(self);
            }
        } else if !is_new && known > 0 {
            return Err(damaged("the tables are missing"));
        }
        if !write {
            return Ok(Self::in_memory());
        }
        if is_new {
            remove(&kernel_file)?;
        }
        let namespace = serde_json::to_string(&incarnation).map_err(|error| damaged(&error.to_string()))?;
        let meta = vec![("version", VERSION.to_string()), ("namespace", namespace)];
        database.commit(&Changes { create: true, meta, ..Changes::default() })?;
        Ok(self)
    }

    /// Loads the whole state.
    ///
    /// # Errors
    /// If the store cannot be read or is damaged.
    pub fn load(&self) -> Result<State, StateError> {
        let Some(database) = &self.database else { return Ok(State::default()) };
        let _transaction = database.begin_read()?;
        database.check()?;
        self.state(database, database.forwards()?)
    }

    /// Loads the part of a state that a change of the bindings `about` needs: every binding that one of them could conflict
    /// with or replace, all bindings of `sets`, and [`State::representatives`]. Returns `None` if the change needs the whole state.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub fn load_partial(&self, about: &[Binding], sets: &[SetName]) -> Result<Option<State>, StateError> {
        let Some(database) = &self.database else { return Ok(None) };
        let _transaction = database.begin_read()?;
        let mut state = self.state(database, Vec::new())?;
        let representatives = || state.representatives.iter().map(|owned| &owned.rule);
        // A binding with loopback addresses can conflict with bindings at other places.
        if state.representatives.is_empty()
            || about.iter().chain(representatives()).any(|rule| rule.loopback)
            || state.unfinished.is_some()
            || state.unconfirmed.is_some()
        {
            return Ok(None);
        }
        let known = state.desired.settings.keys();
        let neighbours = known.flat_map(|set| about.iter().map(move |rule| (set, rule)));
        let representatives = state.representatives.iter().map(|sample| (&sample.set, &sample.rule));
        let mut found: HashSet<SetRule<Binding>> = HashSet::new();
        found.extend(database.forwards_of(sets, PARTIAL)?);
        found.extend(database.forwards_meeting(neighbours.chain(representatives))?);
        if found.len() >= PARTIAL || !state.representatives.iter().all(|sample| found.contains(sample)) {
            return Ok(None);
        }
        let desired = Arc::make_mut(&mut state.desired);
        desired.bindings.extend(found);
        desired.normalize();
        Ok(Some(state))
    }

    fn state(&self, database: &Database, forwards: Vec<SetRule<Binding>>) -> Result<State, StateError> {
        let damaged = |error: records::RecordError| StateError::Damaged(self.path.clone(), error.to_string());
        let mut state = records::state(&database.meta()?, database.rules()?, forwards).map_err(damaged)?;
        let record = KernelRecord::read(&self.path.with_extension("kernel"));
        if let Some(record) = record.filter(|record| record.commit == database.commit) {
            record.complete(&mut state);
        }
        Ok(state)
    }

    /// Returns true if the store has so many bindings that a partial load is much faster.
    pub fn has_many(&self) -> bool {
        self.database.as_ref().is_some_and(|database| database.forwards >= MANY)
    }

    /// Replaces the stored state with `after`. `before` is the state that was loaded or saved last. Both may be partial.
    ///
    /// Writes the durable part to the database, with one fsync, if it differs. Writes the rest to the kernel file, except if
    /// the change is unfinished.
    ///
    /// # Errors
    /// If a file cannot be written. The stored state is then `before`, except if [`Store::is_undecided`].
    pub fn save(&mut self, before: &State, after: &State) -> Result<(), StateError> {
        let Some(database) = &mut self.database else { return Ok(()) };
        let damaged = |error: &dyn ToString| StateError::Damaged(self.path.clone(), error.to_string());
        let mut changes = records::changes(before, after).map_err(|error| damaged(&error))?;
        let begins = after.unfinished.is_some() && before.unfinished != after.unfinished;
        let is_durable = begins || changes != Changes::default();
        let mut stored = after;
        let mut committed = Ok(());
        if is_durable {
            let unfinished = serde_json::to_string(&after.unfinished).map_err(|error| damaged(&error))?;
            changes.meta.push(("unfinished", unfinished));
            let flag = self.path.with_extension("unconfirmed");
            // The flag exists at least as long as a change waits in the database.
            if after.unconfirmed.is_some() {
                file::open(&flag)?;
            }
            committed = database.commit(&changes);
            if committed.is_err() {
                stored = before;
            }
            if stored.unconfirmed.is_none() && (before.unconfirmed.is_some() || after.unconfirmed.is_some()) {
                // If the flag stays, waiting processes look into the store at the deadline.
                drop(fs::remove_file(&flag));
            }
        }
        let finishes = before.unfinished.is_some() || kernel::differs(before, after);
        if stored.unfinished.is_none() && (is_durable || finishes) {
            let record = KernelRecord::new(database.commit, stored);
            let written = record.write(&self.path.with_extension("kernel"));
            // If the kernel file cannot be written after a commit, the next command only has to read all rules.
            return if is_durable { committed } else { written };
        }
        committed
    }

    /// Returns the path of a file that exists while a change waits to be confirmed. So waiting processes see the confirmation
    /// without the lock. `None` for a store in memory.
    pub fn pending_flag(&self) -> Option<PathBuf> {
        self.sibling("unconfirmed")
    }

    /// Returns true if both a commit and its invalidation failed, so the stored state is unknown.
    pub fn is_undecided(&self) -> bool {
        self.database.as_ref().is_some_and(|database| database.undecided)
    }

    /// Returns the path of the database with another extension; `None` for a store in memory.
    pub fn sibling(&self, extension: &str) -> Option<PathBuf> {
        self.database.as_ref().map(|_| self.path.with_extension(extension))
    }
}

/// Returns the path of a namespace's database, and the unique id of the namespace.
fn place<'a>(directory: &Path, identity: &'a Identity) -> (PathBuf, Option<&'a str>) {
    match identity {
        Identity::Host => (directory.join("state.db"), None),
        Identity::Named(name, incarnation) => (directory.join("netns").join(format!("{name}.db")), Some(incarnation)),
        Identity::Anonymous(incarnation) => {
            (directory.join("netns").join(format!("anonymous-{incarnation}.db")), Some(incarnation))
        }
    }
}

fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::Io(path.to_owned(), error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
