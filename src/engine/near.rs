//! A change of a few forwards, seen alone: it costs what changes, not what is there.
//!
//! Of the state only those atoms are read that the change could contradict, those of a set that it replaces, and a few that
//! stand for all the others ([`State::samples`]). Of the kernel nothing is read where the last commit of all was ours and our
//! table was whole then ([`State::whole`]): it holds what it was left with. Otherwise the rules, chains and maps are, and of
//! the elements those of these atoms. All the rest of a commit is the same. Wherever that does not say enough, everything is
//! looked at: a table that is not, elements aside, as it was left, a change that came to no end, rules at loopback addresses,
//! another backend than nftables, a change of more than forwards.
//!
//! Be aware: what others did to elements of other forwards is not seen when one is added to thousands; `list` and `plan` show
//! it, `apply` and `restore` mend it. A set that is replaced, and any change among fewer, is seen alone only where nobody was
//! in between.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::timing::Phase;
use super::{Backend, Choice, Decided, Engine, EngineError, Home, LOCK_WAIT, Live, Work};
use crate::model::label::Sources;
use crate::model::{Asked, Binding, Owned, SetName};
use crate::nft::compile::compile;
use crate::nft::diff::diff;
use crate::nft::transaction::Connection;
use crate::nft::{decode, element};
use crate::store::{State, Store};

/// How many elements are asked for one by one at most.
const ELEMENTS: usize = 512;

/// A set with more forwards is not worth to be seen alone.
pub const FEW: usize = ELEMENTS;

impl Engine {
    /// Opens both, to be written. Of a large state only what a change of some atoms is about is read, where that is enough;
    /// `sets` are those that they replace, if any.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_near(
        state_directory: &Path,
        choice: Choice,
        about: &[Binding],
        sets: &[SetName],
    ) -> Result<Self, EngineError> {
        let mut near = false;
        let mut engine = Self::open_with(choice, true, |identity| {
            let store = Store::open(state_directory, identity, true, LOCK_WAIT)?;
            let part = store.load_partial(about, sets)?;
            near = part.is_some();
            let state = part.map_or_else(|| store.load(), Ok)?;
            Ok((store, state))
        })?;
        (engine.near, engine.near_sets) = (near, sets.to_vec());
        let enough = !near || engine.sees_enough() || engine.last()?.is_some();
        if engine.home() != Home::Nft || !engine.state.iptables.is_empty() || !enough {
            engine.see_all(&mut State::default())?;
        }
        Ok(engine)
    }

    /// Whether a part is enough although others may have committed.
    fn sees_enough(&self) -> bool {
        self.near_sets.is_empty() && self.store.has_many()
    }

    /// The generation, and the layout that our table had when it was known to be whole, where nobody has committed anything
    /// since.
    fn last(&mut self) -> Result<Option<(u32, u64)>, EngineError> {
        let Backend::Nft(connection) = &mut self.backend else { return Ok(None) };
        let Some(whole) = &self.state.whole else { return Ok(None) };
        let is = |generation: &u32| whole.is(*generation);
        // It was asked for before our turn came, and another of us may have had its turn since.
        let generation = match connection.last_heard_generation().filter(is) {
            Some(generation) => Some(generation),
            None => Some(self.timing.talk(Phase::Read, connection, Connection::generation)?).filter(is),
        };
        Ok(generation.map(|generation| (generation, whole.layout)))
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
    pub(super) fn decide_near(&mut self, after: &mut State) -> Result<Option<Decided>, EngineError> {
        if !self.near {
            return Ok(None);
        }
        // Others of the sort of one that goes may be there, and stand for it. Of a set that is seen whole they are found.
        let State { samples, asked, .. } = after;
        samples.retain(|owned| !self.near_sets.contains(&owned.set) || asked.bindings.contains(owned));
        let stand = samples.iter().all(|owned| asked.bindings.contains(owned));
        let alone = stand && differ_in_forwards_alone(&self.state.asked, &after.asked);
        let decided = if alone { self.decide_alone(&after.asked)? } else { None };
        if decided.is_none() {
            self.see_all(after)?;
        }
        Ok(decided)
    }

    /// What must be done, where what is seen is enough for that.
    fn decide_alone(&mut self, after: &Asked) -> Result<Option<Decided>, EngineError> {
        let [before, after] = differing(&self.state.asked, after, &self.state.samples);
        let count = |asked: &Asked| asked.bindings.iter().map(|owned| element::count(&owned.rule)).sum::<usize>();
        if count(&before).max(count(&after)) > ELEMENTS {
            return Ok(None);
        }
        let (last, enough) = (self.last()?, self.sees_enough());
        let Backend::Nft(connection) = &mut self.backend else { return Ok(None) };
        let timing = &mut self.timing;
        let (left, program) = timing.of(Phase::Compile, || (compile(&before), compile(&after)));
        let (left, program) = (left?, program?);
        let (now, generation) = match last {
            // Another build of portfwd may lay out the same in another way.
            Some((generation, layout)) if left.layout() == layout => (left, generation),
            _ if !enough => return Ok(None),
            _ => {
                let found =
                    timing.talk(Phase::Read, connection, |connection| decode::near(connection, &program, &left))?;
                if super::nft::difference(&found.0, &left).is_some() {
                    return Ok(None);
                }
                found
            }
        };
        let changes = Box::new(timing.of(Phase::Plan, || diff(&now, &program)));
        let live = Live::Nft { program: now, generation };
        Ok(Some(Decided { live, work: Work::Nft { changes, program, generation }, about: Some(after.into()) }))
    }
}

/// Two unions without the atoms that both have, but for `samples`, which stand for them: a table holds these either way.
/// Both must be sorted.
fn differing(one: &Asked, other: &Asked, samples: &[Owned<Binding>]) -> [Asked; 2] {
    [(one, other), (other, one)].map(|(of, than)| {
        let stand = samples.iter().filter(|owned| of.bindings.contains(owned) && than.bindings.contains(owned));
        let mut part = Asked { bindings: of.less(than).into_iter().chain(stand).cloned().collect(), ..of.clone() };
        part.normalize();
        part
    })
}

/// Whether all that two unions differ in is seen where only some atoms are: where a network changes, atoms that are not seen
/// may live in another chain, and where a source takes another number, they may have another label.
fn differ_in_forwards_alone(one: &Asked, other: &Asked) -> bool {
    (&one.networks, &one.masquerades, &one.snats, &one.netmaps)
        == (&other.networks, &other.masquerades, &other.snats, &other.netmaps)
        && one.priority().ok() == other.priority().ok()
        && Sources::of(one).agree(&Sources::of(other))
}

/// The change from one state to another, made to a third one that holds the first and more; `to`, where that is the first.
pub(super) fn carried(on: &State, from: &State, to: &State) -> State {
    if on.asked == from.asked {
        return to.clone();
    }
    let mut asked = Arc::unwrap_or_clone(Arc::clone(&on.asked));
    let [gone, come] = [from, to].map(|state| state.asked.bindings.iter().collect::<HashSet<_>>());
    asked.bindings.retain(|owned| !gone.contains(owned) || come.contains(owned));
    asked.bindings.extend(to.asked.bindings.iter().filter(|owned| !gone.contains(owned)).cloned());
    asked.normalize();
    let Asked { bindings, .. } = asked;
    State { asked: Arc::new(Asked { bindings, ..Asked::clone(&to.asked) }), ..to.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Forward;

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

    #[test]
    fn what_differs_is_left_and_what_stands_for_the_rest() {
        let (one, other) = (state(&[1, 2, 3, 4]).asked, state(&[2, 3, 4, 5]).asked);
        let samples = state(&[3]).asked.bindings.clone();
        let [before, after] = differing(&one, &other, &samples);
        assert_eq!([before, after], [state(&[1, 3]), state(&[3, 5])].map(|state| Arc::unwrap_or_clone(state.asked)));
    }
}
