//! The files of a store: opened without following a link, waited for, set aside.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::Lock;
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

/// How many times `wait` a turn is waited for at most, however the queue moves.
const WAITS: u32 = 6;

/// Waits for its turn to use the store in a file: as long as others come to theirs, each within `wait`, and at most
/// [`WAITS`] times that. So a process that hangs is noticed, and a long queue of ones that work is none.
///
/// Those who wait come one after the other, because it is the kernel that they wait in: whoever asks again and again may
/// never meet the moment. Who comes just when one lets go may be served before them, which costs them that one turn.
pub(crate) fn turn(path: &Path, wait: Duration) -> Result<Lock, StateError> {
    let lock = path.with_extension("lock");
    let file = file(&lock)?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => return Ok(locked.into()),
        Err((file, Errno::EWOULDBLOCK)) if !wait.is_zero() => file,
        Err((_, Errno::EWOULDBLOCK)) => return Err(StateError::Busy(path.to_owned())),
        Err((_, error)) => return Err(StateError::Io(lock, error.into())),
    };
    // Who waited for its turn and got it leaves the time there; who need not wait spares that.
    let last_turn = || fs::symlink_metadata(&lock).and_then(|lock| lock.modified()).ok();
    let mut last = last_turn();
    let (sender, receiver) = mpsc::channel();
    // Where its turn comes too late, the thread has nobody to tell, and lets go at once.
    std::thread::spawn(move || sender.send(Flock::lock(file, FlockArg::LockExclusive)));
    for _ in 0..WAITS {
        match receiver.recv_timeout(wait) {
            Ok(Ok(locked)) => {
                // Without it others give up sooner than they must.
                drop(locked.set_modified(SystemTime::now()));
                return Ok(locked.into());
            }
            Ok(Err((_, error))) => return Err(StateError::Io(lock, error.into())),
            Err(_) => {
                let before = std::mem::replace(&mut last, last_turn());
                if before == last {
                    break;
                }
            }
        }
    }
    Err(StateError::Busy(path.to_owned()))
}

/// Waits until the disk holds the names of the files beside a path.
pub(super) fn sync_names(path: &Path) -> Result<(), StateError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| StateError::Io(directory.to_owned(), error))
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const WAIT: Duration = Duration::from_secs(1);

    #[test]
    fn a_queue_that_moves_is_waited_for_and_one_that_does_not_is_not() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("state.redb");
        // Five who each take less than half of what is waited for: the last waits longer than that.
        let began = Instant::now();
        std::thread::scope(|scope| {
            let queue: Vec<_> = (0..5)
                .map(|_| {
                    scope.spawn(|| {
                        let turn = turn(&path, WAIT)?;
                        std::thread::sleep(WAIT * 2 / 5);
                        drop(turn);
                        Ok::<_, StateError>(())
                    })
                })
                .collect();
            for one in queue {
                one.join().expect("no panic").expect("its turn");
            }
        });
        assert!(began.elapsed() >= WAIT * 2, "one after the other");
        let _held = turn(&path, WAIT).expect("free");
        let began = Instant::now();
        assert!(matches!(turn(&path, WAIT), Err(StateError::Busy(_))));
        assert!(began.elapsed() < WAIT * 3, "{:?}", began.elapsed());
    }
}
