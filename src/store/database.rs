//! The state of one network namespace, in an embedded store (SQLite): atoms of forwards in small blocks, so that one more of
//! them on 60,000 rewrites only its neighbours, and the rest of each set.
//!
//! A store belongs to one namespace: the host's is `state.db` in the state directory, others' are below `netns/`. A
//! namespace that ip-netns(8) made anew under an old name begins with nothing, because its kernel holds nothing.
//!
//! A command writes twice, the wish before the kernel is changed and the end of it afterwards, and waits for the disk once:
//! what comes afterwards is about what a kernel holds, and a kernel that lost its power holds nothing.
//!
//! Be aware: a second process waits for its turn, see [`Store::open`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::rows::{self, Rows};
use super::state::{State, StateError};
use super::table::{Changes, Row, Table, Tables, Wait};
use super::{Lock, block, file, old};
use crate::model::{Binding, SetName};
use crate::sys::namespace::Identity;

/// The shape of the store; a number that is not known is not touched. Up to 3 it was kept by redb, see `old.rs`; 4 had three
/// tables in the place of one, see `table.rs`.
pub(super) const VERSION: &str = "5";

/// The version whose tables are carried over where a file is opened.
const CARRIED: &str = "4";

/// From how many atoms on it is worth while to look only at what a change is about, whoever may have changed the rest.
const MANY: usize = 1_000;

/// How many bytes of blocks may be read for a change of a few atoms; with more everything is read as well.
const NEAR: usize = 16 * 1024;

/// An open store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    tables: Option<Tables>,
    /// Held until the file is closed.
    turn: Option<Lock>,
}

impl Store {
    /// Opens the store of a namespace, waiting up to `wait` for another process that has it open, and longer where one after
    /// the other has.
    ///
    /// With `make` false a store that is not there is read as empty, and nothing is made.
    ///
    /// # Errors
    /// [`StateError::Busy`] after `wait`; others where it cannot be opened or is of another version.
    pub fn open(directory: &Path, identity: &Identity, make: bool, wait: Duration) -> Result<Self, StateError> {
        let (path, incarnation) = place(directory, identity);
        if !make && !path.exists() && !old(&path).exists() {
            return Ok(Self { path, tables: None, turn: None });
        }
        if let Some(parent) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
            made.map_err(|error| StateError::Io(parent.to_owned(), error))?;
        }
        let turn = file::turn(&path, wait)?;
        let tables = Tables::open(&path)?;
        let mut store = Self { path, tables: Some(tables), turn: Some(turn) };
        store.begin(incarnation.map(String::as_str))?;
        Ok(store)
    }

    /// Gives a file of a namespace's store that was found to be `damaged` another name, and opens what is left, or a new one.
    /// Gives that name too.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn anew(
        directory: &Path,
        identity: &Identity,
        damaged: &Path,
        wait: Duration,
    ) -> Result<(Self, PathBuf), StateError> {
        let turn = file::turn(&place(directory, identity).0, wait)?;
        let aside = file::set_aside(damaged)?;
        drop(turn);
        Ok((Self::open(directory, identity, true, wait)?, aside))
    }

    /// A store that keeps nothing.
    pub fn in_memory() -> Self {
        Self { path: PathBuf::new(), tables: None, turn: None }
    }

    /// Checks version and namespace. A store that is new takes over what one of an older version held; one that was made for
    /// another namespace of its name is emptied.
    fn begin(&mut self, incarnation: Option<&str>) -> Result<(), StateError> {
        let (Some(tables), Some(turn)) = (&self.tables, &self.turn) else { return Ok(()) };
        let text = |key| tables.meta(key).map(String::from_utf8_lossy);
        let last = file::last_commit(turn);
        let old = old(&self.path);
        match text("version") {
            Some(version) if ![VERSION, CARRIED].contains(&&*version) => {
                return Err(StateError::Version(self.path.clone(), version.into_owned()));
            }
            Some(_) if tables.commits() < last => return Err(self.damaged(&"what was committed last is not in it")),
            Some(version) if text("namespace").as_deref() == incarnation => {
                return if version == VERSION { Ok(()) } else { self.renumber() };
            }
            None if !tables.made() && last > 0 => return Err(self.damaged(&"nothing is left in it")),
            _ => {}
        }
        let state = old::read(&old, incarnation)?.unwrap_or_default();
        let mut changes = rows::changes(&State::default(), &state).map_err(|what| self.damaged(&what))?;
        set_count(&mut changes, state.asked.bindings.len());
        changes.anew = true;
        changes.set("version", Some(VERSION.into()));
        if let Some(incarnation) = incarnation {
            changes.set("namespace", Some(incarnation.into()));
        }
        let (Some(tables), Some(turn)) = (&mut self.tables, &self.turn) else { return Ok(()) };
        tables.write(Wait::ForDisk, changes)?;
        // From here on a file without its log is known not to be whole.
        tables.carry()?;
        file::sync_names(&self.path)?;
        file::note_commit(turn, tables.commits());
        match fs::remove_file(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::Io(old, error)),
            _ => Ok(()),
        }
    }

    /// Says of a store of version 4, whose rows are in their new places by now, that it is one of this version.
    fn renumber(&mut self) -> Result<(), StateError> {
        let mut changes = Changes::default();
        changes.set("version", Some(VERSION.into()));
        let (Some(tables), Some(turn)) = (&mut self.tables, &self.turn) else { return Ok(()) };
        tables.write(Wait::ForDisk, changes)?;
        file::note_commit(turn, tables.commits());
        Ok(())
    }

    /// Reads everything.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn load(&self) -> Result<State, StateError> {
        let Some(tables) = &self.tables else { return Ok(State::default()) };
        tables.check()?;
        let mut rows = self.rest(tables)?;
        tables.each(Table::Blocks, |key, value| {
            rows.blocks.push((block::set_of(key).to_owned(), value.to_owned()));
            Ok(())
        })?;
        let state = rows.state(&self.path)?;
        if Self::count(tables) == Some(state.asked.bindings.len()) {
            Ok(state)
        } else {
            Err(self.damaged(&"there are not as many forwards as were written"))
        }
    }

    /// Reads what a change of some atoms is about, where that is much less than everything: of the atoms only those that these
    /// could contradict or be a change of, those of `sets`, which it replaces, and [`State::samples`]. `None` where everything
    /// must be looked at.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn near(&self, about: &[Binding], sets: &[SetName]) -> Result<Option<State>, StateError> {
        let Some(tables) = &self.tables else { return Ok(None) };
        let mut rows = self.rest(tables)?;
        let known: Vec<SetName> = rows.sets.iter().filter_map(|(name, _)| name.parse().ok()).collect();
        let mut size = 0;
        let mut blocks: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let around = known.iter().flat_map(|set| about.iter().map(move |rule| block::around(set, rule)));
        // Neighbours have one in common.
        let places: BTreeSet<(String, String)> = sets.iter().map(block::of_set).chain(around).collect();
        for (first, last) in &places {
            tables.each_of(Table::Blocks, (first, last), |key, value| {
                size += value.len();
                if size <= NEAR {
                    blocks.insert(key.to_owned(), value.to_owned());
                }
                Ok(())
            })?;
            if size > NEAR {
                return Ok(None);
            }
        }
        rows.blocks.extend(blocks.into_iter().map(|(key, value)| (block::set_of(&key).to_owned(), value)));
        let mut state = rows.state(&self.path)?;
        let loopback = |rule: &Binding| rule.loopback;
        let all = about.iter().chain(state.samples.iter().map(|owned| &owned.rule)).any(loopback)
            || state.samples.is_empty()
            || state.unfinished.is_some()
            || state.unconfirmed.is_some();
        if all {
            return Ok(None);
        }
        let asked = Arc::make_mut(&mut state.asked);
        let more: Vec<_> = state.samples.iter().filter(|owned| !asked.bindings.contains(owned)).cloned().collect();
        asked.bindings.extend(more);
        asked.normalize();
        Ok(Some(state))
    }

    /// Whether there are so many atoms that it takes much longer to look at all of them than at those a change is about.
    pub fn has_many(&self) -> bool {
        self.tables.as_ref().and_then(Self::count).is_some_and(|count| count >= MANY)
    }

    /// Everything but atoms.
    fn rest(&self, tables: &Tables) -> Result<Rows, StateError> {
        let meta = |key| tables.meta(key).map(<[u8]>::to_vec);
        let mut rows = Rows {
            sysctls: meta("sysctls"),
            iptables: meta("iptables"),
            unusable: meta("unusable"),
            unfinished: meta("unfinished"),
            unconfirmed: meta("unconfirmed"),
            confirmed: meta("confirmed"),
            committed: meta("committed"),
            whole: meta("whole"),
            samples: meta("samples"),
            ..Rows::default()
        };
        tables.each(Table::Sets, |key, value| {
            rows.sets.push((key.to_owned(), value.to_owned()));
            Ok(())
        })?;
        Ok(rows)
    }

    /// How many atoms there are; none where that is no number.
    fn count(tables: &Tables) -> Option<usize> {
        let Some(count) = tables.meta("forwards") else { return Some(0) };
        usize::try_from(u64::from_le_bytes(count.try_into().ok()?)).ok()
    }

    /// Replaces `before`, which is what [`Store::load`] gave, by `after`; only what differs is written.
    ///
    /// # Errors
    /// Where it cannot be written; then nothing is.
    pub fn save(&mut self, before: &State, after: &State) -> Result<(), StateError> {
        let Some(tables) = &self.tables else { return Ok(()) };
        let mut changes = rows::changes(before, after).map_err(|what| self.damaged(&what))?;
        let (less, more) = (before.asked.bindings.len(), after.asked.bindings.len());
        if less != more {
            // What is not a part of both may be more than is given.
            let count = Self::count(tables).and_then(|count| (count + more).checked_sub(less)).unwrap_or(more);
            set_count(&mut changes, count);
        }
        if after.unconfirmed.is_some() {
            self.raise_flag()?;
        }
        let written = self.write(changes);
        let now = if written.is_ok() { after } else { before };
        if now.unconfirmed.is_none() && (before.unconfirmed.is_some() || after.unconfirmed.is_some()) {
            self.lower_flag();
        }
        written
    }

    fn write(&mut self, changes: Changes) -> Result<(), StateError> {
        let (Some(tables), Some(turn)) = (&mut self.tables, &self.turn) else { return Ok(()) };
        if is_wish(&changes) {
            tables.write(Wait::ForDisk, changes)?;
            file::note_commit(turn, tables.commits());
        } else if !changes.meta.is_empty() {
            tables.write(Wait::No, changes)?;
        }
        Ok(())
    }

    /// Puts the file in order where much was written. All of it is in the log as well, so this can wait until there is time
    /// for it, and where it fails it is done another time. `more` says whether something is still to be kept.
    pub fn tidy(&mut self, more: bool) {
        drop(self.tables.as_ref().map(|tables| tables.tidy(more)));
    }

    /// A file that is there as long as a change waits to be confirmed, so that who waits for the end of that need not take
    /// turns with others to look into the store; none where nothing is kept.
    pub fn flag(&self) -> Option<PathBuf> {
        self.beside("unconfirmed")
    }

    /// Whatever happens in between, the flag is up while the store says so.
    fn raise_flag(&self) -> Result<(), StateError> {
        self.flag().map_or(Ok(()), |path| file::file(&path).map(drop))
    }

    fn lower_flag(&self) {
        // Where it stays, those who wait look into the store at the deadline.
        drop(self.flag().map(fs::remove_file));
    }

    /// Whether it cannot be told what is kept, because a write failed, and what was to take its place too.
    pub fn is_undecided(&self) -> bool {
        self.tables.as_ref().is_some_and(Tables::is_undecided)
    }

    /// The path of a file beside the store, with another ending; none where nothing is kept.
    pub fn beside(&self, ending: &str) -> Option<PathBuf> {
        self.tables.as_ref().map(|_| self.path.with_extension(ending))
    }

    fn damaged(&self, error: &dyn ToString) -> StateError {
        StateError::Damaged(self.path.clone(), error.to_string())
    }
}

/// Whether what is asked changes, or whether that is confirmed; all the rest is about what a kernel holds, and is lost with
/// the kernel.
fn is_wish(changes: &Changes) -> bool {
    let confirms = |(key, _): &Row| ["unconfirmed", "confirmed"].contains(&key.as_str());
    !changes.blocks.is_empty() || !changes.sets.is_empty() || changes.meta.iter().any(confirms)
}

/// Sets the number of atoms.
fn set_count(changes: &mut Changes, count: usize) {
    changes.set("forwards", Some(u64::try_from(count).unwrap_or(u64::MAX).to_le_bytes().to_vec()));
}

/// The file of a namespace's store, and which one of its name the namespace is.
fn place<'a>(directory: &Path, identity: &'a Identity) -> (PathBuf, Option<&'a String>) {
    match identity {
        Identity::Host => (directory.join("state.db"), None),
        Identity::Named(name, incarnation) => (directory.join("netns").join(format!("{name}.db")), Some(incarnation)),
        Identity::Anonymous(incarnation) => {
            (directory.join("netns").join(format!("anonymous-{incarnation}.db")), Some(incarnation))
        }
    }
}

/// The file of a store of an older version.
fn old(path: &Path) -> PathBuf {
    path.with_extension("redb")
}

#[cfg(test)]
mod tests;
