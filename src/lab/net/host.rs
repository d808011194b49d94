//! Which network namespace is a lab's host, and finding it again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::lab::{LabError, Netns};
use crate::sys::namespace::{DIRECTORY, Identity, identity};
use crate::sys::process;

/// By what the host of a lab is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Id {
    /// A word that no other namespace has; none: this machine's own namespace.
    word: Option<String>,
    /// Its name, where it had one.
    name: Option<String>,
}

impl Id {
    /// That of the namespace of the calling thread.
    pub(super) fn current() -> io::Result<Self> {
        Ok(match identity()? {
            Identity::Host => Self { word: None, name: None },
            Identity::Named(name, word) => Self { word: Some(word), name: Some(name) },
            Identity::Anonymous(word) => Self { word: Some(word), name: None },
        })
    }

    /// Whether both are the same namespace, whatever it is called.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.word == other.word
    }

    /// Its name for people, and for `--netns`; none where it has none.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether it is this machine's own namespace.
    pub fn is_own(&self) -> bool {
        self.word.is_none()
    }

    /// Finds it: where we are, by name, or by a process that is in it. None where it is gone, and with it what was in it.
    ///
    /// # Errors
    /// Where a namespace that it may be may not be entered.
    pub(super) fn find(&self) -> io::Result<Option<Netns>> {
        if self.is(&Self::current()?) {
            return Netns::current().map(Some);
        }
        let mut refused = None;
        let names = fs::read_dir(DIRECTORY).into_iter().flatten().flatten().map(|entry| entry.path());
        let processes = process::numbers()?.map(|number| PathBuf::from(format!("/proc/{number}/ns/net")));
        let mut met = Vec::new();
        for path in names.chain(processes) {
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let file = (metadata.dev(), metadata.ino());
            if !metadata.is_file() || met.contains(&file) {
                continue;
            }
            met.push(file);
            let Ok(file) = File::open(&path) else { continue };
            let namespace = Netns::held(file);
            match namespace.run(Self::current) {
                Ok(Ok(id)) if self.is(&id) => return Ok(Some(namespace)),
                Err(LabError::Io(_, error)) if error.kind() == io::ErrorKind::PermissionDenied => refused = Some(error),
                _ => {}
            }
        }
        refused.map_or(Ok(None), Err)
    }
}
