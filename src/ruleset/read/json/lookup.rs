//! What sets and maps are asked, named ones and those that are part of a rule.

use std::sync::Arc;

use super::key::Part;
use super::object::Sets;
use super::value::Json;
use crate::ruleset::region::{Condition, Field, Region};
use crate::ruleset::set::Set;

/// The packets that one element is about, and what the element says of them.
pub type Entry<'j, 'a> = (Region, &'j Json<'a>);

/// How much memory a region takes, in ranges.
pub fn weight(region: &Region) -> usize {
    let sets = Field::ALL.iter().map(|field| region.get(*field)).filter(|set| !set.is_all());
    // What a condition is outside of is shared by all that ask it.
    sets.map(|set| set.ranges().len() + 1).sum::<usize>() + 2 * region.conditions().len()
}

/// How much memory some take together.
pub fn weights<'r>(regions: impl Iterator<Item = &'r Region>) -> usize {
    regions.map(weight).fold(0, usize::saturating_add)
}

/// The elements of a set, or of a map, that is named or given: `Err` with a word about it where they are not known, `None` of
/// what is neither.
pub fn elements<'j, 'a>(of: &'j Json<'a>, sets: &'j Sets<'a>) -> Option<Result<&'j [Json<'a>], String>> {
    if let Some(name) = of.text().and_then(|text| text.strip_prefix('@')) {
        return Some(match sets.get(name) {
            Some(named) if named.changes => Err(format!("@{name}, which packets change")),
            Some(named) => Ok(named.elements.list()),
            None => Err(format!("@{name}, which is not in the dump")),
        });
    }
    match of.only() {
        Some(("set", list)) => Some(Ok(list.list())),
        _ => None,
    }
}

/// What is left of an element without its counter, its comment and its timeout.
fn bare<'j, 'a>(element: &'j Json<'a>) -> &'j Json<'a> {
    match element.only() {
        Some(("elem", of)) => of.get("val").unwrap_or(element),
        _ => element,
    }
}

fn is_rest(key: &Json<'_>) -> bool {
    bare(key).text() == Some("*")
}

/// The packets that have all of what is looked at.
pub fn of_all(parts: &[Part]) -> Region {
    parts.iter().fold(Region::all(), |all, part| all.and(&part.of))
}

/// The packets that one key of a set is about.
fn region(parts: &[Part], of: &Region, key: &Json<'_>) -> Region {
    let mut region = of.clone();
    let key = bare(key);
    match (parts, key.only()) {
        ([part], _) => part.ask(&mut region, "==", key),
        (_, Some(("concat", values))) if values.list().len() == parts.len() => {
            for (part, value) in parts.iter().zip(values.list()) {
                part.ask(&mut region, "==", value);
            }
        }
        _ => region.add_condition(Condition::Unknown(key.words())),
    }
    region
}

/// The packets that are in a set, or with `not` those that are not, as regions that may be several.
pub fn members(parts: &[Part], keys: &[Json<'_>], not: bool) -> Vec<Region> {
    let mut of = of_all(parts);
    let rest = keys.iter().any(is_rest);
    if rest {
        if not && let Some(field) = Field::ALL.first() {
            of.narrow(*field, &Set::none());
        }
        return vec![of];
    }
    if let [part] = parts
        && let Some((field, set)) = union(part, keys.iter())
    {
        of.narrow(field, &if not { set.not() } else { set });
        return vec![of];
    }
    if keys.is_empty() {
        if !not && let Some(field) = Field::ALL.first() {
            of.narrow(*field, &Set::none());
        }
        return vec![of];
    }
    let regions = keys.iter().map(|key| region(parts, &of, key));
    if not {
        let outside = regions.collect();
        of.add_condition(Condition::Outside(outside));
        return vec![of];
    }
    regions.collect()
}

/// All elements of a set together, where each is understood.
fn union<'j, 'a: 'j>(part: &Part, keys: impl Iterator<Item = &'j Json<'a>>) -> Option<(Field, Set)> {
    let field = part.field()?;
    let sets = keys.map(|key| part.set(bare(key)).map(|(_, set)| set)).collect::<Option<Vec<_>>>()?;
    Some((field, Set::from_ranges(sets.iter().flat_map(|set| set.ranges().iter().copied()))))
}

/// What a map says of which packets, but for the element that is about all the rest. `of` is what [`of_all`] says.
pub fn entries<'e, 'j: 'e, 'a: 'j>(
    parts: &'e [Part],
    of: &'e Region,
    list: &'j [Json<'a>],
) -> impl Iterator<Item = Entry<'j, 'a>> + 'e {
    list.iter().filter_map(move |element| match element.list() {
        [key, _] if is_rest(key) => None,
        [key, value] => Some((region(parts, of, key), bare(value))),
        _ => {
            // Not a pair, and so nothing that is known of a map: it may be about any packet.
            let mut all = of.clone();
            all.add_condition(Condition::Unknown(element.words()));
            Some((all, element))
        }
    })
}

/// What a map says of a number; `Err` where one of its keys is none, and so may be about it.
pub fn entry_of<'j, 'a>(number: u64, list: &'j [Json<'a>]) -> Result<Option<&'j Json<'a>>, ()> {
    let mut rest = None;
    for element in list {
        match element.list() {
            [key, value] if is_rest(key) => rest = Some(bare(value)),
            [key, value] => match bare(key).number().ok_or(())? {
                key if key == number => return Ok(Some(bare(value))),
                _ => {}
            },
            _ => return Err(()),
        }
    }
    Ok(rest)
}

/// What a map says of all the rest, and which packets those are.
pub fn rest<'j, 'a>(parts: &[Part], of: &Region, list: &'j [Json<'a>]) -> Option<Entry<'j, 'a>> {
    let value = list.iter().find_map(|element| match element.list() {
        [key, value] if is_rest(key) => Some(bare(value)),
        _ => None,
    })?;
    let keys = list.iter().filter_map(|element| element.list().first()).filter(|key| !is_rest(key));
    let mut others = of.clone();
    match parts {
        [part] if let Some((field, set)) = union(part, keys) => others.narrow(field, &set.not()),
        _ => {
            let regions: Arc<[Region]> = entries(parts, of, list).map(|(region, _)| region).collect();
            if !regions.is_empty() {
                others.add_condition(Condition::Outside(regions));
            }
        }
    }
    Some((others, value))
}
