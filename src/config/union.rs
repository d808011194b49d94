//! Several sets brought together: what they ask in all, or every two rules that contradict each other, with both places.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::diagnostic::{Kind, Problem};
use super::load::Loaded;
use super::source::Place;
use crate::model::{Asked, Binding, Family, Forward, Netmap, Network, Owned, SetName, conflict, precedence};

/// Brings what is asked already together with sets that replace their namesakes in it.
///
/// # Errors
/// Every conflict, inside of a set and between sets.
pub fn union(mut asked: Asked, sets: &[Loaded]) -> Result<Asked, Vec<Problem>> {
    for loaded in sets {
        asked.remove(&loaded.set.name);
    }
    let mut problems = Vec::new();
    let mut priorities: BTreeMap<&SetName, &Place> = BTreeMap::new();
    let mut names: BTreeMap<&SetName, &Loaded> = BTreeMap::new();
    for loaded in sets {
        if let Some(first) = names.insert(&loaded.set.name, loaded) {
            problems.push(same_name(first, loaded));
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
    let conflicts = conflict::find(asked.bindings.iter().map(|owned| &owned.rule));
    let atoms = if conflicts.is_empty() { Vec::new() } else { places_of_atoms(sets) };
    let place = |index| place_of(index, &asked.bindings, &atoms);
    for (earlier, later) in conflicts {
        let (Some(first), Some(second)) = (asked.bindings.get(earlier), asked.bindings.get(later)) else { continue };
        problems.push(Problem {
            kind: Kind::Conflict,
            what: taken(&first.rule, &second.rule),
            place: place(later),
            other: Some(first_given(&first.set, place(earlier))),
            help: format!(
                "`{}` cannot be told apart from it{}; remove one, or {}",
                second.rule,
                if only_at_loopback(&first.rule, &second.rule) { " there" } else { "" },
                apart(&first.rule, &second.rule)
            ),
        });
    }
    let network_place = |at| place_of(at, &asked.networks, &places(sets, |loaded| &loaded.networks));
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

/// Says that the place of the second of two bindings that contradict each other is taken by the first.
pub fn taken(first: &Binding, second: &Binding) -> String {
    let goes = format!("`{}` already goes to {}", first.listen(), first.target());
    if !only_at_loopback(first, second) {
        return goes;
    }
    let named = first.loopback_address().or(second.loopback_address());
    format!("at {} {goes}", named.unwrap_or(localhost(first.family)))
}

/// What to do, besides removing one, with two bindings that contradict each other.
pub fn apart(first: &Binding, second: &Binding) -> String {
    if !only_at_loopback(first, second) {
        return "give one an address, an interface or other clients".into();
    }
    // One that names a loopback address has nothing else to serve.
    let of = match (first.serves_others(), second.serves_others()) {
        (true, true) => "one".into(),
        (true, false) => format!("`{}`", first.listen()),
        (false, _) => format!("`{}`", second.listen()),
    };
    format!("leave `loopback` out of {of}, or give one other ports or other clients")
}

/// Whether two bindings that contradict each other do so at loopback addresses only: there it does not matter which other
/// address or interface they name.
fn only_at_loopback(first: &Binding, second: &Binding) -> bool {
    !first.listens_like(second)
}

fn localhost(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::LOCALHOST.into(),
        Family::Ipv6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The source NATs that contradict each other.
fn leaving(asked: &Asked, sets: &[Loaded]) -> Vec<Problem> {
    let place = |at| place_of(at, &asked.snats, &places(sets, |loaded| &loaded.snats));
    let problem = |(earlier, later): (usize, usize)| {
        let (first, second) = (asked.snats.get(earlier)?, asked.snats.get(later)?);
        Some(Problem {
            kind: Kind::Conflict,
            what: format!("`{}` and `{}` name different addresses for the same packets", second.rule, first.rule),
            place: place(later),
            other: Some(first_given(&first.set, place(earlier))),
            help: "remove one, or give one of them an `out` or another `from`".into(),
        })
    };
    precedence::conflicts(asked).into_iter().filter_map(problem).collect()
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
        let place = |at| place_of(at, &asked.netmaps, &places(sets, |loaded| &loaded.netmaps));
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

/// Where a rule is written. The rules of the sets at hand, whose places are given, are the last of those that are asked;
/// what was asked before is in no file at hand.
fn place_of<T>(at: usize, rules: &[Owned<T>], places: &[&Place]) -> Option<Place> {
    let index = at.checked_sub(rules.len().checked_sub(places.len())?)?;
    places.get(index).copied().cloned()
}

/// The places of the rules of a kind, in the order of the rules.
fn places(sets: &[Loaded], of: impl Fn(&Loaded) -> &Vec<Place>) -> Vec<&Place> {
    sets.iter().flat_map(of).collect()
}

/// The places of the atoms of all forwards, in the order of the atoms.
fn places_of_atoms(sets: &[Loaded]) -> Vec<&Place> {
    let forwards = sets.iter().flat_map(|loaded| loaded.set.forwards.iter().zip(&loaded.forwards));
    // The loader has made sure that the forward has a normal form.
    let atoms = |forward: &Forward| forward.bindings().map_or(0, |atoms| atoms.len());
    forwards.flat_map(|(forward, place)| std::iter::repeat_n(place, atoms(forward))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Source, load};
    use std::sync::Arc;

    fn loaded(name: &str, text: &str) -> Loaded {
        let (loaded, problems) = load(&Arc::new(Source { path: format!("{name}.toml").into(), text: text.into() }));
        assert_eq!(problems, []);
        loaded.expect("a set")
    }

    /// The one problem of a new file with what is asked already.
    fn problem(before: &str, new: &str) -> Problem {
        let before = union(Asked::default(), &[loaded("before", before)]).expect("no conflict");
        let mut problems = union(before, &[loaded("new", new)]).expect_err(new);
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.remove(0)
    }

    #[test]
    fn the_new_file_is_the_main_place_whatever_it_contradicts() {
        const SNAT: &str = "[[snat]]\nfrom = \"10.0.0.0/24\"\nto = \"203.0.113.5\"\n";
        const ANOTHER: &str = "[[snat]]\nfrom = \"10.0.0.0/24\"\nto = \"203.0.113.6\"\n";
        const NETMAP: &str = "[[netmap]]\nlisten = \"192.0.2.0/24\"\nto = \"10.0.0.0/24\"\n";
        const OTHER: &str = "[[netmap]]\nlisten = \"192.0.2.0/24\"\nto = \"10.0.1.0/24\"\n";
        for (before, new, begins, help) in [
            (SNAT, ANOTHER, "`snat from 10.0.0.0/24 to 203.0.113.6` and ", "give one of them an `out`"),
            (ANOTHER, SNAT, "`snat from 10.0.0.0/24 to 203.0.113.5` and ", "give one of them an `out`"),
            (NETMAP, OTHER, "`netmap 192.0.2.0/24 to 10.0.1.0/24` contradicts", "every network"),
            (OTHER, NETMAP, "`netmap 192.0.2.0/24 to 10.0.0.0/24` contradicts", "every network"),
        ] {
            let problem = problem(before, new);
            assert_eq!(problem.place.map(|place| place.source.path.clone()), Some("new.toml".into()), "{new}");
            assert_eq!(problem.other, Some(("it is in the rule set `before`".into(), None)), "{new}");
            assert!(
                problem.what.starts_with(begins) && problem.help.contains(help),
                "{}: {}",
                problem.what,
                problem.help
            );
        }
    }

    #[test]
    fn the_order_of_subnets_means_nothing() {
        let network = |subnets: &str| {
            let text = format!("[[network]]\nname = \"br0\"\nsubnet = [{subnets}]\n");
            loaded("x", &text).set.networks
        };
        let both = network("\"10.0.0.0/24\", \"10.0.1.0/24\"");
        assert_eq!(network("\"10.0.1.0/24\", \"10.0.0.0/24\", \"10.0.1.0/24\""), both);
        assert_eq!(both.first().map(|network| network.subnets.len()), Some(2));
    }

    #[test]
    fn what_contradicts_only_at_loopback_addresses_says_so() {
        let forward = |listen: &str, to: &str, more: &str| {
            format!("[[forward]]\nlisten = \"{listen}\"\nto = \"{to}\"\nloopback = true\n{more}\n")
        };
        for (before, new, what, help) in [
            (
                forward("192.0.2.1:80", "10.0.0.1", ""),
                forward("192.0.2.2:80", "10.0.0.2", ""),
                "at 127.0.0.1 `192.0.2.1:80/tcp` already goes to 10.0.0.1:80",
                "leave `loopback` out of one, or",
            ),
            (
                forward("127.0.0.2:80", "10.0.0.1", ""),
                forward("192.0.2.2:80", "10.0.0.2", ""),
                "at 127.0.0.2 `127.0.0.2:80/tcp` already goes to 10.0.0.1:80",
                "leave `loopback` out of `192.0.2.2:80/tcp`, or",
            ),
            (
                forward("[2001:db8::1]:80", ":81", ""),
                forward("[2001:db8::2]:80", ":82", ""),
                "at ::1 `[2001:db8::1]:80/tcp` already goes to :81",
                "leave `loopback` out of one, or",
            ),
            (
                forward("80", "10.0.0.1", "interface = \"eth0\""),
                forward("80", "10.0.0.2", "interface = \"eth1\""),
                "at 127.0.0.1 `80/tcp on eth0` already goes to 10.0.0.1:80",
                "leave `loopback` out of one, or",
            ),
            (
                forward("80", "10.0.0.1", ""),
                forward("80", "10.0.0.2", ""),
                "`80/tcp` already goes to 10.0.0.1:80",
                "give one an address, an interface or other clients",
            ),
        ] {
            let problem = problem(&before, &new);
            assert_eq!(problem.what, what);
            assert!(problem.help.contains(help), "{}", problem.help);
        }
    }
}
