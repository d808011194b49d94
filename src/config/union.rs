//! Several sets brought together: what they ask in all, or every two rules that contradict each other, with both places.

use std::collections::BTreeMap;

use super::diagnostic::{Kind, Problem};
use super::load::Loaded;
use super::source::Place;
use crate::model::egress::{self, Written};
use crate::model::{Asked, Netmap, Network, Owned, SetName, conflict};

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
    let network_place = |at| place_of(at, &asked.networks, sets, |loaded| &loaded.networks);
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
                place: network_place(index),
                other: Some(first_given(&first.set, network_place(before))),
                help: "describe every network once in a set, and alike in all sets".into(),
            });
        }
    }
    problems.extend(leaving(&asked, sets));
    problems.extend(translated(&asked, sets));
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

/// The rules about what leaves that contradict each other.
fn leaving(asked: &Asked, sets: &[Loaded]) -> Vec<Problem> {
    let conflicts = egress::conflicts(asked);
    let describe = |written: Written| match written {
        Written::Network(at) => asked.networks.get(at).map(|owned| (owned.rule.to_string(), &owned.set)),
        Written::Masquerade(at) => asked.masquerades.get(at).map(|owned| (owned.rule.to_string(), &owned.set)),
        Written::Snat(at) => asked.snats.get(at).map(|owned| (owned.rule.to_string(), &owned.set)),
    };
    let place = |written: Written| match written {
        Written::Network(at) => place_of(at, &asked.networks, sets, |loaded| &loaded.networks),
        Written::Masquerade(at) => place_of(at, &asked.masquerades, sets, |loaded| &loaded.masquerades),
        Written::Snat(at) => place_of(at, &asked.snats, sets, |loaded| &loaded.snats),
    };
    let problem = |(earlier, later)| {
        let ((first, set), (second, _)) = (describe(earlier)?, describe(later)?);
        Some(Problem {
            kind: Kind::Conflict,
            what: format!("`{second}` and `{first}` ask for different addresses of the same packets"),
            place: place(later),
            other: Some(first_given(set, place(earlier))),
            help: "remove one, or give one of them an `out` or another `from`".into(),
        })
    };
    conflicts.into_iter().filter_map(problem).collect()
}

/// The 1:1 translations that contradict each other: one network that stands for two, or two that stand for one.
fn translated(asked: &Asked, sets: &[Loaded]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, owned) in asked.netmaps.iter().enumerate() {
        let contradicts = |other: &Owned<Netmap>| {
            (other.rule.listen == owned.rule.listen || other.rule.to == owned.rule.to) && other.rule != owned.rule
        };
        let before = asked.netmaps.iter().take(index).position(contradicts);
        let Some((at, first)) = before.and_then(|at| Some((at, asked.netmaps.get(at)?))) else { continue };
        let place = |at| place_of(at, &asked.netmaps, sets, |loaded| &loaded.netmaps);
        problems.push(Problem {
            kind: Kind::Conflict,
            what: format!("`{}` contradicts `{}`", owned.rule, first.rule),
            place: place(index),
            other: Some(first_given(&first.set, place(at))),
            help: "let every network stand for one other".into(),
        });
    }
    problems
}

/// Where a rule is written. The rules of the sets at hand are the last of those that are asked, in the order of the sets;
/// what was asked before is in no file at hand.
fn place_of<T>(
    at: usize,
    rules: &[Owned<T>],
    sets: &[Loaded],
    places: impl Fn(&Loaded) -> &Vec<Place>,
) -> Option<Place> {
    let count: usize = sets.iter().map(|loaded| places(loaded).len()).sum();
    let index = at.checked_sub(rules.len().checked_sub(count)?)?;
    sets.iter().flat_map(places).nth(index).cloned()
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
