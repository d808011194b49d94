//! Recovery: finishing a change whose process was killed, and rebuilding a lost state from the live rules.

use std::collections::BTreeSet;

use super::{Engine, EngineError, Options};
use crate::model::{Observed, SetName, Settings};
use crate::store::State;

impl Engine {
    /// Finishes an earlier change whose process was killed. Returns true if there was one.
    ///
    /// # Errors
    /// As [`Engine::commit`].
    pub fn finish_interrupted(&mut self) -> Result<bool, EngineError> {
        if self.state.unfinished.is_none() {
            return Ok(false);
        }
        self.commit(self.state.clone(), Options::default())?;
        Ok(true)
    }

    /// Returns a state whose desired rules are the live ones, as far as the kernel's rules tell.
    ///
    /// # Errors
    /// [`EngineError::Nothing`] if the kernel has no rules of portfwd; others if the kernel cannot be read.
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
        // The live rules become the desired ones even if they wait for a confirmation.
        Ok(State { desired: desired.into(), iptables, unconfirmed: None, ..self.state.clone() })
    }
}
