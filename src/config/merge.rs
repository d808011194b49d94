//! The union of rule sets: the desired state of all sets, or every conflict with the locations of both rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::diagnostic::{Problem, ProblemKind};
use super::load::Loaded;
use super::source::Location;
use crate::model::{Binding, DesiredState, Family, Forward, Netmap, Network, SetName, SetRule, conflict, precedence};

/// Adds sets to the desired state. A set replaces the set of the same name.
///
/// # Errors
/// If two rules conflict, in one set or in two sets. The result contains every conflict.
pub fn merge(mut desired: DesiredState, sets: &[Loaded]) -> Result<DesiredState, Vec<Problem>> {
    for loaded in sets {
        desired.remove(&loaded.set.name);
    }
    let mut problems = Vec::new();
    let mut priorities: BTreeMap<&SetName, &Location> = BTreeMap::new();
    let mut names: BTreeMap<&SetName, &Loaded> = BTreeMap::new();
    for loaded in sets {
        if let Some(first) = names.insert(&loaded.set.name, loaded) {
            problems.push(duplicate_set_name(first, loaded));
        }
        priorities.extend(loaded.priority.iter().map(|location| (&loaded.set.name, location)));
        if let Err(error) = desired.add(&loaded.set) {
            problems.push(Problem {
                kind: ProblemKind::Invalid,
                what: error.to_string(),
                location: None,
                related: None,
                help: error.help().to_owned(),
            });
        }
    }
    let conflicts = conflict::find_conflicts(desired.bindings.iter().map(|owned| &owned.rule));
    let locations_of_bindings = if conflicts.is_empty() { Vec::new() } else { binding_locations(sets) };
    let location = |index| location_of(index, &desired.bindings, &locations_of_bindings);
    for (earlier, later) in conflicts {
        let (Some(first), Some(second)) = (desired.bindings.get(earlier), desired.bindings.get(later)) else {
            continue;
        };
        problems.push(Problem {
            kind: ProblemKind::Conflict,
            what: conflict_message(&first.rule, &second.rule),
            location: location(later),
            related: Some(first_definition(&first.set, location(earlier))),
            help: format!(
                "`{}` matches the same packets{}; remove one, or {}",
                second.rule,
                if conflict_only_at_loopback(&first.rule, &second.rule) { " there" } else { "" },
                conflict_help(&first.rule, &second.rule)
            ),
        });
    }
    let network_location = |index| location_of(index, &desired.networks, &locations(sets, |loaded| &loaded.networks));
    for (index, owned) in desired.networks.iter().enumerate() {
        // Two sets can define the same network if all its keys are equal.
        let conflicts = |other: &&SetRule<Network>| {
            other.rule.name == owned.rule.name && (other.set == owned.set || other.rule != owned.rule)
        };
        let earlier = desired.networks.iter().take(index).position(|other| conflicts(&other));
        if let Some(earlier) = earlier
            && let Some(first) = desired.networks.get(earlier)
        {
            problems.push(Problem {
                kind: ProblemKind::Conflict,
                what: format!("the network `{}` is already defined", owned.rule.name),
                location: network_location(index),
                related: Some(first_definition(&first.set, network_location(earlier))),
                help: "define every network once in a set, with the same keys in all sets".into(),
            });
        }
    }
    problems.extend(snat_conflicts(&desired, sets));
    problems.extend(netmap_conflicts(&desired, sets));
    if let Err((first, second)) = desired.priority() {
        let location = |set: &SetName| priorities.get(set).copied().cloned();
        problems.push(Problem {
            kind: ProblemKind::Conflict,
            what: format!("the rule sets `{first}` and `{second}` have different priorities"),
            location: location(&second).or_else(|| location(&first)),
            related: None,
            help: "write the same `priority` in all sets, or remove it".into(),
        });
    }
    if problems.is_empty() {
        desired.normalize();
        Ok(desired)
    } else {
        Err(problems)
    }
}

/// Returns the message for two bindings that conflict.
pub fn conflict_message(first: &Binding, second: &Binding) -> String {
    let goes = format!("`{}` already goes to {}", first.listen(), first.target());
    if !conflict_only_at_loopback(first, second) {
        return goes;
    }
    let address = first.loopback_address().or(second.loopback_address());
    format!("at {} {goes}", address.unwrap_or(localhost(first.family)))
}

/// Returns the help for two bindings that conflict. The caller adds the advice to remove one of them.
pub fn conflict_help(first: &Binding, second: &Binding) -> String {
    if !conflict_only_at_loopback(first, second) {
        return "give one of them an address, an interface or other clients".into();
    }
    // A binding with a loopback listen address needs `loopback`, so the advice names the other one.
    let forward = match (first.serves_non_loopback(), second.serves_non_loopback()) {
        (true, true) => "one of them".into(),
        (true, false) => format!("`{}`", first.listen()),
        (false, _) => format!("`{}`", second.listen()),
    };
    format!("remove `loopback` from {forward}, or give one of them other ports or other clients")
}

/// Returns true if two bindings that conflict do so only for packets to loopback addresses.
fn conflict_only_at_loopback(first: &Binding, second: &Binding) -> bool {
    !first.listens_like(second)
}

fn localhost(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::LOCALHOST.into(),
        Family::Ipv6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Returns the conflicts between source NAT rules.
fn snat_conflicts(desired: &DesiredState, sets: &[Loaded]) -> Vec<Problem> {
    let location = |index| location_of(index, &desired.snats, &locations(sets, |loaded| &loaded.snats));
    let problem = |(earlier, later): (usize, usize)| {
        let (first, second) = (desired.snats.get(earlier)?, desired.snats.get(later)?);
        Some(Problem {
            kind: ProblemKind::Conflict,
            what: format!("`{}` and `{}` have different addresses for the same packets", second.rule, first.rule),
            location: location(later),
            related: Some(first_definition(&first.set, location(earlier))),
            help: "remove one, or give one of them an `out` or another `from`".into(),
        })
    };
    precedence::snat_conflicts(desired).into_iter().filter_map(problem).collect()
}

/// Returns the conflicts between 1:1 translations: two that have one network in common and differ in the other.
fn netmap_conflicts(desired: &DesiredState, sets: &[Loaded]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, owned) in desired.netmaps.iter().enumerate() {
        let conflicts = |other: &SetRule<Netmap>| {
            (other.rule.listen == owned.rule.listen || other.rule.to == owned.rule.to) && other.rule != owned.rule
        };
        let earlier = desired.netmaps.iter().take(index).position(conflicts);
        let Some((earlier, first)) = earlier.and_then(|index| Some((index, desired.netmaps.get(index)?))) else {
            continue;
        };
        let location = |index| location_of(index, &desired.netmaps, &locations(sets, |loaded| &loaded.netmaps));
        problems.push(Problem {
            kind: ProblemKind::Conflict,
            what: format!("`{}` conflicts with `{}`", owned.rule, first.rule),
            location: location(index),
            related: Some(first_definition(&first.set, location(earlier))),
            help: "translate every network to exactly one other network".into(),
        });
    }
    problems
}

/// Returns the location of the rule `rules[index]`, or `None` if the rule is not from a loaded file.
///
/// `locations` belong to the last rules in `rules`. The rules before them were in the desired state already.
fn location_of<T>(index: usize, rules: &[SetRule<T>], locations: &[&Location]) -> Option<Location> {
    let index = index.checked_sub(rules.len().checked_sub(locations.len())?)?;
    locations.get(index).copied().cloned()
}

/// Returns the locations of the rules of one kind in the order of the rules.
fn locations(sets: &[Loaded], kind: impl Fn(&Loaded) -> &Vec<Location>) -> Vec<&Location> {
    sets.iter().flat_map(kind).collect()
}

/// Returns the locations of the bindings of all forwards in the order of the bindings.
fn binding_locations(sets: &[Loaded]) -> Vec<&Location> {
    let forwards = sets.iter().flat_map(|loaded| loaded.set.forwards.iter().zip(&loaded.forwards));
    // `load` has checked that every forward has a normal form.
    let count = |forward: &Forward| forward.bindings().map_or(0, |bindings| bindings.len());
    forwards.flat_map(|(forward, location)| std::iter::repeat_n(location, count(forward))).collect()
}

fn first_definition(set: &SetName, location: Option<Location>) -> (String, Option<Location>) {
    match location {
        Some(location) => ("first defined here".into(), Some(location)),
        None => (format!("first defined in the rule set `{set}`"), None),
    }
}

fn duplicate_set_name(first: &Loaded, second: &Loaded) -> Problem {
    let start = |loaded: &Loaded| Some(Location { source: std::sync::Arc::clone(&loaded.source), span: 0..0 });
    Problem {
        kind: ProblemKind::Conflict,
        what: format!("two files define the rule set `{}`", second.set.name),
        location: start(second),
        related: Some(("the other file is here".into(), start(first))),
        help: "write another `name` under `[settings]` in one of them".into(),
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

    /// Returns the only problem of a new file with the rules of an earlier one.
    fn problem(before: &str, new: &str) -> Problem {
        let before = merge(DesiredState::default(), &[loaded("before", before)]).expect("no conflict");
        let mut problems = merge(before, &[loaded("new", new)]).expect_err(new);
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.remove(0)
    }

    #[test]
    fn a_conflict_is_located_in_the_new_file() {
        const SNAT: &str = "[[snat]]\nfrom = \"10.0.0.0/24\"\nto = \"203.0.113.5\"\n";
        const ANOTHER: &str = "[[snat]]\nfrom = \"10.0.0.0/24\"\nto = \"203.0.113.6\"\n";
        const NETMAP: &str = "[[netmap]]\nlisten = \"192.0.2.0/24\"\nto = \"10.0.0.0/24\"\n";
        const OTHER: &str = "[[netmap]]\nlisten = \"192.0.2.0/24\"\nto = \"10.0.1.0/24\"\n";
        for (before, new, begins, help) in [
            (SNAT, ANOTHER, "`snat from 10.0.0.0/24 to 203.0.113.6` and ", "give one of them an `out`"),
            (ANOTHER, SNAT, "`snat from 10.0.0.0/24 to 203.0.113.5` and ", "give one of them an `out`"),
            (NETMAP, OTHER, "`netmap 192.0.2.0/24 to 10.0.1.0/24` conflicts", "every network"),
            (OTHER, NETMAP, "`netmap 192.0.2.0/24 to 10.0.0.0/24` conflicts", "every network"),
        ] {
            let problem = problem(before, new);
            assert_eq!(problem.location.map(|location| location.source.path.clone()), Some("new.toml".into()), "{new}");
            assert_eq!(problem.related, Some(("first defined in the rule set `before`".into(), None)), "{new}");
            assert!(
                problem.what.starts_with(begins) && problem.help.contains(help),
                "{}: {}",
                problem.what,
                problem.help
            );
        }
    }

    #[test]
    fn the_order_of_subnets_has_no_meaning() {
        let network = |subnets: &str| {
            let text = format!("[[network]]\nname = \"br0\"\nsubnet = [{subnets}]\n");
            loaded("x", &text).set.networks
        };
        let both = network("\"10.0.0.0/24\", \"10.0.1.0/24\"");
        assert_eq!(network("\"10.0.1.0/24\", \"10.0.0.0/24\", \"10.0.1.0/24\""), both);
        assert_eq!(both.first().map(|network| network.subnets.len()), Some(2));
    }

    #[test]
    fn a_conflict_only_at_loopback_addresses_names_one() {
        let forward = |listen: &str, to: &str, more: &str| {
            format!("[[forward]]\nlisten = \"{listen}\"\nto = \"{to}\"\nloopback = true\n{more}\n")
        };
        for (before, new, what, help) in [
            (
                forward("192.0.2.1:80", "10.0.0.1", ""),
                forward("192.0.2.2:80", "10.0.0.2", ""),
                "at 127.0.0.1 `192.0.2.1:80/tcp` already goes to 10.0.0.1:80",
                "remove `loopback` from one of them, or",
            ),
            (
                forward("127.0.0.2:80", "10.0.0.1", ""),
                forward("192.0.2.2:80", "10.0.0.2", ""),
                "at 127.0.0.2 `127.0.0.2:80/tcp` already goes to 10.0.0.1:80",
                "remove `loopback` from `192.0.2.2:80/tcp`, or",
            ),
            (
                forward("[2001:db8::1]:80", ":81", ""),
                forward("[2001:db8::2]:80", ":82", ""),
                "at ::1 `[2001:db8::1]:80/tcp` already goes to :81",
                "remove `loopback` from one of them, or",
            ),
            (
                forward("80", "10.0.0.1", "interface = \"eth0\""),
                forward("80", "10.0.0.2", "interface = \"eth1\""),
                "at 127.0.0.1 `80/tcp on eth0` already goes to 10.0.0.1:80",
                "remove `loopback` from one of them, or",
            ),
            (
                forward("80", "10.0.0.1", ""),
                forward("80", "10.0.0.2", ""),
                "`80/tcp` already goes to 10.0.0.1:80",
                "give one of them an address, an interface or other clients",
            ),
        ] {
            let problem = problem(&before, &new);
            assert_eq!(problem.what, what);
            assert!(problem.help.contains(help), "{}", problem.help);
        }
    }
}
