//! What labs made: one file each, written before anything is made.
//!
//! It is state of this boot, like the namespaces themselves, so it is in /run; what an earlier boot left means nothing. It
//! says of every step by which mark of the kernel what was made is told from what others make.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::apply::Keeper;
use super::links::Mac;
use super::name::LabName;
use super::named::NamespaceMark;
use super::ovs::OvsMark;
use super::plan::Step;
use super::process::ProcessMark;
use super::{NetError, host};
use crate::engine::Choice;
use crate::store::{Lock, StateError, acquire_lock};
use crate::sys::boot;

/// The version of these files.
const VERSION: u32 = 1;

/// How long another one that works on labs is waited for.
const WAIT: Duration = Duration::from_secs(5);

/// By what something made is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// It belongs to something that is known by a mark of its own.
    None,
    /// A namespace.
    Namespace(NamespaceMark),
    /// Links: the hardware addresses that they were made with.
    Links(Vec<Mac>),
    /// A bridge of Open vSwitch.
    Ovs(OvsMark),
    /// A rule set: the random word that the state has for where it comes from.
    Rules(String),
    /// A process.
    Process(ProcessMark),
}

/// A step, and the mark of what it makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The step.
    pub step: Step,
    /// The mark.
    pub mark: Mark,
}

/// What a lab made, or was about to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    version: u32,
    /// The lab's name.
    pub name: LabName,
    boot: String,
    /// The namespace that is the lab's host.
    pub host: host::Id,
    /// Whether all of it was made.
    pub complete: bool,
    /// Its description, as TOML.
    pub description: String,
    /// The steps in order.
    pub entries: Vec<Entry>,
}

impl Journal {
    /// One of this boot.
    pub(super) fn new(name: LabName, host: host::Id, description: String, entries: Vec<Entry>) -> io::Result<Self> {
        Ok(Self { version: VERSION, name, boot: boot::id()?.to_owned(), host, complete: false, description, entries })
    }

    /// The same, where not all of it may be there.
    pub(super) fn incomplete(&self) -> Self {
        Self { complete: false, ..self.clone() }
    }
}

/// The directory of all journals.
#[derive(Debug, Clone)]
pub struct Journals {
    directory: PathBuf,
    keeper: Keeper,
}

impl Journals {
    /// Those of a directory, which need not be there.
    /// The state of the rules that they are about is in a folder of it.
    pub fn in_directory(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        let keeper = Keeper { directory: directory.join("rules"), choice: Choice::Auto };
        Self { directory, keeper }
    }

    /// The same, with the state of the rules elsewhere, as of `--state-dir`, and a backend.
    pub fn with_rules(self, directory: impl Into<PathBuf>, choice: Choice) -> Self {
        Self { keeper: Keeper { directory: directory.into(), choice }, ..self }
    }

    /// Where the rules are kept that labs make.
    pub(super) fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Waits for its turn to change labs.
    ///
    /// # Errors
    /// [`NetError::Busy`] where another one works too long; [`NetError::Journal`] where the directory cannot be made.
    pub(super) fn lock(&self) -> Result<Lock, NetError> {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&self.directory);
        made.map_err(|error| NetError::Journal(self.directory.clone(), error))?;
        acquire_lock(&self.directory.join("lab"), WAIT).map_err(|error| match error {
            StateError::Busy(_) => NetError::Busy,
            StateError::Io(path, error) => NetError::Journal(path, error),
            other => NetError::Journal(self.directory.clone(), io::Error::other(other)),
        })
    }

    fn path(&self, name: &LabName) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    /// What a lab made; none where there is no such lab since this boot.
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
            return Err(failed(io::Error::other(format!("it has version {}, not {VERSION}", journal.version))));
        }
        Ok((journal.boot == boot::id().map_err(failed)?).then_some(journal))
    }

    /// Keeps what a lab makes. Killed meanwhile, there is the old one or the new one.
    pub(super) fn write(&self, journal: &Journal) -> Result<(), NetError> {
        let path = self.path(&journal.name);
        let failed = |error| NetError::Journal(path.clone(), error);
        let text = serde_json::to_string(journal).map_err(|error| failed(error.into()))?;
        let new = self.directory.join(format!("{}.new", journal.name));
        let kept = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
        if kept.is_err() {
            // Without it there is room for more than half of it.
            let _: io::Result<()> = fs::remove_file(&new);
        }
        kept.map_err(failed)
    }

    /// Forgets a lab.
    pub(super) fn remove(&self, name: &LabName) -> Result<(), NetError> {
        for path in [self.path(name), self.directory.join(format!("{name}.new"))] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(NetError::Journal(path, error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// All labs, by name.
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
