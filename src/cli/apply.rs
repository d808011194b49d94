//! `portfwd apply`: makes the kernel hold what rule sets ask.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Failure, Global, Output, change, guard, sets, waiting};
use crate::config::{self, Loaded};
use crate::engine::timing::Phase;
use crate::engine::{Engine, FEW};
use crate::model::{Binding, SetName};

#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// Files, or folders of `.toml` files; none: /etc/portfwd
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Let the connections that it makes wrong finish, instead of ending them
    #[arg(long)]
    keep_connections: bool,
    /// Also where a forward takes the port of a listening socket, or the ssh
    /// connection that you are on
    #[arg(long)]
    force: bool,
    /// Put the rules before back, unless this is confirmed in so many seconds: by
    /// Enter, or `portfwd confirm`, best over a new connection
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    #[arg(conflicts_with = "dry_run")]
    confirm: Option<u64>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Opens kernel and state; where the sets are small, of them only what these are about.
fn open(args: &ApplyArgs, loaded: &[Loaded], global: &Global, output: &mut Output<'_>) -> anyhow::Result<Engine> {
    let forwards = || loaded.iter().flat_map(|loaded| &loaded.set.forwards);
    if args.dry_run || args.confirm.is_some() || loaded.is_empty() || forwards().count() > FEW {
        return global.to_change(args.dry_run, output);
    }
    // Those that do not fit together are refused when the sets are brought together.
    let about: Vec<Binding> = forwards().filter_map(|forward| forward.bindings().ok()).flatten().collect();
    let sets: Vec<SetName> = loaded.iter().map(|loaded| loaded.set.name.clone()).collect();
    global.to_change_near(&about, &sets, output)
}

pub fn run(args: &ApplyArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let loaded = output.timing.of(Phase::Parse, || sets::load(&args.paths, global.choice()))?;
    let mut engine = open(args, &loaded, global, output)?;
    if args.keep_connections {
        engine.keep_connections();
    }
    let mut after = engine.state().clone();
    let asked = Arc::unwrap_or_clone(after.asked);
    let union = output.timing.of(Phase::Parse, || config::union(asked, &loaded));
    after.asked = union.map_err(Failure::Problems)?.into();
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
        return waiting::commit(engine, after, time, global, output);
    }
    if let Some(outcome) = change::carry_out(&mut engine, after, args.dry_run, global, output)? {
        change::summary(&outcome, output)?;
    }
    Ok(0)
}
