//! Sets and maps: what is in one, and which packets it finds.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::dump::{Data, Element, Set};
use super::rule::{Branch, Walk};
use super::test::{Names, Test};
use super::value::{Byte, Want};
use crate::ruleset::region::{Condition, Region};
use crate::ruleset::set;

/// The most cases that one rule may have: far more than maps that somebody made by hand, and two maps that are asked the
/// same need not be multiplied.
const MOST: usize = 400_000;

/// Keys of a set that give the same.
struct Entry<'a> {
    low: &'a [u8],
    /// The last key, where there are several.
    high: Option<std::borrow::Cow<'a, [u8]>>,
    data: Option<&'a Data>,
    doubtful: bool,
}

/// A set, taken apart.
struct Entries<'a> {
    set: &'a Set,
    list: Vec<Entry<'a>>,
    /// What it gives for all that is not in it.
    catch_all: Option<&'a Element>,
}

impl<'a> Entries<'a> {
    fn new(set: &'a Set, elements: &'a [Element]) -> Self {
        let catch_all = elements.iter().find(|element| element.catch_all);
        let keys = elements.iter().filter(|element| !element.catch_all);
        let list = if set.interval && set.fields.len() < 2 && keys.clone().all(|element| element.key_end.is_none()) {
            intervals(keys.collect())
        } else {
            let entry = |element: &'a Element| Entry {
                low: &element.key,
                high: element.key_end.as_deref().filter(|end| **end != *element.key).map(Into::into),
                data: element.data.as_ref(),
                doubtful: element.doubtful,
            };
            keys.map(entry).collect()
        };
        Self { set, list, catch_all }
    }

    /// Whether registers hold one of its keys.
    fn test(&self, entry: &Entry<'_>, registers: &[Byte]) -> Test {
        let Some(high) = &entry.high else { return Test::equal(registers, entry.low) };
        if self.set.fields.len() < 2 {
            return Test::between(registers, entry.low, high);
        }
        let (mut at, mut test) = (0usize, Test::default());
        for length in &self.set.fields {
            let field = at..at.saturating_add(*length);
            let parts = (registers.get(field.clone()), entry.low.get(field.clone()), high.get(field));
            let (Some(registers), Some(low), Some(high)) = parts else { break };
            test = test.and(Test::between(registers, low, high));
            // Each field begins at a register: `nft_pipapo_lookup` in net/netfilter/nft_set_pipapo.c.
            at = at.saturating_add(length.next_multiple_of(4));
        }
        test
    }
}

/// Elements that begin and end intervals, as the kernel keeps them: an end is the first key behind.
fn intervals(mut elements: Vec<&Element>) -> Vec<Entry<'_>> {
    elements.sort_unstable_by(|a, b| a.key.cmp(&b.key).then(b.ends.cmp(&a.ends)));
    let mut list = Vec::with_capacity(elements.len() / 2);
    for (at, element) in elements.iter().enumerate() {
        if element.ends {
            continue;
        }
        let high = match elements.get(at + 1) {
            Some(next) => before(&next.key),
            None => vec![0xff; element.key.len()],
        };
        let high = (*high != *element.key).then_some(high.into());
        list.push(Entry { low: &element.key, high, data: element.data.as_ref(), doubtful: element.doubtful });
    }
    list
}

/// The key before a key.
fn before(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            break;
        }
    }
    key
}

/// Which packets a set finds.
enum Found {
    /// One number of theirs is in a set.
    Numbers(super::value::Source, set::Set),
    /// They are in one of these.
    Tests(Vec<Test>),
}

fn found(entries: &Entries<'_>, registers: &[Byte]) -> Found {
    let tests: Vec<Test> = entries.list.iter().map(|entry| entries.test(entry, registers)).collect();
    let mut source = None;
    let mut ranges = Vec::with_capacity(tests.len());
    for test in &tests {
        match test.set() {
            Some((of, set)) if source.is_none_or(|source| source == of) => {
                source = Some(of);
                ranges.extend_from_slice(set.ranges());
            }
            _ => return Found::Tests(tests),
        }
    }
    match source {
        Some(source) if !entries.list.iter().any(|entry| entry.doubtful) => {
            Found::Numbers(source, set::Set::from_ranges(ranges))
        }
        _ => Found::Tests(tests),
    }
}

/// Asks a region for not being found.
fn outside(found: &Found, entries: &Entries<'_>, region: &Region, names: Names<'_>, words: &str) -> Option<Region> {
    let mut region = region.clone();
    match found {
        Found::Numbers(source, set) => source.narrow(&mut region, &Want::In(set.clone()), true, names.links),
        Found::Tests(tests) => match tests.as_slice() {
            [] => {}
            _ if entries.list.iter().any(|entry| entry.doubtful) || !tests.iter().all(Test::is_known) => {
                region.add_condition(Condition::Unknown(format!("not {words}").into()));
            }
            [test] => return test.outside(&region, names),
            _ => {
                let inside = tests.iter().filter_map(|test| test.within(&Region::all(), names));
                region.add_condition(Condition::Outside(inside.collect::<Vec<_>>().into()));
            }
        },
    }
    (!region.is_empty()).then_some(region)
}

/// What a lookup asks, and what for.
pub(super) struct Lookup {
    /// The set's name.
    pub(super) set: String,
    /// Where the key is.
    pub(super) key: u32,
    /// Where the data go; `None`: it is only asked whether the key is there.
    pub(super) data: Option<u32>,
    /// Whether it must not be there.
    pub(super) inverted: bool,
}

impl<'a> Walk<'a> {
    /// Asks a set or a map.
    pub(super) fn lookup(&mut self, lookup: &Lookup) {
        let Some((set, elements)) = self.context.elements(&lookup.set) else {
            return self.not_read(lookup, "was not read");
        };
        // What is in it now tells nothing of the next packet. The elements of a map are shown all the same.
        if set.changing && lookup.data.is_none() {
            return self.not_read(lookup, "packets change");
        }
        if super::value::exists(lookup.key, set.key_length).is_none() {
            return self.not_read(lookup, "has keys that no register holds");
        }
        let entries = Entries::new(set, elements);
        let words: Arc<str> = format!("@{}", lookup.set).into();
        let exact: Option<HashMap<&[u8], usize>> = (!set.interval && self.open.len() > 1)
            .then(|| entries.list.iter().enumerate().map(|(number, entry)| (entry.low, number)).collect());
        let same_key = |branch: &Branch<'a>| {
            let (asked, key) = branch.asked.as_ref()?;
            let registers = branch.registers.get(lookup.key, set.key_length)?;
            exact.as_ref().filter(|_| **asked == *registers).map(|exact| exact.get(key).copied())
        };
        let cases: usize = self.open.iter().filter(|branch| same_key(branch).is_none()).count();
        if cases.saturating_mul(entries.list.len()) > MOST {
            return self.not_read(lookup, "leads to too many cases");
        }
        for branch in std::mem::take(&mut self.open) {
            let Some(registers) = branch.registers.get(lookup.key, set.key_length) else { continue };
            let registers: Rc<[Byte]> = registers.into();
            let only = same_key(&branch);
            let numbers = match only {
                Some(None) => 0..0,
                Some(Some(number)) => number..number + 1,
                None => 0..entries.list.len(),
            };
            if lookup.data.is_none() {
                self.member(lookup, &entries, branch, &registers, &words);
                continue;
            }
            for entry in entries.list.get(numbers).unwrap_or_default() {
                let test = entries.test(entry, &registers);
                let Some(mut region) = test.within(&branch.region, self.names()) else { continue };
                if entry.doubtful {
                    region.add_condition(Condition::Unknown(Arc::clone(&words)));
                }
                let mut one = branch.with(region);
                one.asked = entry.high.is_none().then(|| (Rc::clone(&registers), entry.low));
                self.give(one, lookup.data, entry.data);
            }
            if let Some(element) = entries.catch_all
                && !matches!(only, Some(Some(_)))
                && let Some(region) =
                    outside(&found(&entries, &registers), &entries, &branch.region, self.names(), &words)
            {
                self.give(branch.with(region), lookup.data, element.data.as_ref());
            }
            self.leave(branch);
        }
    }

    /// Asks only whether a key is in a set.
    fn member(
        &mut self,
        lookup: &Lookup,
        entries: &Entries<'a>,
        branch: Branch<'a>,
        registers: &[Byte],
        words: &Arc<str>,
    ) {
        if entries.catch_all.is_some() {
            return if lookup.inverted { self.leave(branch) } else { self.open.push(branch) };
        }
        let found = found(entries, registers);
        let regions: Vec<Region> = match &found {
            found if lookup.inverted => {
                outside(found, entries, &branch.region, self.names(), words).into_iter().collect()
            }
            Found::Numbers(source, set) => {
                let mut region = branch.region.clone();
                source.narrow(&mut region, &Want::In(set.clone()), false, self.context.numbers.links);
                Some(region).filter(|region| !region.is_empty()).into_iter().collect()
            }
            Found::Tests(tests) => {
                let within = tests.iter().zip(&entries.list).filter_map(|(test, entry)| {
                    let mut region = test.within(&branch.region, self.names())?;
                    if entry.doubtful {
                        region.add_condition(Condition::Unknown(Arc::clone(words)));
                    }
                    Some(region)
                });
                within.collect()
            }
        };
        self.split(branch, regions);
    }

    /// Goes on with what a map gave.
    fn give(&mut self, mut branch: Branch<'a>, register: Option<u32>, data: Option<&Data>) {
        match (register, data) {
            (Some(0), Some(Data::Verdict(verdict))) => self.verdict(branch, verdict),
            (Some(register), Some(Data::Value(value))) => {
                branch.registers.put(register, value.iter().map(|byte| Byte::Known(*byte)));
                self.open.push(branch);
            }
            _ => self.open.push(branch),
        }
    }

    /// What is in the set is not known.
    fn not_read(&mut self, lookup: &Lookup, why: &str) {
        let words = format!("@{}, which {why}", lookup.set);
        if lookup.data == Some(0) {
            return self.act(|_| Some(crate::ruleset::table::Action::Unknown(format!("vmap {words}").into())));
        }
        self.doubt(&words);
        if let Some(register) = lookup.data {
            let unknown = self.word(&words);
            for branch in &mut self.open {
                branch.registers.put(register, std::iter::repeat_n(unknown, super::value::REGISTERS));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(key: u8, ends: bool) -> Element {
        Element { key: [0, key].into(), key_end: None, ends, catch_all: false, data: None, doubtful: false }
    }

    #[test]
    fn intervals_are_put_together() {
        // As the kernel gives them: from behind, with an end at the beginning of all.
        let elements =
            [end(9, false), end(7, true), end(7, false), end(5, false), end(4, true), end(1, false), end(0, true)];
        let list = intervals(elements.iter().collect());
        let ranges: Vec<(u8, Option<Vec<u8>>)> =
            list.iter().map(|entry| (entry.low[1], entry.high.clone().map(|high| high.into_owned()))).collect();
        let wanted = [(1, Some(vec![0, 3])), (5, Some(vec![0, 6])), (7, Some(vec![0, 8])), (9, Some(vec![0xff, 0xff]))];
        // A start behind a start ends the one before.
        assert_eq!(ranges[0], wanted[0]);
        assert_eq!(ranges[1], wanted[1]);
        assert_eq!(ranges[3], wanted[3]);
        assert_eq!(before(&[1, 0]), [0, 0xff]);
        assert_eq!(before(&[0, 0]), [0xff, 0xff]);
    }
}
