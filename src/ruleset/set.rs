//! Sets of numbers: the values that one field of a packet may have. A network, a list of ports and a prefix of interface
//! names are each a few ranges of numbers, so the algebra of sets decides overlaps exactly.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::model::Family;

/// A set of numbers as sorted, disjoint, inclusive ranges. Clones share the ranges.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Set(Option<Arc<[(u128, u128)]>>);

impl Set {
    /// The set of all numbers.
    pub const ALL: Self = Self(None);

    /// Returns the empty set.
    pub fn none() -> Self {
        Self(Some(Arc::default()))
    }

    /// Returns the set of one number.
    pub fn single(number: u128) -> Self {
        Self::range(number, number)
    }

    /// Returns the inclusive range. Returns the empty set if `first` is greater than `last`.
    pub fn range(first: u128, last: u128) -> Self {
        match (first, last) {
            (0, u128::MAX) => Self::ALL,
            (first, last) if first > last => Self::none(),
            range => Self(Some(Arc::new([range]))),
        }
    }

    /// Returns the union of inclusive ranges.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (u128, u128)>) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|(first, last)| first <= last).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        if merged == [(0, u128::MAX)] { Self::ALL } else { Self(Some(merged.into())) }
    }

    /// Returns all addresses of a network.
    pub fn network(network: IpNetwork) -> Self {
        Self::range(number_of(network.network()), number_of(network.broadcast()))
    }

    /// Returns the set of one address.
    pub fn address(address: IpAddr) -> Self {
        Self::single(number_of(address))
    }

    /// Returns the interface `name`. If `name` ends with `wildcard`, returns all interfaces whose names start with the part
    /// before `wildcard`.
    pub fn interface(name: &str, wildcard: char) -> Self {
        match name.strip_suffix(wildcard) {
            Some(beginning) => Self::names_that_begin(beginning.as_bytes()),
            None => Self::single(number_of_name(name.as_bytes(), 0)),
        }
    }

    /// Returns all interface names that start with `beginning`.
    pub fn names_that_begin(beginning: &[u8]) -> Self {
        Self::range(number_of_name(beginning, 0), number_of_name(beginning, 0xff))
    }

    /// Returns the ranges in ascending order.
    pub fn ranges(&self) -> &[(u128, u128)] {
        self.0.as_deref().unwrap_or(&[(0, u128::MAX)])
    }

    /// Returns true if the set contains all numbers.
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// Returns true if the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_some_and(|ranges| ranges.is_empty())
    }

    /// Returns the number of elements, at most `u128::MAX`.
    pub fn size(&self) -> u128 {
        self.ranges().iter().fold(0, |sum, (first, last)| sum.saturating_add((last - first).saturating_add(1)))
    }

    /// Returns the element of a set with one element.
    pub fn only(&self) -> Option<u128> {
        match self.ranges() {
            [(first, last)] if first == last => Some(*first),
            _ => None,
        }
    }

    /// Returns the smallest element.
    pub fn first(&self) -> Option<u128> {
        self.ranges().first().map(|(first, _)| *first)
    }

    /// Returns true if the set contains `number`.
    pub fn has(&self, number: u128) -> bool {
        let ranges = self.ranges();
        let behind = ranges.partition_point(|(first, _)| *first <= number);
        behind.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| number <= *last)
    }

    /// Returns the intersection.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        match (&self.0, &other.0) {
            (None, _) => other.clone(),
            (_, None) => self.clone(),
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => self.clone(),
            (Some(_), Some(_)) => {
                let (mut a, mut b) = (self.ranges(), other.ranges());
                let mut both = Vec::new();
                while let (Some((a_first, a_last)), Some((b_first, b_last))) = (a.first(), b.first()) {
                    let (first, last) = (*a_first.max(b_first), *a_last.min(b_last));
                    if first <= last {
                        both.push((first, last));
                    }
                    if a_last < b_last { a = &a[1..] } else { b = &b[1..] }
                }
                // Usually one set contains the other, and the ranges can be shared.
                [self, other]
                    .into_iter()
                    .find(|one| one.ranges() == both)
                    .cloned()
                    .unwrap_or_else(|| Self(Some(both.into())))
            }
        }
    }

    /// Returns the union.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self::from_ranges(self.ranges().iter().chain(other.ranges()).copied())
    }

    /// Returns the complement.
    #[must_use]
    pub fn not(&self) -> Self {
        let (mut rest, mut next) = (Vec::new(), Some(0u128));
        for (first, last) in self.ranges() {
            if let Some(start) = next
                && start < *first
            {
                rest.push((start, first - 1));
            }
            next = last.checked_add(1);
        }
        rest.extend(next.map(|start| (start, u128::MAX)));
        // The gaps between sorted, disjoint ranges are sorted and disjoint.
        if rest == [(0, u128::MAX)] { Self::ALL } else { Self(Some(rest.into())) }
    }

    /// Returns the difference.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.and(&other.not())
    }

    /// Returns true if `other` is a subset.
    pub fn covers(&self, other: &Self) -> bool {
        let ranges = self.ranges();
        let within = |(first, last): &(u128, u128)| {
            let at = ranges.partition_point(|(_, end)| end < first);
            ranges.get(at).is_some_and(|(start, end)| start <= first && last <= end)
        };
        other.ranges().iter().all(within)
    }

    /// Returns true if the intersection is not empty.
    pub fn meets(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, _) => !other.is_empty(),
            (_, None) => !self.is_empty(),
            _ => {
                let (mut a, mut b) = (self.ranges(), other.ranges());
                while let ([(a_first, a_last), a_rest @ ..], [(b_first, b_last), b_rest @ ..]) = (a, b) {
                    if a_first.max(b_first) <= a_last.min(b_last) {
                        return true;
                    }
                    if a_last < b_last { a = a_rest } else { b = b_rest }
                }
                false
            }
        }
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("all"),
            Some(ranges) => f.debug_list().entries(ranges.iter()).finish(),
        }
    }
}

/// Returns an address as a number. An IPv4 and an IPv6 address can have the same number.
pub fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Returns the address of a number. Returns `None` if the number is too large for the family.
pub fn address_of(number: u128, family: Family) -> Option<IpAddr> {
    match family {
        Family::Ipv4 => Some(IpAddr::V4(u32::try_from(number).ok()?.into())),
        Family::Ipv6 => Some(IpAddr::V6(number.into())),
    }
}

/// Returns an interface name as a number: the bytes of the name, padded to 16 with `fill`. So all names with the same prefix
/// are one range.
pub fn number_of_name(name: &[u8], fill: u8) -> u128 {
    let mut bytes = [fill; 16];
    for (to, from) in bytes.iter_mut().zip(name) {
        *to = *from;
    }
    u128::from_be_bytes(bytes)
}

/// Returns the interface name of a number.
pub fn name_of(number: u128) -> String {
    let bytes = number.to_be_bytes();
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sets() -> impl Strategy<Value = Set> {
        let end = || prop_oneof![0..40u128, u128::MAX - 40..=u128::MAX];
        let some = proptest::collection::vec((end(), end()), 0..5).prop_map(Set::from_ranges);
        prop_oneof![1 => Just(Set::ALL), 8 => some]
    }

    proptest! {
        #[test]
        fn the_algebra_is_that_of_sets(a in sets(), b in sets(), number in prop_oneof![0..42u128, u128::MAX - 42..=u128::MAX]) {
            let (in_a, in_b) = (a.has(number), b.has(number));
            prop_assert_eq!(a.and(&b).has(number), in_a && in_b);
            prop_assert_eq!(a.or(&b).has(number), in_a || in_b);
            prop_assert_eq!(a.not().has(number), !in_a);
            prop_assert_eq!(a.minus(&b).has(number), in_a && !in_b);
            prop_assert_eq!(a.not().not(), a.clone());
            prop_assert_eq!(a.covers(&b), b.minus(&a).is_empty());
            prop_assert_eq!(Set::range(number, 7), Set::from_ranges([(number, 7)]));
            prop_assert_eq!(Set::range(0, number), Set::from_ranges([(0, number)]));
            prop_assert_eq!(a.meets(&b), !a.and(&b).is_empty());
            prop_assert_eq!(a.and(&b), b.and(&a));
            prop_assert_eq!(a.minus(&b).or(&a.and(&b)), a);
        }
    }

    #[test]
    fn names_that_begin_alike_are_one_range() {
        let some = Set::interface("veth+", '+');
        for (name, is) in [("veth", true), ("veth0", true), ("vethffffffffff", true), ("vet", false), ("vetz", false)] {
            assert_eq!(some.has(number_of_name(name.as_bytes(), 0)), is, "{name}");
        }
        assert_eq!(Set::interface("veth+", '*').only().map(name_of), Some("veth+".into()));
        assert!(Set::interface("*", '*').is_all());
    }

    #[test]
    fn networks_are_ranges() {
        let network: IpNetwork = "10.0.0.0/8".parse().expect("network");
        assert!(Set::network(network).has(number_of("10.255.255.255".parse().expect("address"))));
        assert_eq!(Set::network("::/0".parse().expect("network")), Set::ALL);
        assert_eq!(address_of(number_of([10, 0, 0, 1].into()), Family::Ipv4), Some([10, 0, 0, 1].into()));
        assert_eq!(address_of(u128::MAX, Family::Ipv4), None);
    }
}
