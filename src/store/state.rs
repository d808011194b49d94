//! The state of one network namespace, in an embedded store (redb): atoms of forwards in small blocks, so that one more of
//! them on 60,000 rewrites only its neighbours, and the rest of each set.
//!
//! A store belongs to one namespace: the host's is `state.redb` in the state directory, others' are below `netns/`. A
//! namespace that ip-netns(8) made anew under an old name begins with nothing, because its kernel holds nothing.
//!
//! Be aware: a second process waits for its turn, see [`Store::open`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::Flock;
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition};
use serde::{Deserialize, Serialize};

use super::{block, file};
use crate::iptables::command::Variant;
use crate::model::{Asked, Binding, Masquerade, Netmap, Network, Owned, SetName, Settings, Snat};
use crate::netfilter::namespace::Identity;
use crate::netfilter::sysctl;

/// The shape of the store; a number that is not known is not touched.
///
/// 2 added `source`, `hairpin` and `loopback` to an atom, and `snats` and `netmaps` to a set, all with defaults. 3 keeps
/// atoms in blocks, and knows of iptables.
const VERSION: &str = "3";
/// Shapes that are brought into the present one when they are opened.
const READABLE: [&str; 2] = ["1", "2"];

/// Key of a block, to its atoms in postcard's format, <https://postcard.jamesmunns.com/wire-format>. As JSON they take four
/// times the room, and the time to write it.
const BLOCKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("blocks");
/// Up to version 2: set and listening half of an atom, to the atom as JSON.
const BINDINGS: TableDefinition<'_, &str, &str> = TableDefinition::new("bindings");
/// Set to the rest of it as JSON.
const SETS: TableDefinition<'_, &str, &str> = TableDefinition::new("sets");
/// `change`, to the one that may not have come to its end, in postcard's format.
const UNFINISHED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("unfinished");
/// Version, namespace, changed sysctls, where iptables holds rules of ours, and why nf_tables is not used.
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// What all sets ask. Shared, because it is large and there are always several states of which it is a part.
    pub asked: Arc<Asked>,
    /// The file that each set was last applied from; none for sets made on the command line.
    pub origins: BTreeMap<SetName, PathBuf>,
    /// The sysctls that we changed, in order.
    pub sysctls: Vec<sysctl::Change>,
    /// The variants of iptables that may hold rules of ours.
    pub iptables: BTreeSet<Variant>,
    /// Why nf_tables is not used, where the kernel was found to lack a part of it.
    pub unusable: Option<Unusable>,
    /// A change that may not have come to its end.
    pub unfinished: Option<Unfinished>,
}

/// What is kept of a change until it is done, besides what is asked, which is kept first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// Whether the connections that it makes wrong are left to finish.
    pub keep_connections: bool,
    /// The forwards that go or change, for what they sent somewhere to be ended.
    pub gone: Arc<[Binding]>,
}

/// What a kernel was found to lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// The kernel's release; another one may have it.
    pub kernel: String,
    /// What it lacks.
    pub why: String,
}

/// What is kept beside the rules, each under the name of its key.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rest {
    sysctls: Option<String>,
    iptables: Option<String>,
    unusable: Option<String>,
    unfinished: Option<Vec<u8>>,
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

/// Why state cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory or file cannot be made or opened.
    #[error("cannot open the state in `{}`", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// Another process had it for too long.
    #[error("another portfwd is using the state in `{}`", .0.display())]
    Busy(PathBuf),
    /// The store failed.
    #[error("the state in `{}` cannot be read or written", .0.display())]
    Store(PathBuf, #[source] Box<redb::Error>),
    /// It is not what was written there.
    #[error("the state in `{}` is damaged: {}", .0.display(), .1)]
    Damaged(PathBuf, String),
    /// A newer program wrote it.
    #[error("the state in `{}` has version {}; this program reads version {VERSION}", .0.display(), .1)]
    Version(PathBuf, String),
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    database: Option<Database>,
    /// Held until the database is closed.
    _turn: Option<Flock<File>>,
}

impl Store {
    /// Opens the store of a namespace, waiting up to `wait` for another process that has it open.
    ///
    /// With `make` false a store that is not there is read as empty, and nothing is made.
    ///
    /// # Errors
    /// [`StateError::Busy`] after `wait`; others where it cannot be opened or is of another version.
    pub fn open(directory: &Path, identity: &Identity, make: bool, wait: Duration) -> Result<Self, StateError> {
        let (path, incarnation) = place(directory, identity);
        if !make && !path.exists() {
            return Ok(Self { path, database: None, _turn: None });
        }
        if let Some(parent) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
            made.map_err(|error| StateError::Io(parent.to_owned(), error))?;
        }
        let turn = file::turn(&path, wait)?;
        let database = file::open(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))
            .map_err(|error| StateError::Io(path.clone(), error))?;
        let store = Self { path, database: Some(database), _turn: Some(turn) };
        file::whole(&store.path, || store.begin(incarnation.map(String::as_str)))?;
        Ok(store)
    }

    /// Gives the file of a namespace's store, which is damaged, another name, and opens a new one. Gives that name too.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn anew(directory: &Path, identity: &Identity, wait: Duration) -> Result<(Self, PathBuf), StateError> {
        let (path, _) = place(directory, identity);
        let aside = file::set_aside(&path)?;
        Ok((Self::open(directory, identity, true, wait)?, aside))
    }

    /// A store that keeps nothing.
    pub fn in_memory() -> Self {
        Self { path: PathBuf::new(), database: None, _turn: None }
    }

    /// Makes the tables, checks the version, and empties the store of a namespace that is not the one it was made for.
    fn begin(&self, incarnation: Option<&str>) -> Result<(), StateError> {
        let Some(database) = &self.database else { return Ok(()) };
        let known = (|| {
            let transaction = database.begin_read()?;
            let meta = match transaction.open_table(META) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                other => other?,
            };
            let text = |key| Ok::<_, redb::Error>(meta.get(key)?.map(|value| value.value().to_owned()));
            Ok(Some((text("version")?, text("namespace")?)))
        })();
        match known.map_err(|error| self.failed(error))? {
            Some((Some(version), _)) if version != VERSION && !READABLE.contains(&version.as_str()) => {
                return Err(StateError::Version(self.path.clone(), version));
            }
            Some((Some(version), namespace)) if namespace.as_deref() == incarnation => {
                return if version == VERSION { Ok(()) } else { self.upgrade() };
            }
            _ => {}
        }
        self.write(|transaction| {
            for table in [BLOCKS, UNFINISHED] {
                transaction.delete_table(table)?;
                transaction.open_table(table)?;
            }
            for table in [SETS, META] {
                transaction.delete_table(table)?;
                transaction.open_table(table)?;
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert("version", VERSION)?;
            if let Some(incarnation) = incarnation {
                meta.insert("namespace", incarnation)?;
            }
            Ok(())
        })
    }

    /// Brings a store of an older shape into the present one, so that an older program does not take what it does not know
    /// for nothing.
    fn upgrade(&self) -> Result<(), StateError> {
        let Some(database) = &self.database else { return Ok(()) };
        let mut atoms: Vec<(String, String)> = Vec::new();
        (|| {
            let transaction = database.begin_read()?;
            for entry in transaction.open_table(BINDINGS)?.iter()? {
                let (key, value) = entry?;
                atoms.push((block::set_of(key.value()).to_owned(), value.value().to_owned()));
            }
            Ok(())
        })()
        .map_err(|error| self.failed(error))?;
        let mut asked = Asked::default();
        for (set, json) in atoms {
            let set: SetName = set.parse().map_err(|error| self.damaged(&error))?;
            let rule: Binding = serde_json::from_str(&json).map_err(|error| self.damaged(&error))?;
            asked.bindings.push(Owned { set, rule });
        }
        asked.normalize();
        let changes = changed_blocks(&Asked::default(), &asked).map_err(|error| self.damaged(&error))?;
        self.write(|transaction| {
            put(&mut transaction.open_table(BLOCKS)?, &changes)?;
            transaction.delete_table(BINDINGS)?;
            transaction.open_table(META)?.insert("version", VERSION)?;
            Ok(())
        })
    }

    /// Reads everything.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn load(&self) -> Result<State, StateError> {
        file::whole(&self.path, || self.read_all())
    }

    fn read_all(&self) -> Result<State, StateError> {
        let mut state = State::default();
        let mut asked = Asked::default();
        let Some(database) = &self.database else { return Ok(state) };
        let mut records: Vec<(String, String)> = Vec::new();
        let mut blocks: Vec<(String, Vec<u8>)> = Vec::new();
        let mut rest = Rest::default();
        (|| {
            let transaction = database.begin_read()?;
            for entry in transaction.open_table(SETS)?.iter()? {
                let (key, value) = entry?;
                records.push((key.value().to_owned(), value.value().to_owned()));
            }
            for entry in transaction.open_table(BLOCKS)?.iter()? {
                let (key, value) = entry?;
                blocks.push((block::set_of(key.value()).to_owned(), value.value().to_owned()));
            }
            let meta = transaction.open_table(META)?;
            let text = |key| Ok::<_, redb::Error>(meta.get(key)?.map(|value| value.value().to_owned()));
            rest = Rest {
                sysctls: text("sysctls")?,
                iptables: text("iptables")?,
                unusable: text("unusable")?,
                unfinished: match transaction.open_table(UNFINISHED) {
                    Err(redb::TableError::TableDoesNotExist(_)) => None,
                    table => table?.get("change")?.map(|value| value.value().to_owned()),
                },
            };
            Ok(())
        })()
        .map_err(|error| self.failed(error))?;
        for (name, json) in records {
            let name: SetName = name.parse().map_err(|error| self.damaged(&error))?;
            let record: SetRecord = serde_json::from_str(&json).map_err(|error| self.damaged(&error))?;
            let own = |name: &SetName| name.clone();
            asked.networks.extend(record.networks.into_iter().map(|rule| Owned { set: own(&name), rule }));
            asked.masquerades.extend(record.masquerades.into_iter().map(|rule| Owned { set: own(&name), rule }));
            asked.snats.extend(record.snats.into_iter().map(|rule| Owned { set: own(&name), rule }));
            asked.netmaps.extend(record.netmaps.into_iter().map(|rule| Owned { set: own(&name), rule }));
            state.origins.extend(record.origin.map(|origin| (own(&name), origin)));
            asked.settings.insert(name, record.settings);
        }
        for (set, bytes) in blocks {
            let set: SetName = set.parse().map_err(|error| self.damaged(&error))?;
            let rules: Vec<Binding> = postcard::from_bytes(&bytes).map_err(|error| self.damaged(&error))?;
            asked.bindings.extend(rules.into_iter().map(|rule| Owned { set: set.clone(), rule }));
        }
        state.sysctls = self.read(rest.sysctls)?;
        state.iptables = self.read(rest.iptables)?;
        state.unusable = self.read(rest.unusable)?;
        let unfinished = rest.unfinished.map(|bytes| postcard::from_bytes(&bytes)).transpose();
        state.unfinished = unfinished.map_err(|error| self.damaged(&error))?;
        asked.normalize();
        state.asked = asked.into();
        Ok(state)
    }

    /// Replaces `before`, which is what [`Store::load`] gave, by `after`; only what differs is written.
    ///
    /// # Errors
    /// Where it cannot be written; then nothing is.
    pub fn save(&self, before: &State, after: &State) -> Result<(), StateError> {
        let records = records(after).map_err(|error| self.damaged(&error))?;
        let old_records = self::records(before).map_err(|error| self.damaged(&error))?;
        let rest = [
            (before.sysctls != after.sysctls).then(|| Ok(("sysctls", serde_json::to_string(&after.sysctls)?))),
            (before.iptables != after.iptables).then(|| Ok(("iptables", serde_json::to_string(&after.iptables)?))),
            (before.unusable != after.unusable).then(|| Ok(("unusable", serde_json::to_string(&after.unusable)?))),
        ];
        let rest: Result<Vec<_>, serde_json::Error> = rest.into_iter().flatten().collect();
        let rest = rest.map_err(|error| self.damaged(&error))?;
        let changes = changed_blocks(&before.asked, &after.asked).map_err(|error| self.damaged(&error))?;
        let unfinished = after.unfinished.as_ref().map(postcard::to_allocvec).transpose();
        let unfinished = unfinished.map_err(|error| self.damaged(&error))?;
        self.write(|transaction| {
            put(&mut transaction.open_table(BLOCKS)?, &changes)?;
            let mut sets = transaction.open_table(SETS)?;
            for (name, json) in records.iter().filter(|(name, json)| old_records.get(*name) != Some(json)) {
                sets.insert(name.as_str(), json.as_str())?;
            }
            for name in old_records.keys().filter(|name| !records.contains_key(*name)) {
                sets.remove(name.as_str())?;
            }
            if before.unfinished != after.unfinished {
                let mut table = transaction.open_table(UNFINISHED)?;
                match &unfinished {
                    Some(bytes) => table.insert("change", bytes.as_slice())?,
                    None => table.remove("change")?,
                };
            }
            if !rest.is_empty() {
                let mut meta = transaction.open_table(META)?;
                for (key, json) in &rest {
                    meta.insert(*key, json.as_str())?;
                }
            }
            Ok(())
        })
    }

    /// Reads what is kept as JSON under a key, if it is.
    fn read<T: Default + serde::de::DeserializeOwned>(&self, json: Option<String>) -> Result<T, StateError> {
        let read = |json: String| serde_json::from_str(&json).map_err(|error| self.damaged(&error));
        json.map_or_else(|| Ok(T::default()), read)
    }

    /// The path of a file beside the store, with another ending; none where nothing is kept.
    pub fn beside(&self, ending: &str) -> Option<PathBuf> {
        self.database.as_ref().map(|_| self.path.with_extension(ending))
    }

    fn write(&self, body: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>) -> Result<(), StateError> {
        let Some(database) = &self.database else { return Ok(()) };
        let transaction = database.begin_write().map_err(|error| self.failed(error.into()))?;
        body(&transaction).map_err(|error| self.failed(error))?;
        transaction.commit().map_err(|error| self.failed(error.into()))
    }

    fn failed(&self, error: redb::Error) -> StateError {
        file::failed(&self.path, error)
    }

    fn damaged(&self, error: &impl ToString) -> StateError {
        StateError::Damaged(self.path.clone(), error.to_string())
    }
}

/// The file of a namespace's store, and which one of its name the namespace is.
fn place<'a>(directory: &Path, identity: &'a Identity) -> (PathBuf, Option<&'a String>) {
    match identity {
        Identity::Host => (directory.join("state.redb"), None),
        Identity::Named(name, incarnation) => (directory.join("netns").join(format!("{name}.redb")), Some(incarnation)),
        Identity::Anonymous(incarnation) => {
            (directory.join("netns").join(format!("anonymous-{incarnation}.redb")), Some(incarnation))
        }
    }
}

/// The blocks that differ, with what is in them afterwards; nothing where that is nothing.
fn changed_blocks(before: &Asked, after: &Asked) -> postcard::Result<Vec<(String, Option<Vec<u8>>)>> {
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

fn put(
    table: &mut Table<'_, &'static str, &'static [u8]>,
    changes: &[(String, Option<Vec<u8>>)],
) -> Result<(), redb::Error> {
    for (key, bytes) in changes {
        match bytes {
            Some(bytes) => table.insert(key.as_str(), bytes.as_slice())?,
            None => table.remove(key.as_str())?,
        };
    }
    Ok(())
}

fn records(state: &State) -> Result<BTreeMap<SetName, String>, serde_json::Error> {
    let mut records: BTreeMap<&SetName, SetRecord> = BTreeMap::new();
    for (name, settings) in &state.asked.settings {
        records.entry(name).or_default().settings = *settings;
    }
    for owned in &state.asked.networks {
        records.entry(&owned.set).or_default().networks.push(owned.rule.clone());
    }
    for owned in &state.asked.masquerades {
        records.entry(&owned.set).or_default().masquerades.push(owned.rule.clone());
    }
    for owned in &state.asked.snats {
        records.entry(&owned.set).or_default().snats.push(owned.rule.clone());
    }
    for owned in &state.asked.netmaps {
        records.entry(&owned.set).or_default().netmaps.push(owned.rule);
    }
    for (name, origin) in &state.origins {
        records.entry(name).or_default().origin = Some(origin.clone());
    }
    records.into_iter().map(|(name, record)| Ok((name.clone(), serde_json::to_string(&record)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Forward, RuleSet};

    fn open(directory: &Path, identity: &Identity) -> Store {
        Store::open(directory, identity, true, Duration::ZERO).expect("opens")
    }

    fn state(listens: &[&str]) -> State {
        let mut set = RuleSet::new(SetName::cli());
        for listen in listens {
            let to = if listen.starts_with('[') { "fd00::1" } else { "10.0.0.1" };
            set.forwards.push(Forward::new(listen.parse().expect("listen"), to.parse().expect("target")));
        }
        let mut state = State::default();
        let asked = Arc::make_mut(&mut state.asked);
        asked.add(&set).expect("valid");
        asked.normalize();
        state.origins.insert(SetName::cli(), "/etc/portfwd/cli.toml".into());
        state.iptables.insert(Variant::Legacy);
        let gone = state.asked.bindings.iter().map(|owned| owned.rule.clone()).collect();
        state.unfinished = Some(Unfinished { keep_connections: true, gone });
        state.unusable = Some(Unusable { kernel: "1.0".into(), why: "old".into() });
        state.sysctls.push(sysctl::Change { key: "ipv4/ip_forward".into(), before: "0".into(), after: "1".into() });
        state
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let directory = tempfile::tempdir().expect("directory");
        let (one, two) = (state(&["80", "8000-8010/udp", "[2001:db8::1]:53"]), state(&["80", "81"]));
        {
            let store = open(directory.path(), &Identity::Host);
            assert_eq!(store.load().expect("loads"), State::default());
            store.save(&State::default(), &one).expect("saves");
        }
        let store = open(directory.path(), &Identity::Host);
        assert_eq!(store.load().expect("loads"), one);
        store.save(&one, &two).expect("saves");
        assert_eq!(store.load().expect("loads"), two);
        store.save(&two, &State::default()).expect("saves");
        assert_eq!(store.load().expect("loads"), State::default());
    }

    #[test]
    fn a_namespace_made_anew_begins_with_nothing() {
        let directory = tempfile::tempdir().expect("directory");
        let first = Identity::Named("web".into(), "boot-1".into());
        let store = open(directory.path(), &first);
        store.save(&State::default(), &state(&["80"])).expect("saves");
        drop(store);
        assert_ne!(open(directory.path(), &first).load().expect("loads"), State::default());
        let second = Identity::Named("web".into(), "boot-2".into());
        assert_eq!(open(directory.path(), &second).load().expect("loads"), State::default());
        assert_eq!(open(directory.path(), &Identity::Host).load().expect("loads"), State::default());
    }

    #[test]
    fn only_the_owner_may_read_it() {
        let directory = tempfile::tempdir().expect("directory");
        let inner = directory.path().join("deep/er");
        drop(open(&inner, &Identity::Host));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&inner), 0o700);
        assert_eq!(mode(&inner.join("state.redb")), 0o600);
    }

    #[test]
    fn a_second_process_waits_and_gives_up() {
        let directory = tempfile::tempdir().expect("directory");
        let _first = open(directory.path(), &Identity::Host);
        let second = Store::open(directory.path(), &Identity::Host, true, Duration::from_millis(20));
        assert!(matches!(second, Err(StateError::Busy(_))));
    }

    fn with_version(directory: &Path, version: &str) -> Result<Store, StateError> {
        let store = open(directory, &Identity::Host);
        let put = |transaction: &redb::WriteTransaction| {
            transaction.open_table(META)?.insert("version", version)?;
            Ok(())
        };
        store.write(put).expect("writes");
        drop(store);
        Store::open(directory, &Identity::Host, true, Duration::ZERO)
    }

    #[test]
    fn what_is_on_disk_does_not_change() {
        let state = state(&["8080"]);
        let blocks = changed_blocks(&Asked::default(), &state.asked).expect("encoded");
        let bytes = b"\x01\x00\x00\x00\x00\x00\x048080\x01\x00\x0a\x00\x00\x01\x02\x90\x3f\x04keep\x01\x00\x00";
        assert_eq!(blocks, [("cli\0IPv4 tcp port 1f9".to_owned(), Some(bytes.to_vec()))]);
    }

    #[test]
    fn a_newer_store_is_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let newer = with_version(directory.path(), "4");
        assert!(matches!(newer, Err(StateError::Version(_, version)) if version == "4"));
    }

    #[test]
    fn a_store_of_an_older_version_is_brought_into_the_present_shape() {
        let directory = tempfile::tempdir().expect("directory");
        let store = open(directory.path(), &Identity::Host);
        // As the program wrote them when its shape was 1.
        let binding =
            r#"{"family":"ipv4","protocol":"tcp","ports":"80","to":{"address":"10.0.0.1","port":{"one":80}}}"#;
        let set = r#"{"networks":[],"masquerades":[],"settings":{"ip_forward":"enable"},"origin":null}"#;
        let put = |transaction: &redb::WriteTransaction| {
            transaction.open_table(BINDINGS)?.insert("cli\0IPv4\080/tcp", binding)?;
            transaction.open_table(SETS)?.insert("cli", set)?;
            Ok(())
        };
        store.write(put).expect("writes");
        drop(store);
        let store = with_version(directory.path(), "1").expect("opens");
        let asked = store.load().expect("loads").asked;
        assert_eq!(asked.bindings.len(), 1);
        assert_eq!(asked.bindings[0].rule.to_string(), "80/tcp -> 10.0.0.1:80");
        drop(store);
        open(directory.path(), &Identity::Host);
    }
}
