//! `portfwd flush`: removes all that is ours.

use super::{Global, Output, apply, json, view};
use crate::engine;
use crate::store::State;

/// Remove all that is ours from the kernel and the state
///
/// Switches that were set for forwarding get back the values they had.
#[derive(Debug, clap::Args)]
pub struct FlushArgs {
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &FlushArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let mut engine = global.engine(!args.dry_run)?;
    if args.dry_run {
        let plan = engine.plan(&State::default().asked)?;
        return apply::planned(&plan, global, output);
    }
    let outcome = engine::commit(&mut engine, State::default())?;
    view::aside(&outcome, global.verbose, output)?;
    if global.json {
        json::print(&json::Changes::new(&outcome.plan, true), output.stdout)?;
    } else if outcome.plan.is_empty() {
        writeln!(output.stdout, "unchanged")?;
    } else {
        writeln!(output.stdout, "{}", view::done(&outcome.plan))?;
    }
    Ok(0)
}
