//! `portfwd flush`: removes all that is ours.

use super::{Global, Output, change};
use crate::store::State;

#[derive(Debug, clap::Args)]
pub struct FlushArgs {
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &FlushArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let mut engine = global.open(!args.dry_run, output)?;
    if !args.dry_run {
        // What waits to be confirmed, in time or not, goes with all the rest: this is the way out.
        global.finish(&mut engine, output)?;
    }
    // Where nothing of ours is to be left, what the state knows is not enough.
    engine.suspect_everywhere();
    if let Some(outcome) = change::carry_out(&mut engine, State::default(), args.dry_run, global, output)? {
        change::summary(&outcome, output)?;
    }
    Ok(0)
}
