//! Changes that are taken back unless they are confirmed in time.
//!
//! The state keeps what was before such a change until it is confirmed, or until that is back, so that whoever comes first
//! after the deadline, and it does not matter who that is, finds what to do. Putting back is a commit like any other.

use std::path::PathBuf;
use std::time::Duration;

use super::{Engine, EngineError, Outcome, commit};
use crate::store::{Deadline, State, Unconfirmed};

/// Makes `after` a change that waits to be confirmed, where it asks for anything else than the engine's state does. Gives
/// until when it waits.
///
/// # Errors
/// [`EngineError::Unconfirmed`] where another one waits already.
pub fn unless_confirmed(engine: &Engine, after: &mut State, time: Duration) -> Result<Option<Deadline>, EngineError> {
    settled(engine)?;
    let before = &engine.state;
    if before.asked == after.asked {
        return Ok(None);
    }
    let until = Deadline::after(time);
    let State { asked, origins, sysctls, .. } = before.clone();
    after.unconfirmed = Some(Unconfirmed { until: until.clone(), asked, origins, sysctls });
    Ok(Some(until))
}

/// Refuses to go on while a change waits to be confirmed: with another one on top there is no saying what is taken back.
///
/// # Errors
/// [`EngineError::Unconfirmed`]
pub fn settled(engine: &Engine) -> Result<(), EngineError> {
    let waiting = engine.state.unconfirmed.as_ref();
    waiting.map_or(Ok(()), |waiting| Err(EngineError::Unconfirmed(waiting.until.left().unwrap_or_default())))
}

/// The same for a commit, of which those are good that ask for the same again, as what puts rules back that somebody else
/// flushed, and those that no longer know of the change that waits, as what removes everything: they are its end.
pub(super) fn may_change(before: &State, after: &State) -> Result<(), EngineError> {
    let (Some(waiting), Some(_)) = (&before.unconfirmed, &after.unconfirmed) else { return Ok(()) };
    if before.asked == after.asked {
        return Ok(());
    }
    Err(EngineError::Unconfirmed(waiting.until.left().unwrap_or_default()))
}

/// Keeps the change that waits. Gives whether there was one, and in time.
///
/// # Errors
/// Where the state cannot be written.
pub fn confirm(engine: &mut Engine) -> Result<bool, EngineError> {
    let mut after = engine.state.clone();
    let waiting = after.unconfirmed.take().filter(|waiting| waiting.until.left().is_some());
    let Some(Unconfirmed { until, .. }) = waiting else { return Ok(false) };
    after.confirmed = Some(until);
    engine.keep(&after)?;
    Ok(true)
}

/// Makes the kernel hold what was asked before the change that waits, whether or not it is time; nothing where none does.
///
/// # Errors
/// As [`commit()`](commit::commit); the change waits on then.
pub fn put_back(engine: &mut Engine) -> Result<Option<Outcome>, EngineError> {
    let mut after = engine.state.clone();
    let Some(Unconfirmed { asked, origins, sysctls, .. }) = after.unconfirmed.take() else { return Ok(None) };
    let outcome = commit::commit(engine, State { asked, origins, sysctls, ..after })?;
    engine.interrupted = false;
    Ok(Some(outcome))
}

/// The same where it was not confirmed in time.
///
/// # Errors
/// As [`put_back`].
pub fn put_back_in_time(engine: &mut Engine) -> Result<Option<Outcome>, EngineError> {
    let overdue = engine.state.unconfirmed.as_ref().is_some_and(|waiting| waiting.until.left().is_none());
    if overdue { put_back(engine) } else { Ok(None) }
}

impl Engine {
    /// A file that is there as long as a change waits to be confirmed; none where nothing is kept.
    pub fn flag(&self) -> Option<PathBuf> {
        self.store.pending_flag()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Masquerade, Owned, SetName};
    use std::sync::Arc;

    fn other(state: &State) -> State {
        let mut other = state.clone();
        let rule = Masquerade { from: Some("10.0.0.0/24".parse().expect("prefix")), out: None };
        Arc::make_mut(&mut other.asked).masquerades.push(Owned { set: SetName::cli(), rule });
        other
    }

    #[test]
    fn nothing_else_is_asked_while_a_change_waits_but_it_may_end() {
        let plain = State::default();
        assert!(may_change(&plain, &other(&plain)).is_ok());
        let until = Deadline::after(Duration::from_secs(60));
        let unconfirmed =
            Unconfirmed { until, asked: Arc::default(), origins: plain.origins.clone(), sysctls: Vec::new() };
        let waiting = State { unconfirmed: Some(unconfirmed), ..plain.clone() };
        assert!(may_change(&plain, &waiting).is_ok());
        assert!(may_change(&waiting, &waiting).is_ok());
        assert!(may_change(&waiting, &plain).is_ok());
        let refused = may_change(&waiting, &other(&waiting));
        assert!(matches!(refused, Err(EngineError::Unconfirmed(left)) if left > Duration::ZERO), "{refused:?}");
    }
}
