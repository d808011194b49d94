//! `portfwd check`: validates rule sets; needs no privileges. Looks at nothing but the files and, because a forward whose
//! ports the kernel cannot rewrite is a mistake too, at which protocols the running kernel tracks.

use std::path::PathBuf;

use super::{Failure, Global, Output, sets};
use crate::config;
use crate::model::Asked;
use crate::model::error::printable;
use crate::nft::compile::compile;

#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Files, or folders of `.toml` files; none: /etc/portfwd
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
    let asked = config::union(Asked::default(), &loaded).map_err(Failure::Problems)?;
    compile(&asked).map_err(crate::engine::EngineError::from)?;
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
