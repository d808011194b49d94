//! The files of a store: opened without following a link, waited for, set aside.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::state::StateError;

/// Opens a file, or makes it, for its owner alone. Who may write in the directory, or once could, must not choose what we
/// write to: a link is not followed.
pub(super) fn file(path: &Path) -> Result<File, StateError> {
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

/// The number of the last commit that the file one waits with knows of; 0 where it knows of none.
pub(super) fn last_commit(turn: &File) -> u64 {
    let mut number = [0; 8];
    turn.read_exact_at(&mut number, 0).map_or(0, |()| u64::from_le_bytes(number))
}

/// Notes the number of the last commit. Where that fails, a store that lost it later is not recognised by it.
pub(super) fn note_commit(turn: &File, number: u64) {
    let _ = turn.write_all_at(&number.to_le_bytes(), 0);
}

/// Gives a damaged store another name, which is given; and so its log, which would be taken for that of the next one.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf, StateError> {
    let with = |path: &Path, more: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(more);
        PathBuf::from(name)
    };
    let name = |number: u32| match number {
        1 => with(path, ".damaged"),
        _ => with(path, &format!(".damaged-{number}")),
    };
    let to = (1..).map(name).find(|to| !to.exists()).unwrap_or_else(|| name(1));
    for more in ["-wal", ""] {
        match fs::rename(with(path, more), with(&to, more)) {
            Err(error) if more.is_empty() || error.kind() != io::ErrorKind::NotFound => {
                return Err(StateError::Io(path.to_owned(), error));
            }
            _ => {}
        }
    }
    Ok(to)
}
