//! A file that is locked as long as it is held.

use std::fs::File;
use std::ops::{Deref, DerefMut};

use nix::fcntl::Flock;

/// A locked file. Where it cannot be unlocked, which a network file system may say, it stays so until the process ends; nix's
/// own type ends the process then, whose work is done.
#[derive(Debug)]
pub struct Lock(Option<Flock<File>>);

impl From<Flock<File>> for Lock {
    fn from(locked: Flock<File>) -> Self {
        Self(Some(locked))
    }
}

impl Deref for Lock {
    type Target = File;

    fn deref(&self) -> &File {
        self.0.as_ref().expect("it is held until it is dropped")
    }
}

impl DerefMut for Lock {
    fn deref_mut(&mut self) -> &mut File {
        self.0.as_mut().expect("it is held until it is dropped")
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(Err((locked, _))) = self.0.take().map(Flock::unlock) {
            std::mem::forget(locked);
        }
    }
}
