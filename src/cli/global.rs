//! The options of every command, and the functions that open the engine with these options.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::failure;
use super::output::Output;
use crate::engine::{Choice, Engine, Scope, Storage};
use crate::model::error::printable;

/// The default of `--state-dir`.
pub(super) const STATE_DIR: &str = "/var/lib/portfwd";

/// The options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Choose the backend
    #[arg(long, global = true, value_enum, default_value_t = Backend::Auto)]
    pub(super) backend: Backend,
    /// Work in this network namespace, one of `ip netns list`
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) netns: Option<String>,
    /// Keep the state in this directory
    #[arg(long, global = true, value_name = "DIR", default_value = STATE_DIR)]
    pub(super) state_dir: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Print the backend, the messages to the kernel, and the time of each phase
    #[arg(short, long, global = true)]
    pub(super) verbose: bool,
    /// Color notes, warnings and errors
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub(super) color: Color,
}

/// The values of `--backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Backend {
    /// nftables if the kernel has it, otherwise iptables
    Auto,
    Nft,
    /// iptables, in the variant (nft or legacy) of the host's `iptables`
    Iptables,
}

/// The values of `--color`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// Color if stderr is a terminal and NO_COLOR is not set
    Auto,
    Always,
    Never,
}

impl Global {
    /// Opens the engine for reading. Prints a note if a change is pending.
    pub(super) fn read(&self, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        let engine = self.open(Storage::ReadOnly(&self.state_dir), Scope::Full, output)?;
        self.report_pending(&engine, output)?;
        Ok(engine)
    }

    /// Opens the engine for writing. First finishes an interrupted change, and rolls back a change whose deadline
    /// has passed.
    pub(super) fn recover(&self, scope: Scope, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        let mut engine = self.open(Storage::ReadWrite(&self.state_dir), scope, output)?;
        if engine.roll_back_if_expired()?.is_some() {
            writeln!(output.stderr, "note: rolled back the last change, which was not confirmed in time")?;
        }
        self.finish(&mut engine, output)?;
        Ok(engine)
    }

    /// Opens the engine for a change, or for reading if `dry_run`.
    ///
    /// # Errors
    /// Fails if another change is pending, or if the engine fails.
    pub(super) fn change(&self, dry_run: bool, scope: Scope, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        if dry_run {
            return self.read(output);
        }
        let engine = self.recover(scope, output)?;
        engine.ensure_none_pending()?;
        Ok(engine)
    }

    /// Opens the engine. Prints a note if it falls back to iptables.
    pub(super) fn open(&self, storage: Storage<'_>, scope: Scope, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        let engine = Engine::open(storage, self.choice(), scope)?;
        if let Some(why) = engine.fallback_reason() {
            writeln!(output.stderr, "note: {why}; portfwd uses {} instead", engine.id())?;
        }
        if self.verbose {
            let versions = engine.versions();
            let backend = if versions.is_empty() { engine.id().to_string() } else { versions.join(", ") };
            writeln!(output.stderr, "note: the backend is {backend}")?;
        }
        Ok(engine)
    }

    /// Prints a note if a change is pending.
    pub(super) fn report_pending(&self, engine: &Engine, output: &mut Output<'_>) -> io::Result<()> {
        let Some(waiting) = &engine.state().unconfirmed else { return Ok(()) };
        let portfwd = self.command_prefix();
        match waiting.until.left().map(failure::seconds_text) {
            Some(left) => writeln!(
                output.stderr,
                "note: portfwd rolls back the pending change in {left}; `{portfwd} confirm` keeps it"
            ),
            None => writeln!(
                output.stderr,
                "note: the pending change was not confirmed in time; the next change or `{portfwd} restore` rolls it back"
            ),
        }
    }

    /// Returns `portfwd` with the `--netns` and `--state-dir` of this command line, for the commands in messages.
    pub(super) fn command_prefix(&self) -> String {
        let mut words = vec!["portfwd".to_owned()];
        words.extend(self.netns.iter().map(|name| format!("--netns {name}")));
        if self.state_dir != Path::new(STATE_DIR) {
            words.push(format!("--state-dir {}", printable(&self.state_dir.to_string_lossy())));
        }
        words.join(" ")
    }

    /// Finishes an interrupted change. Ignores a failure: the next change repairs it or reports the error.
    pub(super) fn finish(&self, engine: &mut Engine, output: &mut Output<'_>) -> io::Result<()> {
        if matches!(engine.finish_interrupted(), Ok(true)) {
            writeln!(output.stderr, "note: completed a change that had been interrupted")?;
        }
        Ok(())
    }

    /// Returns the backend choice for the engine.
    pub(super) fn choice(&self) -> Choice {
        match self.backend {
            Backend::Auto => Choice::Auto,
            Backend::Nft => Choice::Nft,
            Backend::Iptables => Choice::Iptables,
        }
    }
}
