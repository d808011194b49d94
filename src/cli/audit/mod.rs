//! `portfwd audit`: all NAT on this host, or in dumps of one, and what is wrong with it.

mod report;
mod sarif;
mod shape;
mod text;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use super::{Failure, Global, Output, json, sets, view};
use crate::audit::facts::{Facts, Ours};
use crate::audit::finding::Severity;
use crate::audit::findings;
use crate::audit::host::Host;
use crate::audit::listing;
use crate::audit::read::{self, DumpError};
use crate::audit::ruleset::{Gap, Ruleset};
use crate::config;
use crate::engine::{Engine, EngineError, Scope, Storage};
use crate::model::error::printable;
use crate::model::{Asked, Family};
use report::Report;

/// The most bytes of one dump.
const LARGEST: u64 = 1 << 30;

/// Show all NAT on this host, whoever made it, and what is wrong with it
///
/// First comes a table of all forwards in the order in which they win, then the
/// sources that are rewritten, then findings, the worst first, each with its
/// evidence and what mends it. Nothing is changed.
/// Without FILE the kernel is asked; what it does not tell for lack of a
/// capability is named. With FILEs, which need no root, only they are read:
/// what `iptables-save`, `ip6tables-save` or `nft -j list ruleset` printed, all
/// of one host.
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    /// Dumps of one host
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Exit with 4 where a finding is as bad as this, or worse
    #[arg(long, value_name = "SEVERITY", value_enum)]
    fail_on: Option<Level>,
    /// Only findings of these kinds, `F01`
    #[arg(long, value_name = "ID", value_delimiter = ',', conflicts_with = "ignore")]
    only: Vec<String>,
    /// No findings of these kinds
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    ignore: Vec<String>,
    /// Only rules of these owners, `docker`, and findings about them
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    owner: Vec<String>,
    /// Print findings as SARIF 2.1.0
    #[arg(long)]
    sarif: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    /// Good to know
    Info,
    /// May hurt
    Warning,
    /// Does hurt
    Error,
}

impl From<Level> for Severity {
    fn from(level: Level) -> Self {
        match level {
            Level::Info => Self::Info,
            Level::Warning => Self::Warning,
            Level::Error => Self::Error,
        }
    }
}

pub fn run(args: &AuditArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    if args.sarif && global.json {
        let what = "`--sarif` and `--json` are two forms of one answer".to_owned();
        return Err(Failure::Usage { what, help: "give one of them".to_owned() }.into());
    }
    let (only, ignore) = (known(&args.only)?, known(&args.ignore)?);
    let host = match args.files.as_slice() {
        [] => this_host(global, output)?,
        files => {
            let dumps = files.iter().map(|file| dump(file, files.len() > 1)).collect::<Result<_, _>>()?;
            Host::new(read::together(dumps), None)
        }
    };
    let wanted = |id: &str| (only.is_empty() || only.contains(id)) && !ignore.contains(id);
    let of_owner = |owner: &str| args.owner.is_empty() || args.owner.iter().any(|wanted| wanted == owner);
    // The long lists are made beside: together they take as long as the findings.
    let (mut found, mut forwards, mut sources) = thread::scope(|scope| {
        let lists = scope.spawn(|| (listing::forwards(&host), listing::sources(&host)));
        let found = findings::all(&host, |kind| wanted(kind.id));
        let (forwards, sources) = lists.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (found, forwards, sources)
    });
    found.retain(|finding| args.owner.is_empty() || finding.places.iter().any(|place| of_owner(&place.owner)));
    forwards.retain(|row| of_owner(&row.owner));
    sources.retain(|row| of_owner(&row.owner));
    let facts = host.facts.iter().flat_map(|facts| &facts.gaps);
    let gaps = host.rules.gaps.iter().chain(facts).chain(&host.view.gaps).cloned().collect();
    let report = Report { host: &host, files: &args.files, forwards, sources, findings: found, gaps };
    match (global.json, args.sarif) {
        (true, _) => json::print(&shape::Audit::new(&report), output.stdout)?,
        (false, true) => json::print(&sarif::log(&report), output.stdout)?,
        (false, false) => text::print(&report, output)?,
    }
    let worst = report.findings.iter().map(|finding| finding.severity).max();
    Ok(if args.fail_on.is_some_and(|level| worst >= Some(level.into())) { super::failure::FOUND } else { 0 })
}

/// The kinds of findings that are named, each of which there must be.
fn known(ids: &[String]) -> Result<BTreeSet<String>, Failure> {
    let mut all = BTreeSet::new();
    for id in ids {
        let id = id.to_uppercase();
        if !findings::checks().any(|check| check.kind.id == id) {
            let known: Vec<&str> = findings::checks().map(|check| check.kind.id).collect();
            return Err(Failure::Usage {
                what: format!("there is no finding `{}`", printable(&id)),
                help: format!("write one of {}", known.join(", ")),
            });
        }
        all.insert(id);
    }
    Ok(all)
}

/// Reads a dump. Beside others one may be empty: programs print nothing where there is no table.
fn dump(path: &Path, others: bool) -> anyhow::Result<Ruleset> {
    let usage = |what: String| Failure::Usage {
        what: format!("{}: {what}", printable(&path.display().to_string())),
        help: "give what `iptables-save`, `ip6tables-save` or `nft -j list ruleset` printed".into(),
    };
    let size = std::fs::metadata(path).map_err(|error| usage(error.to_string()))?.len();
    if size > LARGEST {
        return Err(usage(format!("{size} bytes are more than a dump may have, {LARGEST}")).into());
    }
    let bytes = std::fs::read(path).map_err(|error| usage(error.to_string()))?;
    // Comments of others may be in any encoding.
    let text = String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let family = ["ip6tables", "v6"].iter().any(|word| name.contains(word)).then_some(Family::Ipv6);
    match read::dump(&text, family) {
        Err(DumpError::Empty) if others => Ok(Ruleset::default()),
        other => Ok(other.map_err(|error| usage(error.to_string()))?),
    }
}

/// What is so on this host, without what our own state says of it.
pub(super) fn live(global: &Global, output: &mut Output<'_>) -> anyhow::Result<(Ruleset, Facts)> {
    // Who is on an ssh connection is on one of this namespace only where no other is looked at.
    let ssh = std::env::var("SSH_CONNECTION").ok().filter(|_| global.netns.is_none());
    let (rules, facts) = read::live(ssh.as_deref()).map_err(EngineError::from)?;
    if global.verbose {
        writeln!(output.stderr, "note: {} tables, {} links", rules.tables.len(), facts.links.len())?;
    }
    Ok((rules, facts))
}

/// This host, with what our own state says of it.
fn this_host(global: &Global, output: &mut Output<'_>) -> anyhow::Result<Host> {
    let (rules, mut facts) = live(global, output)?;
    match own_state(global) {
        Ok((drift, ours)) => (facts.drift, facts.ours) = (drift, ours),
        Err(error) => facts.gaps.push(Gap {
            what: "whether the kernel holds what our own state asks for".into(),
            why: format!("{error:#}"),
        }),
    }
    Ok(Host::new(rules, Some(facts)))
}

/// In what the kernel differs from what our state asks for, and what else the state says. Without a state nothing is asked for.
fn own_state(global: &Global) -> anyhow::Result<(Vec<String>, Ours)> {
    let mut engine = Engine::open(Storage::ReadOnly(&global.state_dir), global.choice(), Scope::Full)?;
    let asked = Arc::clone(&engine.state().asked);
    let ours = Ours {
        asks: !asked.is_empty(),
        unapplied: unapplied(&engine, global),
        instead: engine.fallback_reason().map(str::to_owned),
    };
    let plan = engine.plan_rules(&asked)?;
    Ok((plan.steps.iter().filter_map(view::step).collect(), ours))
}

/// The files that sets were applied from and that say something else now, each with what is the matter.
fn unapplied(engine: &Engine, global: &Global) -> Vec<(String, String)> {
    let state = engine.state();
    let sorted = |mut asked: Asked| {
        asked.normalize();
        asked
    };
    let mut found = Vec::new();
    for path in state.origins.values().collect::<BTreeSet<_>>() {
        let what = match path.try_exists() {
            Ok(true) => match sets::load(std::slice::from_ref(path), global.choice()) {
                Ok(loaded) => match config::union((*state.asked).clone(), &loaded) {
                    Ok(after) => match sorted(after) == sorted((*state.asked).clone()) {
                        true => continue,
                        false => "it asks for something else than what was applied from it",
                    },
                    Err(_) => "what it asks for contradicts what else was applied",
                },
                Err(_) => "there is a mistake in it, see `portfwd check`",
            },
            Ok(false) => "it is not there any more",
            Err(_) => continue,
        };
        found.push((path.display().to_string(), what.to_owned()));
    }
    found
}
