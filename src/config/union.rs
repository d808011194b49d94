//! Several sets brought together: what they ask in all, or every two rules that contradict each other, with both places.

use std::collections::BTreeMap;

use super::diagnostic::{Kind, Problem};
use super::load::Loaded;
use super::source::Place;
use crate::model::{Asked, Network, Owned, SetName, conflict};

/// Brings what is asked already together with sets that replace their namesakes in it.
///
/// # Errors
/// Every conflict, inside of a set and between sets.
pub fn union(mut asked: Asked, sets: &[Loaded]) -> Result<Asked, Vec<Problem>> {
    for loaded in sets {
        asked.remove(&loaded.set.name);
    }
    let mut problems = Vec::new();
    // Where each rule is written, in the order of the rules; what was asked already is in no file at hand.
    let mut forwards: Vec<Option<&Place>> = vec![None; asked.bindings.len()];
    let mut networks: Vec<Option<&Place>> = vec![None; asked.networks.len()];
    let mut priorities: BTreeMap<&SetName, &Place> = BTreeMap::new();
    let mut names: BTreeMap<&SetName, &Loaded> = BTreeMap::new();
    for loaded in sets {
        if let Some(first) = names.insert(&loaded.set.name, loaded) {
            problems.push(same_name(first, loaded));
        }
        for (forward, place) in loaded.set.forwards.iter().zip(&loaded.forwards) {
            // The loader has made sure that the forward has a normal form.
            let atoms = forward.bindings().map_or(0, |atoms| atoms.len());
            forwards.extend(std::iter::repeat_n(Some(place), atoms));
        }
        networks.extend(loaded.networks.iter().map(Some));
        priorities.extend(loaded.priority.iter().map(|place| (&loaded.set.name, place)));
        if let Err(error) = asked.add(&loaded.set) {
            problems.push(Problem {
                kind: Kind::Invalid,
                what: error.to_string(),
                place: None,
                other: None,
                help: error.help().to_owned(),
            });
        }
    }
    let place = |places: &[Option<&Place>], index: usize| places.get(index).copied().flatten().cloned();
    for (earlier, later) in conflict::find(asked.bindings.iter().map(|owned| &owned.rule)) {
        let (Some(first), Some(second)) = (asked.bindings.get(earlier), asked.bindings.get(later)) else { continue };
        problems.push(Problem {
            kind: Kind::Conflict,
            what: format!("`{}` already goes to {}", first.rule.listen(), first.rule.target()),
            place: place(&forwards, later),
            other: Some(first_given(&first.set, place(&forwards, earlier))),
            help: format!(
                "`{second}` cannot be told apart from it; remove one, or give one an address, an interface or other clients",
                second = second.rule
            ),
        });
    }
    for (index, owned) in asked.networks.iter().enumerate() {
        // Two sets may share a network as long as they say the same of it.
        let contradicts = |other: &&Owned<Network>| {
            other.rule.name == owned.rule.name && (other.set == owned.set || other.rule != owned.rule)
        };
        let before = asked.networks.iter().take(index).position(|other| contradicts(&other));
        if let Some(before) = before
            && let Some(first) = asked.networks.get(before)
        {
            problems.push(Problem {
                kind: Kind::Conflict,
                what: format!("the network `{}` is described already, in another way", owned.rule.name),
                place: place(&networks, index),
                other: Some(first_given(&first.set, place(&networks, before))),
                help: "describe every network once in a set, and alike in all sets".into(),
            });
        }
    }
    if let Err((one, other)) = asked.priority() {
        let place = |set: &SetName| priorities.get(set).copied().cloned();
        problems.push(Problem {
            kind: Kind::Conflict,
            what: format!("the rule sets `{one}` and `{other}` ask for different priorities"),
            place: place(&other).or_else(|| place(&one)),
            other: None,
            help: "give all sets the same priority, or leave it out".into(),
        });
    }
    if problems.is_empty() {
        asked.normalize();
        Ok(asked)
    } else {
        Err(problems)
    }
}

fn first_given(set: &SetName, place: Option<Place>) -> (String, Option<Place>) {
    match place {
        Some(place) => ("first given here".into(), Some(place)),
        None => (format!("it is in the rule set `{set}`"), None),
    }
}

fn same_name(first: &Loaded, second: &Loaded) -> Problem {
    let start = |loaded: &Loaded| Some(Place { source: std::sync::Arc::clone(&loaded.source), span: 0..0 });
    Problem {
        kind: Kind::Conflict,
        what: format!("two files give a rule set named `{}`", second.set.name),
        place: start(second),
        other: Some(("the other is here".into(), start(first))),
        help: "set another `name` under `[settings]` in one of them".into(),
    }
}
