//! Finishes a change whose process was killed, and rebuilds a lost state from the live rules.

use std::collections::BTreeSet;

use super::{Engine, EngineError, Options};
use crate::model::{Observed, SetName, Settings};
use crate::store::State;

impl Engine {
    /// Finishes an earlier change whose process was killed. Returns false if there is no such change.
    ///
    /// # Errors
    /// Fails like [`Engine::commit`].
    pub fn finish_interrupted(&mut self) -> Result<bool, EngineError> {
        if self.state.unfinished.is_none() {
            return Ok(false);
        }
        self.commit(self.state.clone(), Options::default())?;
        Ok(true)
    }

    /// Rebuilds a state from the live rules. Facts that leave no trace in the kernel are missing.
    ///
    /// # Errors
    /// Returns [`EngineError::Nothing`] if the kernel has no rules of portfwd.
    /// Returns other variants if the kernel cannot be read.
    pub fn state_from_kernel(&mut self) -> Result<State, EngineError> {
        let live = self.live()?;
        let Observed { mut desired, .. } = live.lift();
        if desired.is_empty() {
            return Err(EngineError::Nothing(self.id()));
        }
        let settings = Settings { priority: live.priority(), ..Settings::default() };
        let sets = (desired.bindings.iter().map(|owned| &owned.set))
            .chain(desired.networks.iter().map(|owned| &owned.set))
            .chain(desired.masquerades.iter().map(|owned| &owned.set))
            .chain(desired.snats.iter().map(|owned| &owned.set))
            .chain(desired.netmaps.iter().map(|owned| &owned.set));
        let sets: BTreeSet<SetName> = sets.cloned().collect();
        desired.settings.extend(sets.into_iter().map(|set| (set, settings)));
        desired.normalize();
        let iptables = self.id().variant().into_iter().collect();
        // Live rules of a pending change count as confirmed.
        Ok(State { desired: desired.into(), iptables, unconfirmed: None, ..self.state.clone() })
    }
}
