//! Commits a desired state to the kernel and to disk.
//!
//! | phase | what it does | how a failure is undone |
//! | --- | --- | --- |
//! | load | refuses a change while another change waits for its confirmation | nothing was changed |
//! | plan | reads the live rules, compiles, compares | nothing was changed |
//! | persist the intent | writes the desired state to disk, marked as unfinished | the store writes all or nothing |
//! | sysctls | switches forwarding on | portfwd restores the sysctls, then the state on disk |
//! | send | sends one netlink batch, or runs iptables-restore; plans again if another program has committed | portfwd restores the sysctls, then the state on disk |
//! | verify | reads the changed rules again | the rules stay; the error names the difference |
//! | open loopback | sets route_localnet, restores other sysctls, removes rules from unused backends | the next command tries again |
//! | connections | deletes the conntrack entries that the change invalidates | the next command tries again |
//! | persist the end | marks the change as finished | the next command finishes the change |
//!
//! [`Transaction`] holds the data of all phases. If a phase before the kernel's commit fails,
//! [`Transaction::roll_back`] undoes the earlier phases. After the kernel's commit nothing is rolled back. Most later
//! phases run even after an error.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::backend::Work;
use super::backend::{Decision, PartialChange};
use super::choice::{BackendId, Choice};
use super::connections::{self, Changed};
use super::error::EngineError;
use super::live::Live;
use super::open::{Engine, kernel};
use super::plan::{self, Plan, Step};
use super::scope::{Scope, changed_parts, differ_in_forwards_only, rebase};
use super::sysctls::Sysctls;
use super::timing::Phase;
use crate::model::DesiredState;
use crate::nft::compile::representatives;
use crate::nft::transaction::{CommitError, PATIENCE};
use crate::store::{State, Unfinished, Unusable, Verified};
use crate::sys::sysctl;

/// The options of a commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// True to keep the tracked connections that the change invalidates.
    pub keep_connections: bool,
}

/// The result of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The changed rules; empty if the live rules already were the desired ones.
    pub plan: Plan,
    /// The messages to the kernel as text. A message may have several lines.
    pub messages: Vec<String>,
    /// The sysctls that the commit sets or restores.
    pub sysctls: Sysctls,
    /// The sysctls that portfwd restored to their old values.
    pub restored: Vec<sysctl::Change>,
    /// The unused backends from which portfwd removed its older rules.
    pub moved_from: Vec<BackendId>,
    /// The number of deleted conntrack entries, or the error text if portfwd could not delete them.
    pub ended: Result<usize, String>,
    /// The error text if portfwd could not record on disk that the change is finished. Then the next command
    /// finishes the change.
    pub unkept: Option<String>,
}

impl Engine {
    /// Commits `after` to the kernel and to disk. Restores the sysctls that `after` no longer lists. After the
    /// kernel's commit, removes portfwd's rules from unused backends.
    ///
    /// # Errors
    /// After most errors, the kernel and the state are unchanged. [`EngineError::Differs`],
    /// [`EngineError::Unchecked`], [`EngineError::Closed`] and [`EngineError::Left`] mean that the kernel has
    /// committed the rules. [`EngineError::NotRolledBack`] names the family that portfwd could not roll back.
    pub fn commit(&mut self, after: State, options: Options) -> Result<Outcome, EngineError> {
        let mut change = Transaction::load(self, after, options)?;
        change.plan()?;
        change.persist_intent()?;
        let sent = match change.set_sysctls().and_then(|()| change.send()) {
            Ok(sent) => sent,
            Err(error) => return Err(change.roll_back(error)),
        };
        let verified = change.verify(&sent);
        change.finish_sysctls()?;
        let moved_from = change.engine.remove_stale_backends();
        let ended = change.delete_connections(&sent);
        let unkept = change.persist_end(&sent, &verified, &moved_from, &ended);
        verified?;
        Ok(change.outcome(sent, moved_from?, ended, unkept))
    }
}

/// The data of a running commit.
struct Transaction<'e> {
    engine: &'e mut Engine,
    options: Options,
    /// The state to which a rollback returns.
    before: State,
    /// The state on disk while the change runs.
    during: State,
    /// The state to commit.
    after: State,
    /// True if an interrupted earlier change may have left stale conntrack entries.
    interrupted: bool,
    decision: Option<Decision>,
    sysctls: Sysctls,
    restored: Vec<sysctl::Change>,
    /// The finished phases, oldest first. A rollback undoes them.
    undo: Vec<Undo>,
}

/// A phase that [`Transaction::roll_back`] undoes.
enum Undo {
    Intent,
    Sysctls,
}

/// The results of the phase "send".
struct Sent {
    plan: Plan,
    messages: Vec<String>,
    /// The live rules before the change, as a desired state; `None` if nothing was sent.
    replaced: Option<Arc<DesiredState>>,
}

impl<'e> Transaction<'e> {
    fn load(engine: &'e mut Engine, after: State, options: Options) -> Result<Self, EngineError> {
        may_change(&engine.state, &after)?;
        let interrupted = engine.state.unfinished.as_ref().is_some_and(|change| !change.keep_connections);
        let before = engine.state.clone();
        Ok(Self {
            engine,
            options,
            during: before.clone(),
            before,
            after: State { unfinished: None, ..after },
            interrupted,
            decision: None,
            sysctls: Sysctls::default(),
            restored: Vec::new(),
            undo: Vec::new(),
        })
    }

    fn plan(&mut self) -> Result<(), EngineError> {
        let decision = match self.plan_partial()? {
            Some(decision) => decision,
            None => self.plan_full()?,
        };
        self.refuse_unknown_rules(&decision.live)?;
        self.decision = Some(decision);
        self.before = self.engine.state.clone();
        self.sysctls = Sysctls::needed(&mut self.after, &self.before)?;
        self.during = self.sysctls.during(&self.after);
        self.during.iptables.extend(self.before.iptables.iter().copied().chain(self.engine.id().variant()));
        self.during.unfinished = self.unfinished();
        Ok(())
    }

    /// Plans the change from a partial state. Returns `None` if the whole state is loaded, or if the plan needs the
    /// whole state.
    fn plan_partial(&mut self) -> Result<Option<Decision>, EngineError> {
        let Scope::Partial(part) = &self.engine.scope else { return Ok(None) };
        let (before, after) = (&self.engine.state, &mut self.after);
        // Drops the removed representatives of replaced sets. The loaded part contains all forwards of these
        // sets.
        after.representatives.retain(|owned| !part.sets.contains(&owned.set) || after.desired.bindings.contains(owned));
        let represented = after.representatives.iter().all(|owned| after.desired.bindings.contains(owned));
        if !represented || !differ_in_forwards_only(&before.desired, &after.desired) {
            return Ok(None);
        }
        let [old, new] = changed_parts(&before.desired, &after.desired, &before.representatives);
        let may_read = part.sets.is_empty() && self.engine.store.has_many();
        let change =
            PartialChange { before: old, after: new, last_verified: self.engine.state.verified.as_ref(), may_read };
        let decision = self.engine.backend.plan_partial(&change, &mut self.engine.timing)?;
        if decision.is_some() {
            after.representatives = representatives(&after.desired, &after.representatives);
        }
        Ok(decision)
    }

    fn plan_full(&mut self) -> Result<Decision, EngineError> {
        self.engine.load_full(&mut self.after)?;
        self.after.representatives = match self.engine.id() {
            BackendId::Nft => representatives(&self.after.desired, &[]),
            // Only nftables uses representatives, because only nftables plans partial changes.
            BackendId::Iptables(_) => Vec::new(),
        };
        self.engine.backend.plan(&self.after.desired, &mut self.engine.timing)
    }

    /// Fails if the state is empty but the kernel has rules of portfwd. Then the state was lost, and the change
    /// would delete these rules.
    fn refuse_unknown_rules(&self, live: &Live) -> Result<(), EngineError> {
        let State { desired, unfinished, unconfirmed, .. } = &self.engine.state;
        let blank = desired.is_empty() && unfinished.is_none() && unconfirmed.is_none();
        if self.engine.replaces_unknown || !blank {
            return Ok(());
        }
        let live = live.lift().desired;
        if live.is_empty() { Ok(()) } else { Err(EngineError::Unknown(self.engine.id(), live.bindings.len())) }
    }

    /// Returns the record of this change, merged with the record of an interrupted earlier change. Returns `None`
    /// if the desired state stays the same and no earlier change was interrupted.
    fn unfinished(&self) -> Option<Unfinished> {
        let (before, last) = (&self.before.desired, &self.before.unfinished);
        if *before == self.after.desired && last.is_none() {
            return None;
        }
        let left = last.iter().filter(|last| !last.keep_connections).flat_map(|last| last.gone.iter());
        let gone = before.less(&self.after.desired).into_iter().map(|owned| &owned.rule).chain(left).cloned().collect();
        Some(Unfinished { keep_connections: self.options.keep_connections, gone })
    }

    fn persist_intent(&mut self) -> Result<(), EngineError> {
        self.engine.persist(&self.during)?;
        self.undo.push(Undo::Intent);
        Ok(())
    }

    fn set_sysctls(&mut self) -> Result<(), EngineError> {
        self.restored = self.sysctls.before_commit()?;
        self.undo.push(Undo::Sysctls);
        Ok(())
    }

    /// Sends the planned change. If nf_tables lacks a feature, [`Choice::Auto`] sends the change to iptables
    /// instead.
    fn send(&mut self) -> Result<Sent, EngineError> {
        let error = match self.send_to_backend() {
            Ok(sent) => return Ok(sent),
            Err(error) => error,
        };
        let Some(why) = missing_feature(&error).filter(|_| self.engine.choice == Choice::Auto) else {
            return Err(error);
        };
        if self.engine.use_iptables(&why).is_err() {
            return Err(error);
        }
        self.decision = Some(self.plan_full()?);
        self.during.desired = Arc::clone(&self.after.desired);
        self.during.iptables.extend(self.engine.id().variant());
        self.after.unusable = Some(Unusable { kernel: kernel(), why });
        self.during.unusable.clone_from(&self.after.unusable);
        self.engine.persist(&self.during)?;
        self.send_to_backend()
    }

    /// Sends the planned change. If another program has changed portfwd's rules, plans and sends again, for at most
    /// [`PATIENCE`].
    fn send_to_backend(&mut self) -> Result<Sent, EngineError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let Decision { live, mut work, compared } = match self.decision.take() {
                Some(decision) => decision,
                None => self.plan_full()?,
            };
            if work.is_empty() {
                return Ok(Sent { plan: Plan::new(&live, &compared, work), messages: Vec::new(), replaced: None });
            }
            let engine = &mut *self.engine;
            if let Some(messages) = engine.backend.send(&mut work, &mut engine.timing)? {
                let (steps, replaced) = engine.timing.measure(Phase::Plan, || plan::steps_from(&live, &compared));
                return Ok(Sent { plan: Plan { steps, work }, messages, replaced: Some(replaced) });
            }
            if Instant::now() > until {
                return Err(EngineError::Busy);
            }
        }
    }

    /// Undoes the finished phases. Returns `error`, or the error of a failed undo.
    fn roll_back(mut self, error: EngineError) -> EngineError {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Sysctls => self.sysctls.commit_failed(&self.restored),
                Undo::Intent => {
                    let mut back = rebase(&self.engine.state, &self.during, &self.before);
                    if matches!(error, EngineError::Commit(CommitError::Unheard(_))) {
                        // The kernel may have committed the change, so the next command must
                        // compare all rules.
                        back.unfinished.clone_from(&self.during.unfinished);
                        back.verified = None;
                    }
                    if let Err(error) = self.engine.persist(&back) {
                        return error;
                    }
                }
            }
        }
        error
    }

    fn verify(&mut self, sent: &Sent) -> Result<(), EngineError> {
        if sent.plan.is_empty() {
            return Ok(());
        }
        self.engine.backend.verify(&sent.plan.work, &mut self.engine.timing)
    }

    /// Sets route_localnet, and restores the sysctls that no rule needs.
    fn finish_sysctls(&mut self) -> Result<(), EngineError> {
        self.restored.extend(self.sysctls.after_commit(&mut self.after)?);
        Ok(())
    }

    /// Deletes the conntrack entries that this change or an interrupted earlier change invalidates.
    fn delete_connections(&mut self, sent: &Sent) -> io::Result<usize> {
        if self.options.keep_connections {
            return Ok(0);
        }
        let (engine, desired) = (&mut *self.engine, &self.after.desired);
        let netmaps = sent.replaced.as_ref().map_or(&desired.netmaps, |replaced| &replaced.netmaps);
        let mut changed = Changed::from_steps(&sent.plan.steps, netmaps, &desired.netmaps);
        if self.interrupted {
            // Any forward may be new, because the interrupted change may have added it.
            changed.extend(desired.bindings.iter().map(|owned| &owned.rule));
            changed.extend(self.during.unfinished.iter().flat_map(|change| change.gone.iter()));
        }
        let (store, partial) = (&engine.store, engine.scope != Scope::Full);
        let all = || if partial { store.load().map(|full| full.desired) } else { Ok(Arc::clone(desired)) };
        engine
            .timing
            .measure(Phase::Connections, || connections::delete_stale(&changed, || all().map_err(io::Error::other)))
    }

    /// Records on disk that the change is finished, and the generation of the verified rules. Returns the error
    /// text if the write fails.
    fn persist_end(
        &mut self,
        sent: &Sent,
        verified: &Result<(), EngineError>,
        moved_from: &Result<Vec<BackendId>, EngineError>,
        ended: &io::Result<usize>,
    ) -> Option<String> {
        let here = self.engine.id();
        self.after.iptables = match moved_from {
            Ok(_) => here.variant().into_iter().filter(|_| !self.after.desired.is_empty()).collect(),
            Err(_) => self.engine.state.iptables.clone(),
        };
        if !sent.plan.is_empty() {
            self.after.committed = sent.plan.work.generation_after();
            if here == BackendId::Nft {
                // nf_tables accepted the rules, so this kernel has all nf_tables features that portfwd needs.
                self.after.unusable = None;
            }
        }
        self.after.verified = if verified.is_ok() { self.verified_generation(&sent.plan.work) } else { None };
        if ended.is_err() {
            self.after.unfinished.clone_from(&self.during.unfinished);
        }
        self.engine.persist(&self.after).err().map(|error| error.to_string())
    }

    /// Returns the generation in which the live rules equal the desired rules. After a partial change this needs
    /// two conditions: the generation before the change was verified, and no other program committed in between.
    fn verified_generation(&self, work: &Work) -> Option<Verified> {
        let Work::Nft { program, generation, .. } = work else { return None };
        let before = self.engine.state.verified.as_ref();
        match (&self.engine.scope, work.is_empty()) {
            (Scope::Partial(_), true) => before.cloned(),
            (Scope::Partial(_), false) => before?.then(*generation, program.layout()),
            (Scope::Full, true) => Some(Verified::new(*generation, program.layout())),
            (Scope::Full, false) => Some(Verified::new(generation.wrapping_add(1), program.layout())),
        }
    }

    fn outcome(
        self,
        sent: Sent,
        moved_from: Vec<BackendId>,
        ended: io::Result<usize>,
        unkept: Option<String>,
    ) -> Outcome {
        let Sent { mut plan, messages, .. } = sent;
        plan.steps.extend(moved_from.iter().map(|backend| Step::remove_backend(*backend)));
        let ended = ended.map_err(|error| error.to_string());
        let Self { sysctls, restored, .. } = self;
        Outcome { plan, messages, sysctls, restored, moved_from, ended, unkept }
    }
}

/// Fails if a change is pending and `after` is another change. Accepts two kinds of commits.
///
/// - A commit without a pending change ends the pending change.
/// - A commit of the same desired state repairs the live rules, for example after a flush.
pub(super) fn may_change(before: &State, after: &State) -> Result<(), EngineError> {
    let (Some(waiting), Some(_)) = (&before.unconfirmed, &after.unconfirmed) else { return Ok(()) };
    if before.desired == after.desired {
        return Ok(());
    }
    Err(EngineError::Unconfirmed(waiting.until.left().unwrap_or_default()))
}

/// Returns the missing feature if nf_tables refused a message because of it. Example: the kernel was built without an
/// expression, or cannot load the module of the expression.
fn missing_feature(error: &EngineError) -> Option<String> {
    let EngineError::Refused { subject, error, .. } = error else { return None };
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::Unsupported];
    kinds.contains(&error.kind()).then(|| format!("the nf_tables of this kernel lacks a part of {subject}"))
}

#[cfg(test)]
mod tests;
