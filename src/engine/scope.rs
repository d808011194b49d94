//! Loads and compares only a part of the desired state, so that a small change of a large state is fast.
//!
//! A partial scope loads three groups of forwards:
//!
//! - the forwards that could conflict with the change,
//! - the forwards of each set that the change replaces,
//! - one representative of each rule shape ([`State::representatives`]).
//!
//! A table compiled from the representatives has all rules, chains and maps of the full table, but fewer elements.
//!
//! [`State::verified`] is the generation in which portfwd last verified the rules. If no program has committed since,
//! the engine plans the change without reading the rules. Otherwise, in a state of at least 1,000 forwards, the engine
//! reads the rules, the chains, the maps, and the elements of the changed forwards.
//!
//! The engine falls back to the full scope in these cases:
//!
//! - The live table differs from the last committed table in more than elements.
//! - The last change was interrupted.
//! - A rule uses loopback addresses.
//! - The backend is iptables.
//! - The change affects more than forwards.
//!
//! Be aware: with a partial scope, `add` does not detect that another program changed the element of another forward.
//! `list` and `plan` detect it. `apply` and `restore` repair it.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::label::Sources;
use crate::model::{Binding, DesiredState, SetName, SetRule};
use crate::store::State;

/// The amount of the desired state that an engine loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The whole state.
    Full,
    /// A part of the state, or the whole state if the part is not enough.
    Partial(Part),
}

/// The forwards and rule sets of a change. They determine the part of the desired state to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The forwards that the change adds or replaces.
    pub bindings: Vec<Binding>,
    /// The sets that the change replaces.
    pub sets: Vec<SetName>,
}

/// Returns `before` and `after` without the forwards that they have in common. Keeps the `representatives`, because
/// both tables contain their rule shapes. The forwards of both states must be sorted.
pub(super) fn changed_parts(
    before: &DesiredState,
    after: &DesiredState,
    representatives: &[SetRule<Binding>],
) -> [DesiredState; 2] {
    [(before, after), (after, before)].map(|(state, other)| {
        let kept = |owned: &&SetRule<Binding>| state.bindings.contains(owned) && other.bindings.contains(owned);
        let bindings = state.less(other).into_iter().chain(representatives.iter().filter(kept)).cloned().collect();
        let mut part = DesiredState { bindings, ..state.clone() };
        part.normalize();
        part
    })
}

/// Returns true if two states differ in forwards only. A changed network may move unloaded forwards to another chain. A
/// renumbered source address may change the labels of unloaded forwards.
pub(super) fn differ_in_forwards_only(before: &DesiredState, after: &DesiredState) -> bool {
    (&before.networks, &before.masquerades, &before.snats, &before.netmaps)
        == (&after.networks, &after.masquerades, &after.snats, &after.netmaps)
        && before.priority().ok() == after.priority().ok()
        && Sources::of_state(before).agree(&Sources::of_state(after))
}

/// Applies the difference between `from` and `to` to the state `on`. `from` must be a part of `on`.
pub(super) fn rebase(on: &State, from: &State, to: &State) -> State {
    if on.desired == from.desired {
        return to.clone();
    }
    let mut desired = Arc::unwrap_or_clone(Arc::clone(&on.desired));
    let [old, new] = [from, to].map(|state| state.desired.bindings.iter().collect::<HashSet<_>>());
    desired.bindings.retain(|owned| !old.contains(owned) || new.contains(owned));
    desired.bindings.extend(to.desired.bindings.iter().filter(|owned| !old.contains(owned)).cloned());
    desired.normalize();
    let DesiredState { bindings, .. } = desired;
    State { desired: Arc::new(DesiredState { bindings, ..DesiredState::clone(&to.desired) }), ..to.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Forward;

    fn state(ports: &[u16]) -> State {
        let mut desired = DesiredState::default();
        for port in ports {
            let forward = Forward::new(port.to_string().parse().expect("listen"), "10.0.0.1".parse().expect("target"));
            let rules = forward.bindings().expect("valid").into_iter();
            desired.bindings.extend(rules.map(|rule| SetRule { set: SetName::cli(), rule }));
        }
        desired.normalize();
        State { desired: desired.into(), ..State::default() }
    }

    #[test]
    fn rebase_applies_the_change_of_a_part_to_the_whole_state() {
        let (full, part) = (state(&[1, 2, 3, 4, 5]), state(&[2, 3]));
        assert_eq!(rebase(&full, &part, &state(&[2, 3, 9])), state(&[1, 2, 3, 4, 5, 9]));
        assert_eq!(rebase(&full, &part, &state(&[3])), state(&[1, 3, 4, 5]));
        assert_eq!(rebase(&full, &part, &part), full);
        assert_eq!(rebase(&part, &part, &state(&[7])), state(&[7]));
    }

    #[test]
    fn changed_parts_keep_the_representatives() {
        let (before, after) = (state(&[1, 2, 3, 4]).desired, state(&[2, 3, 4, 5]).desired);
        let representatives = state(&[3]).desired.bindings.clone();
        let parts = changed_parts(&before, &after, &representatives);
        assert_eq!(parts, [state(&[1, 3]), state(&[3, 5])].map(|state| Arc::unwrap_or_clone(state.desired)));
    }
}
