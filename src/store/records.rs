//! The durable part of a state as JSON, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::database::{Changes, RuleRow};
use super::state::State;
use super::unconfirmed::{Deadline, Unconfirmed};
use crate::model::{Binding, DesiredState, SetName, SetRule};
use crate::sys::sysctl;

/// The state before a change that waits to be confirmed. The record is a complete copy, which only `--confirm` stores.
#[derive(Serialize, Deserialize)]
struct UnconfirmedRecord {
    until: Deadline,
    sysctls: Vec<sysctl::Change>,
    rules: BTreeSet<RuleRow>,
    forwards: Vec<(SetName, Binding)>,
}

/// An error of an encoder or a decoder.
pub(super) type RecordError = Box<dyn std::error::Error>;

/// Returns the changes from one state to another. [`State::unfinished`] and the fields of the kernel file are
/// not included.
pub(super) fn changes<'a>(before: &'a State, after: &'a State) -> Result<Changes<'a>, RecordError> {
    let mut changes = Changes::default();
    if before.desired != after.desired {
        changes.removed_forwards = before.desired.less(&after.desired);
        changes.added_forwards = after.desired.less(&before.desired);
    }
    if before.desired != after.desired || before.origins != after.origins {
        let (old, new) = (rules(&before.desired, &before.origins)?, rules(&after.desired, &after.origins)?);
        changes.removed_rules = old.difference(&new).cloned().collect();
        changes.added_rules = new.difference(&old).cloned().collect();
    }
    set_if_changed(&mut changes, "sysctls", &before.sysctls, &after.sysctls)?;
    set_if_changed(&mut changes, "iptables", &before.iptables, &after.iptables)?;
    set_if_changed(&mut changes, "unusable", &before.unusable, &after.unusable)?;
    set_if_changed(&mut changes, "confirmed", &before.confirmed, &after.confirmed)?;
    if before.unconfirmed != after.unconfirmed {
        let record = after.unconfirmed.as_ref().map(unconfirmed_record).transpose()?;
        changes.meta.push(("unconfirmed", serde_json::to_string(&record)?));
    }
    Ok(changes)
}

/// Returns the state of the tables `meta` and `rules` and of some forwards.
pub(super) fn state(
    meta: &BTreeMap<String, String>,
    rules: impl IntoIterator<Item = RuleRow>,
    forwards: Vec<SetRule<Binding>>,
) -> Result<State, RecordError> {
    let (desired, origins) = join(rules, forwards)?;
    let unconfirmed = value::<Option<UnconfirmedRecord>>(meta, "unconfirmed")?.map(|record| {
        let forwards = record.forwards.into_iter().map(|(set, rule)| SetRule { set, rule }).collect();
        let (desired, origins) = join(record.rules, forwards)?;
        Ok::<_, RecordError>(Unconfirmed { until: record.until, desired, origins, sysctls: record.sysctls })
    });
    Ok(State {
        desired,
        origins,
        sysctls: value(meta, "sysctls")?,
        iptables: value(meta, "iptables")?,
        unusable: value(meta, "unusable")?,
        unfinished: value(meta, "unfinished")?,
        unconfirmed: unconfirmed.transpose()?,
        confirmed: value(meta, "confirmed")?,
        ..State::default()
    })
}

/// Reads a row of `meta`; a missing row is the default.
pub(super) fn value<T: DeserializeOwned + Default>(
    meta: &BTreeMap<String, String>,
    name: &str,
) -> serde_json::Result<T> {
    meta.get(name).map_or_else(|| Ok(T::default()), |json| serde_json::from_str(json))
}

fn set_if_changed<T: PartialEq + Serialize>(
    changes: &mut Changes<'_>,
    name: &'static str,
    before: &T,
    after: &T,
) -> serde_json::Result<()> {
    if before != after {
        changes.meta.push((name, serde_json::to_string(after)?));
    }
    Ok(())
}

fn unconfirmed_record(waiting: &Unconfirmed) -> serde_json::Result<UnconfirmedRecord> {
    Ok(UnconfirmedRecord {
        until: waiting.until.clone(),
        sysctls: waiting.sysctls.clone(),
        rules: rules(&waiting.desired, &waiting.origins)?,
        forwards: waiting.desired.bindings.iter().map(|owned| (owned.set.clone(), owned.rule.clone())).collect(),
    })
}

/// Returns all rules except the forwards, and the settings and the origin of every set.
fn rules(desired: &DesiredState, origins: &BTreeMap<SetName, PathBuf>) -> serde_json::Result<BTreeSet<RuleRow>> {
    fn row(kind: &str, set: &SetName, rule: &impl Serialize) -> serde_json::Result<RuleRow> {
        Ok((kind.to_owned(), set.to_string(), serde_json::to_string(rule)?))
    }
    let DesiredState { bindings: _, networks, masquerades, snats, netmaps, settings } = desired;
    (settings.iter().map(|(set, settings)| row("settings", set, settings)))
        .chain(origins.iter().map(|(set, origin)| row("origin", set, origin)))
        .chain(networks.iter().map(|owned| row("network", &owned.set, &owned.rule)))
        .chain(masquerades.iter().map(|owned| row("masquerade", &owned.set, &owned.rule)))
        .chain(snats.iter().map(|owned| row("snat", &owned.set, &owned.rule)))
        .chain(netmaps.iter().map(|owned| row("netmap", &owned.set, &owned.rule)))
        .collect()
}

/// Converts rows of the table `rules` back; the counterpart of [`rules`].
fn join(
    rules: impl IntoIterator<Item = RuleRow>,
    forwards: Vec<SetRule<Binding>>,
) -> Result<(Arc<DesiredState>, BTreeMap<SetName, PathBuf>), RecordError> {
    fn owned<T: DeserializeOwned>(set: SetName, json: &str) -> serde_json::Result<SetRule<T>> {
        Ok(SetRule { set, rule: serde_json::from_str(json)? })
    }
    let (mut desired, mut origins) = (DesiredState { bindings: forwards, ..DesiredState::default() }, BTreeMap::new());
    for (kind, set, json) in rules {
        let set = SetName::try_from(set)?;
        match kind.as_str() {
            "settings" => drop(desired.settings.insert(set, serde_json::from_str(&json)?)),
            "origin" => drop(origins.insert(set, serde_json::from_str(&json)?)),
            "network" => desired.networks.push(owned(set, &json)?),
            "masquerade" => desired.masquerades.push(owned(set, &json)?),
            "snat" => desired.snats.push(owned(set, &json)?),
            "netmap" => desired.netmaps.push(owned(set, &json)?),
            _ => return Err(format!("a rule has the unknown kind `{kind}`").into()),
        }
    }
    desired.normalize();
    Ok((desired.into(), origins))
}
