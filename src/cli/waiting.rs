//! Waiting for a change to be confirmed: at the terminal, and in a process that outlives it.
//!
//! ```text
//! apply --confirm ─ starts ─▶ watcher, in a session of its own
//!   │ commits, lets go of the store, lets the watcher go
//!   │ waits for Enter, a signal, the flag to go, the deadline      waits for the flag to go, or the deadline
//!   ▼ confirms, puts back, or sees what others did                 ▼ puts back what was not confirmed
//! ```
//! Neither holds the store while it waits. What each does is decided by what the store says then, so it does not matter
//! which of them comes first, or that there is only one; and if there is none any more, the next command does it.
//!
//! Be aware: what ends all processes of a session's control group (`KillUserProcesses=` in logind.conf, a unit that is
//! stopped) ends the watcher too.

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

use super::failure::in_words;
use super::{Failure, Global, Output, change, view};
use crate::engine::{Engine, Options, Scope, Storage, Timing};
use crate::model::error::printable;
use crate::store::{Deadline, State};
use crate::sys::process;

/// How often those who wait look whether it is over. Confirming takes no longer to be seen.
const LOOK: Duration = Duration::from_millis(200);
/// How long it takes until what could not be put back is tried again, and how often it is.
const AGAIN: (Duration, u32) = (Duration::from_secs(1), 600);

/// Commits `after`, to be taken back unless it is confirmed in time, and waits for what becomes of it.
pub fn commit(
    mut engine: Engine,
    mut after: State,
    options: Options,
    time: Duration,
    global: &Global,
    output: &mut Output<'_>,
) -> anyhow::Result<u8> {
    // Before the threads that are made from now on: who interrupts the commit means what comes of it.
    let signals = hold_signals().context("cannot wait for signals")?;
    let Some(until) = engine.require_confirmation(&mut after, time)? else {
        commit_and_report(&mut engine, after, options, global, output)?;
        writeln!(output.stderr, "note: the same was asked before, so there is nothing to be confirmed")?;
        return Ok(0);
    };
    let watcher = Watcher::start(global).context("cannot start the process that takes back what is not confirmed")?;
    let done = commit_and_report(&mut engine, after, options, global, output);
    let waits = engine.state().unconfirmed.is_some();
    match done {
        // That nobody is there any more to whom it could be said is what this is for.
        Err(error) if waits && error.is::<io::Error>() => {}
        Err(error) => {
            // What does not look as it was committed is not worth waiting for.
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
    drop(writeln!(output.stderr, "{}", question(time, terminal.is_some(), &global.as_typed())));
    loop {
        let answer = wait(&until, flag.as_deref(), &mut terminal, &signals);
        if let Some(code) = judge(&answer, &until, time, global, output)? {
            return Ok(code);
        }
        sleep(LOOK);
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

fn question(time: Duration, terminal: bool, again: &str) -> String {
    let (time, enter) = (in_words(time), if terminal { "press Enter, or " } else { "" });
    format!(
        "The rules before are back in {time}, unless this is confirmed. See first\n\
         that new connections to this host can be made; then {enter}run\n\
         `{again} confirm` over one of them."
    )
}

/// Does what was answered, as far as nobody else did something before. Gives nothing where it waits on.
fn judge(
    answer: &Answer,
    until: &Deadline,
    time: Duration,
    global: &Global,
    output: &mut Output<'_>,
) -> anyhow::Result<Option<u8>> {
    let mut engine = quietly(|quiet| global.open(Storage::ReadWrite(&global.state_dir), Scope::Full, quiet))?;
    let ours = engine.state().unconfirmed.as_ref().is_some_and(|waiting| waiting.until == *until);
    if ours {
        let back = match answer {
            Answer::Yes if engine.confirm()? => None,
            Answer::Yes | Answer::Over => engine.roll_back_if_expired()?,
            Answer::No(_) => engine.roll_back()?,
        };
        if let Some(outcome) = back {
            drop(view::aside(&outcome, global.verbose, output));
        }
    }
    let state = engine.state();
    if state.unconfirmed.as_ref().is_some_and(|waiting| waiting.until == *until) {
        return Ok(None);
    }
    if state.confirmed.as_ref() == Some(until) {
        drop(writeln!(output.stderr, "confirmed"));
        return Ok(Some(0));
    }
    let what = match answer {
        Answer::No(why) => format!("not confirmed ({why}); the rules before are back"),
        Answer::Yes | Answer::Over if until.left().is_none() => {
            format!("not confirmed in {}; the rules before are back", in_words(time))
        }
        Answer::Yes | Answer::Over => "not confirmed: another command removed all rules".into(),
    };
    Err(Failure::Unconfirmed { what }.into())
}

/// Does something that says nothing: where nobody can hear it any more, that is no reason not to do it.
fn quietly<T>(job: impl FnOnce(&mut Output<'_>) -> T) -> T {
    job(&mut Output {
        stdout: &mut io::sink(),
        stderr: &mut io::sink(),
        color: false,
        done: false,
        timing: Timing::default(),
    })
}

/// What became of the waiting.
#[derive(Debug)]
enum Answer {
    Yes,
    /// Why.
    No(String),
    /// The time is, or somebody else has done something.
    Over,
}

fn wait(until: &Deadline, flag: Option<&Path>, terminal: &mut Option<Terminal>, signals: &SignalFd) -> Answer {
    loop {
        if is_over(until, flag) {
            return Answer::Over;
        }
        let asked = terminal.as_ref().filter(|terminal| terminal.is_ours());
        let mut ready = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        ready.extend(asked.map(|terminal| PollFd::new(terminal.0.as_fd(), PollFlags::POLLIN)));
        if poll(&mut ready, PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO)).is_err() {
            // Stopped and continued, for one.
            continue;
        }
        let mut any = ready.iter().map(|one| one.any() == Some(true));
        let (signal, typed) = (any.next() == Some(true), any.next() == Some(true));
        if signal && let Ok(Some(signal)) = signals.read_signal() {
            let signal = i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            return Answer::No(signal.map_or("interrupted", Signal::as_str).to_owned());
        }
        if typed {
            match terminal.as_ref().and_then(Terminal::line).as_deref() {
                Some("" | "y" | "yes") => return Answer::Yes,
                Some(other) => return Answer::No(format!("`{}` was typed", printable(other))),
                // It is gone, or at its end.
                None => *terminal = None,
            }
        }
    }
}

/// Whether the deadline is past, or the change that waited for it waits no longer.
fn is_over(until: &Deadline, flag: Option<&Path>) -> bool {
    until.left().is_none() || flag.is_some_and(|flag| !flag.exists())
}

/// The terminal that is asked. What is no terminal is not read: it may be the rest of the script that we are a line of.
struct Terminal(io::Stdin);

impl Terminal {
    fn open() -> Option<Self> {
        let terminal = Self(io::stdin());
        if !terminal.0.is_terminal() {
            return None;
        }
        if terminal.is_ours() {
            // What was typed before the question is no answer.
            let _ = tcflush(&terminal.0, FlushArg::TCIFLUSH);
        }
        Some(terminal)
    }

    /// Whether it is us that it is typed for, and not the shell that has us in the background.
    fn is_ours(&self) -> bool {
        tcgetpgrp(&self.0).is_ok_and(|group| group == getpgrp())
    }

    /// What was typed.
    fn line(&self) -> Option<String> {
        let mut line = [0; 256];
        let length = read(&self.0, &mut line).ok().filter(|length| *length > 0)?;
        Some(String::from_utf8_lossy(line.get(..length)?).trim().to_owned())
    }
}

/// Has what would interrupt or end us wait to be read.
fn hold_signals() -> nix::Result<SignalFd> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// The process that puts back what is not confirmed, whatever becomes of us; let go when this is dropped.
struct Watcher {
    /// At its end the watcher begins to wait.
    _input: ChildStdin,
}

impl Watcher {
    /// Starts it, and waits until nothing that happens to our session reaches it any more.
    fn start(global: &Global) -> anyhow::Result<Self> {
        let backend = global.backend.to_possible_value().map(|value| value.get_name().to_owned());
        let directory = std::path::absolute(&global.state_dir)?;
        // The namespace it has from us: one that gets our name for it meanwhile is another one.
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
        child.stdout.take().context("it has no output")?.read_exact(&mut word)?;
        Ok(Self { _input: child.stdin.take().context("it has no input")? })
    }
}

/// The watcher: waits, and puts back what is not confirmed in time.
pub fn watch(global: &Global) -> anyhow::Result<()> {
    leave_the_session()?;
    let (pause, attempts) = AGAIN;
    let mut last = Ok(());
    for _ in 0..attempts {
        last = put_back_at_the_deadline(global);
        if last.is_ok() {
            break;
        }
        sleep(pause);
    }
    last
}

/// Becomes a process that does not end with the session and holds nothing of it open, says so, and waits until whoever started
/// it has committed, or is gone.
fn leave_the_session() -> anyhow::Result<()> {
    let signals: SigSet = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT].into_iter().collect();
    // In the place of those that whoever started it holds, SIGTERM among them: a machine that goes down is not kept waiting.
    signals.thread_set_mask()?;
    setsid()?;
    // What else was inherited, a lock of a script's for one, its owner takes for free when it has ended. Nothing of ours is
    // open yet.
    let open = fs::read_dir("/proc/self/fd")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for inherited in open.filter(|number: &RawFd| *number > 2).collect::<Vec<_>>() {
        let _ = close(inherited);
    }
    write(io::stdout(), b"+")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn put_back_at_the_deadline(global: &Global) -> anyhow::Result<()> {
    loop {
        // To be read: where nothing waits, nothing is to be made on disk either.
        let engine = quietly(|quiet| global.open(Storage::ReadOnly(&global.state_dir), Scope::Full, quiet))?;
        let Some(waiting) = &engine.state().unconfirmed else { return Ok(()) };
        let (until, flag) = (waiting.until.clone(), engine.pending_flag());
        if until.left().is_none() {
            break;
        }
        drop(engine);
        loop {
            sleep(LOOK);
            if is_over(&until, flag.as_deref()) {
                break;
            }
        }
    }
    let mut engine = quietly(|quiet| global.open(Storage::ReadWrite(&global.state_dir), Scope::Full, quiet))?;
    engine.roll_back_if_expired()?;
    Ok(())
}
