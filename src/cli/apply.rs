//! `portfwd apply`: makes rule sets live and durable.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Failure, Global, Output, change, guard, rollback_watcher, sets};
use crate::config::{self, Loaded};
use crate::engine::timing::Phase;
use crate::engine::{Engine, Options, PARTIAL_LIMIT, Part, Scope};
use crate::model::{Binding, SetName};

#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// Files, or folders of `.toml` files [default: /etc/portfwd]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Do not drop the connections that this change invalidates
    #[arg(long)]
    keep_connections: bool,
    /// Apply even if a forward takes the port of a local service or of your SSH
    /// connection
    #[arg(long)]
    force: bool,
    /// Roll back the change unless you confirm it within SECONDS (1 to 3600): press
    /// Enter, or run `portfwd confirm`, best from a new connection
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    #[arg(conflicts_with = "dry_run")]
    confirm: Option<u64>,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Opens the engine. Loads a partial state if the rule sets are small.
fn open(args: &ApplyArgs, loaded: &[Loaded], global: &Global, output: &mut Output<'_>) -> anyhow::Result<Engine> {
    let forwards = || loaded.iter().flat_map(|loaded| &loaded.set.forwards);
    if args.dry_run || args.confirm.is_some() || loaded.is_empty() || forwards().count() > PARTIAL_LIMIT {
        return global.change(args.dry_run, Scope::Full, output);
    }
    // Skips invalid forwards here. `config::merge` reports them later.
    let bindings: Vec<Binding> = forwards().filter_map(|forward| forward.bindings().ok()).flatten().collect();
    let sets: Vec<SetName> = loaded.iter().map(|loaded| loaded.set.name.clone()).collect();
    global.change(false, Scope::Partial(Part { bindings, sets }), output)
}

pub fn run(args: &ApplyArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let loaded = output.timing.measure(Phase::Parse, || sets::load(&args.paths, global.choice()))?;
    let mut engine = open(args, &loaded, global, output)?;
    let options = Options { keep_connections: args.keep_connections };
    let mut after = engine.state().clone();
    let desired = Arc::unwrap_or_clone(after.desired);
    let union = output.timing.measure(Phase::Parse, || config::merge(desired, &loaded));
    after.desired = union.map_err(Failure::Problems)?.into();
    if !args.force {
        guard::check(&mut engine, &mut after, &loaded, global, output)?;
    }
    for set in &loaded {
        let path = std::path::absolute(&set.source.path).unwrap_or_else(|_| set.source.path.clone());
        after.origins.insert(set.set.name.clone(), path);
    }
    drop(loaded);
    if let Some(seconds) = args.confirm {
        let time = Duration::from_secs(seconds);
        return rollback_watcher::commit(engine, after, options, time, global, output);
    }
    if args.dry_run {
        return change::preview(&mut engine, &after, global, output);
    }
    let outcome = engine.commit(after, options)?;
    change::report(&engine, &outcome, global, output)?;
    if !global.json {
        change::summary(&outcome, output)?;
    }
    Ok(0)
}
