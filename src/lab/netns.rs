//! Network namespaces that an open file keeps alive, with or without a name.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid};

use super::LabError;

/// A network namespace. The kernel keeps it as long as this value or a process in the namespace exists.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// Creates a namespace. Its loopback interface is down. IPv6 addresses in it are usable at once.
    ///
    /// # Errors
    /// If the process may not create namespaces.
    pub fn new() -> Result<Self, LabError> {
        let made = thread::spawn(|| -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            // By default the kernel probes a new IPv6 address for duplicates for a second before it can be used.
            for place in ["default", "all"] {
                let switch = fs::write(format!("/proc/sys/net/ipv6/conf/{place}/accept_dad"), "0");
                // A kernel without IPv6 has no such sysctl.
                drop(switch);
            }
            File::open("/proc/thread-self/ns/net")
        });
        match made.join() {
            Ok(Ok(file)) => Ok(Self(file)),
            Ok(Err(error)) => Err(LabError::Io("making a network namespace", error)),
            Err(_) => Err(LabError::Io("making a network namespace", io::ErrorKind::Other.into())),
        }
    }

    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// If `/proc` does not show the namespace.
    pub fn current() -> io::Result<Self> {
        File::open("/proc/thread-self/ns/net").map(Self)
    }

    /// Wraps a namespace file of `/proc`, or a bind mount of one. The kind of the file is checked only by
    /// [`Netns::enter`] and [`Netns::run`].
    pub fn from_file(file: File) -> Self {
        Self(file)
    }

    /// Moves the calling thread into the namespace.
    ///
    /// # Errors
    /// If the kernel refuses to enter the namespace.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.0, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `job` in the namespace, in a thread of its own.
    ///
    /// # Errors
    /// If the thread cannot enter the namespace.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let result = thread::scope(|scope| {
            let inside = scope.spawn(|| -> io::Result<T> {
                setns(&self.0, CloneFlags::CLONE_NEWNET)?;
                Ok(job())
            });
            inside.join()
        });
        match result {
            Ok(done) => done.map_err(|error| LabError::Io("entering a network namespace", error)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Enters a new user namespace.
///
/// The kernel refuses this (EINVAL) to a process with several threads. A thread that has just been joined may still
/// count: it wakes the joining thread shortly before it disappears. So EINVAL is retried.
fn unshare_user() -> io::Result<()> {
    for _ in 0..100 {
        match unshare(CloneFlags::CLONE_NEWUSER) {
            Err(Errno::EINVAL) => thread::sleep(Duration::from_millis(1)),
            other => return other.map_err(Into::into),
        }
    }
    Err(Errno::EINVAL.into())
}

/// Ensures that the process can create namespaces. If it is not root, it enters a new user namespace in which it is.
///
/// Call this before any thread is started: a process with several threads may not change its user namespace
/// (unshare(2)).
///
/// # Errors
/// [`LabError::NotAllowed`] if user namespaces are not allowed.
pub fn gain_privileges() -> Result<(), LabError> {
    if Netns::new().is_ok() {
        return Ok(());
    }
    let (uid, gid) = (geteuid(), getegid());
    let enter = || -> io::Result<()> {
        unshare_user()?;
        // A process without CAP_SETGID may map its own group only after it denies setgroups (user_namespaces(7)).
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
    };
    enter().map_err(LabError::NotAllowed)?;
    match Netns::new() {
        Ok(_) => Ok(()),
        Err(LabError::Io(_, error)) => Err(LabError::NotAllowed(error)),
        Err(error) => Err(error),
    }
}
