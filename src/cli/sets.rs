//! Loads the rule-set files that a command line names.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::Failure;
use crate::config::{self, Loaded, Location, Problem, ProblemKind, source};
use crate::engine::Choice as Backend;
use crate::iptables::limits::{self, Limit};
use crate::model::{DesiredState, Forward, IfName};
use crate::sys::tracking::{self, Untracked};

/// The folder of rule sets if the command line has no path.
const DEFAULT: &str = "/etc/portfwd";

/// Loads the rule-set files of `paths`, each file once.
///
/// # Errors
/// Returns [`Failure::Problems`] with every mistake of all files.
pub fn load(paths: &[PathBuf], backend: Backend) -> anyhow::Result<Vec<Loaded>> {
    load_for(paths, backend, |_| true)
}

/// Loads files like [`load`], but ignores each kernel limit for which `limits` returns false.
///
/// # Errors
/// Returns [`Failure::Problems`] with every mistake of all files.
pub fn load_for(
    paths: &[PathBuf],
    backend: Backend,
    limits: impl Fn(&Untracked) -> bool,
) -> anyhow::Result<Vec<Loaded>> {
    let default = [PathBuf::from(DEFAULT)];
    let paths = if paths.is_empty() { &default } else { paths };
    let mut sets = Vec::new();
    let mut problems = Vec::new();
    let mut seen = HashSet::new();
    for path in paths {
        for file in source::files(path)? {
            // Skips a file that is loaded already. A missing file fails below, when it is read.
            if file.canonicalize().is_ok_and(|real| !seen.insert(real)) {
                continue;
            }
            let (loaded, found) = config::load(&Arc::new(source::read(&file)?));
            problems.extend(loaded.iter().flat_map(|loaded| untracked(loaded, &limits)));
            if matches!(backend, Backend::Iptables | Backend::Variant(_)) {
                problems.extend(loaded.iter().flat_map(inexpressible));
            }
            sets.extend(loaded);
            problems.extend(found);
        }
    }
    if problems.is_empty() {
        return Ok(sets);
    }
    // Adds the conflicts between the valid rules, so that one run reports all mistakes.
    problems.extend(config::merge(DesiredState::default(), &sets).err().unwrap_or_default());
    Err(Failure::Problems(problems).into())
}

/// Returns a mistake for each forward whose ports this kernel cannot rewrite.
fn untracked(loaded: &Loaded, limits: impl Fn(&Untracked) -> bool) -> Vec<Problem> {
    let forwards = loaded.set.forwards.iter().zip(&loaded.forwards);
    let problem = |(forward, place)| {
        let why = cannot_track(forward).filter(&limits)?;
        let (what, help) = describe_untracked(forward, &why);
        Some(Problem { kind: ProblemKind::Unsupported, what, location: Some(Clone::clone(place)), related: None, help })
    };
    forwards.filter_map(problem).collect()
}

/// Returns a mistake for each rule that iptables cannot express.
fn inexpressible(loaded: &Loaded) -> Vec<Problem> {
    let set = &loaded.set;
    let missing = |limit: Limit, place: Option<&Location>| Problem {
        kind: ProblemKind::Unsupported,
        what: limit.what,
        location: place.cloned(),
        related: None,
        help: limit.help,
    };
    let priority = limits::of_priority(set.settings.priority).map(|limit| missing(limit, loaded.priority.as_ref()));
    let networks = (set.networks.iter().zip(&loaded.networks))
        .filter_map(|(network, place)| Some(missing(limits::of_interface(&network.name)?, Some(place))));
    let forwards = set.forwards.iter().zip(&loaded.forwards).filter_map(|(forward, place)| {
        // Reports at most one mistake for each forward.
        let bindings = forward.bindings().ok()?;
        Some(missing(bindings.iter().find_map(limits::of_binding)?, Some(place)))
    });
    let of_output = |out: &Option<IfName>| out.as_ref().and_then(limits::of_interface);
    let masquerades = (set.masquerades.iter().zip(&loaded.masquerades))
        .filter_map(|(rule, place)| Some(missing(of_output(&rule.out)?, Some(place))));
    let snats = (set.snats.iter().zip(&loaded.snats))
        .filter_map(|(rule, place)| Some(missing(of_output(&rule.out)?, Some(place))));
    priority.into_iter().chain(networks).chain(forwards).chain(masquerades).chain(snats).collect()
}

/// Returns why this kernel cannot rewrite the ports of a forward; `None` if it can.
pub fn cannot_track(forward: &Forward) -> Option<Untracked> {
    forward.effective_protocols().ok()?.iter().find_map(|protocol| tracking::rewrites_ports(*protocol).err())
}

/// Returns the message and the help text for a forward that [`cannot_track`] refuses.
pub fn describe_untracked(forward: &Forward, why: &Untracked) -> (String, String) {
    (format!("{why}, so `{}` cannot be forwarded", forward.listen), why.help())
}
