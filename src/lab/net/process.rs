//! Processes of containers. Each container has an init process, which starts its command and outlives `portfwd lab up`.
//! See `init.rs` for the code that runs in it.
//!
//! ```text
//! up:  start the process ─▶ write its identity to the journal ─▶ release it ─▶ it starts the command
//!      if `up` dies before the release, the process ends
//! ```
//! So every process is in the journal. The identity of a process is its PID, its start time and a random token in its
//! arguments. A process is killed through a pidfd, which never refers to another process.
//!
//! Be aware: without a process namespace, the processes of a container are found as descendants of its init process. If
//! a user kills the init process, they are left over.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::process::Child;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::name::NetnsName;
use crate::lab::Netns;
use crate::lab::error::into_io;
use crate::sys::process::{self, Handle, Stat, numbers};

/// The time to wait for the end of a killed process.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of searches for descendants. Each finds the processes started since the last one.
const MAX_KILL_ROUNDS: usize = 100;

/// The init process of a container and its command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The name of the container.
    pub name: NetnsName,
    /// True if the container uses the host's network. Otherwise it has the namespace of its name.
    pub host: bool,
    /// True if the container has a process namespace of its own.
    #[serde(rename = "own")]
    pub pid_namespace: bool,
    /// The command. Empty if only the init process runs.
    pub command: Vec<String>,
}

/// The properties that prove that a lab started a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The PID in the process namespace below.
    pid: u32,
    /// The start time in clock ticks since boot, as in proc_pid_stat(5).
    start: u64,
    /// The random token in the process's arguments.
    #[serde(rename = "word")]
    token: String,
    /// The inode of the process namespace in which the lab was created.
    #[serde(rename = "space")]
    pid_namespace: u64,
}

/// Returns the inode of this process's process namespace.
fn pid_namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/pid")?.ino())
}

/// Opens a process that has this start time. Returns `None` if it has ended.
fn open_process(pid: u32, start: u64) -> io::Result<Option<Handle>> {
    let process = Handle::open(pid)?;
    // The PID cannot be reused while the handle is open.
    let same = Stat::read(pid).is_some_and(|stat| stat.start == start && !stat.over);
    Ok(process.filter(|_| same))
}

impl ProcessIdentity {
    /// Returns the identity of a child process.
    pub(super) fn from_child(child: &Child, token: String) -> io::Result<Self> {
        let pid = child.id();
        let stat = Stat::read(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, start: stat.start, token, pid_namespace: pid_namespace()? })
    }

    /// Returns the random token in the process's arguments.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// Finds the process. Returns `None` if it has ended.
    ///
    /// # Errors
    /// If this process is in another process namespace than the one that created the lab: PIDs differ there.
    pub(super) fn find(&self) -> io::Result<Option<Handle>> {
        if pid_namespace()? != self.pid_namespace {
            return Err(io::Error::other("the lab was created in another process namespace"));
        }
        let process = open_process(self.pid, self.start)?;
        let arguments = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let has_word = arguments.split(|byte| *byte == 0).any(|argument| argument == self.token.as_bytes());
        Ok(process.filter(|_| has_word))
    }
}

impl Process {
    /// Starts the init process. It waits for [`release`], and ends if this process ends before.
    pub(super) fn start(&self, network: &Netns, token: &str) -> io::Result<Child> {
        let mut arguments: Vec<OsString> = ["lab", "init", token, self.name.as_str()].map(Into::into).to_vec();
        arguments.extend(self.host.then(|| "--host".into()));
        arguments.extend(self.pid_namespace.then(|| "--own".into()));
        arguments.push("--".into());
        arguments.extend(self.command.iter().map(Into::into));
        let start = || {
            if self.pid_namespace {
                // The next child of this thread is PID 1 of a new process namespace.
                unshare(CloneFlags::CLONE_NEWPID)?;
            }
            process::respawn_self(arguments)
        };
        network.run(start).map_err(into_io)?
    }

    /// Kills the process and all its descendants. Returns true if it existed.
    pub(super) fn kill(&self, identity: &ProcessIdentity) -> io::Result<bool> {
        let Some(process) = identity.find()? else { return Ok(false) };
        if !self.pid_namespace {
            kill_descendants(identity.pid, || !process.ended_within(Duration::ZERO))?;
        }
        // The end of PID 1 ends all processes of its namespace.
        process.kill()?;
        if process.ended_within(KILL_TIMEOUT) { Ok(true) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

/// Releases a waiting process and returns its error, if any.
///
/// If `bound` is true, the process ends when this process and all programs that inherit its open files have ended.
pub(super) fn release(mut child: Child, bound: bool) -> io::Result<()> {
    let missing = || io::Error::from(io::ErrorKind::BrokenPipe);
    let mut input = child.stdin.take().ok_or_else(missing)?;
    input.write_all(if bound { b"b" } else { b"g" })?;
    if bound {
        fcntl(&input, FcntlArg::F_SETFD(FdFlag::empty()))?;
        // The pipe stays open as long as this process and the programs that inherit it.
        let _: RawFd = input.into_raw_fd();
    }
    let mut answer = String::new();
    child.stdout.take().ok_or_else(missing)?.read_to_string(&mut answer)?;
    match answer.as_str() {
        "+" => Ok(()),
        "" => Err(io::Error::other("the process ended at once")),
        why => Err(io::Error::other(why.to_owned())),
    }
}

/// Kills all descendants of a process while it lives. After its end, its PID could belong to another process.
pub(super) fn kill_descendants(ancestor: u32, lives: impl Fn() -> bool) -> io::Result<()> {
    for _ in 0..MAX_KILL_ROUNDS {
        let found = descendants(ancestor)?;
        if found.is_empty() || !lives() {
            return Ok(());
        }
        for (pid, start) in found {
            if let Some(process) = open_process(pid, start)? {
                process.kill()?;
                process.ended_within(KILL_TIMEOUT);
            }
        }
    }
    Err(io::Error::other("the container starts processes faster than they can be killed"))
}

/// Returns all living descendants of a process, each with its start time.
fn descendants(ancestor: u32) -> io::Result<Vec<(u32, u64)>> {
    let all: BTreeMap<u32, Stat> = numbers()?.filter_map(|pid| Some((pid, Stat::read(pid)?))).collect();
    let is_below = |pid: u32| {
        let mut above = all.get(&pid).map(|stat| stat.parent);
        // The process tree changes while it is read, so it may contain cycles.
        for _ in 0..all.len() {
            match above {
                Some(parent) if parent == ancestor => return true,
                Some(parent) => above = all.get(&parent).map(|stat| stat.parent),
                None => return false,
            }
        }
        false
    };
    let living = all.iter().filter(|(pid, stat)| !stat.over && is_below(**pid));
    Ok(living.map(|(pid, stat)| (*pid, stat.start)).collect())
}
