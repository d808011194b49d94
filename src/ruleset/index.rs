//! Indexes of regions: they find the regions that a packet, or another region, can share packets with.
//!
//! The index is a tree of bounds, like an R-tree. A node stores, for each of a few fields, the range that contains the values
//! of all its regions. A search skips each node that its own bounds exclude. So one structure serves addresses, ports and
//! interfaces, single values and ranges, and no field is preferred.

use std::ops::Range;

use super::region::{Field, Packet, Region};
use super::table::Chain;

/// The fields that the index compares. They distinguish most rules.
const FIELDS: [Field; 5] = [Field::Destination, Field::Port, Field::Source, Field::Input, Field::Output];

/// The maximum number of regions in a leaf.
const LEAF: usize = 8;

/// The number of members that a node samples to choose the field by which it is split.
const SAMPLE: usize = 32;

/// For each of [`FIELDS`], the smallest and the largest value.
#[derive(Debug, Clone, Copy)]
struct Bounds([(u128, u128); FIELDS.len()]);

impl Bounds {
    /// The neutral element of [`Bounds::extend`].
    const NONE: Self = Self([(u128::MAX, 0); FIELDS.len()]);

    fn of_region(region: &Region) -> Self {
        Self(FIELDS.map(|field| bounds(region, field)))
    }

    /// Returns the bounds of a packet. An unknown field can have any value.
    fn of_packet(packet: &Packet) -> Self {
        Self(FIELDS.map(|field| packet.get(field).map_or((0, u128::MAX), |value| (value, value))))
    }

    fn extend(&mut self, other: &Self) {
        for ((first, last), (other_first, other_last)) in self.0.iter_mut().zip(&other.0) {
            *first = (*first).min(*other_first);
            *last = (*last).max(*other_last);
        }
    }

    fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a.0 <= b.1 && b.0 <= a.1)
    }
}

/// Returns the smallest and the largest value of a field.
fn bounds(region: &Region, field: Field) -> (u128, u128) {
    match region.get(field).ranges() {
        [(first, _), .., (_, last)] => (*first, *last),
        [only] => *only,
        [] => (u128::MAX, 0),
    }
}

#[derive(Debug, Clone)]
struct Node {
    bounds: Bounds,
    /// The members of a leaf, as a range of [`Tree::members`]. Empty in an inner node.
    members: Range<usize>,
    /// The node that follows the subtree of this one. The first child of an inner node is the next node.
    next: usize,
}

/// A tree of bounds. Members are the positions of regions in the list that the tree was made of.
#[derive(Debug, Clone, Default)]
struct Tree {
    /// The nodes in depth-first order.
    nodes: Vec<Node>,
    members: Vec<usize>,
}

impl Tree {
    fn new(regions: &[&Region]) -> Self {
        let mut tree = Self { nodes: Vec::new(), members: (0..regions.len()).collect() };
        tree.build(regions, 0..regions.len());
        tree
    }

    /// Appends the nodes of some members. Returns their bounds.
    fn build(&mut self, regions: &[&Region], members: Range<usize>) -> Bounds {
        let Some(list) = self.members.get_mut(members.clone()) else { return Bounds::NONE };
        let region = |number: &usize| regions.get(*number).copied();
        let node = self.nodes.len();
        let mut all = Bounds::NONE;
        if list.len() <= LEAF {
            list.iter().filter_map(region).for_each(|region| all.extend(&Bounds::of_region(region)));
            self.nodes.push(Node { bounds: all, members, next: node + 1 });
            return all;
        }
        let field = most_distinct_field(regions, list);
        let key = |number: &usize| region(number).map(|region| bounds(region, field));
        list.select_nth_unstable_by_key(list.len() / 2, key);
        let middle = members.start + members.len() / 2;
        self.nodes.push(Node { bounds: all, members: 0..0, next: 0 });
        for half in [members.start..middle, middle..members.end] {
            all.extend(&self.build(regions, half));
        }
        let next = self.nodes.len();
        if let Some(node) = self.nodes.get_mut(node) {
            (node.bounds, node.next) = (all, next);
        }
        all
    }

    /// Returns the members of all leaves whose bounds meet `asked`, in no order.
    fn search(&self, asked: Bounds) -> impl Iterator<Item = usize> {
        let mut position = 0;
        let leaves = std::iter::from_fn(move || {
            loop {
                let node = self.nodes.get(position)?;
                let meets = node.bounds.meets(&asked);
                position = if meets { position + 1 } else { node.next };
                if meets && !node.members.is_empty() {
                    return self.members.get(node.members.clone());
                }
            }
        });
        leaves.flatten().copied()
    }
}

/// Returns the field with the most distinct values in a sample of the members.
fn most_distinct_field(regions: &[&Region], members: &[usize]) -> Field {
    let step = members.len().div_ceil(SAMPLE).max(1);
    let distinct = |field: &Field| {
        let sample = members.iter().step_by(step).filter_map(|number| regions.get(*number));
        let mut values: Vec<(u128, u128)> = sample.map(|region| bounds(region, *field)).collect();
        values.sort_unstable();
        values.dedup();
        values.len()
    };
    FIELDS.into_iter().max_by_key(distinct).unwrap_or(Field::Port)
}

/// An index of a list of regions.
#[derive(Debug, Clone)]
pub struct RegionIndex<'a> {
    regions: Vec<&'a Region>,
    tree: Tree,
}

impl<'a> RegionIndex<'a> {
    /// Indexes regions. Their positions in the list are their numbers.
    pub fn new(regions: impl IntoIterator<Item = &'a Region>) -> Self {
        let regions: Vec<&Region> = regions.into_iter().collect();
        let tree = Tree::new(&regions);
        Self { regions, tree }
    }

    /// Returns the numbers of the regions that meet a region, in ascending order.
    pub fn meeting(&self, region: &Region) -> Vec<usize> {
        self.meeting_before(region, usize::MAX)
    }

    /// Returns the numbers below `end` of the regions that meet a region, in ascending order.
    pub fn meeting_before(&self, region: &Region, end: usize) -> Vec<usize> {
        let meets = |number: &usize| self.regions.get(*number).is_some_and(|other| other.meets(region));
        let numbers = self.tree.search(Bounds::of_region(region)).filter(|number| *number < end);
        let mut found: Vec<usize> = numbers.filter(meets).collect();
        found.sort_unstable();
        found
    }
}

/// The minimum number of cases of a chain that gets an index.
const MANY: usize = 32;

/// The position of a rule in its chain, and of a case in its rule.
pub type Entry = (usize, usize);

/// An index of the cases of one chain.
#[derive(Debug, Clone)]
pub struct CaseIndex {
    entries: Vec<Entry>,
    tree: Tree,
}

impl CaseIndex {
    /// Indexes a chain. Returns `None` if the chain is short.
    pub fn new(chain: &Chain) -> Option<Self> {
        let cases =
            chain.rules.iter().enumerate().flat_map(|(rule, one)| {
                one.cases.iter().enumerate().map(move |(case, one)| ((rule, case), &one.region))
            });
        let (entries, regions): (Vec<Entry>, Vec<&Region>) = cases.unzip();
        (entries.len() > MANY).then(|| Self { entries, tree: Tree::new(&regions) })
    }

    /// Returns the cases that a packet can be in, in the order of the chain. It can return other cases too.
    pub fn entries(&self, packet: &Packet) -> Vec<Entry> {
        let numbers = self.tree.search(Bounds::of_packet(packet));
        let mut found: Vec<Entry> = numbers.filter_map(|number| self.entries.get(number).copied()).collect();
        found.sort_unstable();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::ruleset::region::Truth;
    use crate::ruleset::set::Set;
    use crate::ruleset::table::{Case, Rule};
    use proptest::prelude::*;

    fn set(most: u128) -> impl Strategy<Value = Set> {
        prop_oneof![
            2 => (0..most).prop_map(Set::single),
            2 => (0..most, 0..most).prop_map(|(first, more)| Set::range(first, first + more)),
            1 => (0..most).prop_map(|number| Set::single(number).not()),
            3 => Just(Set::ALL),
            1 => Just(Set::none()),
        ]
    }

    fn region() -> impl Strategy<Value = Region> {
        (set(40), set(4), set(6), set(3)).prop_map(|(port, destination, source, output)| {
            let region = Region::all().with(Field::Port, &port).with(Field::Destination, &destination);
            region.with(Field::Source, &source).with(Field::Output, &output)
        })
    }

    proptest! {
        #[test]
        fn the_index_finds_exactly_the_regions_that_meet(all in proptest::collection::vec(region(), 0..90), asked in region()) {
            let wanted: Vec<usize> = (0..all.len()).filter(|number| all[*number].meets(&asked)).collect();
            let index = RegionIndex::new(&all);
            prop_assert_eq!(&index.meeting(&asked), &wanted);
            let half = all.len() / 2;
            let earlier: Vec<usize> = wanted.into_iter().filter(|number| *number < half).collect();
            prop_assert_eq!(index.meeting_before(&asked, half), earlier);
        }

        #[test]
        fn the_index_of_a_chain_misses_no_case_of_a_packet(
            regions in proptest::collection::vec(proptest::collection::vec(region(), 0..3), 20..80),
            values in proptest::collection::vec(proptest::option::of(0..8u128), FIELDS.len()),
        ) {
            let rule = |cases: &Vec<Region>| Rule {
                cases: cases.iter().map(|region| Case { region: region.clone(), actions: Box::default() }).collect(),
                ..Rule::default()
            };
            let chain = Chain { name: "some".into(), base: None, handle: None, rules: regions.iter().map(rule).collect() };
            let Some(index) = CaseIndex::new(&chain) else { return Ok(()) };
            let mut packet = Packet::new(Family::Ipv4);
            for (field, value) in FIELDS.into_iter().zip(values) {
                packet.set(field, value);
            }
            let found = index.entries(&packet);
            prop_assert!(found.is_sorted_by(|a, b| a < b));
            for (rule, cases) in regions.iter().enumerate() {
                for (case, region) in cases.iter().enumerate() {
                    prop_assert!(region.has(&packet) == Truth::No || found.contains(&(rule, case)));
                }
            }
        }
    }
}
