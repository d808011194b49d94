//! The init process of a container: waits for its release, starts the container's command, and reaps orphans.
//!
//! In a process namespace of its own, this process has PID 1. The kernel makes it the parent of orphans
//! (pid_namespaces(7)), and `/proc` is mounted for that namespace. Otherwise it is a child subreaper
//! (PR_SET_CHILD_SUBREAPER), so all processes of the container are its descendants.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, RawFd};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::{set_child_subreaper, set_name};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{close, dup2_stdin, dup2_stdout, setsid};

use super::mounts::{private_mounts, set_up_mounts};
use super::name::NetnsName;
use super::process::kill_descendants;
use crate::sys::process;

/// The arguments of a container's init process.
#[derive(Debug, Clone)]
pub struct ContainerInit {
    /// The name of the container.
    pub name: NetnsName,
    /// True if the container uses the host's network.
    pub host: bool,
    /// True if the container has a process namespace of its own.
    pub pid_namespace: bool,
    /// The command. Empty if the container runs none.
    pub command: Vec<OsString>,
}

/// Runs as the container's first process until it is killed. If it is bound, it also ends when its standard input is
/// closed.
///
/// # Errors
/// If the process cannot be set up. Later errors are reported to the parent.
pub fn init(container: &ContainerInit) -> io::Result<()> {
    detach()?;
    let mut word = [0; 1];
    if io::stdin().read(&mut word)? == 0 {
        return Ok(());
    }
    let result = set_up(container);
    let answer = match &result {
        Ok(()) => "+".to_owned(),
        Err(error) => error.to_string(),
    };
    // The parent may have ended. The journal still has this process.
    let _ = io::stdout().write_all(answer.as_bytes()).and_then(|()| io::stdout().flush());
    result?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdout(&nothing)?;
    let bound = word == *b"b";
    if !bound {
        dup2_stdin(&nothing)?;
    }
    reap(bound)?;
    if container.pid_namespace { Ok(()) } else { kill_descendants(std::process::id(), || true) }
}

/// Starts a new session, and closes all files except the three standard ones.
fn detach() -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    setsid()?;
    // A process that was started from /proc/self/exe is named `exe`.
    set_name(c"portfwd")?;
    let open = fs::read_dir("/proc/self/fd")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for inherited in open.filter(|number: &RawFd| *number > 2).collect::<Vec<_>>() {
        let _ = close(inherited);
    }
    Ok(())
}

fn set_up(container: &ContainerInit) -> io::Result<()> {
    if !container.pid_namespace {
        set_child_subreaper(true)?;
    }
    if !container.host {
        set_up_mounts(&container.name)?;
    } else if container.pid_namespace {
        private_mounts()?;
    }
    if container.pid_namespace {
        let none = None::<&str>;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), "/proc", Some("proc"), flags, none)
            .map_err(|error| io::Error::other(format!("cannot mount `/proc` in the container: {}", error.desc())))?;
    }
    let Some((program, arguments)) = container.command.split_first() else { return Ok(()) };
    process::start_detached(program, arguments).map(drop).map_err(|error| {
        let name = program.to_string_lossy();
        match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(format!("there is no program `{name}`")),
            _ => io::Error::other(format!("cannot run `{name}`: {error}")),
        }
    })
}

/// Reaps every child process. If `bound` is true, returns when standard input is closed.
fn reap(bound: bool) -> io::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGCHLD]);
    signals.thread_block()?;
    let ended = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let input = io::stdin();
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut ready = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        if bound {
            ready.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut ready, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        if ready.get(1).is_some_and(|input| input.any() == Some(true)) {
            return Ok(());
        }
        while ended.read_signal()?.is_some() {}
    }
}
