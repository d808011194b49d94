//! Conflicts between bindings: two bindings that match the same packets with the same precedence.
//!
//! Such bindings have a port in common and are equal in address, interface, client prefix and "single port or range".

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Binding, Family, IfName, Protocol};

/// The properties that are equal in two bindings that conflict. The boolean is true for a single port.
type ConflictKey<'a> = (Family, bool, Protocol, Listener<'a>, Option<IpNetwork>);

/// A listener of a binding. Two bindings can conflict only if they have a listener in common.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Listener<'a> {
    /// A listener for packets to other than loopback addresses: the address and the interface, or `None` for all.
    Network(Option<IpAddr>, Option<&'a IfName>),
    /// A listener for packets to a loopback address. `at` is `None` for all loopback addresses; `address` and
    /// `interface` are true if the forward has one.
    Loopback { at: Option<IpAddr>, address: bool, interface: bool },
}

/// Finds every binding that conflicts with an earlier one, as pairs of indexes (earlier, later) in rising order of the
/// later one. Each later binding occurs in one pair.
///
/// Takes O(n log n) time for n bindings.
pub fn find_conflicts<'a>(bindings: impl IntoIterator<Item = &'a Binding>) -> Vec<(usize, usize)> {
    let bindings: Vec<&Binding> = bindings.into_iter().collect();
    let named: BTreeSet<IpAddr> = bindings.iter().filter_map(|binding| binding.loopback_address()).collect();
    let mut order: Vec<usize> = (0..bindings.len()).collect();
    order.sort_by_key(|index| bindings.get(*index).map(|binding| (binding.ports.first(), *index)));
    // For each key, the binding with the highest last port among the bindings before this one.
    let mut reach: HashMap<ConflictKey<'a>, usize> = HashMap::new();
    let mut pairs = Vec::new();
    for index in order {
        let Some(binding) = bindings.get(index) else { continue };
        for listener in listeners(binding, &named) {
            let key = (binding.family, binding.is_exact(), binding.protocol, listener, binding.from);
            let furthest = reach.entry(key).or_insert(index);
            if *furthest != index
                && let Some(before) = bindings.get(*furthest)
            {
                if before.ports.overlaps(binding.ports) {
                    pairs.push((index.min(*furthest), index.max(*furthest)));
                }
                if binding.ports.last() > before.ports.last() {
                    *furthest = index;
                }
            }
        }
    }
    pairs.sort_by_key(|(earlier, later)| (*later, *earlier));
    pairs.dedup_by_key(|(_, later)| *later);
    pairs
}

/// Returns the listeners of a binding.
///
/// `named` contains every loopback address that a binding listens at. A binding for all loopback addresses has a
/// listener for each of them.
fn listeners<'a>(binding: &'a Binding, named: &BTreeSet<IpAddr>) -> Vec<Listener<'a>> {
    let (address, interface) = (binding.address.is_some(), binding.interface.is_some());
    let loopback = |at| Listener::Loopback { at, address, interface };
    if let Some(only) = binding.loopback_address() {
        return vec![loopback(Some(only))];
    }
    let mut listeners = vec![Listener::Network(binding.address, binding.interface.as_ref())];
    if binding.loopback {
        listeners.push(loopback(None));
        // A binding with an address and a binding without one have different classes and cannot conflict.
        listeners.extend(named.iter().filter(|_| address).map(|named| loopback(Some(*named))));
    }
    listeners
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Forward;
    use proptest::prelude::*;

    fn binding(listen: &str, interface: Option<&str>, from: Option<&str>) -> Binding {
        let mut forward = Forward::new(listen.parse().expect(listen), "10.0.0.1".parse().expect("target"));
        forward.interface = interface.map(|name| name.parse().expect(name));
        forward.from = from.map(|prefix| prefix.parse().expect(prefix)).into_iter().collect();
        forward.bindings().expect("valid").remove(0)
    }

    fn binding_at(listen: &str, interface: Option<&str>) -> Binding {
        let mut forward = Forward::new(listen.parse().expect(listen), "10.0.0.1".parse().expect("target"));
        forward.interface = interface.map(|name| name.parse().expect(name));
        forward.loopback = true;
        forward.bindings().expect("valid").remove(0)
    }

    #[test]
    fn bindings_conflict_only_if_nothing_but_the_target_differs() {
        let base = binding("8005", None, None);
        for (name, other, conflict) in [
            ("the same port", binding("8005", None, None), true),
            ("another port", binding("8006", None, None), false),
            ("a range around it", binding("8000-8010", None, None), false),
            ("another protocol", binding("8005/udp", None, None), false),
            ("an address", binding("192.0.2.1:8005", None, None), false),
            ("an interface", binding("8005", Some("eth0"), None), false),
            ("clients", binding("8005", None, Some("10.0.0.0/8")), false),
        ] {
            assert_eq!(!find_conflicts([&base, &other]).is_empty(), conflict, "{name}");
        }
        assert_eq!(find_conflicts([&binding("8000-8010", None, None), &binding("8010-8020", None, None)]), [(0, 1)]);
    }

    #[test]
    fn a_long_range_conflicts_across_a_shorter_one() {
        let all = [
            binding("100-900", None, None),
            binding("950-960", None, None),
            binding("200-210", None, None),
            binding("300-310", None, None),
        ];
        assert_eq!(find_conflicts(&all), [(0, 2), (0, 3)]);
    }

    #[test]
    fn at_loopback_addresses_only_the_presence_of_an_address_counts() {
        let at = |listen: &str, interface| Binding { loopback: true, ..binding_at(listen, interface) };
        let only = at("127.0.0.1:80", None);
        for (name, one, other, conflict) in [
            ("two addresses", at("192.0.2.1:80", None), at("192.0.2.2:80", None), true),
            ("an address and none", at("192.0.2.1:80", None), at("80", None), false),
            ("an interface and none", at("80", Some("eth0")), at("80", None), false),
            ("two interfaces", at("80", Some("eth0")), at("80", Some("eth1")), true),
            ("the address itself and another", only.clone(), at("192.0.2.1:80", None), true),
            ("the address itself and none", only.clone(), at("80", None), false),
            ("two loopback addresses", only.clone(), at("127.0.0.2:80", None), false),
            ("one without loopback", binding("192.0.2.1:80", None, None), at("192.0.2.2:80", None), false),
        ] {
            assert_eq!(!find_conflicts([&one, &other]).is_empty(), conflict, "{name}");
            assert_eq!(one.conflicts_with(&other), conflict, "{name}");
        }
    }

    proptest! {
        #[test]
        fn conflicts_are_found_exactly_if_a_pair_conflicts(ports in prop::collection::vec((1u16..60, 0u16..8), 0..12)) {
            let all: Vec<Binding> = ports
                .iter()
                .map(|(first, more)| binding(&format!("{first}-{}", first + more), None, None))
                .collect();
            let mut any = false;
            for (index, a) in all.iter().enumerate() {
                any |= all.iter().skip(index + 1).any(|b| a.conflicts_with(b));
            }
            let found = find_conflicts(&all);
            prop_assert_eq!(!found.is_empty(), any);
            for (a, b) in found {
                prop_assert!(all[a].conflicts_with(&all[b]));
            }
        }
    }
}
