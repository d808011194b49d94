//! The tables of a store, in SQLite:
//!
//! ```sql
//! meta(name, value, checksum)      -- single values: version, namespace, commit, forwards, sysctls, unfinished, …
//! sets(name, value, checksum)      -- a rule set without its forwards
//! forwards(rule_set, place, first_port, binding, checksum)
//! ```
//! `value` and `binding` are JSON. SQLite does not notice a flipped bit in a value, so every row has a checksum. Two numbers
//! detect lost rows: `forwards` is the number of rows in that table, `commit` the number of the last commit (see
//! [`Database::commit_number`]).
//!
//! `place` is what two bindings share if they can conflict: family, protocol, port or range, address, interface, clients. So
//! a change of one forward among N reads its neighbours in O(log N). Saving 60,000 rows takes 45 ms more processor time than
//! saving blocks of 16 would, loading them as long (Linux 6.18, medians); one row per binding is readable with `sqlite3`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, Row, Transaction, TransactionBehavior, params};
use xxhash_rust::xxh3::Xxh3;

use super::file;
use super::state::StateError;
use crate::model::{Binding, Owned, SetName};

const SCHEMA: &str = "
    DROP TABLE IF EXISTS meta;
    DROP TABLE IF EXISTS sets;
    DROP TABLE IF EXISTS forwards;
    CREATE TABLE meta (
        name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL
    ) WITHOUT ROWID, STRICT;
    CREATE TABLE sets (
        name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL
    ) WITHOUT ROWID, STRICT;
    CREATE TABLE forwards (
        rule_set TEXT, place TEXT, first_port INTEGER, binding TEXT, checksum INTEGER NOT NULL,
        PRIMARY KEY (rule_set, place, first_port, binding)
    ) WITHOUT ROWID, STRICT";

const FORWARDS: &str = "SELECT rule_set, place, first_port, binding, checksum FROM forwards";

/// The size from which the log is truncated after a commit. Unit: bytes.
///
/// SQLite's automatic checkpoint (1,000 pages, 4 MiB) starts the log again only if the same process writes twice. A portfwd
/// writes once, and every portfwd reads the whole log when it opens the database: 2.5 µs a page (Linux 6.18).
const LOG_SIZE: u64 = 256 * 1024;

/// `SQLITE_IOERR_SHORT_READ`: the file is shorter than its header says.
const SHORT_READ: i32 = 522;

/// `SQLITE_IOERR_FSYNC` and `SQLITE_IOERR_DIR_FSYNC`.
const FAILED_SYNC: [i32; 2] = [1034, 1290];

/// An open database.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    connection: Connection,
    /// The number of the last commit; 0 if there are no tables.
    commit: u64,
    /// The number of rows in `forwards`.
    forwards: u64,
    undecided: bool,
}

/// What a transaction changes.
#[derive(Debug, Default)]
pub(super) struct Changes<'a> {
    /// Creates the tables anew, which deletes all rows.
    pub(super) create: bool,
    /// Rows of `meta`: name and value.
    pub(super) meta: Vec<(&'static str, String)>,
    /// Rows of `sets`: name and value, or `None` to delete the row.
    pub(super) sets: Vec<(String, Option<String>)>,
    /// Rows of `forwards` to delete.
    pub(super) removed: Vec<&'a Owned<Binding>>,
    /// Rows of `forwards` to insert.
    pub(super) added: Vec<&'a Owned<Binding>>,
}

impl Changes<'_> {
    /// Returns true if nothing changes.
    pub(super) fn is_empty(&self) -> bool {
        !self.create && self.meta.is_empty() && self.sets.is_empty() && self.removed.is_empty() && self.added.is_empty()
    }
}

impl Database {
    /// Opens the database, and creates its file if `write` is true.
    pub(super) fn open(path: &Path, write: bool) -> Result<Self, StateError> {
        let io = |error| StateError::Io(path.to_owned(), error);
        if write {
            file::open(path)?;
        }
        // NOFOLLOW refuses a symbolic link anywhere in the path; the directory may be one.
        let directory = path.parent().unwrap_or(Path::new("/")).canonicalize().map_err(io)?;
        let real = directory.join(path.file_name().unwrap_or_default());
        // SQLite falls back to reading if the file system is read-only.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW
            | OpenFlags::SQLITE_OPEN_EXRESCODE;
        let opened = (|| {
            let connection = Connection::open_with_flags(real, flags)?;
            // Otherwise every portfwd, when it ends, would write its log to the database: two more fsyncs per command.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            if write {
                // A commit is one fsync of the log; with a rollback journal it is three.
                connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
                // A commit that was reported survives a loss of power; with NORMAL, WAL does not wait for the disk.
                connection.execute_batch("PRAGMA synchronous = FULL")?;
            }
            let tables: u32 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
            Ok((connection, tables > 0))
        })();
        let (connection, has_tables) = opened.map_err(|error| failed(path, &error))?;
        let mut database = Self { path: path.to_owned(), connection, commit: 0, forwards: 0, undecided: false };
        if has_tables {
            let meta = database.meta()?;
            let number = |name| meta.get(name).and_then(|value| value.parse().ok());
            let missing = || StateError::Damaged(path.to_owned(), "its numbers are missing".into());
            database.commit = number("commit").ok_or_else(missing)?;
            database.forwards = number("forwards").ok_or_else(missing)?;
        }
        Ok(database)
    }

    /// Returns the number of the last commit; 0 if there are no tables.
    ///
    /// SQLite ignores the rest of its log behind a damaged page, without an error. If another file knows a higher number,
    /// the last commit is lost.
    pub(super) fn commit_number(&self) -> u64 {
        self.commit
    }

    /// Returns how many forwards there are.
    pub(super) fn forward_count(&self) -> u64 {
        self.forwards
    }

    /// Returns true if both a commit and its invalidation failed, so the stored state is unknown.
    pub(super) fn is_undecided(&self) -> bool {
        self.undecided
    }

    /// Looks through the whole file for damage that SQLite can find.
    pub(super) fn check(&self) -> Result<(), StateError> {
        let answer = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        match answer.map_err(|error| failed(&self.path, &error))? {
            answer if answer == "ok" => Ok(()),
            answer => Err(StateError::Damaged(self.path.clone(), answer)),
        }
    }

    /// Reads the table `meta`.
    pub(super) fn meta(&self) -> Result<BTreeMap<String, String>, StateError> {
        self.named_values("meta")
    }

    /// Reads the table `sets`.
    pub(super) fn sets(&self) -> Result<BTreeMap<String, String>, StateError> {
        self.named_values("sets")
    }

    fn named_values(&self, table: &str) -> Result<BTreeMap<String, String>, StateError> {
        let read = || {
            let mut query = self.connection.prepare(&format!("SELECT name, value, checksum FROM {table}"))?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect::<Result<Vec<(String, String, i64)>, Error>>()
        };
        let mut values = BTreeMap::new();
        for (name, value, sum) in read().map_err(|error| failed(&self.path, &error))? {
            if sum != checksum(table, &[name.as_bytes(), value.as_bytes()]) {
                return Err(self.wrong_checksum(table));
            }
            values.insert(name, value);
        }
        Ok(values)
    }

    /// Reads all forwards.
    pub(super) fn forwards(&self) -> Result<Vec<Owned<Binding>>, StateError> {
        let mut all = Vec::new();
        self.each_forward("", params![], |owned| {
            all.push(owned);
            true
        })?;
        if u64::try_from(all.len()) == Ok(self.forwards) {
            Ok(all)
        } else {
            Err(StateError::Damaged(self.path.clone(), "the number of forwards is wrong".into()))
        }
    }

    /// Reads the forwards of a rule set, at most `limit`.
    pub(super) fn forwards_of(&self, set: &SetName, limit: usize) -> Result<Vec<Owned<Binding>>, StateError> {
        let mut found = Vec::new();
        self.each_forward("WHERE rule_set = ?", params![set.as_str()], |owned| {
            found.push(owned);
            found.len() < limit
        })?;
        Ok(found)
    }

    /// Reads the forwards of a rule set at the same place as `binding` that have a port in common with it.
    ///
    /// The ranges of a set at one place are disjoint, because portfwd refuses conflicts. So downwards from the last port of
    /// `binding`, the first range that does not meet it is the end.
    pub(super) fn forwards_at(&self, set: &SetName, binding: &Binding) -> Result<Vec<Owned<Binding>>, StateError> {
        let mut found = Vec::new();
        let clause = "WHERE rule_set = ? AND place = ? AND first_port <= ? ORDER BY first_port DESC";
        self.each_forward(clause, params![set.as_str(), place(binding), binding.ports.last()], |owned| {
            let meets = owned.rule.ports.overlaps(binding.ports);
            found.extend(Some(owned).filter(|_| meets));
            meets
        })?;
        Ok(found)
    }

    /// Calls `each` with the forwards of a query until `each` returns false.
    fn each_forward(
        &self,
        clause: &str,
        parameters: impl rusqlite::Params,
        mut each: impl FnMut(Owned<Binding>) -> bool,
    ) -> Result<(), StateError> {
        let failed = |error| failed(&self.path, &error);
        let mut query = self.connection.prepare_cached(&format!("{FORWARDS} {clause}")).map_err(failed)?;
        let mut rows = query.query(parameters).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let (set, binding) = forward_texts(row).map_err(failed)?.ok_or_else(|| self.wrong_checksum("forwards"))?;
            let damaged = |error: &dyn ToString| StateError::Damaged(self.path.clone(), error.to_string());
            let set = SetName::try_from(set.to_owned()).map_err(|error| damaged(&error))?;
            let rule = serde_json::from_str(binding).map_err(|error| damaged(&error))?;
            if !each(Owned { set, rule }) {
                break;
            }
        }
        Ok(())
    }

    /// Commits all changes or none, with one fsync.
    pub(super) fn commit(&mut self, changes: &Changes<'_>) -> Result<(), StateError> {
        if let Err(error) = self.transaction(changes) {
            // After a failed fsync the log may hold the whole transaction, and the next process would find it. An empty
            // transaction overwrites its first page.
            let logged = error.sqlite_error().is_some_and(|error| FAILED_SYNC.contains(&error.extended_code));
            self.undecided = logged && self.transaction(&Changes::default()).is_err();
            return Err(failed(&self.path, &error));
        }
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        if fs::metadata(log).is_ok_and(|log| log.len() > LOG_SIZE) {
            // If this fails, the log is still good, and the next commit tries again.
            drop(self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
        }
        Ok(())
    }

    fn transaction(&mut self, changes: &Changes<'_>) -> Result<(), Error> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (commit, mut forwards) = (self.commit + 1, self.forwards);
        if changes.create {
            transaction.execute_batch(SCHEMA)?;
            forwards = 0;
        }
        forwards -= delete_forwards(&transaction, &changes.removed)?;
        forwards += insert_forwards(&transaction, &changes.added)?;
        for (name, value) in &changes.sets {
            match value {
                Some(value) => put(&transaction, "sets", name, value)?,
                None => drop(transaction.execute("DELETE FROM sets WHERE name = ?", [name])?),
            }
        }
        for (name, value) in &changes.meta {
            put(&transaction, "meta", name, value)?;
        }
        put(&transaction, "meta", "commit", &commit.to_string())?;
        put(&transaction, "meta", "forwards", &forwards.to_string())?;
        transaction.commit()?;
        (self.commit, self.forwards) = (commit, forwards);
        Ok(())
    }

    fn wrong_checksum(&self, table: &str) -> StateError {
        StateError::Damaged(self.path.clone(), format!("the checksum of a row of its table `{table}` differs"))
    }
}

fn put(transaction: &Transaction<'_>, table: &str, name: &str, value: &str) -> Result<(), Error> {
    let sum = checksum(table, &[name.as_bytes(), value.as_bytes()]);
    transaction.execute(&format!("REPLACE INTO {table} VALUES (?, ?, ?)"), params![name, value, sum]).map(drop)
}

/// Deletes forwards and returns how many.
fn delete_forwards(transaction: &Transaction<'_>, removed: &[&Owned<Binding>]) -> Result<u64, Error> {
    let mut delete = transaction
        .prepare("DELETE FROM forwards WHERE rule_set = ? AND place = ? AND first_port = ? AND binding = ?")?;
    let mut deleted = 0;
    for Owned { set, rule } in removed {
        match delete.execute(params![set.as_str(), place(rule), rule.ports.first(), json(rule)?])? {
            // Committing would leave the forward in the table for ever.
            0 => return Err(Error::StatementChangedRows(0)),
            _ => deleted += 1,
        }
    }
    Ok(deleted)
}

/// Inserts forwards and returns how many.
fn insert_forwards(transaction: &Transaction<'_>, added: &[&Owned<Binding>]) -> Result<u64, Error> {
    let mut insert = transaction.prepare("INSERT OR IGNORE INTO forwards VALUES (?, ?, ?, ?, ?)")?;
    let mut inserted = 0;
    for Owned { set, rule } in added {
        let (place, port, binding) = (place(rule), rule.ports.first(), json(rule)?);
        let sum = forward_checksum(set.as_str(), &place, port.into(), &binding);
        // The same binding twice in one set is one row.
        inserted += u64::from(insert.execute(params![set.as_str(), place, port, binding, sum])? > 0);
    }
    Ok(inserted)
}

fn json(rule: &Binding) -> Result<String, Error> {
    serde_json::to_string(rule).map_err(|error| Error::ToSqlConversionFailure(error.into()))
}

/// Returns the set and the binding of a row, or `None` if the checksum is wrong.
fn forward_texts<'a>(row: &'a Row<'_>) -> Result<Option<(&'a str, &'a str)>, Error> {
    let (set, place) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
    let (port, binding) = (row.get(2)?, row.get_ref(3)?.as_str()?);
    Ok((row.get::<_, i64>(4)? == forward_checksum(set, place, port, binding)).then_some((set, binding)))
}

/// Returns the text for the column `place`: `ipv4 tcp port`, `ipv6 udp range at 2001:db8::1 on eth0 from 2001:db8::/32`.
fn place(rule: &Binding) -> String {
    let mut text = format!("{} {} {}", rule.family, rule.protocol, if rule.is_exact() { "port" } else { "range" });
    let mut add = |word: &str, value: Option<&dyn std::fmt::Display>| {
        if let Some(value) = value {
            // Writing to a `String` does not fail.
            let _ = write!(text, " {word} {value}");
        }
    };
    add("at", rule.address.as_ref().map(|address| address as _));
    add("on", rule.interface.as_ref().map(|interface| interface as _));
    add("from", rule.from.as_ref().map(|from| from as _));
    text
}

fn forward_checksum(set: &str, place: &str, first_port: i64, binding: &str) -> i64 {
    checksum("forwards", &[set.as_bytes(), place.as_bytes(), &first_port.to_le_bytes(), binding.as_bytes()])
}

/// Returns the checksum of a row. The table is a part of it, so that no page passes for one of another table.
fn checksum(table: &str, columns: &[&[u8]]) -> i64 {
    let mut hasher = Xxh3::new();
    hasher.update(table.as_bytes());
    for column in columns {
        // With its length, so that a byte cannot move from one column to the next.
        hasher.update(&column.len().to_le_bytes());
        hasher.update(column);
    }
    hasher.digest().cast_signed()
}

/// Turns an error of SQLite into what it means for the user.
fn failed(path: &Path, error: &Error) -> StateError {
    let damaged = |error: &dyn ToString| StateError::Damaged(path.to_owned(), error.to_string());
    let Error::SqliteFailure(code, what) = error else {
        // A column of another type, or no column: portfwd did not write this.
        return damaged(error);
    };
    let system = |code: i32| StateError::Io(path.to_owned(), io::Error::from_raw_os_error(code));
    match code.code {
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            StateError::Damaged(path.to_owned(), what.clone().unwrap_or_else(|| code.to_string()))
        }
        // A table or column that is missing.
        ErrorCode::Unknown => damaged(error),
        ErrorCode::SystemIoFailure if code.extended_code == SHORT_READ => damaged(error),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StateError::Busy(path.to_owned()),
        ErrorCode::DiskFull => system(nix::libc::ENOSPC),
        ErrorCode::ReadOnly => system(nix::libc::EROFS),
        _ => StateError::Store(path.to_owned(), Box::new(rusqlite::Error::SqliteFailure(*code, what.clone()))),
    }
}
