//! A state as rows of tables, and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::block;
use super::state::{State, StateError};
use super::table::{Changes, Row};
use super::unconfirmed::{Kept, Unconfirmed};
use crate::model::{Asked, Binding, Masquerade, Netmap, Network, Owned, SetName, Settings, Snat};

/// What is kept, as it was found.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Set to the rest of it as JSON.
    pub(super) sets: Vec<(String, Vec<u8>)>,
    /// Set to some of its atoms in postcard's format.
    pub(super) blocks: Vec<(String, Vec<u8>)>,
    /// As JSON, like the next two.
    pub(super) sysctls: Option<Vec<u8>>,
    pub(super) iptables: Option<Vec<u8>>,
    pub(super) unusable: Option<Vec<u8>>,
    /// In postcard's format, like the rest.
    pub(super) unfinished: Option<Vec<u8>>,
    pub(super) unconfirmed: Option<Vec<u8>>,
    pub(super) confirmed: Option<Vec<u8>>,
    pub(super) committed: Option<Vec<u8>>,
    pub(super) whole: Option<Vec<u8>>,
    pub(super) samples: Option<Vec<u8>>,
}

/// A set without its forwards, as it is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
struct SetRecord {
    #[serde(default)]
    networks: Vec<Network>,
    #[serde(default)]
    masquerades: Vec<Masquerade>,
    #[serde(default)]
    snats: Vec<Snat>,
    #[serde(default)]
    netmaps: Vec<Netmap>,
    #[serde(default)]
    settings: Settings,
    #[serde(default)]
    origin: Option<PathBuf>,
}

impl Rows {
    /// What they say; `path` is where they were found.
    pub(super) fn state(self, path: &Path) -> Result<State, StateError> {
        let damaged = |error: &dyn ToString| StateError::Damaged(path.to_owned(), error.to_string());
        let post = |error: postcard::Error| damaged(&error);
        let read = |error: serde_json::Error| damaged(&error);
        let json = |bytes: Option<Vec<u8>>| bytes.unwrap_or_else(|| b"null".to_vec());
        let blocks = self.blocks.into_iter().map(|(set, bytes)| Ok((set, postcard::from_bytes(&bytes)?)));
        let (asked, origins) = together(self.sets, blocks).map_err(|what| damaged(&what))?;
        let samples: Option<Vec<(SetName, Binding)>> =
            self.samples.map(|bytes| postcard::from_bytes(&bytes)).transpose().map_err(post)?;
        let samples = samples.into_iter().flatten().map(|(set, rule)| Owned { set, rule });
        Ok(State {
            asked,
            origins,
            sysctls: serde_json::from_slice::<Option<_>>(&json(self.sysctls)).map_err(read)?.unwrap_or_default(),
            iptables: serde_json::from_slice::<Option<_>>(&json(self.iptables)).map_err(read)?.unwrap_or_default(),
            unusable: serde_json::from_slice(&json(self.unusable)).map_err(read)?,
            unfinished: self.unfinished.map(|bytes| postcard::from_bytes(&bytes)).transpose().map_err(post)?,
            unconfirmed: self
                .unconfirmed
                .map(|bytes| unconfirmed(&bytes))
                .transpose()
                .map_err(|what| damaged(&what))?,
            confirmed: self.confirmed.map(|bytes| postcard::from_bytes(&bytes)).transpose().map_err(post)?,
            committed: self.committed.map(|bytes| postcard::from_bytes(&bytes)).transpose().map_err(post)?,
            // An older program did not note the layout; then it is not known.
            whole: self.whole.and_then(|bytes| postcard::from_bytes(&bytes).ok()),
            samples: samples.collect(),
        })
    }
}

/// Why rows cannot be read.
type What = Box<dyn std::error::Error>;

/// Puts together what is asked, and the files that it came from, of the sets' records and their forwards.
fn together(
    records: impl IntoIterator<Item = (String, impl AsRef<[u8]>)>,
    forwards: impl IntoIterator<Item = Result<(String, Vec<Binding>), postcard::Error>>,
) -> Result<(Arc<Asked>, BTreeMap<SetName, PathBuf>), What> {
    let (mut asked, mut origins) = (Asked::default(), BTreeMap::new());
    for (name, json) in records {
        let name: SetName = name.parse()?;
        let record: SetRecord = serde_json::from_slice(json.as_ref())?;
        let own = |name: &SetName| name.clone();
        asked.networks.extend(record.networks.into_iter().map(|rule| Owned { set: own(&name), rule }));
        asked.masquerades.extend(record.masquerades.into_iter().map(|rule| Owned { set: own(&name), rule }));
        asked.snats.extend(record.snats.into_iter().map(|rule| Owned { set: own(&name), rule }));
        asked.netmaps.extend(record.netmaps.into_iter().map(|rule| Owned { set: own(&name), rule }));
        origins.extend(record.origin.map(|origin| (own(&name), origin)));
        asked.settings.insert(name, record.settings);
    }
    for of_set in forwards {
        let (set, rules) = of_set?;
        let set: SetName = set.parse()?;
        asked.bindings.extend(rules.into_iter().map(|rule| Owned { set: set.clone(), rule }));
    }
    asked.normalize();
    Ok((asked.into(), origins))
}

fn unconfirmed(bytes: &[u8]) -> Result<Unconfirmed, What> {
    let kept = Kept::read(bytes)?;
    let (asked, origins) = together(kept.records, kept.forwards.into_iter().map(Ok))?;
    Ok(Unconfirmed { until: kept.until, asked, origins, sysctls: kept.sysctls })
}

/// What must be written to have one state in the place of another, but for the number of atoms.
pub(super) fn changes(before: &State, after: &State) -> Result<Changes, What> {
    let mut changes = Changes {
        blocks: changed_blocks(&before.asked, &after.asked)?,
        sets: changed_sets(before, after)?,
        ..Changes::default()
    };
    if before.sysctls != after.sysctls {
        changes.set("sysctls", Some(serde_json::to_vec(&after.sysctls)?));
    }
    if before.iptables != after.iptables {
        changes.set("iptables", Some(serde_json::to_vec(&after.iptables)?));
    }
    if before.unusable != after.unusable {
        changes.set("unusable", Some(serde_json::to_vec(&after.unusable)?));
    }
    if before.unfinished != after.unfinished {
        changes.set("unfinished", after.unfinished.as_ref().map(postcard::to_allocvec).transpose()?);
    }
    if before.unconfirmed != after.unconfirmed {
        let write = |waiting: &Unconfirmed| {
            let records = records(&waiting.asked, &waiting.origins)?;
            Ok::<_, What>(Kept::write(waiting, records)?)
        };
        changes.set("unconfirmed", after.unconfirmed.as_ref().map(write).transpose()?);
    }
    if before.confirmed != after.confirmed {
        changes.set("confirmed", after.confirmed.as_ref().map(postcard::to_allocvec).transpose()?);
    }
    if before.committed != after.committed {
        changes.set("committed", after.committed.as_ref().map(postcard::to_allocvec).transpose()?);
    }
    if before.whole != after.whole {
        changes.set("whole", after.whole.as_ref().map(postcard::to_allocvec).transpose()?);
    }
    if before.samples != after.samples {
        let samples: Vec<_> = after.samples.iter().map(|owned| (&owned.set, &owned.rule)).collect();
        changes.set("samples", Some(postcard::to_allocvec(&samples)?));
    }
    Ok(changes)
}

/// The sets that differ in more than their forwards, with what is in them afterwards; nothing where that is nothing.
fn changed_sets(before: &State, after: &State) -> serde_json::Result<Vec<Row>> {
    fn rest(state: &State) -> impl PartialEq {
        let Asked { bindings: _, networks, masquerades, snats, netmaps, settings } = &*state.asked;
        (networks, masquerades, snats, netmaps, settings, &state.origins)
    }
    if rest(before) == rest(after) {
        return Ok(Vec::new());
    }
    let (old, new) = (records(&before.asked, &before.origins)?, records(&after.asked, &after.origins)?);
    let changed = new.iter().filter(|(name, json)| old.get(*name) != Some(json));
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    let rows = changed.map(|(name, json)| (name.to_string(), Some(json.clone().into())));
    Ok(rows.chain(gone.map(|name| (name.to_string(), None))).collect())
}

/// The blocks that differ, with what is in them afterwards; nothing where that is nothing.
fn changed_blocks(before: &Asked, after: &Asked) -> postcard::Result<Vec<Row>> {
    if std::ptr::eq(before, after) {
        return Ok(Vec::new());
    }
    let (before, after) = (block::blocks(before), block::blocks(after));
    let mut changed = Vec::new();
    for (key, rules) in &after {
        if before.get(key) != Some(rules) {
            changed.push((key.to_string(), Some(postcard::to_allocvec(rules)?)));
        }
    }
    changed.extend(before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.to_string(), None)));
    Ok(changed)
}

/// Each set without its forwards, as JSON.
fn records(
    asked: &Asked,
    origins: &BTreeMap<SetName, PathBuf>,
) -> Result<BTreeMap<SetName, String>, serde_json::Error> {
    let mut records: BTreeMap<&SetName, SetRecord> = BTreeMap::new();
    for (name, settings) in &asked.settings {
        records.entry(name).or_default().settings = *settings;
    }
    for owned in &asked.networks {
        records.entry(&owned.set).or_default().networks.push(owned.rule.clone());
    }
    for owned in &asked.masquerades {
        records.entry(&owned.set).or_default().masquerades.push(owned.rule.clone());
    }
    for owned in &asked.snats {
        records.entry(&owned.set).or_default().snats.push(owned.rule.clone());
    }
    for owned in &asked.netmaps {
        records.entry(&owned.set).or_default().netmaps.push(owned.rule);
    }
    for (name, origin) in origins {
        records.entry(name).or_default().origin = Some(origin.clone());
    }
    records.into_iter().map(|(name, record)| Ok((name.clone(), serde_json::to_string(&record)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Forward;

    #[test]
    fn what_is_on_disk_does_not_change() {
        let forward = Forward::new("8080".parse().expect("listen"), "10.0.0.1".parse().expect("target"));
        let mut asked = Asked::default();
        let rules = forward.bindings().expect("valid").into_iter();
        asked.bindings.extend(rules.map(|rule| Owned { set: SetName::cli(), rule }));
        let blocks = changed_blocks(&Asked::default(), &asked).expect("encoded");
        let bytes = b"\x01\x00\x00\x00\x00\x00\x048080\x01\x00\x0a\x00\x00\x01\x02\x90\x3f\x04keep\x01\x00\x00";
        assert_eq!(blocks, [("cli\0IPv4 tcp port 1f9".to_owned(), Some(bytes.to_vec()))]);
    }
}
