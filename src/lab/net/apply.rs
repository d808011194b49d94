//! Commits a lab's rule set in the lab's host, as `portfwd apply` does, and removes it again.
//!
//! The origin of a set in the state shows who applied it. A lab's set has a random token of the journal as its origin,
//! not a file. If a user later applies a set of the same name from a file, the set belongs to the user.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::NetError;
use super::plan::Name;
use super::presence::Presence;
use super::rules::Rules;
use crate::config::{Loaded, Problem, ProblemKind, Source, merge};
use crate::engine::guard::{self, Interfaces};
use crate::engine::{Choice, Engine, EngineError, Options, Scope, Storage};
use crate::model::DesiredState;
use crate::store::State;
use crate::sys::sockets;
use crate::sys::ssh::Ssh;

/// The state and the backend for a lab's rule set. All operations act on the namespace of the calling thread.
#[derive(Debug, Clone)]
pub(super) struct RuleStore {
    /// The state directory, as in `--state-dir`.
    pub directory: PathBuf,
    /// The backend that the user chose.
    pub choice: Choice,
}

/// A lab's rules contradict another rule set.
#[derive(Debug, thiserror::Error)]
#[error("the set contradicts another rule set: {0}")]
struct RuleConflict(String);

/// The prefix of each origin that a lab writes.
const ORIGIN_PREFIX: &str = "portfwd lab ";

fn origin(token: &str) -> PathBuf {
    PathBuf::from(format!("{ORIGIN_PREFIX}{token}"))
}

/// Returns true if a lab applied the set: this lab, or one of an earlier boot. Its journal is then void, but the state
/// of its rules is durable.
fn is_from_a_lab(state: &State, rules: &Rules) -> bool {
    state.origins.get(&rules.set).is_some_and(|from| from.to_string_lossy().starts_with(ORIGIN_PREFIX))
}

fn is_owned(state: &State, rules: &Rules, token: &str) -> bool {
    state.origins.get(&rules.set).is_some_and(|from| *from == origin(token))
}

fn contains_set(desired: &DesiredState, rules: &Rules) -> bool {
    desired.settings.contains_key(&rules.set) || !desired.part(&rules.set).is_empty()
}

/// Returns the desired state with the lab's rules in place of its previous ones.
fn merge_rules(desired: DesiredState, rules: &Rules) -> Result<DesiredState, Vec<Problem>> {
    // A lab's rules have no positions in its file.
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
    merge(desired, &[loaded])
}

impl RuleStore {
    fn open_read_only(&self) -> Result<Engine, EngineError> {
        Engine::open(Storage::ReadOnly(&self.directory), self.choice, Scope::Full)
    }

    /// Opens the state for a change, and recovers from an interrupted one.
    fn open_for_change(&self) -> Result<Engine, EngineError> {
        let mut engine = Engine::open(Storage::ReadWrite(&self.directory), self.choice, Scope::Full)?;
        engine.roll_back_if_expired()?;
        // The change may repair the cause of this failure. If it does not, its commit fails too.
        let _ = engine.finish_interrupted();
        engine.ensure_none_pending()?;
        Ok(engine)
    }

    /// Compares a lab's rules with the state and the live rules.
    pub(super) fn presence(&self, rules: &Rules, token: &str) -> Result<Presence, EngineError> {
        let mut engine = self.open_read_only()?;
        let desired = Arc::clone(&engine.state().desired);
        if !contains_set(&desired, rules) {
            return Ok(Presence::Absent);
        }
        if !is_owned(engine.state(), rules, token) {
            return Ok(Presence::Foreign);
        }
        let wanted = merge_rules(DesiredState::default(), rules);
        if !wanted.is_ok_and(|wanted| wanted == desired.part(&rules.set)) {
            return Ok(Presence::Partial);
        }
        let plan = engine.plan_rules(&desired)?;
        let missing = plan.steps.iter().any(|step| step.set.as_ref().is_none_or(|set| *set == rules.set));
        Ok(if missing { Presence::Partial } else { Presence::Present })
    }

    /// Returns an error if other rule sets or listeners conflict with the rules. `ssh` is true if the user's ssh
    /// connection may end in the calling thread's namespace.
    pub(super) fn check_conflicts(&self, rules: &Rules, ssh: bool) -> Result<(), NetError> {
        let engine = self.open_read_only()?;
        engine.ensure_none_pending()?;
        let before = Arc::clone(&engine.state().desired);
        if contains_set(&before, rules) && !is_from_a_lab(engine.state(), rules) {
            return Err(NetError::Taken(Name::Rules(rules.set.clone())));
        }
        let after = merge_rules(DesiredState::clone(&before), rules).map_err(NetError::Conflict)?;
        // If the kernel does not list the listeners, none are known.
        let sockets = sockets::waiting(&guard::protocols(&after)).unwrap_or_default();
        let ssh = std::env::var("SSH_CONNECTION").ok().filter(|_| ssh).and_then(|text| Ssh::parse(&text));
        let takings = guard::takings(&before, &after, &sockets, ssh, &Interfaces::read(&after, ssh));
        let problems = takings.iter().map(|taking| {
            let what = match (taking.ssh, taking.sockets.first()) {
                (None, Some(socket)) => format!("the port of `{socket}`, which is in use"),
                _ => "the ssh connection that you are on".into(),
            };
            let what = format!("`{}` would take {what}", taking.binding);
            Problem {
                kind: ProblemKind::Conflict,
                what,
                location: None,
                related: None,
                help: "publish another port".into(),
            }
        });
        let problems: Vec<Problem> = problems.collect();
        if problems.is_empty() { Ok(()) } else { Err(NetError::Conflict(problems)) }
    }

    /// Commits a lab's rules in place of its previous ones.
    pub(super) fn make(&self, rules: &Rules, token: &str) -> io::Result<()> {
        let mut engine = self.open_for_change().map_err(io::Error::other)?;
        let mut after = engine.state().clone();
        let desired = merge_rules(Arc::unwrap_or_clone(after.desired), rules).map_err(|problems| {
            let first = problems.into_iter().next().map(|problem| problem.what).unwrap_or_default();
            io::Error::other(RuleConflict(first))
        })?;
        after.desired = desired.into();
        after.origins.insert(rules.set.clone(), origin(token));
        engine.commit(after, Options::default()).map(drop).map_err(io::Error::other)
    }

    /// Removes a lab's rules if the lab applied them. Returns true if they were there. If no rule set is left, the
    /// sysctls get their earlier values back.
    pub(super) fn undo(&self, rules: &Rules, token: &str) -> Result<bool, EngineError> {
        let owned = |state: &State| is_owned(state, rules, token);
        // A killed process may leave rules that are no longer desired, or changed sysctls.
        let unfinished =
            |state: &State| state.unfinished.is_some() || state.desired.is_empty() && !state.sysctls.is_empty();
        // Nothing is created on disk if there is nothing to remove.
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
        let was_there = contains_set(&after.desired, rules);
        if owned(&after) {
            Arc::make_mut(&mut after.desired).remove(&rules.set);
            after.origins.remove(&rules.set);
        }
        if after.desired.is_empty() {
            after.sysctls.clear();
        }
        engine.commit(after, Options::default())?;
        Ok(was_there)
    }
}
