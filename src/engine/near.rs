//! A change of a few forwards among thousands, seen alone: it costs what changes, not what is there.
//!
//! Of the state only those atoms are read that the change could contradict, and a few that stand for all the others
//! ([`State::samples`]); of the kernel the rules, chains and maps, and of the elements those of these atoms. All the rest of
//! a commit is the same. Wherever that does not say enough, everything is looked at: a table that is not, elements aside, as
//! it was left, a change that came to no end, rules at loopback addresses, another backend than nftables.
//!
//! Be aware: what others did to elements of other forwards is not seen here; `list` and `plan` show it, `apply` and
//! `restore` mend it.

use std::path::Path;
use std::sync::Arc;

use super::timing::{Phase, Timing};
use super::{Backend, Choice, Engine, EngineError, Home, LOCK_WAIT, Live, Work};
use crate::model::{Asked, Binding};
use crate::nft::compile::compile;
use crate::nft::diff::diff;
use crate::nft::transaction::Connection;
use crate::nft::{decode, element};
use crate::store::{State, Store};

/// How many elements are asked for one by one at most.
const ELEMENTS: usize = 512;

impl Engine {
    /// Opens both, to be written. Of a large state only what a change of some atoms is about is read, where that is enough.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_near(state_directory: &Path, choice: Choice, about: &[Binding]) -> Result<Self, EngineError> {
        let mut near = false;
        let mut engine = Self::open_with(choice, true, |identity| {
            let store = Store::open(state_directory, identity, true, LOCK_WAIT)?;
            let part = store.near(about)?;
            near = part.is_some();
            let state = part.map_or_else(|| store.load(), Ok)?;
            Ok((store, state))
        })?;
        engine.near = near;
        if engine.home() != Home::Nft || !engine.state.iptables.is_empty() {
            engine.see_all(&mut State::default())?;
        }
        Ok(engine)
    }

    /// Whether [`Engine::state`] is only what a change is about.
    pub fn is_near(&self) -> bool {
        self.near
    }

    /// Looks at everything from here on. `after`, a change of what was seen until now, becomes that change of everything.
    ///
    /// # Errors
    /// Where the state cannot be read.
    pub fn see_all(&mut self, after: &mut State) -> Result<(), EngineError> {
        if self.near {
            let all = self.timing.of(Phase::Store, || self.store.load())?;
            *after = carried(&all, &self.state, after);
            self.state = all;
            self.near = false;
        }
        Ok(())
    }

    /// What must be done for a change that is seen alone; where that cannot be told, or all is seen, nothing, and all is seen
    /// from here on.
    pub(super) fn decide_near(&mut self, after: &mut State) -> Result<Option<(Live, Work)>, EngineError> {
        if !self.near {
            return Ok(None);
        }
        // Others of the sort of one that goes may be there, and stand for it.
        let stand = after.samples.iter().all(|owned| after.asked.bindings.contains(owned));
        let decided =
            if stand { decide(&mut self.backend, &self.state.asked, &after.asked, &mut self.timing)? } else { None };
        if decided.is_none() {
            self.see_all(after)?;
        }
        Ok(decided)
    }
}

/// The change from one state to another, made to a third one that holds the first and more; `to`, where that is the first.
pub(super) fn carried(on: &State, from: &State, to: &State) -> State {
    if on.asked == from.asked {
        return to.clone();
    }
    let mut asked = Arc::unwrap_or_clone(Arc::clone(&on.asked));
    let (gone, come) = (&from.asked.bindings, &to.asked.bindings);
    asked.bindings.retain(|owned| !gone.contains(owned) || come.contains(owned));
    asked.bindings.extend(come.iter().filter(|owned| !gone.contains(owned)).cloned());
    asked.normalize();
    let Asked { bindings, .. } = asked;
    State { asked: Arc::new(Asked { bindings, ..Asked::clone(&to.asked) }), ..to.clone() }
}

fn decide(
    backend: &mut Backend,
    before: &Asked,
    after: &Asked,
    timing: &mut Timing,
) -> Result<Option<(Live, Work)>, EngineError> {
    let Backend::Nft(connection) = backend else { return Ok(None) };
    let elements: usize = after.bindings.iter().map(|owned| element::count(&owned.rule)).sum();
    if elements > ELEMENTS {
        return Ok(None);
    }
    let (left, program) = timing.of(Phase::Compile, || (compile(before), compile(after)));
    let (left, program) = (left?, program?);
    let read = |connection: &mut Connection| decode::near(connection, &program, &left);
    let (now, generation) = timing.talk(Phase::Read, connection, read)?;
    if super::nft::difference(&now, &left).is_some() {
        return Ok(None);
    }
    let changes = Box::new(timing.of(Phase::Plan, || diff(&now, &program)));
    Ok(Some((Live::Nft { program: now, generation }, Work::Nft { changes, program, generation })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Forward, Owned, SetName};

    fn state(ports: &[u16]) -> State {
        let mut asked = Asked::default();
        for port in ports {
            let forward = Forward::new(port.to_string().parse().expect("listen"), "10.0.0.1".parse().expect("target"));
            let rules = forward.bindings().expect("valid").into_iter();
            asked.bindings.extend(rules.map(|rule| Owned { set: SetName::cli(), rule }));
        }
        asked.normalize();
        State { asked: asked.into(), ..State::default() }
    }

    #[test]
    fn a_change_of_a_part_is_the_same_change_of_all() {
        let (all, part) = (state(&[1, 2, 3, 4, 5]), state(&[2, 3]));
        assert_eq!(carried(&all, &part, &state(&[2, 3, 9])), state(&[1, 2, 3, 4, 5, 9]));
        assert_eq!(carried(&all, &part, &state(&[3])), state(&[1, 3, 4, 5]));
        assert_eq!(carried(&all, &part, &part), all);
        assert_eq!(carried(&part, &part, &state(&[7])), state(&[7]));
    }
}
