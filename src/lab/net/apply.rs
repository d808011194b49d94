//! A lab's rule set made live and durable in the host, as `portfwd apply` does, and removed again.
//!
//! It is known as ours by where the state says that it comes from: no file, but a random token of the journal. A set of the
//! same name that somebody applied from a file since then is theirs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::NetError;
use super::plan::Name;
use super::presence::Presence;
use super::rules::Rules;
use crate::config::{Kind, Loaded, Problem, Source, union};
use crate::engine::guard::{self, Ssh};
use crate::engine::{Choice, Engine, EngineError, Options, Scope, Storage};
use crate::model::Asked;
use crate::store::State;
use crate::sys::sockets;

/// Where the rules of a lab's host are kept, and with which backend. What is done is done in the namespace of the calling
/// thread.
#[derive(Debug, Clone)]
pub(super) struct RuleStore {
    /// The directory of the state, as of `--state-dir`.
    pub directory: PathBuf,
    /// The backend.
    pub choice: Choice,
}

/// A conflict with what other sets ask.
#[derive(Debug, thiserror::Error)]
#[error("it contradicts another rule set: {0}")]
struct RuleConflict(String);

/// What every origin of ours begins with.
const ORIGIN_PREFIX: &str = "portfwd lab ";

fn origin(token: &str) -> PathBuf {
    PathBuf::from(format!("{ORIGIN_PREFIX}{token}"))
}

/// Whether a lab made the set that a lab's rules are to be: this one, or one of an earlier boot, whose journal means nothing
/// any more while the state of its rules is durable.
fn is_from_a_lab(state: &State, rules: &Rules) -> bool {
    state.origins.get(&rules.set).is_some_and(|from| from.to_string_lossy().starts_with(ORIGIN_PREFIX))
}

fn is_owned(state: &State, rules: &Rules, token: &str) -> bool {
    state.origins.get(&rules.set).is_some_and(|from| *from == origin(token))
}

fn contains_set(asked: &Asked, rules: &Rules) -> bool {
    asked.settings.contains_key(&rules.set) || !asked.part(&rules.set).is_empty()
}

/// What is asked when a lab's rules are in the place of those it had before.
fn merge_rules(asked: Asked, rules: &Rules) -> Result<Asked, Vec<Problem>> {
    // What a lab says has no place of its own in its file.
    let source = Arc::new(Source { path: PathBuf::new(), text: "".into() });
    let loaded = Loaded {
        set: rules.rule_set(),
        source,
        forwards: Vec::new(),
        networks: Vec::new(),
        masquerades: Vec::new(),
        snats: Vec::new(),
        netmaps: Vec::new(),
        priority: None,
    };
    union(asked, &[loaded])
}

impl RuleStore {
    fn open_read_only(&self) -> Result<Engine, EngineError> {
        Engine::open(Storage::ReadOnly(&self.directory), self.choice, Scope::Full)
    }

    /// Opens the state for a change, and brings to its end what was begun.
    fn open_for_change(&self) -> Result<Engine, EngineError> {
        let mut engine = Engine::open(Storage::ReadWrite(&self.directory), self.choice, Scope::Full)?;
        engine.roll_back_if_expired()?;
        // What cannot be finished may be what this change mends; if not, that says so.
        let _ = engine.finish_interrupted();
        engine.ensure_none_pending()?;
        Ok(engine)
    }

    /// What is there of a lab's rules, in the state and in the kernel.
    pub(super) fn presence(&self, rules: &Rules, token: &str) -> Result<Presence, EngineError> {
        let mut engine = self.open_read_only()?;
        let asked = Arc::clone(&engine.state().asked);
        if !contains_set(&asked, rules) {
            return Ok(Presence::Absent);
        }
        if !is_owned(engine.state(), rules, token) {
            return Ok(Presence::Foreign);
        }
        let wanted = merge_rules(Asked::default(), rules);
        if !wanted.is_ok_and(|wanted| wanted == asked.part(&rules.set)) {
            return Ok(Presence::Partial);
        }
        let plan = engine.plan_rules(&asked)?;
        let missing = plan.steps.iter().any(|step| step.set.as_ref().is_none_or(|set| *set == rules.set));
        Ok(if missing { Presence::Partial } else { Presence::Present })
    }

    /// Refuses rules that others stand in the way of. `ssh` is whether the user's connection is to the calling thread's
    /// namespace.
    pub(super) fn check_conflicts(&self, rules: &Rules, ssh: bool) -> Result<(), NetError> {
        let engine = self.open_read_only()?;
        engine.ensure_none_pending()?;
        let before = Arc::clone(&engine.state().asked);
        if contains_set(&before, rules) && !is_from_a_lab(engine.state(), rules) {
            return Err(NetError::Taken(Name::Rules(rules.set.clone())));
        }
        let after = merge_rules(Asked::clone(&before), rules).map_err(NetError::Conflict)?;
        // Where the kernel does not say which ports are in use, none are known.
        let sockets = sockets::waiting(&guard::protocols(&after)).unwrap_or_default();
        let ssh = std::env::var("SSH_CONNECTION").ok().filter(|_| ssh).and_then(|text| Ssh::parse(&text));
        let takings = guard::takings(&before, &after, &sockets, ssh);
        let problems = takings.iter().map(|taking| {
            let what = match (taking.ssh, taking.sockets.first()) {
                (None, Some(socket)) => format!("the port of `{socket}`, which is in use"),
                _ => "the ssh connection that you are on".into(),
            };
            let what = format!("`{}` would take {what}", taking.binding);
            Problem { kind: Kind::Conflict, what, place: None, other: None, help: "publish another port".into() }
        });
        let problems: Vec<Problem> = problems.collect();
        if problems.is_empty() { Ok(()) } else { Err(NetError::Conflict(problems)) }
    }

    /// Makes a lab's rules live and durable, in the place of those it had before.
    pub(super) fn make(&self, rules: &Rules, token: &str) -> io::Result<()> {
        let mut engine = self.open_for_change().map_err(io::Error::other)?;
        let mut after = engine.state().clone();
        let asked = merge_rules(Arc::unwrap_or_clone(after.asked), rules).map_err(|problems| {
            let first = problems.into_iter().next().map(|problem| problem.what).unwrap_or_default();
            io::Error::other(RuleConflict(first))
        })?;
        after.asked = asked.into();
        after.origins.insert(rules.set.clone(), origin(token));
        engine.commit(after, Options::default()).map(drop).map_err(io::Error::other)
    }

    /// Removes a lab's rules where they are ours; gives whether they were there. Where no other rule of ours is left,
    /// switches of the kernel get back the values that they had.
    pub(super) fn undo(&self, rules: &Rules, token: &str) -> Result<bool, EngineError> {
        let owned = |state: &State| is_owned(state, rules, token);
        // What a call that was killed left undone: rules that the state does not ask any more, switches.
        let unfinished =
            |state: &State| state.unfinished.is_some() || state.asked.is_empty() && !state.sysctls.is_empty();
        // Where there is nothing, nothing is to be made on disk either.
        let engine = self.open_read_only()?;
        if !owned(engine.state()) && !unfinished(engine.state()) {
            return Ok(false);
        }
        drop(engine);
        let mut engine = self.open_for_change()?;
        let mut after = engine.state().clone();
        if !owned(&after) && !unfinished(&after) {
            return Ok(true);
        }
        let was_there = contains_set(&after.asked, rules);
        if owned(&after) {
            Arc::make_mut(&mut after.asked).remove(&rules.set);
            after.origins.remove(&rules.set);
        }
        if after.asked.is_empty() {
            after.sysctls.clear();
        }
        engine.commit(after, Options::default())?;
        Ok(was_there)
    }
}
