//! The identity of a lab's host, and the search for its namespace.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::lab::{LabError, Netns};
use crate::sys::namespace::{DIRECTORY, Identity, identity};
use crate::sys::process;

/// The identity of a network namespace that is a lab's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Id {
    /// The token of the namespace. `None` means the root network namespace.
    #[serde(rename = "word")]
    token: Option<String>,
    /// The name in /run/netns, if it had one.
    name: Option<String>,
}

impl Id {
    /// Returns the identity of the calling thread's namespace.
    pub(super) fn current() -> io::Result<Self> {
        Ok(match identity()? {
            Identity::Host => Self { token: None, name: None },
            Identity::Named(name, token) => Self { token: Some(token), name: Some(name) },
            Identity::Anonymous(token) => Self { token: Some(token), name: None },
        })
    }

    /// Returns true if both are the same namespace, regardless of names.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.token == other.token
    }

    /// Returns the name for messages and for `--netns`, if there is one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns true if this is the root network namespace.
    pub fn is_root_namespace(&self) -> bool {
        self.token.is_none()
    }

    /// Finds the namespace: the current one, a named one, or that of a process. Returns `None` if it no longer exists.
    ///
    /// # Errors
    /// If the namespace was not found, and one of the candidates may not be entered.
    pub(super) fn find(&self) -> io::Result<Option<Netns>> {
        if self.is_same(&Self::current()?) {
            return Netns::current().map(Some);
        }
        let mut refused = None;
        let names = fs::read_dir(DIRECTORY).into_iter().flatten().flatten().map(|entry| entry.path());
        let processes = process::numbers()?.map(|number| PathBuf::from(format!("/proc/{number}/ns/net")));
        let mut visited = Vec::new();
        for path in names.chain(processes) {
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let file = (metadata.dev(), metadata.ino());
            if !metadata.is_file() || visited.contains(&file) {
                continue;
            }
            visited.push(file);
            let Ok(file) = File::open(&path) else { continue };
            let namespace = Netns::from_file(file);
            match namespace.run(Self::current) {
                Ok(Ok(id)) if self.is_same(&id) => return Ok(Some(namespace)),
                Err(LabError::Io(_, error)) if error.kind() == io::ErrorKind::PermissionDenied => refused = Some(error),
                _ => {}
            }
        }
        refused.map_or(Ok(None), Err)
    }
}
