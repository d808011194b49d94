//! Making the kernel hold what is asked, and the state say so.

use super::{Choice, Engine, EngineError, Home, Plan, Switches, kernel};
use crate::model::Asked;
use crate::netfilter::sysctl;
use crate::store::{State, Unusable};

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
    /// Where rules of ours were besides, and were removed.
    pub moved_from: Vec<Home>,
}

/// Makes the kernel hold what `after` asks, and keeps `after` as the state. Switches that `after` no longer remembers get
/// back the values that they had. Rules of ours that another backend holds go when those of this one are there.
///
/// # Errors
/// [`EngineError`]; kernel and state are then as they were, but for [`EngineError::Differs`], [`EngineError::Unchecked`],
/// [`EngineError::Closed`] and [`EngineError::Left`], which come after the rules were committed.
pub fn commit(engine: &mut Engine, mut after: State) -> Result<Outcome, EngineError> {
    let before = engine.state.clone();
    let switches = Switches::of(&mut after, &before)?;
    let mut during = switches.during(&after);
    during.iptables.extend(before.iptables.iter().chain(engine.variant().as_ref()));
    engine.keep(&during)?;
    let mut given_back = match switches.before_commit() {
        Ok(given_back) => given_back,
        Err(error) => {
            engine.keep(&before)?;
            return Err(error);
        }
    };
    match to_kernel(engine, &after.asked).or_else(|error| fall_back(engine, &mut during, &mut after, error)) {
        Ok((plan, messages)) => {
            // From here on it is done, and an error can only say what does not look so.
            let moved_from = engine.leave_others()?;
            after.iptables = engine.variant().into_iter().filter(|_| !after.asked.is_empty()).collect();
            given_back.extend(switches.after_commit()?);
            engine.keep(&after)?;
            if !plan.is_empty() {
                engine.backend.check(&plan.work)?;
            }
            Ok(Outcome { plan, messages, switches, given_back, moved_from })
        }
        Err(error) => {
            switches.commit_failed(&given_back);
            engine.keep(&before)?;
            Err(error)
        }
    }
}

fn to_kernel(engine: &mut Engine, asked: &Asked) -> Result<(Plan, Vec<String>), EngineError> {
    for _ in 0..ATTEMPTS {
        let plan = engine.plan(asked)?;
        if plan.is_empty() {
            return Ok((plan, Vec::new()));
        }
        if let Some(messages) = engine.backend.carry_out(&plan.work)? {
            return Ok((plan, messages));
        }
    }
    Err(EngineError::Busy)
}

/// Commits to iptables instead, where the choice is ours and the kernel's nf_tables lacks what it takes.
fn fall_back(
    engine: &mut Engine,
    during: &mut State,
    after: &mut State,
    error: EngineError,
) -> Result<(Plan, Vec<String>), EngineError> {
    let Some(why) = lacking(&error).filter(|_| engine.choice == Choice::Auto) else { return Err(error) };
    if engine.use_iptables(&why).is_err() {
        return Err(error);
    }
    during.iptables.extend(engine.variant());
    let unusable = Some(Unusable { kernel: kernel(), why });
    (during.unusable, after.unusable) = (unusable.clone(), unusable);
    engine.keep(during)?;
    to_kernel(engine, &after.asked)
}

/// What the kernel's nf_tables lacks, where that is why it refused something: an expression that it was built without, or
/// whose module it cannot load.
fn lacking(error: &EngineError) -> Option<String> {
    let EngineError::Refused { subject, error, .. } = error else { return None };
    let kinds = [std::io::ErrorKind::NotFound, std::io::ErrorKind::Unsupported];
    kinds.contains(&error.kind()).then(|| format!("the nf_tables of this kernel lacks a part of {subject}"))
}
