//! A network namespace that is held by an open file, whether it has a name or not.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid};

use super::LabError;

/// A network namespace that lives as long as this value, or as anything that was started in it.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// Makes one. Its loopback interface is down; IPv6 addresses in it are usable at once.
    ///
    /// # Errors
    /// Where namespaces may not be made.
    pub fn new() -> Result<Self, LabError> {
        let made = thread::spawn(|| -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            // A fresh address is otherwise probed for duplicates for a second before it can be used.
            for place in ["default", "all"] {
                let switch = fs::write(format!("/proc/sys/net/ipv6/conf/{place}/accept_dad"), "0");
                // A kernel without IPv6 has no such switch.
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

    /// The one that the calling thread is in.
    ///
    /// # Errors
    /// Where `/proc` does not show it.
    pub fn current() -> io::Result<Self> {
        File::open("/proc/thread-self/ns/net").map(Self)
    }

    /// One that a file of `/proc`, or a mount of one, stands for. Whether it does is only seen when it is entered.
    pub fn from_file(file: File) -> Self {
        Self(file)
    }

    /// Moves the calling thread into it.
    ///
    /// # Errors
    /// Where it cannot be entered.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.0, CloneFlags::CLONE_NEWNET)?)
    }

    /// Does something in it, in a thread of its own.
    ///
    /// # Errors
    /// Where it cannot be entered.
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
/// The kernel refuses that (EINVAL) to a process of several threads, and a thread that was joined a moment ago may still be
/// one of them: it wakes who waits for it shortly before it is gone.
fn unshare_user() -> io::Result<()> {
    for _ in 0..100 {
        match unshare(CloneFlags::CLONE_NEWUSER) {
            Err(Errno::EINVAL) => thread::sleep(Duration::from_millis(1)),
            other => return other.map_err(Into::into),
        }
    }
    Err(Errno::EINVAL.into())
}

/// Makes sure that namespaces can be made: as root they can; otherwise a user namespace is entered in which we are.
///
/// Must be called before any thread is started, because a process of several threads may not change its user namespace
/// (unshare(2)).
///
/// # Errors
/// [`LabError::NotAllowed`] where user namespaces are not allowed.
pub fn gain_privileges() -> Result<(), LabError> {
    if Netns::new().is_ok() {
        return Ok(());
    }
    let (uid, gid) = (geteuid(), getegid());
    let enter = || -> io::Result<()> {
        unshare_user()?;
        // Who cannot set groups back may map its own group (user_namespaces(7)).
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
