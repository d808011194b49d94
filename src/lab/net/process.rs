//! The processes of containers: one of ours each, which starts the container's command and outlives the command that made
//! the lab. What it does is in `init.rs`.
//!
//! ```text
//! up:  start, it waits ─▶ its identity in the journal ─▶ "go" ─▶ it starts the command          up dies before: it ends
//! ```
//! So whatever is there is in the journal. A process is known by its number together with when it was started and a random
//! word among its arguments; it is ended through a pidfd, which is never another process's.
//!
//! Be aware: where a container has no process namespace of its own, what the command starts is found as descendants of our
//! process. Who kills that one by hand has the others left.

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
use crate::lab::error::plain;
use crate::sys::process::{self, Handle, Stat, numbers};

/// How long a process that was killed is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often descendants are looked for: each time those that were started meanwhile are found.
const ROUNDS: usize = 100;

/// What runs in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The container.
    pub name: NetnsName,
    /// Whether it is on the host's network; otherwise it has the namespace of its name.
    pub host: bool,
    /// Whether it has a process namespace of its own.
    pub own: bool,
    /// The command; none: our process alone.
    pub command: Vec<String>,
}

/// By what a process of ours is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMark {
    /// Its number for who made the lab.
    pid: u32,
    /// When it was started. Unit: clock ticks since the boot, proc_pid_stat(5).
    start: u64,
    /// A random word among its arguments.
    word: String,
    /// The process namespace of who made the lab, where that number is its: the number of its file.
    space: u64,
}

/// Our process namespace, by the number of its file.
fn space() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/pid")?.ino())
}

/// A process that was started at this time, as a file that stands for it and for no other; none where it is over.
fn held(pid: u32, start: u64) -> io::Result<Option<Handle>> {
    let process = Handle::open(pid)?;
    // What is read after it was opened is of that process, or of none.
    let same = Stat::of(pid).is_some_and(|stat| stat.start == start && !stat.over);
    Ok(process.filter(|_| same))
}

impl ProcessMark {
    /// That of a child of ours.
    pub(super) fn of(child: &Child, word: String) -> io::Result<Self> {
        let pid = child.id();
        let stat = Stat::of(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, start: stat.start, word, space: space()? })
    }

    /// The random word among its arguments.
    pub(super) fn word(&self) -> &str {
        &self.word
    }

    /// The process; none where it is gone.
    ///
    /// # Errors
    /// Where that cannot be told, as from another process namespace, where it has another number or none.
    pub(super) fn find(&self) -> io::Result<Option<Handle>> {
        if space()? != self.space {
            return Err(io::Error::other("the lab was made from another process namespace than this one"));
        }
        let process = held(self.pid, self.start)?;
        let arguments = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let has_word = arguments.split(|byte| *byte == 0).any(|argument| argument == self.word.as_bytes());
        Ok(process.filter(|_| has_word))
    }
}

impl Process {
    /// Starts our process, which waits to be let go and ends if we do before.
    pub(super) fn start(&self, network: &Netns, word: &str) -> io::Result<Child> {
        let mut arguments: Vec<OsString> = ["lab", "init", word, self.name.as_str()].map(Into::into).to_vec();
        arguments.extend(self.host.then(|| "--host".into()));
        arguments.extend(self.own.then(|| "--own".into()));
        arguments.push("--".into());
        arguments.extend(self.command.iter().map(Into::into));
        let start = || {
            if self.own {
                // The next child of this thread is the first process of a new namespace.
                unshare(CloneFlags::CLONE_NEWPID)?;
            }
            process::respawn_self(arguments)
        };
        network.run(start).map_err(plain)?
    }

    /// Ends it with all that it has started; gives whether it was there.
    pub(super) fn end(&self, mark: &ProcessMark) -> io::Result<bool> {
        let Some(process) = mark.find()? else { return Ok(false) };
        if !self.own {
            end_descendants(mark.pid, || !process.ended_within(Duration::ZERO))?;
        }
        // With the first process of a namespace all others in it end.
        process.kill()?;
        if process.ended_within(PATIENCE) { Ok(true) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

/// Lets a process go that waits, and hears from it how that went. Bound to us, it ends when we and all that have our open
/// files have.
pub(super) fn go(mut child: Child, bound: bool) -> io::Result<()> {
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
        "" => Err(io::Error::other("it ended at once")),
        why => Err(io::Error::other(why.to_owned())),
    }
}

/// Ends all that a process has started, and what those have, as long as it lives: then its number is no other's.
pub(super) fn end_descendants(ancestor: u32, lives: impl Fn() -> bool) -> io::Result<()> {
    for _ in 0..ROUNDS {
        let found = descendants(ancestor)?;
        if found.is_empty() || !lives() {
            return Ok(());
        }
        for (pid, start) in found {
            if let Some(process) = held(pid, start)? {
                process.kill()?;
                process.ended_within(PATIENCE);
            }
        }
    }
    Err(io::Error::other("it starts processes faster than they can be ended"))
}

/// All living descendants of a process, each with when it was started.
fn descendants(ancestor: u32) -> io::Result<Vec<(u32, u64)>> {
    let all: BTreeMap<u32, Stat> = numbers()?.filter_map(|pid| Some((pid, Stat::of(pid)?))).collect();
    let is_below = |pid: u32| {
        let mut above = all.get(&pid).map(|stat| stat.parent);
        // A tree that was read while it changed may go in circles.
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
