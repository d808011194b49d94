//! The journals of labs: one file for each lab, written before the lab is created.
//!
//! A journal belongs to one boot, as the namespaces do. So it is in /run, and a journal of an earlier boot is ignored.
//! For each step, it has the identity that tells the step's object from those of other programs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::apply::RuleStore;
use super::links::Mac;
use super::name::LabName;
use super::named::NamespaceIdentity;
use super::ovs::OvsIdentity;
use super::plan::Step;
use super::process::ProcessIdentity;
use super::{NetError, host};
use crate::engine::Choice;
use crate::store::{Lock, StateError, acquire_lock};
use crate::sys::boot;

/// The version of the journal format.
const VERSION: u32 = 1;

/// The time to wait for another process that holds the lock of all labs.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The properties that prove that a lab created an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// The step needs no identity of its own: it belongs to an object with one.
    None,
    /// The cookie, inode and token of a namespace.
    Namespace(NamespaceIdentity),
    /// The hardware addresses that links were created with.
    Links(Vec<Mac>),
    /// The token and hardware address of an Open vSwitch bridge.
    Ovs(OvsIdentity),
    /// The random token in the origin of a rule set.
    Rules(String),
    /// The PID, start time and token of a process.
    Process(ProcessIdentity),
}

/// A step and the identity of its object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The step as planned.
    pub step: Step,
    /// The identity, chosen before the object is created.
    #[serde(rename = "mark")]
    pub identity: Identity,
}

/// The journal of one lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    version: u32,
    /// The name of the lab.
    pub name: LabName,
    boot: String,
    /// The identity of the lab's host.
    pub host: host::Id,
    /// True if every step was made.
    pub complete: bool,
    /// The lab's description, as TOML.
    pub description: String,
    /// The steps, in the order of creation.
    pub entries: Vec<Entry>,
}

impl Journal {
    /// Creates a journal of this boot that is not complete.
    pub(super) fn new(name: LabName, host: host::Id, description: String, entries: Vec<Entry>) -> io::Result<Self> {
        Ok(Self { version: VERSION, name, boot: boot::id()?.to_owned(), host, complete: false, description, entries })
    }

    /// Returns the same journal, marked as incomplete.
    pub(super) fn incomplete(&self) -> Self {
        Self { complete: false, ..self.clone() }
    }
}

/// The directory of all journals.
#[derive(Debug, Clone)]
pub struct Journals {
    directory: PathBuf,
    rule_store: RuleStore,
}

impl Journals {
    /// Returns the journals of a directory, which need not exist. The state of the labs' rules is in its folder
    /// `rules`.
    pub fn in_directory(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        let rule_store = RuleStore { directory: directory.join("rules"), choice: Choice::Auto };
        Self { directory, rule_store }
    }

    /// Sets the state directory and the backend for the labs' rules.
    pub fn with_rule_store(self, directory: impl Into<PathBuf>, choice: Choice) -> Self {
        Self { rule_store: RuleStore { directory: directory.into(), choice }, ..self }
    }

    /// Returns the rule store of all labs.
    pub(super) fn rule_store(&self) -> &RuleStore {
        &self.rule_store
    }

    /// Acquires the lock of all labs.
    ///
    /// # Errors
    /// [`NetError::Busy`] if another process holds the lock too long. [`NetError::Journal`] if the directory cannot be
    /// created.
    pub(super) fn lock(&self) -> Result<Lock, NetError> {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&self.directory);
        made.map_err(|error| NetError::Journal(self.directory.clone(), error))?;
        acquire_lock(&self.directory.join("lab"), LOCK_TIMEOUT).map_err(|error| match error {
            StateError::Busy(_) => NetError::Busy,
            StateError::Io(path, error) => NetError::Journal(path, error),
            other => NetError::Journal(self.directory.clone(), io::Error::other(other)),
        })
    }

    fn path(&self, name: &LabName) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    /// Reads the journal of a lab. Returns `None` if this boot has no such lab.
    pub(super) fn read(&self, name: &LabName) -> Result<Option<Journal>, NetError> {
        self.read_file(&self.path(name))
    }

    fn read_file(&self, path: &Path) -> Result<Option<Journal>, NetError> {
        let failed = |error| NetError::Journal(path.to_owned(), error);
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let journal: Journal = serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
        if journal.version != VERSION {
            return Err(failed(io::Error::other(format!("its format has version {}, not {VERSION}", journal.version))));
        }
        Ok((journal.boot == boot::id().map_err(failed)?).then_some(journal))
    }

    /// Writes a journal. If the process is killed meanwhile, the file has the old or the new content.
    pub(super) fn write(&self, journal: &Journal) -> Result<(), NetError> {
        let path = self.path(&journal.name);
        let failed = |error| NetError::Journal(path.clone(), error);
        let text = serde_json::to_string(journal).map_err(|error| failed(error.into()))?;
        let new = self.directory.join(format!("{}.new", journal.name));
        let kept = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
        if kept.is_err() {
            // Removing the partial file frees space on a full disk.
            let _: io::Result<()> = fs::remove_file(&new);
        }
        kept.map_err(failed)
    }

    /// Deletes the journal of a lab.
    pub(super) fn remove(&self, name: &LabName) -> Result<(), NetError> {
        for path in [self.path(name), self.directory.join(format!("{name}.new"))] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(NetError::Journal(path, error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads the journals of all labs, sorted by name.
    pub(super) fn all(&self) -> Result<Vec<Journal>, NetError> {
        let failed = |error| NetError::Journal(self.directory.clone(), error);
        let files = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut journals = Vec::new();
        for file in files {
            let path = file.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                journals.extend(self.read_file(&path)?);
            }
        }
        journals.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(journals)
    }
}
