//! Stores of older versions, which redb kept: read once, when the present one is made in their place.
//!
//! 1 had every atom as a row of JSON. 2 added `source`, `hairpin` and `loopback` to an atom, and `snats` and `netmaps` to a
//! set, all with defaults. 3 kept atoms in the blocks of today, and knew of iptables.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::block;
use super::file;
use super::rows::Rows;
use super::state::{State, StateError};
use crate::model::{Binding, Owned, SetName};

const BLOCKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("blocks");
/// Up to version 2: set and listening half of an atom, to the atom as JSON.
const BINDINGS: TableDefinition<'_, &str, &str> = TableDefinition::new("bindings");
const SETS: TableDefinition<'_, &str, &str> = TableDefinition::new("sets");
const UNFINISHED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("unfinished");
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");

/// What a store of an older version holds, where there is one of the namespace `incarnation`.
///
/// # Errors
/// Where it is damaged, or of no version that is known.
pub(super) fn read(path: &Path, incarnation: Option<&str>) -> Result<Option<State>, StateError> {
    if !path.exists() {
        return Ok(None);
    }
    let backend = FileBackend::new(file::file(path)?);
    whole(path, || {
        let open = |backend| Database::builder().set_check_integrity_on_open(true).create_with_backend(backend);
        let database = backend.and_then(open).map_err(|error| failed(path, error.into()))?;
        let rows = rows(&database).map_err(|error| failed(path, error))?;
        let Some((rows, meta)) = rows else { return Ok(None) };
        match meta.version.as_deref() {
            Some("1" | "2" | "3") if meta.namespace.as_deref() == incarnation => {}
            Some("1" | "2" | "3") | None => return Ok(None),
            Some(version) => return Err(StateError::Version(path.to_owned(), version.to_owned())),
        }
        let mut state = rows.state(path)?;
        let damaged = |error: &dyn ToString| StateError::Damaged(path.to_owned(), error.to_string());
        let asked = std::sync::Arc::make_mut(&mut state.asked);
        for (set, json) in meta.bindings {
            let set: SetName = set.parse().map_err(|error| damaged(&error))?;
            let rule: Binding = serde_json::from_str(&json).map_err(|error| damaged(&error))?;
            asked.bindings.push(Owned { set, rule });
        }
        asked.normalize();
        Ok(Some(state))
    })
}

/// What the present store does not have in this form.
struct Meta {
    version: Option<String>,
    namespace: Option<String>,
    bindings: Vec<(String, String)>,
}

fn rows(database: &Database) -> Result<Option<(Rows, Meta)>, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        meta => meta?,
    };
    let text = |key| Ok::<_, redb::Error>(meta.get(key)?.map(|value| value.value().to_owned()));
    let bytes = |key| Ok::<_, redb::Error>(text(key)?.map(String::into_bytes));
    let mut rows = Rows {
        sysctls: bytes("sysctls")?,
        iptables: bytes("iptables")?,
        unusable: bytes("unusable")?,
        ..Rows::default()
    };
    let mut more = Meta { version: text("version")?, namespace: text("namespace")?, bindings: Vec::new() };
    for entry in transaction.open_table(SETS)?.iter()? {
        let (key, value) = entry?;
        rows.sets.push((key.value().to_owned(), value.value().as_bytes().to_owned()));
    }
    match transaction.open_table(BLOCKS) {
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        table => {
            for entry in table?.iter()? {
                let (key, value) = entry?;
                rows.blocks.push((block::set_of(key.value()).to_owned(), value.value().to_owned()));
            }
        }
    }
    match transaction.open_table(BINDINGS) {
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        table => {
            for entry in table?.iter()? {
                let (key, value) = entry?;
                more.bindings.push((block::set_of(key.value()).to_owned(), value.value().to_owned()));
            }
        }
    }
    match transaction.open_table(UNFINISHED) {
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        table => rows.unfinished = table?.get("change")?.map(|value| value.value().to_owned()),
    }
    Ok(Some((rows, more)))
}

/// What an error of redb's means: that its file is damaged, or that it cannot be reached.
fn failed(path: &Path, error: redb::Error) -> StateError {
    match error {
        redb::Error::Io(error) if error.kind() != io::ErrorKind::InvalidData => StateError::Io(path.to_owned(), error),
        error => StateError::Damaged(path.to_owned(), error.to_string()),
    }
}

/// Does something with a store. Where redb panics over what it finds in the file, and with some flipped bits it does (4.6),
/// that file is damaged, which is no fault of this program to be reported as one.
fn whole<T>(path: &Path, job: impl FnOnce() -> Result<T, StateError>) -> Result<T, StateError> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let done = panic::catch_unwind(AssertUnwindSafe(job));
    panic::set_hook(hook);
    done.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let line = said.unwrap_or_default().lines().next().unwrap_or_default();
        Err(StateError::Damaged(path.to_owned(), line.to_owned()))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As the program wrote them when its shape was `version`.
    fn written(path: &Path, version: &str, put: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>) {
        let database = Database::create(path).expect("made");
        let transaction = database.begin_write().expect("begins");
        let meta = |transaction: &redb::WriteTransaction| {
            transaction.open_table(META)?.insert("version", version)?;
            transaction.open_table(SETS)?;
            Ok::<_, redb::Error>(())
        };
        meta(&transaction).expect("writes");
        put(&transaction).expect("writes");
        transaction.commit().expect("commits");
    }

    /// A store of version 1 with one forward in it.
    pub(in crate::store) fn one_forward(path: &Path) {
        written(path, "1", |transaction| {
            let binding =
                r#"{"family":"ipv4","protocol":"tcp","ports":"80","to":{"address":"10.0.0.1","port":{"one":80}}}"#;
            let set = r#"{"networks":[],"masquerades":[],"settings":{"ip_forward":"enable"},"origin":null}"#;
            transaction.open_table(BINDINGS)?.insert("cli\0IPv4\080/tcp", binding)?;
            transaction.open_table(SETS)?.insert("cli", set)?;
            Ok(())
        });
    }

    fn listed(path: &Path) -> Vec<String> {
        let state = read(path, None).expect("reads").expect("there");
        state.asked.bindings.iter().map(|owned| format!("{} {}", owned.set, owned.rule)).collect()
    }

    #[test]
    fn every_older_version_is_read() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("state.redb");
        assert!(read(&path, None).expect("reads").is_none());
        one_forward(&path);
        assert_eq!(listed(&path), ["cli 80/tcp -> 10.0.0.1:80"]);
        std::fs::remove_file(&path).expect("removed");
        written(&path, "3", |transaction| {
            let bytes = b"\x01\x00\x00\x00\x00\x00\x048080\x01\x00\x0a\x00\x00\x01\x02\x90\x3f\x04keep\x01\x00\x00";
            transaction.open_table(BLOCKS)?.insert("cli\0IPv4 tcp port 1f9", bytes.as_slice())?;
            Ok(())
        });
        assert_eq!(listed(&path), ["cli 8080/tcp -> 10.0.0.1:8080"]);
        // Another namespace's is none of ours.
        assert!(read(&path, Some("boot-1")).expect("reads").is_none());
    }

    #[test]
    fn what_is_no_store_is_damaged() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("state.redb");
        std::fs::write(&path, vec![7; 5_000]).expect("written");
        assert!(matches!(read(&path, None), Err(StateError::Damaged(..))));
    }
}
