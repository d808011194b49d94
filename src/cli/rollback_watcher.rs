//! `apply --confirm`: waits for the confirmation, and rolls the change back if the user does not confirm it. If this
//! process is killed, a second process does the rollback: the watcher.
//!
//! ```text
//! apply --confirm ── starts ──▶ watcher, in its own session
//!   │ commits the change
//!   │ releases the store, then the watcher
//!   │ waits for Enter, a signal, the deadline,      waits for the deadline,
//!   │ or a removed flag file                        or a removed flag file
//!   ▼ confirms or rolls back                        ▼ rolls back
//! ```
//! Neither process holds the store's lock while it waits. Each process reads the store before it acts, so the order of
//! the processes does not matter. If both are killed, the next command that changes rules does the rollback.
//!
//! Be aware: anything that kills a whole control group also kills the watcher. Examples are `KillUserProcesses=` in logind.conf
//! and `systemctl stop` of the unit that started portfwd.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, RawFd};
use std::path::Path;
use std::process::ChildStdin;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{FlushArg, tcflush};
use nix::unistd::{close, getpgrp, read, setsid, tcgetpgrp, write};

use super::failure::seconds_text;
use super::{Failure, Global, Output, change, view};
use crate::engine::{Engine, Options, Scope, Storage, Timing};
use crate::model::error::printable;
use crate::store::{Deadline, State};
use crate::sys::process;

/// The interval at which waiting processes check the flag file and the deadline.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The pause before a failed rollback is tried again, and the maximum number of attempts.
const RETRY: (Duration, u32) = (Duration::from_secs(1), 600);

/// Commits `after`, and waits until it is confirmed or rolled back.
pub fn commit(
    mut engine: Engine,
    mut after: State,
    options: Options,
    time: Duration,
    global: &Global,
    output: &mut Output<'_>,
) -> anyhow::Result<u8> {
    // Blocks signals before any thread starts. So a signal during the commit causes a rollback.
    let signals = block_signals().context("cannot wait for signals")?;
    let Some(until) = engine.require_confirmation(&mut after, time)? else {
        commit_and_report(&mut engine, after, options, global, output)?;
        writeln!(output.stderr, "note: the desired state did not change, so there is nothing to confirm")?;
        return Ok(0);
    };
    let watcher = Watcher::start(global).context("cannot start the process for the rollback")?;
    let done = commit_and_report(&mut engine, after, options, global, output);
    let is_pending = engine.state().unconfirmed.is_some();
    match done {
        // A failed print is no error here, because the user may have lost the terminal.
        Err(error) if is_pending && error.is::<io::Error>() => {}
        Err(error) => {
            // After a failed commit there is nothing to confirm, so the change is rolled back.
            engine.roll_back()?;
            return Err(error);
        }
        Ok(()) => {}
    }
    let flag = engine.pending_flag();
    drop(engine);
    drop(watcher);
    let mut terminal = Terminal::open();
    drop(output.stdout.flush());
    drop(writeln!(output.stderr, "{}", question(time, terminal.is_some(), &global.command_prefix())));
    loop {
        let answer = wait(&until, flag.as_deref(), &mut terminal, &signals);
        if let Some(code) = act_on(&answer, &until, time, global, output)? {
            return Ok(code);
        }
        sleep(POLL_INTERVAL);
    }
}

fn commit_and_report(
    engine: &mut Engine,
    after: State,
    options: Options,
    global: &Global,
    output: &mut Output<'_>,
) -> anyhow::Result<()> {
    let outcome = engine.commit(after, options)?;
    change::report(engine, &outcome, global, output)?;
    if !global.json {
        change::summary(&outcome, output)?;
    }
    Ok(())
}

/// Returns the request for a confirmation. `portfwd` is the command with its global options.
fn question(time: Duration, terminal: bool, portfwd: &str) -> String {
    let (time, enter) = (seconds_text(time), if terminal { "press Enter, or " } else { "" });
    format!(
        "portfwd rolls this change back in {time}, unless you confirm it.\n\
         Check that you can open a new connection to this host. Then {enter}run\n\
         `{portfwd} confirm` from the new connection."
    )
}

/// Confirms or rolls back the change with the deadline `until`. Does nothing if another command has already done so.
/// Returns the exit code, or `None` if the change is still pending.
fn act_on(
    answer: &Answer,
    until: &Deadline,
    time: Duration,
    global: &Global,
    output: &mut Output<'_>,
) -> anyhow::Result<Option<u8>> {
    let mut engine = with_sink(|sink| global.open(Storage::ReadWrite(&global.state_dir), Scope::Full, sink))?;
    let is_pending =
        |engine: &Engine| engine.state().unconfirmed.as_ref().is_some_and(|waiting| waiting.until == *until);
    if is_pending(&engine) {
        let rollback = match answer {
            Answer::Yes if engine.confirm()? => None,
            Answer::Yes | Answer::Over => engine.roll_back_if_expired()?,
            Answer::No(_) => engine.roll_back()?,
        };
        if let Some(outcome) = rollback {
            drop(view::notes(&outcome, global.verbose, output));
        }
    }
    if is_pending(&engine) {
        return Ok(None);
    }
    if engine.state().confirmed.as_ref() == Some(until) {
        drop(writeln!(output.stderr, "confirmed"));
        return Ok(Some(0));
    }
    let what = match answer {
        Answer::No(why) => format!("not confirmed ({why}); rolled back the change"),
        Answer::Yes | Answer::Over if until.left().is_none() => {
            format!("not confirmed in {}; rolled back the change", seconds_text(time))
        }
        Answer::Yes | Answer::Over => "not confirmed: another command removed all rules".into(),
    };
    Err(Failure::Unconfirmed { what }.into())
}

/// Runs `job` and discards its output, because the terminal may have closed.
fn with_sink<T>(job: impl FnOnce(&mut Output<'_>) -> T) -> T {
    job(&mut Output {
        stdout: &mut io::sink(),
        stderr: &mut io::sink(),
        color: false,
        done: false,
        timing: Timing::default(),
    })
}

/// The reason why the wait ended.
#[derive(Debug)]
enum Answer {
    /// The user pressed Enter or typed `y` or `yes`.
    Yes,
    /// The user typed another text, or a signal arrived. Contains that text, or the name of the signal.
    No(String),
    /// The deadline passed, or another command confirmed or removed the change.
    Over,
}

fn wait(until: &Deadline, flag: Option<&Path>, terminal: &mut Option<Terminal>, signals: &SignalFd) -> Answer {
    loop {
        if is_over(until, flag) {
            return Answer::Over;
        }
        let foreground = terminal.as_ref().filter(|terminal| terminal.is_foreground());
        let mut ready = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        ready.extend(foreground.map(|terminal| PollFd::new(terminal.0.as_fd(), PollFlags::POLLIN)));
        if poll(&mut ready, PollTimeout::try_from(POLL_INTERVAL).unwrap_or(PollTimeout::ZERO)).is_err() {
            // SIGSTOP and SIGCONT can interrupt poll(2).
            continue;
        }
        let mut ready = ready.iter().map(|file| file.any() == Some(true));
        let (has_signal, has_line) = (ready.next() == Some(true), ready.next() == Some(true));
        if has_signal && let Ok(Some(signal)) = signals.read_signal() {
            let signal = i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            return Answer::No(signal.map_or("interrupted", Signal::as_str).to_owned());
        }
        if has_line {
            match terminal.as_ref().and_then(Terminal::read_line).as_deref() {
                Some("" | "y" | "yes") => return Answer::Yes,
                Some(other) => return Answer::No(format!("`{}` was typed", printable(other))),
                // The terminal closed, or the user typed Ctrl-D.
                None => *terminal = None,
            }
        }
    }
}

/// Returns true if the deadline has passed, or the change is no longer pending.
fn is_over(until: &Deadline, flag: Option<&Path>) -> bool {
    until.left().is_none() || flag.is_some_and(|flag| !flag.exists())
}

/// The terminal at stdin. portfwd reads stdin only if it is a terminal. Otherwise, stdin may be the rest of a script
/// that runs portfwd.
struct Terminal(io::Stdin);

impl Terminal {
    fn open() -> Option<Self> {
        let terminal = Self(io::stdin());
        if !terminal.0.is_terminal() {
            return None;
        }
        if terminal.is_foreground() {
            // Discards the lines that the user typed before the question.
            let _ = tcflush(&terminal.0, FlushArg::TCIFLUSH);
        }
        Some(terminal)
    }

    /// Returns true if portfwd runs in the foreground. Otherwise, typed lines are for the shell.
    fn is_foreground(&self) -> bool {
        tcgetpgrp(&self.0).is_ok_and(|group| group == getpgrp())
    }

    /// Reads a line without surrounding spaces; `None` at the end of input.
    fn read_line(&self) -> Option<String> {
        let mut line = [0; 256];
        let length = read(&self.0, &mut line).ok().filter(|length| *length > 0)?;
        Some(String::from_utf8_lossy(line.get(..length)?).trim().to_owned())
    }
}

/// Blocks SIGINT and SIGTERM, and returns a file to read them from.
fn block_signals() -> nix::Result<SignalFd> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// The watcher, which does the rollback if the current process is killed. Drop this value to start the wait of the
/// watcher.
struct Watcher {
    /// The stdin of the watcher, which starts its wait at the end of its stdin.
    _input: ChildStdin,
}

impl Watcher {
    /// Starts the watcher, and waits until the watcher has left the session.
    fn start(global: &Global) -> anyhow::Result<Self> {
        let backend = global.backend.to_possible_value().map(|value| value.get_name().to_owned());
        let directory = std::path::absolute(&global.state_dir)?;
        // The watcher inherits the network namespace. The name in `--netns` could belong to a new namespace by
        // now.
        let arguments: [OsString; 6] = [
            "--backend".into(),
            backend.unwrap_or_default().into(),
            "--state-dir".into(),
            directory.into(),
            "confirm".into(),
            "--watch".into(),
        ];
        let mut child = process::respawn_self(arguments)?;
        let mut word = [0; 1];
        child.stdout.take().context("the watcher has no stdout")?.read_exact(&mut word)?;
        Ok(Self { _input: child.stdin.take().context("the watcher has no stdin")? })
    }
}

/// Runs the watcher. The watcher waits for the deadline, and rolls the change back if the change is still pending.
pub fn watch(global: &Global) -> anyhow::Result<()> {
    leave_session()?;
    let (pause, attempts) = RETRY;
    let mut last = Ok(());
    for _ in 0..attempts {
        last = roll_back_at_deadline(global);
        if last.is_ok() {
            break;
        }
        sleep(pause);
    }
    last
}

/// Leaves the session, closes inherited files, and reports success to the parent. Then waits until the parent has
/// committed or ended.
fn leave_session() -> anyhow::Result<()> {
    let signals: SigSet = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT].into_iter().collect();
    // Unblocks SIGTERM, which the parent blocks, so that the watcher does not delay a shutdown.
    signals.thread_set_mask()?;
    setsid()?;
    // Closes inherited files. For example, the lock file of a script must be free when the script ends. The watcher
    // itself has not opened a file yet.
    let open = fs::read_dir("/proc/self/fd")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for inherited in open.filter(|number: &RawFd| *number > 2).collect::<Vec<_>>() {
        let _ = close(inherited);
    }
    write(io::stdout(), b"+")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Waits while a change is pending, and rolls the change back after its deadline.
fn roll_back_at_deadline(global: &Global) -> anyhow::Result<()> {
    loop {
        // Opens read-only, so that nothing is written to disk if no change is pending.
        let engine = with_sink(|sink| global.open(Storage::ReadOnly(&global.state_dir), Scope::Full, sink))?;
        let Some(waiting) = &engine.state().unconfirmed else { return Ok(()) };
        let (until, flag) = (waiting.until.clone(), engine.pending_flag());
        if until.left().is_none() {
            break;
        }
        drop(engine);
        loop {
            sleep(POLL_INTERVAL);
            if is_over(&until, flag.as_deref()) {
                break;
            }
        }
    }
    let mut engine = with_sink(|sink| global.open(Storage::ReadWrite(&global.state_dir), Scope::Full, sink))?;
    engine.roll_back_if_expired()?;
    Ok(())
}
