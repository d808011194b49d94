//! The options that every command has, and how commands open kernel and state with them.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::failure;
use super::output::Output;
use crate::engine::{Choice, Engine, Scope, Storage};
use crate::model::error::printable;

/// Where the state is kept where nobody says so.
pub(super) const STATE_DIR: &str = "/var/lib/portfwd";

/// What every command understands.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Which part of the kernel does the work
    #[arg(long, global = true, value_enum, default_value_t = Backend::Auto)]
    pub(super) backend: Backend,
    /// Work in this network namespace, as `ip netns` knows it
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) netns: Option<String>,
    /// Where the state is kept
    #[arg(long, global = true, value_name = "DIR", default_value = STATE_DIR)]
    pub(super) state_dir: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Show which backend works, what is sent to the kernel, and where the time went
    #[arg(short, long, global = true)]
    pub(super) verbose: bool,
    /// When to color messages
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub(super) color: Color,
}

/// Which part of the kernel does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Backend {
    /// nftables where the kernel has it, iptables otherwise
    Auto,
    /// nftables
    Nft,
    /// iptables, of the variant that the host's own is
    Iptables,
}

/// When to color messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Global {
    /// Opens the engine to read. Prints a note if a change waits for its confirmation.
    pub(super) fn read(&self, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        let engine = self.open(Storage::ReadOnly(&self.state_dir), Scope::Full, output)?;
        self.report_pending(&engine, output)?;
        Ok(engine)
    }

    /// Opens the engine to write, and first finishes or rolls back what an earlier command left.
    pub(super) fn recover(&self, scope: Scope, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        let mut engine = self.open(Storage::ReadWrite(&self.state_dir), scope, output)?;
        if engine.roll_back_if_expired()?.is_some() {
            writeln!(output.stderr, "note: the last change was not confirmed in time; the rules before it are back")?;
        }
        self.finish(&mut engine, output)?;
        Ok(engine)
    }

    /// Opens the engine for a change. Fails while another change waits for its confirmation.
    pub(super) fn change(&self, dry_run: bool, scope: Scope, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        if dry_run {
            return self.read(output);
        }
        let engine = self.recover(scope, output)?;
        engine.ensure_none_pending()?;
        Ok(engine)
    }

    /// Opens the engine, and reports a fallback to iptables.
    pub(super) fn open(&self, storage: Storage<'_>, scope: Scope, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        let engine = Engine::open(storage, self.choice(), scope)?;
        if let Some(why) = engine.fallback_reason() {
            writeln!(output.stderr, "note: {why}; {} is used instead", engine.id())?;
        }
        if self.verbose {
            let versions = engine.versions();
            let backend = if versions.is_empty() { engine.id().to_string() } else { versions.join(", ") };
            writeln!(output.stderr, "note: the backend is {backend}")?;
        }
        Ok(engine)
    }

    pub(super) fn report_pending(&self, engine: &Engine, output: &mut Output<'_>) -> io::Result<()> {
        let Some(waiting) = &engine.state().unconfirmed else { return Ok(()) };
        let portfwd = self.as_typed();
        match waiting.until.left().map(failure::in_words) {
            Some(left) => writeln!(
                output.stderr,
                "note: these rules are taken back in {left}, unless `{portfwd} confirm` keeps them"
            ),
            None => writeln!(
                output.stderr,
                "note: these rules were not confirmed in time; `{portfwd} restore`, and every change, takes them back first"
            ),
        }
    }

    /// The program, with what on the command line says whose rules and which state are meant.
    pub(super) fn as_typed(&self) -> String {
        let mut words = vec!["portfwd".to_owned()];
        words.extend(self.netns.iter().map(|name| format!("--netns {name}")));
        if self.state_dir != Path::new(STATE_DIR) {
            words.push(format!("--state-dir {}", printable(&self.state_dir.to_string_lossy())));
        }
        words.join(" ")
    }

    /// Finishes an interrupted change. If that fails, goes on: the next change may repair it, or reports the error.
    pub(super) fn finish(&self, engine: &mut Engine, output: &mut Output<'_>) -> io::Result<()> {
        if matches!(engine.finish_interrupted(), Ok(true)) {
            writeln!(output.stderr, "note: a change that had been interrupted is done now")?;
        }
        Ok(())
    }

    pub(super) fn choice(&self) -> Choice {
        match self.backend {
            Backend::Auto => Choice::Auto,
            Backend::Nft => Choice::Nft,
            Backend::Iptables => Choice::Iptables,
        }
    }
}
