//! `portfwd check`: validates rule sets without privileges.
//!
//! A forward is a mistake if the running kernel cannot rewrite its ports. So `check` reads which protocols the kernel's
//! connection tracking supports. It reads nothing else from the kernel.

use std::path::PathBuf;

use super::{Failure, Global, Output, sets};
use crate::config;
use crate::model::DesiredState;
use crate::model::error::printable;
use crate::nft::compile::compile;

#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Files, or folders of `.toml` files [default: /etc/portfwd]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

#[derive(serde::Serialize)]
struct Checked<'a> {
    version: u32,
    sets: Vec<CheckedSet<'a>>,
}

#[derive(serde::Serialize)]
struct CheckedSet<'a> {
    name: &'a str,
    path: String,
    forwards: usize,
}

pub fn run(args: &CheckArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let loaded = sets::load(&args.paths, global.choice())?;
    let desired = config::merge(DesiredState::default(), &loaded).map_err(Failure::Problems)?;
    compile(&desired).map_err(crate::engine::EngineError::from)?;
    let path = |set: &config::Loaded| set.source.path.display().to_string();
    if global.json {
        let sets = loaded.iter().map(|set| CheckedSet {
            name: set.set.name.as_str(),
            path: path(set),
            forwards: set.set.forwards.len(),
        });
        super::json::print(&Checked { version: super::json::VERSION, sets: sets.collect() }, output.stdout)?;
        return Ok(0);
    }
    for set in &loaded {
        let count = set.set.forwards.len();
        let plural = if count == 1 { "" } else { "s" };
        let path = printable(&path(set));
        writeln!(output.stdout, "{path}: rule set `{}` is valid, {count} forward{plural}", set.set.name)?;
    }
    Ok(0)
}
