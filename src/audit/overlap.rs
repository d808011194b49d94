//! An index of regions, to find the regions that intersect another one.

use std::collections::{BTreeMap, HashMap};

use crate::ruleset::region::{Field, Region};
use crate::ruleset::set::Set;

/// The maximum number of ports that are indexed one by one.
const FEW: u128 = 16;

/// The number of ports in one bucket, as a power of two.
const SHARE: u32 = 8;

/// The maximum number of buckets of one region.
const PLACES: u128 = 16;

/// An index of regions by address and port.
#[derive(Debug, Clone)]
pub struct Overlaps<'a> {
    regions: Vec<&'a Region>,
    /// Regions with one address and few ports, by address and port.
    pairs: HashMap<(u128, u128), Vec<usize>>,
    /// Regions with few ports, by port.
    of_pairs: BTreeMap<u128, Vec<usize>>,
    /// Regions with few ports and several addresses, by port.
    ports: BTreeMap<u128, Vec<usize>>,
    /// Regions with more ports, by groups of 2^[`SHARE`] ports.
    shares: BTreeMap<u128, Vec<usize>>,
    /// Regions with one address and many ports.
    addresses: HashMap<u128, Vec<usize>>,
    /// All others.
    rest: Vec<usize>,
}

impl<'a> Overlaps<'a> {
    /// Takes regions in order.
    pub fn new(regions: impl IntoIterator<Item = &'a Region>) -> Self {
        let regions: Vec<&Region> = regions.into_iter().collect();
        let mut overlaps = Self {
            regions: Vec::new(),
            pairs: HashMap::new(),
            of_pairs: BTreeMap::new(),
            ports: BTreeMap::new(),
            shares: BTreeMap::new(),
            addresses: HashMap::new(),
            rest: Vec::new(),
        };
        for (number, region) in regions.iter().enumerate() {
            overlaps.put(number, region);
        }
        overlaps.regions = regions;
        overlaps
    }

    fn put(&mut self, number: usize, region: &Region) {
        let (ports, address) = (region.get(Field::Port), region.get(Field::Destination).only());
        match (ports.size() <= FEW, address) {
            (true, Some(address)) => {
                for port in numbers(ports) {
                    self.pairs.entry((port, address)).or_default().push(number);
                    self.of_pairs.entry(port).or_default().push(number);
                }
            }
            (true, None) => numbers(ports).for_each(|port| self.ports.entry(port).or_default().push(number)),
            (false, Some(address)) => self.addresses.entry(address).or_default().push(number),
            (false, None) => match shares(ports) {
                Some(shares) => shares.into_iter().for_each(|at| self.shares.entry(at).or_default().push(number)),
                None => self.rest.push(number),
            },
        }
    }

    /// Returns the indexes of the regions that intersect a region, in ascending order.
    pub fn meeting(&self, region: &Region) -> Vec<usize> {
        let (ports, address) = (region.get(Field::Port), region.get(Field::Destination).only());
        let mut found: Vec<usize> = Vec::new();
        if ports.size() <= FEW {
            for port in numbers(ports) {
                match address {
                    Some(address) => found.extend(self.pairs.get(&(port, address)).into_iter().flatten()),
                    None => found.extend(self.of_pairs.get(&port).into_iter().flatten()),
                }
                found.extend(self.ports.get(&port).into_iter().flatten());
                found.extend(self.shares.get(&(port >> SHARE)).into_iter().flatten());
            }
        } else {
            for (first, last) in ports.ranges() {
                found.extend(self.of_pairs.range(first..=last).flat_map(|(_, numbers)| numbers));
                found.extend(self.ports.range(first..=last).flat_map(|(_, numbers)| numbers));
                found.extend(self.shares.range(first >> SHARE..=last >> SHARE).flat_map(|(_, numbers)| numbers));
            }
        }
        match address {
            Some(address) => found.extend(self.addresses.get(&address).into_iter().flatten()),
            None => found.extend(self.addresses.values().flatten()),
        }
        found.extend(&self.rest);
        found.sort_unstable();
        found.dedup();
        found.retain(|number| self.regions.get(*number).is_some_and(|other| other.meets(region)));
        found
    }
}

fn numbers(set: &Set) -> impl Iterator<Item = u128> {
    set.ranges().iter().flat_map(|(first, last)| *first..=*last)
}

/// Returns the buckets of a set of ports. Returns `None` if there are too many.
fn shares(ports: &Set) -> Option<Vec<u128>> {
    let mut found = Vec::new();
    for (first, last) in ports.ranges() {
        let (first, last) = (first >> SHARE, last >> SHARE);
        if last - first > PLACES {
            return None;
        }
        found.extend(first..=last);
    }
    found.dedup();
    (found.len() <= 2 * usize::try_from(PLACES).unwrap_or(usize::MAX)).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn regions() -> impl Strategy<Value = Region> {
        let ports = prop_oneof![
            2 => (0..2000u128).prop_map(Set::single),
            2 => (0..2000u128, 0..40u128).prop_map(|(first, more)| Set::range(first, first + more)),
            1 => (0..2000u128, 0..9000u128).prop_map(|(first, more)| Set::range(first, first + more)),
            1 => Just(Set::ALL),
        ];
        let address = prop_oneof![Just(Set::ALL), (0..3u128).prop_map(Set::single), Just(Set::range(0, 1))];
        (ports, address)
            .prop_map(|(ports, address)| Region::all().with(Field::Port, &ports).with(Field::Destination, &address))
    }

    proptest! {
        #[test]
        fn no_region_that_is_met_is_missed(all in proptest::collection::vec(regions(), 0..60), asked in regions()) {
            let wanted: Vec<usize> = (0..all.len()).filter(|number| all[*number].meets(&asked)).collect();
            prop_assert_eq!(Overlaps::new(&all).meeting(&asked), wanted);
        }
    }
}
