//! Rule-set files from the paths of a command line.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::Failure;
use crate::config::{self, Loaded, Location, Problem, ProblemKind, source};
use crate::engine::Choice as Backend;
use crate::iptables::limits::{self, Limit};
use crate::model::{Asked, Forward, IfName};
use crate::sys::tracking::{self, Untracked};

/// Where rule sets are when no path is given.
pub const DEFAULT: &str = "/etc/portfwd";

/// Loads all files that the paths name, each once.
///
/// # Errors
/// Every mistake in every one of them.
pub fn load(paths: &[PathBuf], backend: Backend) -> anyhow::Result<Vec<Loaded>> {
    load_for(paths, backend, |_| true)
}

/// Loads all files that the paths name, for a host that has only some of this one's limits.
///
/// # Errors
/// Every mistake in every one of them.
pub fn load_for(
    paths: &[PathBuf],
    backend: Backend,
    limits: impl Fn(&Untracked) -> bool,
) -> anyhow::Result<Vec<Loaded>> {
    let default = [PathBuf::from(DEFAULT)];
    let paths = if paths.is_empty() { &default } else { paths };
    let mut sets = Vec::new();
    let mut problems = Vec::new();
    let mut met = HashSet::new();
    for path in paths {
        for file in source::files(path)? {
            // One that is named twice, also by another path, is read once. Where there is no such path, reading says so.
            if file.canonicalize().is_ok_and(|real| !met.insert(real)) {
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
    // What contradicts each other in the valid rest belongs to the same run.
    problems.extend(config::union(Asked::default(), &sets).err().unwrap_or_default());
    Err(Failure::Problems(problems).into())
}

/// The forwards whose ports this kernel cannot rewrite.
fn untracked(loaded: &Loaded, limits: impl Fn(&Untracked) -> bool) -> Vec<Problem> {
    let forwards = loaded.set.forwards.iter().zip(&loaded.forwards);
    let problem = |(forward, place)| {
        let why = cannot_track(forward).filter(&limits)?;
        let (what, help) = in_words(forward, &why);
        Some(Problem { kind: ProblemKind::Unsupported, what, location: Some(Clone::clone(place)), related: None, help })
    };
    forwards.filter_map(problem).collect()
}

/// What a file asks that iptables cannot do.
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
        // One mistake for each forward says enough.
        let bindings = forward.bindings().ok()?;
        Some(missing(bindings.iter().find_map(limits::of_binding)?, Some(place)))
    });
    let named = |out: &Option<IfName>| out.as_ref().and_then(limits::of_interface);
    let masquerades = (set.masquerades.iter().zip(&loaded.masquerades))
        .filter_map(|(rule, place)| Some(missing(named(&rule.out)?, Some(place))));
    let snats =
        (set.snats.iter().zip(&loaded.snats)).filter_map(|(rule, place)| Some(missing(named(&rule.out)?, Some(place))));
    priority.into_iter().chain(networks).chain(forwards).chain(masquerades).chain(snats).collect()
}

/// Why this kernel cannot rewrite the ports of a forward; `None` where it can.
pub fn cannot_track(forward: &Forward) -> Option<Untracked> {
    forward.effective_protocols().ok()?.iter().find_map(|protocol| tracking::rewrites_ports(*protocol).err())
}

/// What is wrong with such a forward, and what to do.
pub fn in_words(forward: &Forward, why: &Untracked) -> (String, String) {
    (format!("{why}, so `{}` cannot be forwarded", forward.listen), why.help())
}
