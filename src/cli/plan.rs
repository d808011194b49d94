//! `portfwd plan`: shows the changes that `apply` would make.

use std::path::PathBuf;

use super::{Failure, Global, Output, failure, json, sets, view};
use crate::config;
use crate::engine::timing::Phase;
use crate::store::State;

#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    /// Files, or folders of `.toml` files [default: /etc/portfwd]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Exit with 3 if there are changes
    #[arg(long)]
    detailed_exitcode: bool,
}

pub fn run(args: &PlanArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let loaded = output.timing.measure(Phase::Parse, || sets::load(&args.paths, global.choice()))?;
    let mut engine = global.read(output)?;
    let desired = (*engine.state().desired).clone();
    let desired = output.timing.measure(Phase::Parse, || config::merge(desired, &loaded)).map_err(Failure::Problems)?;
    let plan = engine.plan(&State { desired: desired.into(), ..engine.state().clone() })?;
    output.timing.add(engine.timing());
    if global.json {
        json::print(&json::Changes::new(&plan, false), output.stdout)?;
    } else {
        view::steps(&plan.steps, output)?;
        writeln!(output.stdout, "{}", view::to_do(&plan))?;
    }
    Ok(if args.detailed_exitcode && !plan.steps.is_empty() { failure::CHANGES } else { 0 })
}
