//! `portfwd audit`: lists the NAT rules of this host, or of dumps, and finds their faults.

mod report;
mod sarif;
mod shape;
mod text;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use super::{Failure, Global, Output, json, list, sets, view};
use crate::audit::finding::Severity;
use crate::audit::findings;
use crate::audit::listing;
use crate::config;
use crate::engine::{Engine, EngineError, Scope, Storage};
use crate::model::error::printable;
use crate::model::{DesiredState, Family};
use crate::ruleset::facts::{Facts, OwnState};
use crate::ruleset::host::Host;
use crate::ruleset::read::{self, DumpError};
use crate::ruleset::table::{Gap, Ruleset};
use report::Report;

/// The facts of a host that no dump contains.
const FACTS: &str = "interfaces, addresses, routes, sysctls, sockets and connections";

/// The largest size of a dump in bytes: about 800,000 rules of iptables-save.
const MAX_DUMP: u64 = 128 << 20;

/// Show the NAT rules of all programs on this host, and their faults
///
/// Prints a table of all forwards in their order of precedence, then the rules
/// that rewrite sources, then findings. The worst findings come first, each with
/// evidence and a fix. Changes nothing.
///
/// Without FILE, reads the kernel, which needs root. With FILEs, reads only these
/// dumps of one host, and needs no root: the output of `nft list ruleset`,
/// `nft -j list ruleset`, `iptables-save`, `iptables -S`, and the same of ip6tables.
/// nft itself reads its text, in namespaces of its own.
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    /// Dumps of the rules of one host
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Exit with 4 if a finding has this severity or a higher one, or if a rule
    /// could not be read or understood
    #[arg(long, value_name = "SEVERITY", value_enum)]
    fail_on: Option<Level>,
    /// With --fail-on, do not exit with 4 for rules that could not be read or
    /// understood
    #[arg(long, requires = "fail_on")]
    no_fail_on_unknown: bool,
    /// Show only findings with these IDs, for example F01,F13
    #[arg(long, value_name = "ID", value_delimiter = ',', conflicts_with = "ignore")]
    only: Vec<String>,
    /// Hide findings with these IDs
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    ignore: Vec<String>,
    /// Show only rules of these owners, for example docker, and findings about
    /// them
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    owner: Vec<String>,
    /// Print findings as SARIF 2.1.0
    #[arg(long)]
    sarif: bool,
}

/// The values of `--fail-on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    /// Informational
    Info,
    /// May break traffic
    Warning,
    /// Breaks traffic
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
        let what = "`--sarif` and `--json` are different output formats".to_owned();
        return Err(Failure::Usage { what, help: "give one of them".to_owned() }.into());
    }
    let (only, ignore) = (finding_ids(&args.only)?, finding_ids(&args.ignore)?);
    let host = match args.files.as_slice() {
        [] => this_host(global, output)?,
        files => {
            let dumps = files.iter().map(|file| read_dump(file, files.len() > 1)).collect::<Result<_, _>>()?;
            Host::new(read::together(dumps), None)
        }
    };
    let is_wanted = |id: &str| (only.is_empty() || only.contains(id)) && !ignore.contains(id);
    let has_owner = |owner: &str| args.owner.is_empty() || args.owner.iter().any(|wanted| wanted == owner);
    // Computes the lists in a second thread, because they take about as long as the findings.
    let (mut found, mut forwards, mut sources) = thread::scope(|scope| {
        let lists = scope.spawn(|| (listing::forwards(&host), listing::sources(&host)));
        let found = findings::all(&host, |kind| is_wanted(kind.id));
        let (forwards, sources) = lists.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (found, forwards, sources)
    });
    found.retain(|finding| args.owner.is_empty() || finding.places.iter().any(|place| has_owner(&place.owner)));
    forwards.retain(|row| has_owner(&row.owner));
    sources.retain(|row| has_owner(&row.owner));
    let unread_rules = host.rules.gaps.iter().chain(&host.view.gaps).cloned().collect();
    let unknown_facts = match &host.facts {
        Some(facts) => facts.gaps.clone(),
        None => vec![Gap { what: FACTS.into(), why: "a dump does not contain them".into() }],
    };
    let report =
        Report { host: &host, files: &args.files, forwards, sources, findings: found, unread_rules, unknown_facts };
    match (global.json, args.sarif) {
        (true, _) => json::print(&shape::Audit::new(&report), output.stdout)?,
        (false, true) => json::print(&sarif::log(&report), output.stdout)?,
        (false, false) => text::print(&report, output)?,
    }
    let fails = args.fail_on.is_some_and(|level| report.fails(level.into(), !args.no_fail_on_unknown));
    Ok(if fails { super::failure::FOUND } else { 0 })
}

/// Parses finding IDs in upper or lower case.
///
/// # Errors
/// Fails if an ID belongs to no finding.
fn finding_ids(ids: &[String]) -> Result<BTreeSet<String>, Failure> {
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

/// Reads a dump. If there are `several` dumps, one may be empty: iptables-save prints nothing on a host without tables.
fn read_dump(path: &Path, several: bool) -> anyhow::Result<Ruleset> {
    let usage = |what: String| Failure::Usage {
        what: format!("{}: {what}", printable(&path.display().to_string())),
        help: "give the output of `iptables-save`, `ip6tables-save`, `nft list ruleset` or `nft -j list ruleset`"
            .into(),
    };
    let bytes = read_text(path).map_err(|error| usage(error.to_string()))?;
    // Replaces invalid UTF-8, because comments in rules may have any encoding.
    let text = String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let family = ["ip6tables", "v6"].iter().any(|word| name.contains(word)).then_some(Family::Ipv6);
    match read::dump(&text, family) {
        Err(DumpError::Empty) if several => Ok(Ruleset::default()),
        Err(DumpError::Text(error)) if error.is_of_host() => Err(Failure::Unsupported {
            what: format!("{}: {:#}", printable(&path.display().to_string()), anyhow::Error::new(error)),
            help: "give the output of `nft -j list ruleset` instead".into(),
        }
        .into()),
        other => Ok(other.map_err(|error| usage(error.to_string()))?),
    }
}

/// Reads a regular file or a pipe of at most [`MAX_DUMP`] bytes.
fn read_text(path: &Path) -> io::Result<Vec<u8>> {
    let kind = fs::metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_fifo() {
        return Err(io::Error::other("not a regular file or a pipe"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_DUMP + 1).read_to_end(&mut bytes)?;
    // The size of a pipe is unknown before it is read, and a file may grow.
    if u64::try_from(bytes.len()).is_ok_and(|size| size > MAX_DUMP) {
        return Err(io::Error::other(format!("larger than the maximum of {} MiB", MAX_DUMP >> 20)));
    }
    if bytes.contains(&0) {
        return Err(io::Error::other("contains a NUL byte, so it is not text"));
    }
    Ok(bytes)
}

/// Reads the live ruleset and host facts, without portfwd's own state.
pub(super) fn live(global: &Global, output: &mut Output<'_>) -> anyhow::Result<(Ruleset, Facts)> {
    // The SSH connection is in the namespace that portfwd was started in, not in that of `--netns`.
    let ssh = std::env::var("SSH_CONNECTION").ok().filter(|_| global.netns.is_none());
    let (rules, facts) = read::live(ssh.as_deref()).map_err(EngineError::from)?;
    if global.verbose {
        writeln!(output.stderr, "note: {} tables, {} links", rules.tables.len(), facts.links.len())?;
    }
    Ok((rules, facts))
}

/// Reads the live ruleset, host facts, and portfwd's own state.
fn this_host(global: &Global, output: &mut Output<'_>) -> anyhow::Result<Host> {
    let (rules, mut facts) = live(global, output)?;
    match read_state(global, output) {
        Ok((drift, state)) => (facts.drift, facts.ours) = (drift, state),
        Err(error) => facts.gaps.push(Gap {
            what: "drift of the live rules from portfwd's desired state".into(),
            why: format!("{error:#}"),
        }),
    }
    Ok(Host::new(rules, Some(facts)))
}

/// Returns the drift of the live rules, and facts about portfwd's state. A missing state counts as an empty desired
/// state.
fn read_state(global: &Global, output: &mut Output<'_>) -> anyhow::Result<(Vec<String>, OwnState)> {
    let mut engine = Engine::open(Storage::ReadOnly(&global.state_dir), global.choice(), Scope::Full)?;
    let desired = Arc::clone(&engine.state().desired);
    let state = OwnState {
        asks: !desired.is_empty(),
        unapplied: changed_files(&engine, global),
        instead: engine.fallback_reason().map(str::to_owned),
    };
    if list::warn_about_stale_backends(&engine, output)? {
        // The plan is for the backend in use, so it would move the rules.
        return Ok((Vec::new(), state));
    }
    let plan = engine.plan_rules(&desired)?;
    Ok((plan.steps.iter().filter_map(view::step).collect(), state))
}

/// Returns the rule-set files whose rules differ from the applied ones, each with the reason.
fn changed_files(engine: &Engine, global: &Global) -> Vec<(String, String)> {
    let state = engine.state();
    let normalized = |mut desired: DesiredState| {
        desired.normalize();
        desired
    };
    let mut found = Vec::new();
    for path in state.origins.values().collect::<BTreeSet<_>>() {
        let reason = match path.try_exists() {
            Ok(true) => match sets::load(std::slice::from_ref(path), global.choice()) {
                Ok(loaded) => match config::merge((*state.desired).clone(), &loaded) {
                    Ok(after) => match normalized(after) == normalized((*state.desired).clone()) {
                        true => continue,
                        false => "its rules differ from the applied ones",
                    },
                    Err(_) => "its rules conflict with other applied rules",
                },
                Err(_) => "it has a mistake; `portfwd check` shows it",
            },
            Ok(false) => "it does not exist any more",
            Err(_) => continue,
        };
        found.push((path.display().to_string(), reason.to_owned()));
    }
    found
}
