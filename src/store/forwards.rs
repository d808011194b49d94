//! The table `forwards`: one row holds the bindings of one set at one place whose first ports are in the same block.
//!
//! So a change of one forward among N reads its neighbours in O(log N) and writes one small row. One row per binding would
//! take 55 ms more processor time to save 60,000 bindings (62 ms with blocks) and 20 ms more to load them (42 ms with
//! blocks; Linux 6.18).

use std::collections::BTreeMap;

use rusqlite::{Connection, Error, Params, Statement, Transaction, params};

use super::row::{check, checksum, damage};
use crate::model::{Binding, SetName, SetRule};

/// The number of first ports that share a row.
const BLOCK: u16 = 16;

/// The columns of `forwards` that the checksum covers, and the checksum.
const SELECT: &str = "SELECT rule_set, place, block, bindings, checksum FROM forwards";

/// The key of a row.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    set: &'a SetName,
    place: String,
    block: u16,
}

/// The change of a row.
#[derive(Default)]
struct RowChange<'a> {
    removed: Vec<&'a SetRule<Binding>>,
    added: Vec<&'a SetRule<Binding>>,
}

/// Reads the forwards of all sets.
pub(super) fn all(connection: &Connection) -> Result<Vec<SetRule<Binding>>, Error> {
    let mut found = Vec::new();
    each_row(&mut connection.prepare(SELECT)?, [], |row| {
        found.extend(row);
        true
    })?;
    Ok(found)
}

/// Reads the forwards of some sets, about `limit` of each at most.
pub(super) fn of_sets(connection: &Connection, sets: &[SetName], limit: usize) -> Result<Vec<SetRule<Binding>>, Error> {
    let mut select = connection.prepare(&format!("{SELECT} WHERE rule_set = ?"))?;
    let mut found = Vec::new();
    for set in sets {
        let before = found.len();
        each_row(&mut select, [set.as_str()], |row| {
            found.extend(row);
            found.len() - before < limit
        })?;
    }
    Ok(found)
}

/// Reads, for each pair of a set and a binding, the forwards of the set that have the binding's place and one of its ports.
///
/// The ranges of a set at one place are disjoint, because portfwd refuses conflicts. So the search goes downwards from the
/// last port of the binding, and ends at the first range that begins at or below the binding's first port.
pub(super) fn meeting<'a>(
    connection: &Connection,
    pairs: impl Iterator<Item = (&'a SetName, &'a Binding)>,
) -> Result<Vec<SetRule<Binding>>, Error> {
    let clause = "WHERE rule_set = ? AND place = ? AND block BETWEEN ? AND ? ORDER BY block DESC";
    let mut select = connection.prepare(&format!("{SELECT} {clause}"))?;
    let mut found = Vec::new();
    for (set, binding) in pairs {
        let (first, last) = (binding.ports.first(), binding.ports.last());
        let lowest = if binding.is_exact() { first / BLOCK } else { 0 };
        let parameters = params![set.as_str(), place(binding), lowest, last / BLOCK];
        each_row(&mut select, parameters, |row| {
            let more = row.iter().all(|owned| owned.rule.ports.first() > first);
            found.extend(row.into_iter().filter(|owned| owned.rule.ports.overlaps(binding.ports)));
            more
        })?;
    }
    Ok(found)
}

/// Removes and adds forwards; returns how many there are, if there were `count`. The lists may be of a partial state, so every
/// row is read before it is written.
pub(super) fn change(
    transaction: &Transaction<'_>,
    removed: &[&SetRule<Binding>],
    added: &[&SetRule<Binding>],
    mut count: usize,
) -> Result<usize, Error> {
    let mut rows: BTreeMap<Key<'_>, RowChange<'_>> = BTreeMap::new();
    // Forwards of one row mostly follow each other.
    for run in removed.chunk_by(|one, next| share_row(one, next)) {
        rows.entry(key(run)).or_default().removed.extend(run);
    }
    for run in added.chunk_by(|one, next| share_row(one, next)) {
        rows.entry(key(run)).or_default().added.extend(run);
    }
    let by_key = "WHERE rule_set = ? AND place = ? AND block = ?";
    let mut select = transaction.prepare(&format!("{SELECT} {by_key}"))?;
    let mut delete = transaction.prepare(&format!("DELETE FROM forwards {by_key}"))?;
    let mut replace = transaction.prepare("REPLACE INTO forwards VALUES (?, ?, ?, ?, ?)")?;
    for (Key { set, place, block }, RowChange { removed, added }) in rows {
        let mut forwards = Vec::new();
        each_row(&mut select, params![set.as_str(), place, block], |row| {
            forwards = row;
            true
        })?;
        let before = forwards.len();
        forwards.retain(|owned| !removed.contains(&owned));
        if before - forwards.len() != removed.len() {
            return Err(damage("a forward that the change removes is missing"));
        }
        forwards.extend(added.into_iter().cloned());
        count = (count + forwards.len()).saturating_sub(before);
        if forwards.is_empty() {
            delete.execute(params![set.as_str(), place, block])?;
        } else {
            let bindings: Vec<&Binding> = forwards.iter().map(|owned| &owned.rule).collect();
            let json = serde_json::to_string(&bindings).map_err(|error| damage(error.to_string()))?;
            let sum = checksum("forwards", &[set.as_str(), &place, &block.to_string(), &json]);
            replace.execute(params![set.as_str(), place, block, json, sum])?;
        }
    }
    Ok(count)
}

/// Returns the key of the row that forwards share. There must be one forward.
fn key<'a>(run: &[&'a SetRule<Binding>]) -> Key<'a> {
    let SetRule { set, rule } = run.first().expect("`chunk_by` returns no empty slice");
    Key { set, place: place(rule), block: rule.ports.first() / BLOCK }
}

/// Returns true if two forwards are in one row.
fn share_row(one: &SetRule<Binding>, other: &SetRule<Binding>) -> bool {
    one.set == other.set
        && one.rule.is_exact() == other.rule.is_exact()
        && one.rule.ports.first() / BLOCK == other.rule.ports.first() / BLOCK
        && one.rule.listens_like(&other.rule)
}

/// Calls `each` with the forwards of each row of a query until `each` returns false.
fn each_row(
    select: &mut Statement<'_>,
    parameters: impl Params,
    mut each: impl FnMut(Vec<SetRule<Binding>>) -> bool,
) -> Result<(), Error> {
    let mut rows = select.query(parameters)?;
    while let Some(row) = rows.next()? {
        let (set, place) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
        let (block, json) = (row.get::<_, i64>(2)?.to_string(), row.get_ref(3)?.as_str()?);
        check("forwards", &[set, place, &block, json], row.get(4)?)?;
        let set = SetName::try_from(set.to_owned()).map_err(|error| damage(error.to_string()))?;
        let rules: Vec<Binding> = serde_json::from_str(json).map_err(|error| damage(error.to_string()))?;
        if !each(rules.into_iter().map(|rule| SetRule { set: set.clone(), rule }).collect()) {
            break;
        }
    }
    Ok(())
}

/// Returns the text for the column `place`, for example `IPv4 tcp port` or `IPv6 udp range at 2001:db8::1 on eth0`. Two bindings
/// can conflict only if they have the same place.
fn place(rule: &Binding) -> String {
    let mut text = format!("{} {} {}", rule.family, rule.protocol, if rule.is_exact() { "port" } else { "range" });
    if let Some(address) = rule.address {
        text += &format!(" at {address}");
    }
    if let Some(interface) = &rule.interface {
        text += &format!(" on {interface}");
    }
    if let Some(from) = rule.from {
        text += &format!(" from {from}");
    }
    text
}
