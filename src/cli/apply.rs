//! `portfwd apply`: makes the kernel hold what rule sets ask.

use std::path::PathBuf;

use super::{Failure, Global, Output, json, sets, view};
use crate::config;
use crate::engine::{self, Plan};

/// Make rule sets live and durable, in one transaction
///
/// Each file is a named set; applying it again replaces that set only.
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// Files, or folders of `.toml` files; none: /etc/portfwd
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &ApplyArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let loaded = sets::load(&args.paths)?;
    let mut engine = global.engine(!args.dry_run)?;
    let mut after = engine.state().clone();
    after.asked = config::union(after.asked, &loaded).map_err(Failure::Problems)?;
    for set in &loaded {
        let path = std::path::absolute(&set.source.path).unwrap_or_else(|_| set.source.path.clone());
        after.origins.insert(set.set.name.clone(), path);
    }
    if args.dry_run {
        let plan = engine.plan(&after.asked)?;
        return planned(&plan, global, output);
    }
    let outcome = engine::commit(&mut engine, after)?;
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

/// Prints a plan that is not carried out.
pub fn planned(plan: &Plan, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    if global.json {
        json::print(&json::Changes::new(plan, false), output.stdout)?;
    } else {
        view::steps(&plan.steps, output)?;
        writeln!(output.stdout, "{} (dry run)", view::to_do(plan))?;
    }
    Ok(0)
}
