//! Making the kernel hold what is asked, and the state say so.

use std::sync::Arc;
use std::time::Instant;

use super::connections::{self, Changed};
use super::timing::{Phase, Timing};
use super::{Choice, Engine, EngineError, Home, Live, Plan, Step, Switches, Work, confirm, kernel, near, plan, unkept};
use crate::model::{Asked, Binding, Owned};
use crate::nft::compile::samples;
use crate::nft::transaction::{CommitError, PATIENCE};
use crate::store::{State, Unfinished, Unusable, Whole};
use crate::sys::sysctl;

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What became of each rule; empty where the kernel held all of it already.
    pub plan: Plan,
    /// What was sent, as text of a line a message or more; empty where nothing was.
    pub messages: Vec<String>,
    /// The switches that had to be set, or should have been.
    pub switches: Switches,
    /// The switches that got back the values that they had.
    pub given_back: Vec<sysctl::Change>,
    /// Where rules of ours were besides, and were removed.
    pub moved_from: Vec<Home>,
    /// How many connections were ended because the change made them wrong, or why that is not known.
    pub ended: Result<usize, String>,
    /// Why the state could not say that it is done, where it could not; it is kept as a wish, and the next change looks
    /// again.
    pub unkept: Option<String>,
}

/// Makes the kernel hold what `after` asks, and keeps `after` as the state. Switches that `after` no longer remembers get
/// back the values that they had. Rules of ours that another backend holds go when those of this one are there.
///
/// # Errors
/// [`EngineError`]; kernel and state are then as they were, but for [`EngineError::Differs`], [`EngineError::Unchecked`],
/// [`EngineError::Closed`] and [`EngineError::Left`], which come after the rules were committed, and for
/// [`EngineError::Half`], which says what is not as it was.
pub fn commit(engine: &mut Engine, mut after: State) -> Result<Outcome, EngineError> {
    confirm::may_change(&engine.state, &after)?;
    engine.know_what_is_there()?;
    let decided = engine.decide_near(&mut after)?;
    let before = engine.state.clone();
    let switches = Switches::of(&mut after, &before)?;
    let mut during = switches.during(&after);
    during.iptables.extend(before.iptables.iter().chain(engine.variant().as_ref()));
    after.unfinished = None;
    during.unfinished = unfinished(engine, &after);
    let first = keep_and_plan(engine, &during, &after.asked, decided)?;
    let mut given_back = match switches.before_commit() {
        Ok(given_back) => given_back,
        Err(error) => {
            engine.keep(&before)?;
            return Err(error);
        }
    };
    match to_kernel(engine, &mut after, Some(first)).or_else(|error| fall_back(engine, &mut during, &mut after, error))
    {
        Ok(Sent { mut plan, messages, was, samples }) => {
            // From here on it is done, and an error can only say what does not look so.
            given_back.extend(switches.after_commit(&mut after)?);
            let left = engine.leave_others();
            after.iptables = match left {
                Ok(_) => engine.variant().into_iter().filter(|_| !after.asked.is_empty()).collect(),
                Err(_) => engine.state.iptables.clone(),
            };
            if engine.home() == Home::Nft && !plan.is_empty() {
                // What it was found to lack it has by now.
                after.unusable = None;
            }
            after.samples = samples;
            if !plan.is_empty() {
                after.committed = plan.work.generation_after();
            }
            after.whole = whole(engine, &plan.work);
            let begun = Instant::now();
            let ended = settle(engine, &during, &after.asked, &plan, was.as_deref());
            engine.timing.took(Phase::Connections, begun.elapsed());
            if ended.is_err() {
                after.unfinished.clone_from(&during.unfinished);
            }
            // What is asked is kept already, and that it may not have come to its end; all else is found out again.
            let unkept = engine.keep(&after).err().map(|error| error.to_string());
            let checked = match plan.is_empty() {
                true => Ok(()),
                false => engine.backend.check(&plan.work, &mut engine.timing),
            };
            if let Err(error) = checked {
                after.whole = None;
                drop(engine.keep(&after));
                return Err(error);
            }
            let moved_from = left?;
            plan.steps.extend(moved_from.iter().map(|home| Step::leave(*home)));
            Ok(Outcome {
                plan,
                messages,
                switches,
                given_back,
                moved_from,
                ended: ended.map_err(|error| error.to_string()),
                unkept,
            })
        }
        Err(error) => {
            switches.commit_failed(&given_back);
            let mut back = near::carried(&engine.state, &during, &before);
            if matches!(error, EngineError::Commit(CommitError::Unheard(_))) {
                // It may be done: the next change looks at everything.
                back.unfinished = during.unfinished;
                back.whole = None;
            }
            engine.keep(&back)?;
            Err(error)
        }
    }
}

/// When the kernel was last known to hold all that is asked and nothing else, now that this was carried out. Where only a part
/// was looked at, that is so where it was so before, and nobody was in between.
fn whole(engine: &Engine, work: &Work) -> Option<Whole> {
    let Work::Nft { program, generation, .. } = work else { return None };
    match (engine.near, work.is_empty()) {
        (true, true) => engine.state.whole.clone(),
        (true, false) => engine.state.whole.as_ref()?.then(*generation, program.layout()),
        (false, true) => Some(Whole::at(*generation, program.layout())),
        (false, false) => Some(Whole::at(generation.wrapping_add(1), program.layout())),
    }
}

/// Brings a change before this command that came to no end, because its process was killed, to its end. Gives whether there
/// was one.
///
/// # Errors
/// As [`commit()`].
pub fn finish(engine: &mut Engine) -> Result<bool, EngineError> {
    if engine.state.unfinished.is_none() {
        return Ok(false);
    }
    let state = engine.state.clone();
    commit(engine, state)?;
    engine.interrupted = false;
    Ok(true)
}

/// Keeps a state, and meanwhile decides what must be sent, where that is not `decided` already.
fn keep_and_plan(
    engine: &mut Engine,
    during: &State,
    asked: &Asked,
    decided: Option<Decided>,
) -> Result<Decided, EngineError> {
    let before = engine.state.clone();
    if let Some(decided) = decided {
        engine.keep(during)?;
        return Ok(decided);
    }
    let (store, backend) = (&mut engine.store, &mut engine.backend);
    let keep = || if *during == before { Ok(()) } else { store.save(&before, during) };
    let (kept, decided) = engine.timing.beside(Phase::Store, keep, |timing| backend.decide(asked, timing));
    kept.map_err(|error| unkept(&engine.store, error))?;
    engine.state = during.clone();
    match decided {
        Ok((live, work)) => Ok(Decided { live, work, about: None }),
        Err(error) => {
            engine.keep(&before)?;
            Err(error)
        }
    }
}

/// What is to be kept of a change, and of one before it that came to no end, until it is done; nothing where what is asked
/// stays as it is.
fn unfinished(engine: &Engine, after: &State) -> Option<Unfinished> {
    let (before, last) = (&engine.state.asked, &engine.state.unfinished);
    if *before == after.asked && last.is_none() {
        return None;
    }
    let left = last.iter().filter(|last| !last.keep_connections).flat_map(|last| last.gone.iter());
    let gone = before.less(&after.asked).into_iter().map(|owned| &owned.rule).chain(left).cloned().collect();
    Some(Unfinished { keep_connections: engine.keep_connections, gone })
}

/// Ends the connections that a change made wrong: this one, and one before it that came to no end.
fn settle(
    engine: &Engine,
    during: &State,
    asked: &Arc<Asked>,
    plan: &Plan,
    was: Option<&Asked>,
) -> std::io::Result<usize> {
    if engine.keep_connections {
        return Ok(0);
    }
    let netmaps = was.map_or(&asked.netmaps, |was| &was.netmaps);
    let mut changed = Changed::of(&plan.steps, netmaps, &asked.netmaps);
    if engine.interrupted {
        // What had come until then is not known.
        changed.extend(asked.bindings.iter().map(|owned| &owned.rule));
        changed.extend(during.unfinished.iter().flat_map(|change| change.gone.iter()));
    }
    let all = || if engine.near { engine.store.load().map(|all| all.asked) } else { Ok(Arc::clone(asked)) };
    connections::settle(&changed, || all().map_err(std::io::Error::other))
}

/// What was decided to do.
pub(super) struct Decided {
    /// What is there.
    pub(super) live: Live,
    pub(super) work: Work,
    /// The part of what is asked that both are about; none where that is all of it.
    pub(super) about: Option<Arc<Asked>>,
}

/// What was done to the kernel.
struct Sent {
    plan: Plan,
    messages: Vec<String>,
    /// What it held before; not known where nothing had to be done.
    was: Option<Arc<Asked>>,
    /// An atom of each sort that is asked for now.
    samples: Vec<Owned<Binding>>,
}

/// Has the kernel hold what is asked. `first` is what was decided already.
fn to_kernel(engine: &mut Engine, after: &mut State, mut first: Option<Decided>) -> Result<Sent, EngineError> {
    let until = Instant::now() + PATIENCE;
    let home = engine.home();
    loop {
        let Decided { live, mut work, about } = match first.take() {
            Some(decided) => decided,
            None => {
                // Somebody else was at our table.
                engine.see_all(after)?;
                let (live, work) = engine.backend.decide(&after.asked, &mut engine.timing)?;
                Decided { live, work, about: None }
            }
        };
        let about = about.as_ref().unwrap_or(&after.asked);
        let known: &[Owned<Binding>] = if engine.near { &after.samples } else { &[] };
        // Of a table of nf_tables alone a part can be read.
        let samples = || if home == Home::Nft { samples(&after.asked, known) } else { Vec::new() };
        if work.is_empty() {
            let samples = samples();
            return Ok(Sent { plan: Plan::new(&live, about, work), messages: Vec::new(), was: None, samples });
        }
        // The plan is put into words while the kernel is at work.
        let (backend, timing) = (&mut engine.backend, &mut engine.timing);
        let words = || (plan::steps_from(&live, about), samples());
        let mut send = |timing: &mut Timing| backend.carry_out(&mut work, timing);
        let (((steps, was), samples), sent) = if engine.near {
            // Of a few there is not enough to say for a thread.
            let sent = send(timing);
            (timing.of(Phase::Plan, words), sent)
        } else {
            timing.beside(Phase::Plan, words, send)
        };
        if let Some(messages) = sent? {
            return Ok(Sent { plan: Plan { steps, work }, messages, was: Some(was), samples });
        }
        if Instant::now() > until {
            return Err(EngineError::Busy);
        }
    }
}

/// Commits to iptables instead, where the choice is ours and the kernel's nf_tables lacks what it takes.
fn fall_back(
    engine: &mut Engine,
    during: &mut State,
    after: &mut State,
    error: EngineError,
) -> Result<Sent, EngineError> {
    let Some(why) = lacking(&error).filter(|_| engine.choice == Choice::Auto) else { return Err(error) };
    if engine.use_iptables(&why).is_err() {
        return Err(error);
    }
    engine.see_all(after)?;
    if during.asked != after.asked {
        during.asked = Arc::clone(&after.asked);
    }
    during.iptables.extend(engine.variant());
    let unusable = Some(Unusable { kernel: kernel(), why });
    (during.unusable, after.unusable) = (unusable.clone(), unusable);
    engine.keep(during)?;
    to_kernel(engine, after, None)
}

/// What the kernel's nf_tables lacks, where that is why it refused something: an expression that it was built without, or
/// whose module it cannot load.
fn lacking(error: &EngineError) -> Option<String> {
    let EngineError::Refused { subject, error, .. } = error else { return None };
    let kinds = [std::io::ErrorKind::NotFound, std::io::ErrorKind::Unsupported];
    kinds.contains(&error.kind()).then(|| format!("the nf_tables of this kernel lacks a part of {subject}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn only_what_a_kernel_was_built_without_makes_it_unusable() {
        let refused = |code: i32| EngineError::Refused {
            subject: "a rule of the chain `nat-prerouting`".into(),
            reason: None,
            error: io::Error::from_raw_os_error(code),
        };
        for code in [nix::libc::ENOENT, nix::libc::EOPNOTSUPP] {
            let why = lacking(&refused(code)).expect("lacks it");
            assert_eq!(why, "the nf_tables of this kernel lacks a part of a rule of the chain `nat-prerouting`");
        }
        for code in [nix::libc::EPERM, nix::libc::EBUSY, nix::libc::ENOMEM, nix::libc::EINVAL] {
            assert_eq!(lacking(&refused(code)), None, "{code}");
        }
        assert_eq!(lacking(&EngineError::Busy), None);
    }
}
