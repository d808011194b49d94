//! Full and partial scope: the cost of a change of a few forwards does not depend on the size of the state.
//!
//! With a partial scope the engine loads only the forwards that the change could conflict with, those of a set that the
//! change replaces, and one representative of each rule shape ([`State::representatives`]). The representatives stand for all other
//! forwards: a table compiled from them has the same rules, chains and maps, and fewer elements.
//!
//! Nothing of the kernel is read if the last commit of all was portfwd's and its rules were verified then
//! ([`State::verified`]). Otherwise, in a state of at least 1,000 forwards, the engine reads the rules, the chains, the maps,
//! and the elements of the changed forwards. The engine falls back to the full scope if that is not enough: if the table
//! differs from the last one in more than elements, after a change that was interrupted, with rules at loopback addresses,
//! with iptables, or if more than forwards change.
//!
//! Be aware: with a partial scope `add` does not notice if another program changed the element of another forward. `list`
//! and `plan` show that, `apply` and `restore` repair it.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::label::Sources;
use crate::model::{Binding, DesiredState, SetName, SetRule};
use crate::store::State;

/// How much of the desired state an engine loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The whole state.
    Full,
    /// A part, if that is enough for the change.
    Partial(Part),
}

/// The change for which a part of the desired state is enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The forwards that the change adds or replaces.
    pub bindings: Vec<Binding>,
    /// The sets that the change replaces.
    pub sets: Vec<SetName>,
}

/// Returns two states without the forwards that both have. The `representatives` stay, because a table has their rule shapes
/// either way. The forwards of both states must be sorted.
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

/// Returns true if two states differ in forwards only. If a network changes, forwards outside of the loaded part may move to
/// another chain; if a source address gets another number, their labels may change.
pub(super) fn differ_in_forwards_only(before: &DesiredState, after: &DesiredState) -> bool {
    (&before.networks, &before.masquerades, &before.snats, &before.netmaps)
        == (&after.networks, &after.masquerades, &after.snats, &after.netmaps)
        && before.priority().ok() == after.priority().ok()
        && Sources::of_state(before).agree(&Sources::of_state(after))
}

/// Applies the difference `from → to` to `on`, a superset of `from`. Returns `to` if `on` equals `from`.
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
    fn rebase_applies_the_same_change_to_a_larger_state() {
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
