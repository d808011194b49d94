//! Committing to nftables: one batch, and a look at what came of it.

use std::time::Instant;

use super::EngineError;
use super::timing::{Phase, Timing};
use crate::nft::batch::{Batch, Subject};
use crate::nft::decode;
use crate::nft::diff::{Changes, Elements};
use crate::nft::element;
use crate::nft::encode::encode;
use crate::nft::program::{Element, Key, Program};
use crate::nft::transaction::{CommitError, Connection, KernelError, PATIENCE};

/// Sends changes that were decided on at a generation, and again at the next one as long as others commit, but not to our
/// table; `generation` is that at which it was. Gives the messages, a line each; `None` where it must be decided anew.
pub(super) fn carry_out(
    connection: &mut Connection,
    changes: &Changes,
    program: &Program,
    generation: &mut u32,
    timing: &mut Timing,
) -> Result<Option<Vec<String>>, EngineError> {
    let mut batch = timing.of(Phase::Encode, || encode(changes, *generation));
    let mut until = None;
    loop {
        match timing.talk(Phase::Kernel, connection, |connection| connection.commit(&batch)) {
            Ok(()) => return Ok(Some(batch.lines().collect())),
            Err(CommitError::Stale) => {}
            // By now the kernel is done with it, one way or the other.
            Err(CommitError::Unheard(error)) => {
                let done = Connection::open().and_then(|mut again| was_done(&mut again, changes, program, *generation));
                return match done {
                    Ok(true) => Ok(Some(batch.lines().collect())),
                    _ => Err(CommitError::Unheard(error).into()),
                };
            }
            Err(error) => return Err(named(error, &batch)),
        }
        let Some(moved) = connection.moved_from(*generation) else { return Ok(None) };
        if Instant::now() > *until.get_or_insert_with(|| Instant::now() + PATIENCE) {
            return Ok(None);
        }
        *generation = moved;
        batch.move_to(moved);
    }
}

/// Whether changes whose fate was not heard were carried out. All of them were or none, so one of them tells.
fn was_done(
    connection: &mut Connection,
    changes: &Changes,
    program: &Program,
    decided_on: u32,
) -> Result<bool, KernelError> {
    if connection.generation()? == decided_on {
        return Ok(false);
    }
    if !changes.is_of_elements() {
        return Ok(difference(&decode::structure(connection)?.0, program).is_none());
    }
    let first = |all: &[Elements]| {
        let mut elements =
            all.iter().flat_map(|of| of.elements.iter().map(|element| (of.map.clone(), element.clone())));
        elements.next()
    };
    let mut held = |map: &str, key: &Key| -> Result<Option<Element>, KernelError> {
        Ok(decode::elements_by_key(connection, map, [key])?.unwrap_or_default().remove(key))
    };
    match (first(&changes.add_elements), first(&changes.delete_elements)) {
        (Some((map, (key, come))), _) => Ok(held(&map, &key)?.is_some_and(|now| now.says_the_same(&come))),
        (None, Some((map, (key, _)))) => Ok(held(&map, &key)?.is_none()),
        (None, None) => Ok(true),
    }
}

/// How many of the changed elements are read back.
const CHECKED: usize = 256;

/// Reads the kernel again and compares: every chain, rule and map, where any of them was changed, and of the elements that
/// were changed as many as [`CHECKED`], spread over all of them.
///
/// Where others committed since, to whatever table, nothing is said: it may be theirs.
///
/// Elements are asked for by their keys. A dump of 60,000 costs more than their commit, because the kernel begins at the
/// first of them again for every 32 KiB of the answer.
pub(super) fn check(
    connection: &mut Connection,
    changes: &Changes,
    program: &Program,
    decided_on: u32,
) -> Result<(), EngineError> {
    let mut differs = None;
    let mut generation = None;
    if !changes.is_of_elements() {
        let (live, at) = match decode::structure(connection) {
            Ok(found) => found,
            // Somebody else changes our table again and again by now. What is not as planned would be said to be theirs.
            Err(KernelError::Interrupted) => return Ok(()),
            Err(error) => return Err(unchecked(error)),
        };
        differs = difference(&live, program).map(str::to_owned);
        generation = Some(at);
    }
    let count: usize = changes.add_elements.iter().map(|come| come.elements.len()).sum();
    let step = count.div_ceil(CHECKED).max(1);
    for come in &changes.add_elements {
        let sample: Vec<&(Key, Element)> = come.elements.iter().step_by(step).collect();
        for some in sample.chunks(decode::KEYS_PER_QUESTION) {
            let keys = some.iter().map(|(key, _)| key);
            let found = decode::elements_by_key(connection, &come.map, keys).map_err(unchecked)?.unwrap_or_default();
            let same = |(key, now): &&(Key, Element)| found.get(key).is_some_and(|found| found.says_the_same(now));
            if !some.iter().copied().all(|element| same(&element)) {
                differs = Some(format!("the map `{}`", come.map));
            }
        }
    }
    let Some(what) = differs else { return Ok(()) };
    let generation = generation.map_or_else(|| connection.generation().map_err(unchecked), Ok)?;
    // A commit of somebody else's after ours is theirs to answer for, and the next plan's to show.
    if generation.wrapping_sub(decided_on) == 1 { Err(EngineError::Differs(what)) } else { Ok(()) }
}

fn unchecked(error: KernelError) -> EngineError {
    EngineError::Unchecked(Box::new(error.into()))
}

/// What of the table, its elements aside, is not as planned.
pub(super) fn difference<'a>(live: &'a Program, planned: &'a Program) -> Option<&'a str> {
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

/// Says of a refusal which forward it is about.
fn named(error: CommitError, batch: &Batch<'_>) -> EngineError {
    let CommitError::Refused { seq, error, reason, offset } = error else { return error.into() };
    let element = offset.and_then(|offset| batch.element_at(seq, offset));
    let forward = element.and_then(|(map, key, element)| {
        let owned = element::read(&map.parse().ok()?, key, element)?;
        Some(format!("the forward `{}` of the rule set `{}`", owned.rule, owned.set))
    });
    let subject = forward.unwrap_or_else(|| match batch.subject(seq) {
        Some(Subject::Table) => "our table".into(),
        Some(Subject::Chain(name)) => format!("the chain `{name}`"),
        Some(Subject::Rule(chain, rule)) => format!("a rule of the chain `{chain}`, `{rule}`"),
        Some(Subject::Map(name)) => format!("the map `{name}`"),
        Some(Subject::Elements(map, _)) => format!("a forward in the map `{map}`"),
        Some(Subject::Batch) | None => "the batch".into(),
    });
    EngineError::Refused { subject, reason, error }
}
