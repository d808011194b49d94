//! Making the kernel hold what is asked, and the state say so.

use super::{Engine, EngineError, Plan, Switches};
use crate::netfilter::sysctl;
use crate::nft::decode;
use crate::nft::element;
use crate::nft::encode::{Batch, Subject, encode};
use crate::nft::program::{Element, Key, Program};
use crate::nft::transaction::CommitError;
use crate::store::State;

/// How often a plan is made anew because somebody else committed in between.
const ATTEMPTS: u32 = 100;

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What became of each rule; empty where the kernel held all of it already.
    pub plan: Plan,
    /// What was sent, a line a message; empty where nothing was.
    pub messages: Vec<String>,
    /// The switches that had to be set, or should have been.
    pub switches: Switches,
    /// The switches that got back the values that they had.
    pub given_back: Vec<sysctl::Change>,
}

/// Makes the kernel hold what `after` asks, and keeps `after` as the state. Switches that `after` no longer remembers get
/// back the values that they had.
///
/// # Errors
/// [`EngineError`]; kernel and state are then as they were, but for [`EngineError::Differs`], [`EngineError::Unchecked`]
/// and [`EngineError::Closed`], which come after the rules were committed.
pub fn commit(engine: &mut Engine, mut after: State) -> Result<Outcome, EngineError> {
    let before = engine.state.clone();
    let switches = Switches::of(&mut after, &before)?;
    let during = switches.during(&after);
    engine.keep(&during)?;
    let mut given_back = match switches.before_commit() {
        Ok(given_back) => given_back,
        Err(error) => {
            engine.keep(&before)?;
            return Err(error);
        }
    };
    match to_kernel(engine, &after) {
        Ok((plan, messages)) => {
            // From here on it is done, and an error can only say what does not look so.
            given_back.extend(switches.after_commit()?);
            engine.keep(&after)?;
            if !plan.is_empty() {
                check(engine, &plan)?;
            }
            Ok(Outcome { plan, messages, switches, given_back })
        }
        Err(error) => {
            switches.commit_failed(&given_back);
            engine.keep(&before)?;
            Err(error)
        }
    }
}

fn to_kernel(engine: &mut Engine, after: &State) -> Result<(Plan, Vec<String>), EngineError> {
    for _ in 0..ATTEMPTS {
        let plan = engine.plan(&after.asked)?;
        if plan.is_empty() {
            return Ok((plan, Vec::new()));
        }
        let batch = encode(&plan.changes, plan.generation);
        match engine.connection.commit(&batch) {
            Ok(()) => {
                let messages = batch.lines().collect();
                return Ok((plan, messages));
            }
            Err(CommitError::Stale) => {}
            Err(error) => return Err(named(error, &batch)),
        }
    }
    Err(EngineError::Busy)
}

/// How many of the changed elements are read back.
const CHECKED: usize = 256;

/// Reads the kernel again and compares: every chain, rule and map, and of the elements that were changed as many as
/// [`CHECKED`], spread over all of them.
///
/// Elements are asked for by their keys. A dump of 60,000 costs more than their commit, because the kernel begins at the
/// first of them again for every 32 KiB of the answer.
fn check(engine: &mut Engine, plan: &Plan) -> Result<(), EngineError> {
    let (live, generation) = decode::structure(&mut engine.connection).map_err(EngineError::Unchecked)?;
    let mut differs = difference(&live, plan).map(str::to_owned);
    let count: usize = plan.changes.add_elements.iter().map(|come| come.elements.len()).sum();
    let step = count.div_ceil(CHECKED).max(1);
    for come in &plan.changes.add_elements {
        let sample: Vec<&(Key, Element)> = come.elements.iter().step_by(step).collect();
        for some in sample.chunks(decode::KEYS_PER_QUESTION) {
            let keys = some.iter().map(|(key, _)| key);
            let found = decode::elements_by_key(&mut engine.connection, &come.map, keys)
                .map_err(EngineError::Unchecked)?
                .unwrap_or_default();
            let same = |(key, now): &&(Key, Element)| found.get(key).is_some_and(|found| found.says_the_same(now));
            if !some.iter().copied().all(|element| same(&element)) {
                differs = Some(format!("the map `{}`", come.map));
            }
        }
    }
    match differs {
        // A commit of somebody else's after ours is theirs to answer for, and the next plan's to show.
        Some(what) if generation.wrapping_sub(plan.generation) == 1 => Err(EngineError::Differs(what)),
        _ => Ok(()),
    }
}

/// What of the table, its elements aside, is not as planned.
fn difference<'a>(live: &'a Program, plan: &'a Plan) -> Option<&'a str> {
    let shapes = |program: &'a Program| program.maps.iter().map(|(name, map)| (name, &map.shape));
    if (live.table, live.flagged) != (plan.program.table, plan.program.flagged) {
        Some("the table")
    } else if live.chains != plan.program.chains {
        Some("a chain")
    } else if !shapes(live).eq(shapes(&plan.program)) {
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
