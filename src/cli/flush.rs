//! `portfwd flush`: removes all rules of portfwd.

use super::{Global, Output, change};
use crate::engine::{Options, Scope, Storage};
use crate::store::State;

#[derive(Debug, clap::Args)]
pub struct FlushArgs {
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &FlushArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let directory = &global.state_dir;
    let storage = if args.dry_run { Storage::ReadOnly(directory) } else { Storage::ReadWrite(directory) };
    let mut engine = global.open(storage, Scope::Full, output)?;
    if !args.dry_run {
        // A pending change needs no rollback first, because `flush` removes all rules anyway.
        global.finish(&mut engine, output)?;
    }
    engine.remove_from_all_backends();
    if args.dry_run {
        return change::preview(&mut engine, &State::default(), global, output);
    }
    let outcome = engine.commit(State::default(), Options::default())?;
    change::report(&engine, &outcome, global, output)?;
    if !global.json {
        change::summary(&outcome, output)?;
    }
    Ok(0)
}
