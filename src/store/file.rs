//! The file of a store: opened without following a link, waited for, and never trusted to be whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use redb::backends::FileBackend;
use redb::{Database, DatabaseError};

use super::state::StateError;

/// Opens a file, or makes it, for its owner alone. Who may write in the directory, or once could, must not choose what we
/// write to: a link is not followed.
fn file(path: &Path) -> Result<File, StateError> {
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

/// Waits up to `wait` for its turn to use the store in a file. Those who wait come one after the other, because it is the
/// kernel that they wait in: whoever asks again and again may never meet the moment.
pub(super) fn turn(path: &Path, wait: Duration) -> Result<Flock<File>, StateError> {
    let lock = path.with_extension("lock");
    let file = file(&lock)?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => return Ok(locked),
        Err((file, Errno::EWOULDBLOCK)) if !wait.is_zero() => file,
        Err((_, Errno::EWOULDBLOCK)) => return Err(StateError::Busy(path.to_owned())),
        Err((_, error)) => return Err(StateError::Io(lock, error.into())),
    };
    let (sender, receiver) = mpsc::channel();
    // Where its turn comes too late, the thread has nobody to tell, and lets go at once.
    std::thread::spawn(move || sender.send(Flock::lock(file, FlockArg::LockExclusive)));
    match receiver.recv_timeout(wait) {
        Ok(Ok(locked)) => Ok(locked),
        Ok(Err((_, error))) => Err(StateError::Io(lock, error.into())),
        Err(_) => Err(StateError::Busy(path.to_owned())),
    }
}

/// Opens the database in a file, or makes both, and looks through all of it.
pub(super) fn open(path: &Path) -> Result<Database, StateError> {
    let backend = FileBackend::new(file(path)?);
    // Without it redb reads what it finds, and a flipped bit is another port.
    let opened = whole(path, || {
        Ok(backend
            .and_then(|backend| Database::builder().set_check_integrity_on_open(true).create_with_backend(backend)))
    })?;
    match opened {
        Ok(database) => Ok(database),
        Err(DatabaseError::DatabaseAlreadyOpen) => Err(StateError::Busy(path.to_owned())),
        Err(error) => Err(failed(path, error.into())),
    }
}

/// What an error of the store's means: that its file is damaged, that it cannot be reached, or something else.
pub(super) fn failed(path: &Path, error: redb::Error) -> StateError {
    let path = path.to_owned();
    match error {
        redb::Error::Corrupted(what) => StateError::Damaged(path, what),
        redb::Error::UpgradeRequired(version) => StateError::Damaged(path, format!("it is in format {version}")),
        redb::Error::Io(error) => match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => StateError::Damaged(path, error.to_string()),
            _ => StateError::Io(path, error),
        },
        error => StateError::Store(path, Box::new(error)),
    }
}

/// Does something with a store. Where redb panics over what it finds in the file, and with some flipped bits it does (4.6),
/// that file is damaged, which is no fault of this program to be reported as one.
pub(super) fn whole<T>(path: &Path, job: impl FnOnce() -> Result<T, StateError>) -> Result<T, StateError> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let done = panic::catch_unwind(AssertUnwindSafe(job));
    panic::set_hook(hook);
    done.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let line = said.unwrap_or_default().lines().next().unwrap_or_default();
        Err(StateError::Damaged(path.to_owned(), line.to_owned()))
    })
}

/// Gives a damaged file another name, which is given.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf, StateError> {
    let name = |number: u32| match number {
        1 => path.with_extension("redb.damaged"),
        _ => path.with_extension(format!("redb.damaged-{number}")),
    };
    let to = (1..).map(name).find(|to| !to.exists()).unwrap_or_else(|| name(1));
    fs::rename(path, &to).map_err(|error| StateError::Io(path.to_owned(), error))?;
    Ok(to)
}
