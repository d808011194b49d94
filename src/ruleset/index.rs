//! Where in a long chain a packet is asked about, without asking every rule.

use std::collections::HashMap;

use super::region::{Field, Packet, Region};
use super::set::Set;
use super::table::Chain;

/// The most numbers that a case is found by.
const FEW: u128 = 16;

/// How many cases a chain has before it is worth it.
const MANY: usize = 32;

/// The number of a rule and that of its case.
pub type Entry = (usize, usize);

/// By what cases are found: what most of them ask for comes first, and a case is found by the first that tells it apart.
const KEYS: [(Field, Option<Field>); 6] = [
    (Field::Destination, Some(Field::Port)),
    (Field::Destination, None),
    (Field::Port, None),
    (Field::Source, None),
    (Field::Output, None),
    (Field::Input, None),
];

/// Finds the cases of a chain that a packet may be in.
#[derive(Debug, Clone, Default)]
pub struct Index {
    /// For each of [`KEYS`] by the numbers of its fields, which of the entries.
    spans: [HashMap<(u128, u128), (usize, usize)>; KEYS.len()],
    /// Those of one key and number one behind the other, in order.
    entries: Vec<Entry>,
    /// For each of [`KEYS`] all of its entries, in order.
    all: [Vec<Entry>; KEYS.len()],
    /// Those of no key.
    rest: Vec<Entry>,
}

impl Index {
    /// Looks at a chain; `None` where it is short.
    pub fn new(chain: &Chain) -> Option<Self> {
        let cases = || {
            let rules = chain.rules.iter().enumerate();
            rules.flat_map(|(rule, one)| one.cases.iter().enumerate().map(move |(case, it)| ((rule, case), it)))
        };
        cases().nth(MANY)?;
        let mut index = Self::default();
        let mut found = Vec::new();
        for (entry, case) in cases() {
            match KEYS.iter().position(|key| is_few(*key, &case.region)) {
                Some(by) => {
                    numbers(by, &case.region).for_each(|number| found.push((by, number, entry)));
                    if let Some(all) = index.all.get_mut(by) {
                        all.push(entry);
                    }
                }
                None => index.rest.push(entry),
            }
        }
        // Entries of a key stay in their order.
        found.sort_unstable();
        index.entries = found.iter().map(|(_, _, entry)| *entry).collect();
        let mut first = 0;
        for same in found.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            if let [(by, number, _), ..] = same
                && let Some(spans) = index.spans.get_mut(*by)
            {
                spans.insert(*number, (first, first + same.len()));
            }
            first += same.len();
        }
        Some(index)
    }

    /// The cases that a packet may be in, in order.
    pub fn entries(&self, packet: &Packet) -> Candidates<'_> {
        let mut lists: [&[Entry]; KEYS.len() + 1] = [&[]; KEYS.len() + 1];
        let (by_key, rest) = lists.split_at_mut(KEYS.len());
        for (((list, spans), all), (field, other)) in by_key.iter_mut().zip(&self.spans).zip(&self.all).zip(KEYS) {
            if spans.is_empty() {
                continue;
            }
            // What is not known of a packet leaves none out.
            *list = match packet.get(field).zip(other.map_or(Some(0), |other| packet.get(other))) {
                Some(number) => {
                    let span = spans.get(&number).and_then(|(first, end)| self.entries.get(*first..*end));
                    span.unwrap_or_default()
                }
                None => all,
            };
        }
        if let [rest] = rest {
            *rest = &self.rest;
        }
        Candidates(lists)
    }
}

/// Whether the fields of a key tell a case apart from most.
fn is_few((field, other): (Field, Option<Field>), region: &Region) -> bool {
    let size = |field| region.get(field).size();
    size(field).saturating_mul(other.map_or(1, size)) <= FEW
}

/// The numbers that the fields of a key may have.
fn numbers(by: usize, region: &Region) -> impl Iterator<Item = (u128, u128)> {
    fn of(set: &Set) -> impl Iterator<Item = u128> + Clone {
        set.ranges().iter().flat_map(|(first, last)| *first..=*last)
    }
    let (field, other) = KEYS.get(by).copied().unwrap_or((Field::Port, None));
    let others: Vec<u128> = other.map_or_else(|| vec![0], |other| of(region.get(other)).collect());
    of(region.get(field)).flat_map(move |number| others.clone().into_iter().map(move |other| (number, other)))
}

/// Cases in order, from several lists that are in order and apart from each other.
#[derive(Debug, Clone)]
pub struct Candidates<'a>([&'a [Entry]; KEYS.len() + 1]);

impl Iterator for Candidates<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let least = self.0.iter_mut().filter(|list| !list.is_empty()).min_by_key(|list| list.first().copied())?;
        let (first, rest) = least.split_first()?;
        *least = rest;
        Some(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::ruleset::region::Truth;
    use crate::ruleset::table::{Case, Rule};
    use proptest::prelude::*;

    fn cases() -> impl Strategy<Value = Region> {
        let set = || {
            prop_oneof![
                2 => (0..6u128).prop_map(Set::single),
                1 => (0..6u128, 0..30u128).prop_map(|(first, more)| Set::range(first, first + more)),
                3 => Just(Set::ALL),
            ]
        };
        (set(), set(), set(), set()).prop_map(|(port, to, from, output)| {
            let region = Region::all().with(Field::Port, &port).with(Field::Destination, &to);
            region.with(Field::Source, &from).with(Field::Output, &output)
        })
    }

    proptest! {
        #[test]
        fn no_case_that_a_packet_is_in_is_missed(
            regions in proptest::collection::vec(proptest::collection::vec(cases(), 0..3), 20..80),
            fields in (0..8u128, 0..8u128, 0..8u128, 0..8u128),
        ) {
            let rule = |cases: &Vec<Region>| Rule {
                cases: cases.iter().map(|region| Case { region: region.clone(), actions: Box::default() }).collect(),
                ..Rule::default()
            };
            let rules = regions.iter().map(rule).collect();
            let chain = Chain { name: "some".into(), base: None, handle: None, rules };
            let Some(index) = Index::new(&chain) else { return Ok(()) };
            let packet = Packet::new(Family::Ipv4).with(Field::Port, fields.0).with(Field::Destination, fields.1);
            let packet = packet.with(Field::Source, fields.2).with(Field::Output, fields.3).with(Field::Input, 1);
            let mut packets = vec![packet.clone(), Packet::new(Family::Ipv4)];
            for field in [Field::Port, Field::Destination, Field::Source, Field::Output, Field::Input] {
                let mut unknown = packet.clone();
                unknown.set(field, None);
                packets.push(unknown);
            }
            for packet in packets {
                let found: Vec<Entry> = index.entries(&packet).collect();
                prop_assert!(found.is_sorted_by(|a, b| a < b), "in order, each once");
                let all = regions.iter().enumerate().flat_map(|(rule, cases)| cases.iter().enumerate().map(move |it| (rule, it)));
                for (rule, (case, region)) in all {
                    prop_assert!(region.has(&packet) == Truth::No || found.contains(&(rule, case)));
                }
            }
        }
    }
}
