//! The files of a store: opened without following a symbolic link, and renamed if they are damaged.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::state::StateError;

/// Opens a file, or creates it with mode 0600. A symbolic link is an error: a user who may write in the directory must not
/// choose which file root writes to.
pub(super) fn open(path: &Path) -> Result<File, StateError> {
    let io = |error| StateError::Io(path.to_owned(), error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    let file = options.open(path).map_err(io)?;
    if file.metadata().map_err(io)?.is_file() {
        Ok(file)
    } else {
        Err(io(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")))
    }
}

/// Opens an existing file to read it, which works on a read-only file system. A symbolic link is an error.
pub(super) fn open_to_read(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)
}

/// Renames a damaged database and its log. Returns the new name, which ends in `.damaged`, or in `.damaged-2` and so on.
pub(super) fn quarantine(path: &Path) -> Result<PathBuf, StateError> {
    let with = |path: &Path, ending: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let name = |number: u32| match number {
        1 => with(path, ".damaged"),
        _ => with(path, &format!(".damaged-{number}")),
    };
    let to = (1..).map(name).find(|to| !to.exists()).unwrap_or_else(|| name(1));
    // Renames the log first: SQLite would use it as the log of the next database.
    for ending in ["-wal", ""] {
        match fs::rename(with(path, ending), with(&to, ending)) {
            Err(error) if ending.is_empty() || error.kind() != io::ErrorKind::NotFound => {
                return Err(StateError::Io(path.to_owned(), error));
            }
            _ => {}
        }
    }
    Ok(to)
}
