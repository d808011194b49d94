//! Making the kernel hold what is asked, and the state say so.

use super::{Engine, EngineError, Plan};
use crate::netfilter::sysctl;
use crate::nft::encode::{Batch, Subject, encode};
use crate::nft::map;
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
    /// The switches that had to be set.
    pub sysctls: Vec<sysctl::Change>,
}

/// Makes the kernel hold what `after` asks, and keeps `after` as the state.
///
/// # Errors
/// [`EngineError`]; kernel and state are then as they were.
pub fn commit(engine: &mut Engine, mut after: State) -> Result<Outcome, EngineError> {
    let switches = switches(&after)?;
    for change in &switches {
        // Only the first value counts: what the host had before we came.
        if !after.sysctls.iter().any(|known| known.key == change.key) {
            after.sysctls.push(change.clone());
        }
    }
    let given_back = if after.asked.is_empty() { std::mem::take(&mut after.sysctls) } else { Vec::new() };
    let before = engine.state.clone();
    if after != before {
        engine.store.save(&before, &after)?;
    }
    let done = sysctl::set(&switches).map_err(EngineError::from).and_then(|()| match to_kernel(engine, &after) {
        Ok(done) => Ok(done),
        Err(error) => {
            sysctl::undo(&switches);
            Err(error)
        }
    });
    match done {
        Ok((plan, messages)) => {
            sysctl::undo(&given_back);
            engine.state = after;
            Ok(Outcome { plan, messages, sysctls: switches })
        }
        Err(error) => {
            if after != before {
                engine.store.save(&after, &before)?;
            }
            Err(error)
        }
    }
}

/// The switches to set, as far as the sets want us to.
fn switches(state: &State) -> Result<Vec<sysctl::Change>, EngineError> {
    let mut changes = Vec::new();
    for family in state.asked.forwarding() {
        changes.extend(sysctl::forwarding(family)?);
    }
    Ok(changes)
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
                check(engine, &plan)?;
                return Ok((plan, batch.lines().collect()));
            }
            Err(CommitError::Stale) => {}
            Err(error) => return Err(named(error, &batch)),
        }
    }
    Err(EngineError::Busy)
}

/// Reads the kernel again and compares.
fn check(engine: &mut Engine, plan: &Plan) -> Result<(), EngineError> {
    let live = engine.live()?;
    let rest = crate::nft::diff::diff(&live.program, &plan.program);
    if rest.is_empty() {
        return Ok(());
    }
    // A commit of somebody else's after ours is theirs to answer for, and the next plan's to show.
    let somebody_else = live.generation.wrapping_sub(plan.generation) != 1;
    if somebody_else {
        return Ok(());
    }
    let lines = encode(&rest, live.generation).lines().collect::<Vec<_>>().join("; ");
    Err(EngineError::Differs(lines))
}

/// Says of a refusal which forward it is about.
fn named(error: CommitError, batch: &Batch) -> EngineError {
    let CommitError::Refused { seq, error, reason, offset } = error else { return error.into() };
    let element = offset.and_then(|offset| batch.element_at(seq, offset));
    let forward = element.and_then(|(map, key, element)| {
        let owned = map::read(&map.parse().ok()?, key, element)?;
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
