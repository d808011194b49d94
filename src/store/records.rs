//! The durable part of a state as JSON, and back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::database::Changes;
use super::state::State;
use super::unconfirmed::{Deadline, Unconfirmed};
use crate::model::{Asked, Binding, Masquerade, Netmap, Network, Owned, SetName, Settings, Snat};
use crate::sys::sysctl;

/// One rule set.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct SetRecord {
    /// Only in [`UnconfirmedRecord`]; the forwards of today have a table of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    forwards: Vec<Binding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    networks: Vec<Network>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    masquerades: Vec<Masquerade>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    snats: Vec<Snat>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    netmaps: Vec<Netmap>,
    settings: Settings,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<PathBuf>,
}

/// The state before a change that waits to be confirmed. A complete copy: only users of `--confirm` pay for it.
#[derive(Debug, Serialize, Deserialize)]
struct UnconfirmedRecord {
    until: Deadline,
    sysctls: Vec<sysctl::Change>,
    sets: BTreeMap<SetName, SetRecord>,
}

/// An error of an encoder or a decoder.
pub(super) type RecordError = Box<dyn std::error::Error>;

/// Returns what must be written to turn one state into another. [`State::unfinished`] and the fields of the kernel file are
/// not included.
pub(super) fn changes<'a>(before: &'a State, after: &'a State) -> Result<Changes<'a>, RecordError> {
    let mut changes = Changes::default();
    if before.asked != after.asked {
        changes.removed = before.asked.less(&after.asked);
        changes.added = after.asked.less(&before.asked);
    }
    if rest(before) != rest(after) {
        changes.sets = changed_sets(before, after)?;
    }
    set_if_changed(&mut changes, "sysctls", &before.sysctls, &after.sysctls)?;
    set_if_changed(&mut changes, "iptables", &before.iptables, &after.iptables)?;
    set_if_changed(&mut changes, "unusable", &before.unusable, &after.unusable)?;
    set_if_changed(&mut changes, "confirmed", &before.confirmed, &after.confirmed)?;
    if before.unconfirmed != after.unconfirmed {
        let record = after.unconfirmed.as_ref().map(|waiting| UnconfirmedRecord {
            until: waiting.until.clone(),
            sysctls: waiting.sysctls.clone(),
            sets: split(&waiting.asked, &waiting.origins, true),
        });
        changes.meta.push(("unconfirmed", serde_json::to_string(&record)?));
    }
    Ok(changes)
}

/// Returns the state of the tables `meta` and `sets` and of some forwards.
pub(super) fn state(
    meta: &BTreeMap<String, String>,
    sets: &BTreeMap<String, String>,
    forwards: Vec<Owned<Binding>>,
) -> Result<State, RecordError> {
    let mut records = Vec::new();
    for (name, record) in sets {
        records.push((SetName::try_from(name.clone())?, serde_json::from_str(record)?));
    }
    let (mut asked, origins) = join(records);
    asked.bindings = forwards;
    asked.normalize();
    let unconfirmed = value::<Option<UnconfirmedRecord>>(meta, "unconfirmed")?.map(|record| {
        let (mut asked, origins) = join(record.sets);
        asked.normalize();
        Unconfirmed { until: record.until, asked: asked.into(), origins, sysctls: record.sysctls }
    });
    Ok(State {
        asked: Arc::new(asked),
        origins,
        sysctls: value(meta, "sysctls")?,
        iptables: value(meta, "iptables")?,
        unusable: value(meta, "unusable")?,
        unfinished: value(meta, "unfinished")?,
        unconfirmed,
        confirmed: value(meta, "confirmed")?,
        ..State::default()
    })
}

/// Reads a row of `meta`; a missing row is the default.
pub(super) fn value<T: DeserializeOwned + Default>(
    meta: &BTreeMap<String, String>,
    name: &str,
) -> Result<T, serde_json::Error> {
    meta.get(name).map_or_else(|| Ok(T::default()), |json| serde_json::from_str(json))
}

fn set_if_changed<T: PartialEq + Serialize>(
    changes: &mut Changes<'_>,
    name: &'static str,
    before: &T,
    after: &T,
) -> Result<(), RecordError> {
    if before != after {
        changes.meta.push((name, serde_json::to_string(after)?));
    }
    Ok(())
}

/// Returns what the table `sets` holds.
fn rest(state: &State) -> impl PartialEq {
    let Asked { bindings: _, networks, masquerades, snats, netmaps, settings } = &*state.asked;
    (networks, masquerades, snats, netmaps, settings, &state.origins)
}

fn changed_sets(before: &State, after: &State) -> Result<Vec<(String, Option<String>)>, RecordError> {
    let [old, new] = [before, after].map(|state| split(&state.asked, &state.origins, false));
    let mut rows = Vec::new();
    for (name, record) in new.iter().filter(|(name, record)| old.get(*name) != Some(*record)) {
        rows.push((name.to_string(), Some(serde_json::to_string(record)?)));
    }
    rows.extend(old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name.to_string(), None)));
    Ok(rows)
}

fn split(asked: &Asked, origins: &BTreeMap<SetName, PathBuf>, with_forwards: bool) -> BTreeMap<SetName, SetRecord> {
    let mut records: BTreeMap<SetName, SetRecord> = BTreeMap::new();
    let mut of = |set: &SetName, add: &mut dyn FnMut(&mut SetRecord)| add(records.entry(set.clone()).or_default());
    for (name, settings) in &asked.settings {
        of(name, &mut |record| record.settings = *settings);
    }
    for (name, origin) in origins {
        of(name, &mut |record| record.origin = Some(origin.clone()));
    }
    for owned in asked.bindings.iter().filter(|_| with_forwards) {
        of(&owned.set, &mut |record| record.forwards.push(owned.rule.clone()));
    }
    for owned in &asked.networks {
        of(&owned.set, &mut |record| record.networks.push(owned.rule.clone()));
    }
    for owned in &asked.masquerades {
        of(&owned.set, &mut |record| record.masquerades.push(owned.rule.clone()));
    }
    for owned in &asked.snats {
        of(&owned.set, &mut |record| record.snats.push(owned.rule.clone()));
    }
    for owned in &asked.netmaps {
        of(&owned.set, &mut |record| record.netmaps.push(owned.rule));
    }
    records
}

fn join(records: impl IntoIterator<Item = (SetName, SetRecord)>) -> (Asked, BTreeMap<SetName, PathBuf>) {
    fn owned<T>(set: &SetName, rules: Vec<T>) -> impl Iterator<Item = Owned<T>> {
        rules.into_iter().map(|rule| Owned { set: set.clone(), rule })
    }
    let (mut asked, mut origins) = (Asked::default(), BTreeMap::new());
    for (set, record) in records {
        asked.bindings.extend(owned(&set, record.forwards));
        asked.networks.extend(owned(&set, record.networks));
        asked.masquerades.extend(owned(&set, record.masquerades));
        asked.snats.extend(owned(&set, record.snats));
        asked.netmaps.extend(owned(&set, record.netmaps));
        origins.extend(record.origin.map(|origin| (set.clone(), origin)));
        asked.settings.insert(set, record.settings);
    }
    (asked, origins)
}
