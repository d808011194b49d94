//! What our process in a container does: waits to be let go, starts the container's command, and reaps what nobody else does.
//!
//! With a process namespace of its own it is process 1 there, which the kernel gives every process whose parent has ended
//! (pid_namespaces(7)), and has a `/proc` that shows that namespace. Without one it asks for the same (PR_SET_CHILD_SUBREAPER),
//! so that all of the container is found below it.

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

use super::mounts::{private_mounts, surroundings};
use super::name::NetnsName;
use super::process::end_descendants;
use crate::sys::process;

/// What our process is told of its container.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its name.
    pub name: NetnsName,
    /// Whether it is on the host's network.
    pub host: bool,
    /// Whether it has a process namespace of its own.
    pub own: bool,
    /// The command; empty: none.
    pub command: Vec<OsString>,
}

/// Is the container's first process until it is killed, or until who made it is gone.
///
/// # Errors
/// Where its files cannot be set up; what goes wrong later is told to who made it.
pub fn init(container: &Container) -> io::Result<()> {
    stand_alone()?;
    let mut word = [0; 1];
    if io::stdin().read(&mut word)? == 0 {
        return Ok(());
    }
    let begun = begin(container);
    let answer = match &begun {
        Ok(()) => "+".to_owned(),
        Err(error) => error.to_string(),
    };
    // Who made us may be gone; the journal knows us.
    let _ = io::stdout().write_all(answer.as_bytes()).and_then(|()| io::stdout().flush());
    begun?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdout(&nothing)?;
    let bound = word == *b"b";
    if !bound {
        dup2_stdin(&nothing)?;
    }
    reap(bound)?;
    if container.own { Ok(()) } else { end_descendants(std::process::id(), || true) }
}

/// Leaves the session, and holds nothing open besides the three files of its own.
fn stand_alone() -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    setsid()?;
    // It was started by a path that ends otherwise.
    set_name(c"portfwd")?;
    let open = fs::read_dir("/proc/self/fd")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for inherited in open.filter(|number: &RawFd| *number > 2).collect::<Vec<_>>() {
        let _ = close(inherited);
    }
    Ok(())
}

fn begin(container: &Container) -> io::Result<()> {
    if !container.own {
        set_child_subreaper(true)?;
    }
    if !container.host {
        surroundings(&container.name)?;
    } else if container.own {
        private_mounts()?;
    }
    if container.own {
        let none = None::<&str>;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), "/proc", Some("proc"), flags, none)
            .map_err(|error| io::Error::other(format!("cannot mount a `/proc` of its own: {}", error.desc())))?;
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

/// Asks of every child that ends how it ended, so that none stays; where it is bound, until its input is at its end.
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
