//! The command line. Each command has one file, which parses arguments, calls the library and prints the result.
//!
//! Results go to stdout; notes, warnings and errors go to stderr. `failure.rs` maps errors to exit codes.

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
mod rollback_watcher;
mod sets;
mod r#try;
mod view;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use clap::{Parser, Subcommand};

use crate::engine::Timing;
use crate::sys::namespace;
use global::Color;
use output::BestEffort;

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
Exit codes: 0 done, or nothing to do; 1 failed, nothing changed; \
2 usage or invalid rule set; 3 plan --detailed-exitcode found changes; \
4 audit --fail-on found that severity or unreadable rules; \
5 permission or kernel feature missing; \
6 conflict refused; 75 busy, try again"
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
    /// List the live rules, with counters and drift
    ///
    /// PACKETS is the number of new connections; BYTES is the size of their first
    /// packets. STATE is `live`, `ineffective`, `missing` or `foreign`. An
    /// `ineffective` rule is in the kernel, but packets of other hosts are not
    /// forwarded; a warning gives the reason. A `missing` rule is in the desired state and not in the
    /// kernel. A `foreign` rule is in portfwd's table or chains and not in the
    /// desired state.
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Validate rule sets, and report every mistake
    ///
    /// Reads the files, and checks which protocols the connection tracking of this
    /// kernel supports: only their ports can be forwarded. Needs no privileges.
    Check(check::CheckArgs),
    /// Show what `apply` would change, and change nothing
    Plan(plan::PlanArgs),
    /// Make rule sets live and durable, in one transaction
    ///
    /// Each file is one rule set with a name. Applying a file again replaces that
    /// rule set and no other.
    Apply(apply::ApplyArgs),
    /// Keep the change that `apply --confirm` made
    ///
    /// Run it from a new connection, which proves that you can still get in.
    Confirm(confirm::ConfirmArgs),
    /// Remove all rules of portfwd from the kernel and the state
    ///
    /// Also restores the previous values of the sysctls that portfwd changed.
    Flush(flush::FlushArgs),
    /// Load the desired state into the kernel: at boot, or to repair drift
    ///
    /// Also sets the sysctls that the rules need. Sends nothing if the live rules are
    /// the desired state already.
    Restore(restore::RestoreArgs),
    /// Try rule sets with real packets in a throw-away network
    ///
    /// Builds a network from the rule sets: a host under test, the bridge of each
    /// network, a namespace for each target, and a client outside. Applies the rules
    /// there, and connects to every forward from outside, from the host and from the
    /// target's network. Also tests each snat, masquerade and netmap, if its prefix
    /// has a usable address, and sends a packet from outside to each isolated
    /// network. Compares each result with the documented meaning of the rules.
    /// Needs no root if unprivileged user namespaces are allowed. Leaves nothing
    /// behind.
    Try(r#try::TryArgs),
    Audit(audit::AuditArgs),
    Explain(explain::ExplainArgs),
    /// Build networks of namespaces, bridges and containers from a file
    Lab(lab::LabArgs),
}

impl Command {
    /// Returns true if the command reads or changes the live rules. `-v` prints the phase times of these commands.
    fn reports_timing(&self) -> bool {
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
    let mut stderr = BestEffort(stderr);
    let timing = if cli.global.verbose { Timing::of_process() } else { Timing::default() };
    let mut output = Output { stdout, stderr: &mut stderr, color, done: false, timing };
    let result = run(&cli, &mut output).and_then(|code| {
        output.stdout.flush()?;
        if cli.global.verbose && cli.command.reports_timing() {
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
    fn command_tree_is_valid_and_help_fits_80_columns() {
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
    fn help_lists_every_exit_code() {
        use failure::{BUSY, CHANGES, CONFLICT, FAILED, FOUND, MISSING, USAGE};
        let help = Cli::command().get_after_help().expect("there").to_string();
        for code in [0, FAILED, USAGE, CHANGES, FOUND, MISSING, CONFLICT, BUSY] {
            assert!(help.contains(&format!(" {code} ")), "{code}: {help}");
        }
    }

    #[test]
    fn every_changing_command_has_a_dry_run() {
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
