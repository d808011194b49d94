//! Folds the cases of map lookups: elements with adjacent ports and targets become one case, as the user wrote the range.
//!
//! Folding sorts the cases of a rule, so it changes only rules whose cases have no packet in common.

use std::cmp::Ordering;
use std::collections::HashSet;

use super::owner;
use super::region::{Field, Region};
use super::set::Set;
use super::table::{Action, Case, Chain, Rewrite, Ruleset};

/// Folds the cases of all rules.
pub(super) fn fold(rules: &mut Ruleset) {
    for table in &mut rules.tables {
        let own = owner::of_table(table) == "portfwd";
        table.chains.each(|chain| {
            if own {
                remove_fallbacks(chain);
            }
            for rule in chain.rules.iter_mut().filter(|rule| rule.cases.len() > 1) {
                fold_cases(&mut rule.cases);
            }
        });
    }
}

/// Removes cases that an earlier rule of the chain already decides in the same way.
///
/// portfwd looks up each port twice: first in the maps of forwards with a label of their own, then in the map of all
/// forwards. The second lookup never sees the packets of the first.
fn remove_fallbacks(chain: &mut Chain) {
    let mut decided: HashSet<(Region, Action)> = HashSet::new();
    for rule in &mut chain.rules {
        let key = |case: &Case| Some((case.region.clone(), rewrite(case)?.0.clone()));
        rule.cases.retain(|case| key(case).is_none_or(|key| !key.0.is_known() || !decided.contains(&key)));
        decided.extend(rule.cases.iter().filter_map(key));
    }
}

/// Returns the last action of a case if it is a NAT statement, and its rewrite.
pub fn rewrite(case: &Case) -> Option<(&Action, &Rewrite)> {
    let last = case.actions.last()?;
    match last {
        Action::Dnat(to) | Action::Redirect(to) => Some((last, to)),
        _ => None,
    }
}

fn fold_cases(cases: &mut Vec<Case>) {
    // The last case may be for packets whose lookup failed.
    let Some(last) = cases.iter().rposition(|case| rewrite(case).is_some()) else { return };
    let mut rest = cases.split_off(last + 1);
    if !sort(cases) {
        cases.append(&mut rest);
        return;
    }
    let mut folded: Vec<Case> = Vec::with_capacity(cases.len());
    for case in cases.drain(..) {
        if let Some(previous) = folded.last_mut()
            && let Some(both) = joined(previous, &case)
        {
            *previous = both;
        } else {
            folded.push(case);
        }
    }
    folded.append(&mut rest);
    folded.shrink_to_fit();
    *cases = folded;
}

/// Sorts cases by protocol, other fields and port. Returns false and changes nothing if two cases may have a packet in common.
fn sort(cases: &mut [Case]) -> bool {
    let Some((first, others)) = cases.split_first() else { return true };
    let same_conditions = others.iter().all(|case| case.region.conditions() == first.region.conditions());
    let one_range = cases.iter().all(|case| case.region.get(Field::Port).ranges().len() == 1);
    let differs = |field: &Field| others.iter().any(|case| case.region.get(*field) != first.region.get(*field));
    let mut fields: Vec<Field> = Field::ALL.into_iter().filter(differs).collect();
    // The port is last, so that the ports of one protocol and address are adjacent.
    fields.sort_by_key(|field| (*field == Field::Port, *field != Field::Protocol));
    let apart = fields.iter().filter(|field| **field != Field::Port).all(|field| are_apart(cases, *field));
    if !same_conditions || !one_range || !apart || cases.iter().any(|case| rewrite(case).is_none()) {
        return false;
    }
    let order = |a: &Case, b: &Case| {
        let fields = fields.iter().map(|field| a.region.get(*field).ranges().cmp(b.region.get(*field).ranges()));
        fields.fold(Ordering::Equal, Ordering::then)
    };
    let mut sorted: Vec<&Case> = cases.iter().collect();
    sorted.sort_by(|a, b| order(a, b));
    if sorted.windows(2).any(|pair| matches!(pair, [a, b] if a.region.meets(&b.region))) {
        return false;
    }
    cases.sort_by(order);
    true
}

/// Returns true if the sets that the cases have for a field are equal or disjoint.
fn are_apart(cases: &[Case], field: Field) -> bool {
    let sets: HashSet<&Set> = cases.iter().map(|case| case.region.get(field)).collect();
    let mut ranges: Vec<(u128, u128)> = sets.iter().flat_map(|set| set.ranges()).copied().collect();
    ranges.sort_unstable();
    ranges.windows(2).all(|pair| matches!(pair, [(_, last), (first, _)] if last < first))
}

/// Returns one case for the packets of two. Returns `None` if the ports or the targets are not adjacent.
pub fn joined(a: &Case, b: &Case) -> Option<Case> {
    let (&[(first, end)], &[(next, last)]) = (a.region.get(Field::Port).ranges(), b.region.get(Field::Port).ranges())
    else {
        return None;
    };
    let (last_a, others_a) = a.actions.split_last()?;
    let (last_b, others_b) = b.actions.split_last()?;
    if next != end.checked_add(1)? || others_a != others_b {
        return None;
    }
    let mut region = a.region.clone();
    region.forget(Field::Port);
    let mut other = b.region.clone();
    other.forget(Field::Port);
    if region != other {
        return None;
    }
    let ports = |from: u128, to: u128| Some((u16::try_from(from).ok()?, u16::try_from(to).ok()?));
    let to = |a, b| rewritten(a, ports(first, end)?, b, ports(next, last)?);
    let action = match (last_a, last_b) {
        (a, b) if a == b => a.clone(),
        (Action::Dnat(a), Action::Dnat(b)) => Action::Dnat(to(a, b)?),
        (Action::Redirect(a), Action::Redirect(b)) => Action::Redirect(to(a, b)?),
        _ => return None,
    };
    region.narrow(Field::Port, &Set::range(first, last));
    Some(Case { region, actions: others_a.iter().cloned().chain([action]).collect() })
}

/// Returns one rewrite for two ranges of ports, if both shift their ports by the same number.
fn rewritten(a: &Rewrite, from_a: (u16, u16), b: &Rewrite, from_b: (u16, u16)) -> Option<Rewrite> {
    if (a.addresses, a.prefix) != (b.addresses, b.prefix) {
        return None;
    }
    let (first, last) = (shifted(a, from_a)?, shifted(b, from_b)?);
    (first.1.checked_add(1)? == last.0).then(|| Rewrite {
        ports: Some((first.0, last.1)),
        base: Some(from_a.0),
        ..a.clone()
    })
}

/// Returns the first and last new port of a rewrite that shifts its ports.
fn shifted(to: &Rewrite, (first, last): (u16, u16)) -> Option<(u16, u16)> {
    (first == last || to.base.is_some()).then_some(())?;
    to.ports?;
    Some((to.port_for(first)?, to.port_for(last)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn case(protocol: u128, ports: (u128, u128), to: Option<u16>) -> Case {
        let region = Region::all().with(Field::Protocol, &Set::single(protocol));
        let address = IpAddr::from([10, 9, 0, 2]);
        let rewrite =
            Rewrite { addresses: Some((address, address)), ports: to.map(|port| (port, port)), ..Rewrite::default() };
        Case {
            region: region.with(Field::Port, &Set::range(ports.0, ports.1)),
            actions: [Action::Dnat(rewrite)].into(),
        }
    }

    fn folded(mut cases: Vec<Case>) -> Vec<String> {
        fold_cases(&mut cases);
        let text = |case: &Case| {
            let to = rewrite(case).map(|(_, to)| crate::ruleset::describe::target(to)).unwrap_or_default();
            format!("{} {to}", crate::ruleset::describe::region(&case.region, crate::model::Family::Ipv4))
        };
        cases.iter().map(text).collect()
    }

    #[test]
    fn a_range_of_ports_becomes_one_case() {
        let shifted = [7, 3, 0, 1, 2, 5].map(|n| case(6, (8000 + n, 8000 + n), u16::try_from(9000 + n).ok()));
        assert_eq!(
            folded(shifted.into()),
            [
                "tcp dport 8000-8003 10.9.0.2:9000-9003/8000",
                "tcp dport 8005 10.9.0.2:9005",
                "tcp dport 8007 10.9.0.2:9007"
            ]
        );
        let same = [(81, 81), (80, 80), (96, 111), (112, 127)].map(|ports| case(17, ports, Some(53)));
        assert_eq!(folded(same.into()), ["udp dport 80-81 10.9.0.2:53", "udp dport 96-127 10.9.0.2:53"]);
        let kept = [81, 80].map(|port| case(6, (port, port), None));
        assert_eq!(folded(kept.into()), ["tcp dport 80-81 10.9.0.2"]);
    }

    #[test]
    fn ranges_of_other_protocols_and_targets_stay_apart() {
        let cases = vec![case(17, (80, 80), Some(1)), case(6, (81, 81), Some(2)), case(6, (80, 80), Some(1))];
        assert_eq!(folded(cases), ["tcp dport 80-81 10.9.0.2:1-2/80", "udp dport 80 10.9.0.2:1"]);
        // A block of ports with one target and a single port have no common shift.
        let cases = vec![case(6, (80, 81), Some(1)), case(6, (82, 82), Some(2))];
        assert_eq!(folded(cases), ["tcp dport 80-81 10.9.0.2:1", "tcp dport 82 10.9.0.2:2"]);
    }

    #[test]
    fn cases_with_common_packets_keep_their_order() {
        let cases = vec![case(6, (81, 81), Some(1)), case(6, (80, 90), Some(2)), case(6, (79, 79), Some(2))];
        assert_eq!(folded(cases), ["tcp dport 81 10.9.0.2:1", "tcp dport 80-90 10.9.0.2:2", "tcp dport 79 10.9.0.2:2"]);
        let mut cases = vec![case(6, (81, 81), Some(1)), case(6, (80, 80), Some(1))];
        cases.push(Case { region: Region::all(), actions: [].into() });
        assert_eq!(folded(cases), ["tcp dport 80-81 10.9.0.2:1", " "], "the case for failed lookups stays last");
    }
}
