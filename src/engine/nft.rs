//! The nftables backend of the engine. A change is one netlink batch.

use std::sync::Arc;
use std::time::Instant;

use super::EngineError;
use super::backend::{Backend, Decision, PartialChange, Work};
use super::choice::BackendId;
use super::live::Live;
use super::timing::{Phase, Timing};
use crate::model::DesiredState;
use crate::nft::batch::{Batch, Subject};
use crate::nft::compile::compile;
use crate::nft::decode::{self, decode};
use crate::nft::diff::{Changes, Elements, diff};
use crate::nft::element;
use crate::nft::encode::encode;
use crate::nft::program::{Element, Key, Program};
use crate::nft::transaction::{CommitError, Connection, KernelError, PATIENCE};
use crate::store::Verified;

/// The largest number of elements in a partial plan. Larger plans use the full scope.
pub const PARTIAL_LIMIT: usize = 512;

/// The most changed elements that portfwd reads again after a commit.
const VERIFIED_ELEMENTS: usize = 256;

/// The nftables backend of one network namespace.
pub(super) struct Nftables {
    connection: Connection,
}

impl Nftables {
    /// Opens nftables and reads the generation. So a process without permission fails before it writes anything.
    pub(super) fn open() -> Result<Self, KernelError> {
        let mut connection = Connection::open()?;
        connection.generation()?;
        Ok(Self { connection })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Returns the current generation if the live rules were verified in it. Returns `None` if a program has
    /// committed since the verification.
    fn verified_generation(
        &mut self,
        verified: Option<&Verified>,
        timing: &mut Timing,
    ) -> Result<Option<u32>, EngineError> {
        let Some(verified) = verified else { return Ok(None) };
        let is = |generation: &u32| verified.is(*generation);
        // `open` read this generation before the store was locked. If it is not verified, another portfwd may
        // have committed in between, so the generation is read again.
        if let Some(generation) = self.connection.last_heard_generation().filter(is) {
            return Ok(Some(generation));
        }
        Ok(Some(timing.talk(Phase::Read, &mut self.connection, Connection::generation)?).filter(is))
    }
}

impl Backend for Nftables {
    fn id(&self) -> BackendId {
        BackendId::Nft
    }

    fn versions(&self) -> Vec<String> {
        Vec::new()
    }

    fn live(&mut self, timing: &mut Timing) -> Result<Live, EngineError> {
        let (program, generation) = timing.talk(Phase::Read, &mut self.connection, decode)?;
        Ok(Live::Nft { program, generation })
    }

    fn plan(&mut self, desired: &Arc<DesiredState>, timing: &mut Timing) -> Result<Decision, EngineError> {
        let (now, generation) = timing.talk(Phase::Read, &mut self.connection, decode)?;
        let program = timing.measure(Phase::Compile, || compile(desired))?;
        let changes = Box::new(timing.measure(Phase::Plan, || diff(&now, &program)));
        let live = Live::Nft { program: now, generation };
        Ok(Decision { live, work: Work::Nft { changes, program, generation }, compared: Arc::clone(desired) })
    }

    fn plan_partial(
        &mut self,
        change: &PartialChange<'_>,
        timing: &mut Timing,
    ) -> Result<Option<Decision>, EngineError> {
        let count =
            |desired: &DesiredState| desired.bindings.iter().map(|owned| element::count(&owned.rule)).sum::<usize>();
        if count(&change.before).max(count(&change.after)) > PARTIAL_LIMIT {
            return Ok(None);
        }
        let verified = self.verified_generation(change.last_verified, timing)?;
        let (left, program) = timing.measure(Phase::Compile, || (compile(&change.before), compile(&change.after)));
        let (left, program) = (left?, program?);
        let (now, generation) = match (verified, change.last_verified) {
            // Compares the layouts, because another version of portfwd may compile forwards to other chains
            // and maps.
            (Some(generation), Some(verified)) if left.layout() == verified.layout => (left, generation),
            _ if !change.may_read => return Ok(None),
            _ => {
                let read = |connection: &mut Connection| decode::decode_partial(connection, &program, &left);
                let found = timing.talk(Phase::Read, &mut self.connection, read)?;
                if difference(&found.0, &left).is_some() {
                    return Ok(None);
                }
                found
            }
        };
        let changes = Box::new(timing.measure(Phase::Plan, || diff(&now, &program)));
        let live = Live::Nft { program: now, generation };
        let compared = Arc::new(change.after.clone());
        Ok(Some(Decision { live, work: Work::Nft { changes, program, generation }, compared }))
    }

    /// Sends the batch. If another program has committed only to other tables, sends the batch again with the new
    /// generation.
    fn send(&mut self, work: &mut Work, timing: &mut Timing) -> Result<Option<Vec<String>>, EngineError> {
        let Work::Nft { changes, program, generation } = work else { return Ok(None) };
        let connection = &mut self.connection;
        let mut batch = timing.measure(Phase::Encode, || encode(changes, *generation));
        let until = Instant::now() + PATIENCE;
        loop {
            match timing.talk(Phase::Kernel, connection, |connection| connection.commit(&batch)) {
                Ok(()) => return Ok(Some(batch.lines().collect())),
                Err(CommitError::Stale) => {}
                Err(CommitError::Unheard(error)) => {
                    // The kernel has handled the batch by now. A new connection can read whether
                    // the kernel committed the batch.
                    let done = Connection::open()
                        .and_then(|mut again| was_committed(&mut again, changes, program, *generation));
                    return match done {
                        Ok(true) => Ok(Some(batch.lines().collect())),
                        _ => Err(CommitError::Unheard(error).into()),
                    };
                }
                Err(error) => return Err(named(error, &batch)),
            }
            let Some(moved) = connection.moved_from(*generation) else { return Ok(None) };
            if Instant::now() > until {
                return Ok(None);
            }
            *generation = moved;
            batch.move_to(moved);
        }
    }

    /// Compares all chains, rules and maps if one of them was changed. Also compares at most [`VERIFIED_ELEMENTS`]
    /// of the changed elements, spread evenly. Ignores a difference if another program has committed since, because
    /// that program may have caused it.
    ///
    /// Reads elements by key. A dump of 60,000 elements takes longer than their commit. For every 32 KiB of the
    /// answer, the kernel walks the set again from its first element.
    fn verify(&mut self, work: &Work, timing: &mut Timing) -> Result<(), EngineError> {
        let Work::Nft { changes, program, generation } = work else { return Ok(()) };
        timing.talk(Phase::Read, &mut self.connection, |connection| verify(connection, changes, program, *generation))
    }
}

fn verify(
    connection: &mut Connection,
    changes: &Changes,
    program: &Program,
    decided_on: u32,
) -> Result<(), EngineError> {
    let mut differs = None;
    let mut generation = None;
    if !changes.changes_only_elements() {
        let (live, at) = match decode::decode_structure(connection) {
            Ok(found) => found,
            // Another program keeps changing portfwd's table, so a difference would not prove an error of
            // portfwd.
            Err(KernelError::Interrupted) => return Ok(()),
            Err(error) => return Err(unverified(error)),
        };
        differs = difference(&live, program).map(str::to_owned);
        generation = Some(at);
    }
    let count: usize = changes.add_elements.iter().map(|added| added.elements.len()).sum();
    let step = count.div_ceil(VERIFIED_ELEMENTS).max(1);
    for added in &changes.add_elements {
        let sample: Vec<&(Key, Element)> = added.elements.iter().step_by(step).collect();
        for some in sample.chunks(decode::KEYS_PER_REQUEST) {
            let keys = some.iter().map(|(key, _)| key);
            let found = decode::elements_by_key(connection, &added.map, keys).map_err(unverified)?.unwrap_or_default();
            let same = |(key, now): &&(Key, Element)| found.get(key).is_some_and(|found| found.same_content(now));
            if !some.iter().copied().all(|element| same(&element)) {
                differs = Some(format!("the map `{}`", added.map));
            }
        }
    }
    let Some(what) = differs else { return Ok(()) };
    let generation = generation.map_or_else(|| connection.generation().map_err(unverified), Ok)?;
    if generation.wrapping_sub(decided_on) == 1 { Err(EngineError::Differs(what)) } else { Ok(()) }
}

/// Returns true if the kernel committed a batch whose acknowledgement was lost. Checks one change, because a batch is
/// atomic.
fn was_committed(
    connection: &mut Connection,
    changes: &Changes,
    program: &Program,
    decided_on: u32,
) -> Result<bool, KernelError> {
    if connection.generation()? == decided_on {
        return Ok(false);
    }
    if !changes.changes_only_elements() {
        return Ok(difference(&decode::decode_structure(connection)?.0, program).is_none());
    }
    let first = |all: &[Elements]| {
        let mut elements =
            all.iter().flat_map(|of| of.elements.iter().map(|element| (of.map.clone(), element.clone())));
        elements.next()
    };
    let mut live = |map: &str, key: &Key| -> Result<Option<Element>, KernelError> {
        Ok(decode::elements_by_key(connection, map, [key])?.unwrap_or_default().remove(key))
    };
    match (first(&changes.add_elements), first(&changes.delete_elements)) {
        (Some((map, (key, added))), _) => Ok(live(&map, &key)?.is_some_and(|now| now.same_content(&added))),
        (None, Some((map, (key, _)))) => Ok(live(&map, &key)?.is_none()),
        (None, None) => Ok(true),
    }
}

fn unverified(error: KernelError) -> EngineError {
    EngineError::Unchecked(Box::new(error.into()))
}

/// Returns the first part of the table that differs from the planned table. Ignores elements.
fn difference<'a>(live: &'a Program, planned: &'a Program) -> Option<&'a str> {
    let shapes = |program: &'a Program| program.maps.iter().map(|(name, map)| (name, &map.shape));
    if (live.table, live.flagged) != (planned.table, planned.flagged) {
        Some("the table")
    } else if live.chains != planned.chains {
        Some("a chain")
    } else if !shapes(live).eq(shapes(planned)) {
        Some("a map")
    } else {
        None
    }
}

/// Adds the refused object, such as a forward, to an error of the kernel.
fn named(error: CommitError, batch: &Batch<'_>) -> EngineError {
    let CommitError::Refused { seq, error, reason, offset } = error else { return error.into() };
    let element = offset.and_then(|offset| batch.element_at(seq, offset));
    let forward = element.and_then(|(map, key, element)| {
        let owned = element::read(&map.parse().ok()?, key, element)?;
        Some(format!("the forward `{}` of the rule set `{}`", owned.rule, owned.set))
    });
    let subject = forward.unwrap_or_else(|| match batch.subject(seq) {
        Some(Subject::Table) => "table inet portfwd".into(),
        Some(Subject::Chain(name)) => format!("the chain `{name}`"),
        Some(Subject::Rule(chain, rule)) => format!("a rule of the chain `{chain}`, `{rule}`"),
        Some(Subject::Map(name)) => format!("the map `{name}`"),
        Some(Subject::Elements(map, _)) => format!("a forward in the map `{map}`"),
        Some(Subject::Batch) | None => "the batch".into(),
    });
    EngineError::Refused { subject, reason, error }
}
