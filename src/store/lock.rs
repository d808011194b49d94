//! The lock file of a store. One process at a time uses a store; the others wait in a queue.

use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use super::file;
use super::state::StateError;

/// The longest wait of a process in a moving queue, as a multiple of `wait` in [`acquire_lock`].
const WAITS: u32 = 6;

/// An exclusively locked file (flock(2)). Dropping the value unlocks the file, also if a child process still has it open.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Wraps a file that the caller has locked.
    pub fn of_locked(file: File) -> Self {
        Self(file)
    }
}

impl Deref for Lock {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl DerefMut for Lock {
    fn deref_mut(&mut self) -> &mut File {
        &mut self.0
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If a network file system refuses, closing the file ends the lock.
        drop(self.0.unlock());
    }
}

/// Locks the store at `path` and creates the lock file if it is missing. Waits for `wait`, or up to six times as long if the
/// queue moves. So a hanging lock holder causes an error, and a long queue of working processes does not.
///
/// # Errors
/// [`StateError::Busy`] if the lock holder does not change within `wait`; [`StateError::Io`].
pub(crate) fn acquire_lock(path: &Path, wait: Duration) -> Result<Lock, StateError> {
    let name = path.with_extension("lock");
    wait_for(file::open(&name)?, name, path, wait)
}

/// Locks the store at `path` without creating a file. Returns `None` if there is no lock file. Works on a read-only file
/// system.
pub(super) fn acquire_existing_lock(path: &Path, wait: Duration) -> Result<Option<Lock>, StateError> {
    let name = path.with_extension("lock");
    match file::open_to_read(&name) {
        Ok(file) => wait_for(file, name, path, wait).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StateError::Io(name, error)),
    }
}

fn wait_for(file: File, name: PathBuf, path: &Path, wait: Duration) -> Result<Lock, StateError> {
    match file.try_lock() {
        Ok(()) => return Ok(Lock(file)),
        Err(TryLockError::WouldBlock) if !wait.is_zero() => {}
        Err(TryLockError::WouldBlock) => return Err(StateError::Busy(path.to_owned())),
        Err(TryLockError::Error(error)) => return Err(StateError::Io(name, error)),
    }
    // A process that waited sets the file's modification time when it gets the lock. A new time means that the queue moves.
    let time = || fs::symlink_metadata(&name).and_then(|file| file.modified()).ok();
    let mut seen = time();
    let (sender, receiver) = mpsc::channel();
    // The kernel grants the lock to waiting threads in order; polling could miss every free moment. If the thread gets the
    // lock after the last timeout, the channel drops the file, which unlocks it.
    std::thread::spawn(move || sender.send(file.lock().map(|()| Lock(file))));
    for _ in 0..WAITS {
        match receiver.recv_timeout(wait) {
            Ok(Ok(lock)) => {
                // If the time cannot be set, the next processes in the queue give up earlier.
                drop(lock.set_modified(SystemTime::now()));
                return Ok(lock);
            }
            Ok(Err(error)) => return Err(StateError::Io(name, error)),
            Err(_) => {
                let before = std::mem::replace(&mut seen, time());
                if before == seen {
                    break;
                }
            }
        }
    }
    Err(StateError::Busy(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const WAIT: Duration = Duration::from_secs(1);

    #[test]
    fn a_moving_queue_is_waited_for_and_a_hanging_lock_holder_is_not() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("state.db");
        // Each of the five holds the lock for less than half of WAIT, so the last one waits for longer than WAIT.
        let start = Instant::now();
        std::thread::scope(|scope| {
            let queue: Vec<_> = (0..5)
                .map(|_| {
                    scope.spawn(|| {
                        let lock = acquire_lock(&path, WAIT)?;
                        std::thread::sleep(WAIT * 2 / 5);
                        drop(lock);
                        Ok::<_, StateError>(())
                    })
                })
                .collect();
            for process in queue {
                process.join().expect("no panic").expect("gets the lock");
            }
        });
        assert!(start.elapsed() >= WAIT * 2, "one after the other");
        let held = acquire_lock(&path, WAIT).expect("free");
        let start = Instant::now();
        assert!(matches!(acquire_lock(&path, WAIT), Err(StateError::Busy(_))));
        assert!(start.elapsed() < WAIT * 3, "{:?}", start.elapsed());
        let child_has_it = held.try_clone().expect("cloned");
        drop(held);
        acquire_lock(&path, Duration::ZERO).expect("unlocked although another descriptor is open");
        drop(child_has_it);
    }

    #[test]
    fn a_reader_creates_no_lock_file() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("state.db");
        assert!(acquire_existing_lock(&path, WAIT).expect("no error").is_none());
        assert!(!path.with_extension("lock").exists());
        let held = acquire_lock(&path, WAIT).expect("free");
        assert!(matches!(acquire_existing_lock(&path, Duration::ZERO), Err(StateError::Busy(_))));
        drop(held);
        assert!(acquire_existing_lock(&path, WAIT).expect("no error").is_some());
    }
}
