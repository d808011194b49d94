//! The command line: one file a command, each of which parses, calls the library once and prints.
//!
//! stdout is the answer, stderr is everything else. Exit codes are in `failure.rs`.

mod add;
mod apply;
mod audit;
mod change;
mod check;
mod confirm;
mod explain;
mod failure;
mod flush;
mod global;
mod guard;
mod json;
mod lab;
mod list;
mod output;
mod plan;
mod restore;
mod rm;
mod sets;
mod r#try;
mod view;
mod waiting;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use clap::{Parser, Subcommand};

use crate::engine::Timing;
use crate::sys::namespace;
use global::Color;
use output::Aside;

pub use failure::Failure;
pub use global::Global;
pub use output::Output;

/// NAT and port forwards on Linux as data
#[derive(Debug, Parser)]
#[command(
    name = "portfwd",
    version,
    max_term_width = 80,
    after_help = "\
Exit codes: 0 done, also when nothing was to do; 1 failed, nothing changed; \
2 usage or invalid rule set; 3 plan --detailed-exitcode has changes; \
5 permission or kernel feature missing; 6 conflict refused; 75 busy, try again"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add a forward, live and durable
    Add(add::AddArgs),
    /// Remove forwards
    #[command(visible_alias = "del")]
    Rm(rm::RmArgs),
    /// List what the kernel really holds
    ///
    /// Packets count new connections. The state is `live`; `missing` where it was
    /// asked for and the kernel does not have it, `foreign` where the kernel has it
    /// and it was not asked for.
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Validate rule sets; every mistake is reported, not only the first
    ///
    /// Needs no privileges. Looks at nothing but the files, and at which protocols
    /// the running kernel tracks: the ports of others cannot be forwarded.
    Check(check::CheckArgs),
    /// Show what `apply` would change in the kernel, and change nothing
    Plan(plan::PlanArgs),
    /// Make rule sets live and durable, in one transaction
    ///
    /// Each file is a named set; applying it again replaces that set only.
    Apply(apply::ApplyArgs),
    /// Keep what `apply --confirm` did
    ///
    /// Best run over a new connection: that one can be made is what there is to be
    /// confirmed.
    Confirm(confirm::ConfirmArgs),
    /// Remove all that is ours from the kernel and the state
    ///
    /// Switches that were set for forwarding get back the values they had.
    Flush(flush::FlushArgs),
    /// Put back what the state holds: at boot, or after somebody flushed it
    ///
    /// Switches included. Where the kernel holds all of it already, nothing is sent.
    Restore(restore::RestoreArgs),
    /// Try rule sets with real packets in a throw-away network
    ///
    /// From the rule sets alone a network is made: a host under test, the bridge
    /// of each network, a namespace for every target, a client outside. The rules
    /// are applied there, and every forward is asked for from outside, from the
    /// host itself and from inside the target's network. Every rule about what
    /// leaves and every 1:1 translation is met by a packet too, unless nobody can
    /// be in its prefix; and a packet from outside tries to get into every isolated
    /// network. What arrives is compared with what the documentation says.
    /// Needs no root where user namespaces are allowed. Leaves nothing behind.
    Try(r#try::TryArgs),
    Audit(audit::AuditArgs),
    Explain(explain::ExplainArgs),
    /// Build networks of namespaces, veth pairs, bridges and containers from a file
    Lab(lab::LabArgs),
}

impl Command {
    /// Whether it is told where its time went: it changes rules that last, or reads those of the kernel.
    fn tells_time(&self) -> bool {
        use Command::{Add, Apply, Flush, List, Plan, Restore, Rm};
        matches!(self, Add(_) | Rm(_) | List(_) | Plan(_) | Apply(_) | Flush(_) | Restore(_))
    }
}

/// Runs a command line, prints its output and returns the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>, stdout: &mut dyn Write, stderr: &mut dyn Write) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let to: &mut dyn Write = if error.use_stderr() { stderr } else { stdout };
            let written = write!(to, "{}", error.render());
            drop(written);
            return if error.use_stderr() { failure::USAGE } else { 0 };
        }
    };
    let color = match cli.global.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let mut aside = Aside(stderr);
    let timing = if cli.global.verbose { Timing::of_process() } else { Timing::default() };
    let mut output = Output { stdout, stderr: &mut aside, color, done: false, timing };
    let result = run(&cli, &mut output).and_then(|code| {
        output.stdout.flush()?;
        if cli.global.verbose && cli.command.tells_time() {
            writeln!(output.stderr, "{}", output.timing)?;
        }
        Ok(code)
    });
    match result {
        Ok(code) => code,
        Err(error) => failure::report(&error, &mut output),
    }
}

fn run(cli: &Cli, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let global = &cli.global;
    if let Some(name) = &global.netns {
        namespace::enter(name)?;
    }
    match &cli.command {
        Command::Add(args) => add::run(args, global, output),
        Command::Rm(args) => rm::run(args, global, output),
        Command::List(args) => list::run(args, global, output),
        Command::Check(args) => check::run(args, global, output),
        Command::Plan(args) => plan::run(args, global, output),
        Command::Apply(args) => apply::run(args, global, output),
        Command::Confirm(args) => confirm::run(args, global, output),
        Command::Flush(args) => flush::run(args, global, output),
        Command::Restore(args) => restore::run(args, global, output),
        Command::Try(args) => r#try::run(args, global, output),
        Command::Audit(args) => audit::run(args, global, output),
        Command::Explain(args) => explain::run(args, global, output),
        Command::Lab(args) => lab::run(args, global, output),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_is_sound_and_help_fits_80_columns() {
        Cli::command().debug_assert();
        let mut tree = Cli::command();
        let mut all: Vec<String> = vec![tree.render_long_help().to_string()];
        tree.build();
        for command in tree.get_subcommands_mut() {
            all.push(command.render_long_help().to_string());
            all.extend(command.get_subcommands_mut().map(|command| command.render_long_help().to_string()));
        }
        for line in all.iter().flat_map(|help| help.lines()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn everything_that_changes_has_a_dry_run() {
        let mut tree = Cli::command();
        tree.build();
        for command in tree.get_subcommands() {
            let changes = matches!(command.get_name(), "add" | "rm" | "apply" | "confirm" | "flush" | "restore");
            let has = command.get_arguments().any(|argument| argument.get_long() == Some("dry-run"));
            assert_eq!(changes, has, "{}", command.get_name());
        }
        let lab = tree.find_subcommand("lab").expect("there");
        for command in lab.get_subcommands().filter(|command| command.get_name() != "help") {
            let has = command.get_arguments().any(|argument| argument.get_long() == Some("dry-run"));
            assert_eq!(matches!(command.get_name(), "up" | "down"), has, "lab {}", command.get_name());
        }
    }
}
