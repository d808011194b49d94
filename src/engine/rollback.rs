//! Rolls a change back unless the user confirms it in time.
//!
//! The state keeps the old desired state until the change is confirmed or rolled back. So every command can do the
//! rollback after the deadline. A rollback is an ordinary commit of the old desired state.

use std::time::Duration;

use super::{Engine, EngineError, Options, Outcome};
use crate::store::{Deadline, State, Unconfirmed};

impl Engine {
    /// Marks `after` as a change that the user must confirm within `time`, and returns the deadline. Returns `None`
    /// if `after` changes nothing.
    ///
    /// # Errors
    /// Returns [`EngineError::Unconfirmed`] if an earlier change waits for its confirmation.
    pub fn require_confirmation(&self, after: &mut State, time: Duration) -> Result<Option<Deadline>, EngineError> {
        self.ensure_none_pending()?;
        let State { desired, origins, sysctls, .. } = self.state.clone();
        if desired == after.desired {
            return Ok(None);
        }
        let until = Deadline::after(time);
        after.unconfirmed = Some(Unconfirmed { until: until.clone(), desired, origins, sysctls });
        Ok(Some(until))
    }

    /// Fails if a change waits for its confirmation. A second change would make the target of a rollback unclear.
    ///
    /// # Errors
    /// Returns [`EngineError::Unconfirmed`] with the time until the deadline.
    pub fn ensure_none_pending(&self) -> Result<(), EngineError> {
        let waiting = self.state.unconfirmed.as_ref();
        waiting.map_or(Ok(()), |waiting| Err(EngineError::Unconfirmed(waiting.until.left().unwrap_or_default())))
    }

    /// Confirms the pending change. Returns false if there is none, or if its deadline has passed.
    ///
    /// # Errors
    /// Fails if the state cannot be written.
    pub fn confirm(&mut self) -> Result<bool, EngineError> {
        let mut after = self.state.clone();
        let waiting = after.unconfirmed.take().filter(|waiting| waiting.until.left().is_some());
        let Some(Unconfirmed { until, .. }) = waiting else { return Ok(false) };
        after.confirmed = Some(until);
        self.persist(&after)?;
        Ok(true)
    }

    /// Rolls the pending change back, even before its deadline. Returns `None` if no change is pending.
    ///
    /// # Errors
    /// Fails like [`Engine::commit`]. After an error, the change stays pending.
    pub fn roll_back(&mut self) -> Result<Option<Outcome>, EngineError> {
        let mut after = self.state.clone();
        let Some(Unconfirmed { desired, origins, sysctls, .. }) = after.unconfirmed.take() else { return Ok(None) };
        let after = State { desired, origins, sysctls, ..after };
        Ok(Some(self.commit(after, Options::default())?))
    }

    /// Rolls the pending change back if its deadline has passed.
    ///
    /// # Errors
    /// Fails like [`Engine::roll_back`].
    pub fn roll_back_if_expired(&mut self) -> Result<Option<Outcome>, EngineError> {
        let expired = self.state.unconfirmed.as_ref().is_some_and(|waiting| waiting.until.left().is_none());
        if expired { self.roll_back() } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::commit::may_change;
    use super::*;
    use crate::model::{Masquerade, SetName, SetRule};
    use std::sync::Arc;

    fn other(state: &State) -> State {
        let mut other = state.clone();
        let rule = Masquerade { from: Some("10.0.0.0/24".parse().expect("prefix")), out: None };
        Arc::make_mut(&mut other.desired).masquerades.push(SetRule { set: SetName::cli(), rule });
        other
    }

    #[test]
    fn a_pending_change_allows_only_its_own_repair_or_end() {
        let plain = State::default();
        assert!(may_change(&plain, &other(&plain)).is_ok());
        let until = Deadline::after(Duration::from_secs(60));
        let unconfirmed =
            Unconfirmed { until, desired: Arc::default(), origins: plain.origins.clone(), sysctls: Vec::new() };
        let waiting = State { unconfirmed: Some(unconfirmed), ..plain.clone() };
        assert!(may_change(&plain, &waiting).is_ok());
        assert!(may_change(&waiting, &waiting).is_ok());
        assert!(may_change(&waiting, &plain).is_ok());
        let refused = may_change(&waiting, &other(&waiting));
        assert!(matches!(refused, Err(EngineError::Unconfirmed(left)) if left > Duration::ZERO), "{refused:?}");
    }
}
