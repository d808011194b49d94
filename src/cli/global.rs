//! The options that every command has, and how commands open kernel and state with them.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::failure;
use super::output::Output;
use crate::engine::{self, Choice, Engine};
use crate::model::error::printable;
use crate::model::{Binding, SetName};

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
    /// Opens kernel and state, and with `write` first does what is left to be done of changes before.
    pub(super) fn engine(&self, write: bool, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        let engine = if write { self.mended(output)? } else { self.open(false, output)? };
        if let Some(waiting) = &engine.state().unconfirmed {
            let (left, again) = (waiting.until.left(), self.as_typed());
            match left.map(failure::in_words) {
                Some(left) => writeln!(
                    output.stderr,
                    "note: these rules are taken back in {left}, unless `{again} confirm` keeps them"
                ),
                None => writeln!(
                    output.stderr,
                    "note: these rules were not confirmed in time; `{again} restore`, and every change, takes them back first"
                ),
            }?;
        }
        Ok(engine)
    }

    /// Opens kernel and state for a change, or for the show of one, which is refused while another waits to be confirmed.
    pub(super) fn to_change(&self, dry_run: bool, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        if dry_run {
            return self.engine(false, output);
        }
        let engine = self.mended(output)?;
        engine::confirm::settled(&engine)?;
        Ok(engine)
    }

    /// The same, for a change of some atoms, which replace `sets`; see [`Engine::open_near`].
    pub(super) fn to_change_near(
        &self,
        about: &[Binding],
        sets: &[SetName],
        output: &mut Output<'_>,
    ) -> anyhow::Result<Engine> {
        let engine = Engine::open_near(&self.state_dir, self.choice(), about, sets)?;
        let engine = self.introduced(engine, output)?;
        let engine = self.mend(engine, output)?;
        engine::confirm::settled(&engine)?;
        Ok(engine)
    }

    /// Opens kernel and state to be written, and does what is left to be done of changes before.
    fn mended(&self, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        let engine = self.open(true, output)?;
        self.mend(engine, output)
    }

    fn mend(&self, mut engine: Engine, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        if engine::confirm::put_back_in_time(&mut engine)?.is_some() {
            writeln!(output.stderr, "note: the last change was not confirmed in time; the rules before it are back")?;
        }
        self.finish(&mut engine, output)?;
        Ok(engine)
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

    pub(super) fn finish(&self, engine: &mut Engine, output: &mut Output<'_>) -> std::io::Result<()> {
        // Where it cannot be done, what this command does may be what it takes; and if not, that says so.
        if matches!(engine::finish(engine), Ok(true)) {
            writeln!(output.stderr, "note: a change that had been interrupted is done now")?;
        }
        Ok(())
    }

    pub(super) fn open(&self, write: bool, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        self.introduced(Engine::open(&self.state_dir, write, self.choice())?, output)
    }

    /// Says which backend it is, where that is worth a word.
    fn introduced(&self, engine: Engine, output: &mut Output<'_>) -> anyhow::Result<Engine> {
        let by = || match engine.versions() {
            none if none.is_empty() => engine.home().to_string(),
            versions => versions.join(", "),
        };
        if let Some(why) = engine.instead() {
            writeln!(output.stderr, "note: {why}; {} is used instead", engine.home())?;
        }
        if self.verbose {
            writeln!(output.stderr, "note: the backend is {}", by())?;
        }
        Ok(engine)
    }

    pub(super) fn choice(&self) -> Choice {
        match self.backend {
            Backend::Auto => Choice::Auto,
            Backend::Nft => Choice::Nft,
            Backend::Iptables => Choice::Iptables,
        }
    }
}
