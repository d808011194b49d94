//! The tables of a store, in SQLite; `value` and `binding` are JSON:
//!
//! ```sql
//! meta(name, value, checksum)             -- single values: version, namespace, commit, forwards, sysctls, unfinished, …
//! rules(kind, rule_set, value, checksum)  -- networks, masquerades, snats, netmaps; settings and origin of a set
//! forwards(rule_set, place, first_port, binding, checksum)
//! ```
//! SQLite does not detect a flipped bit in a value, so every row has a checksum. Two rows of `meta` detect losses: `forwards`
//! is the number of rows in the table `forwards`, and `commit` is the number of the last commit, also in the kernel file.
//!
//! Two bindings can conflict only if they have the same `place`: family, protocol, port or range, address, interface and
//! clients. So a change of one forward among N finds possible conflicts in O(log N).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, Error, ErrorCode, OpenFlags, Params, Row, Statement, Transaction, TransactionBehavior, params,
};
use xxhash_rust::xxh3::Xxh3;

use super::file;
use super::state::StateError;
use crate::model::{Binding, SetName, SetRule};

const SCHEMA: &str = "
    DROP TABLE IF EXISTS meta;
    DROP TABLE IF EXISTS rules;
    DROP TABLE IF EXISTS forwards;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID, STRICT;
    CREATE TABLE rules (
        kind TEXT, rule_set TEXT, value TEXT, checksum INTEGER NOT NULL, PRIMARY KEY (kind, rule_set, value)
    ) WITHOUT ROWID, STRICT;
    CREATE TABLE forwards (
        rule_set TEXT, place TEXT, first_port INTEGER, binding TEXT, checksum INTEGER NOT NULL,
        PRIMARY KEY (rule_set, place, first_port, binding)
    ) WITHOUT ROWID, STRICT";

/// The size from which the log is truncated after a commit. Unit: bytes.
///
/// SQLite's automatic checkpoint (1,000 pages) starts the log again only if one process writes twice after it, and most
/// portfwds write once: the log would grow for ever. Every portfwd reads the log when it opens the database.
const LOG_SIZE: u64 = 256 * 1024;

/// `SQLITE_IOERR_SHORT_READ`: the file is shorter than its header says.
const SHORT_READ: i32 = 522;

/// The codes of a failed fsync: `SQLITE_IOERR_FSYNC` and `SQLITE_IOERR_DIR_FSYNC`.
const FAILED_SYNC: [i32; 2] = [1034, 1290];

/// An open connection to `state.db`, or to the database of another namespace.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    connection: Connection,
    /// The number of the last commit; 0 if there are no tables.
    ///
    /// SQLite ignores the rest of its log behind a damaged page, without an error. If another file knows a higher number,
    /// the last commit is lost.
    pub(super) commit: u64,
    /// The number of forwards.
    pub(super) forwards: u64,
    /// True if both a commit and its invalidation failed.
    pub(super) undecided: bool,
}

/// The changes of one commit.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes<'a> {
    /// If true, the commit first replaces the tables by empty ones.
    pub(super) create: bool,
    /// Rows of `meta`, which replace the rows of the same name.
    pub(super) meta: Vec<(&'static str, String)>,
    pub(super) removed_rules: Vec<(String, String, String)>,
    pub(super) added_rules: Vec<(String, String, String)>,
    pub(super) removed_forwards: Vec<&'a SetRule<Binding>>,
    pub(super) added_forwards: Vec<&'a SetRule<Binding>>,
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
            // Otherwise every portfwd, when it ends, would copy the log to the database: two more fsyncs per command.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            if write {
                // A commit is one fsync of the log; with a rollback journal it is three.
                connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
                // A reported commit survives a loss of power; with NORMAL, a commit does not wait for the disk.
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
            let missing =
                || StateError::Damaged(path.to_owned(), "the number of commits or forwards is missing".into());
            database.commit = number("commit").ok_or_else(missing)?;
            database.forwards = number("forwards").ok_or_else(missing)?;
        }
        Ok(database)
    }

    /// Checks the whole file for damage that SQLite can detect.
    pub(super) fn check(&self) -> Result<(), StateError> {
        let answer = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        match answer.map_err(|error| failed(&self.path, &error))? {
            answer if answer == "ok" => Ok(()),
            answer => Err(StateError::Damaged(self.path.clone(), answer)),
        }
    }

    /// Reads the table `meta`.
    pub(super) fn meta(&self) -> Result<BTreeMap<String, String>, StateError> {
        let rows = self.texts::<2>("meta", "SELECT name, value, checksum FROM meta")?;
        Ok(rows.into_iter().map(|[name, value]| (name, value)).collect())
    }

    /// Reads the table `rules`.
    pub(super) fn rules(&self) -> Result<Vec<(String, String, String)>, StateError> {
        let rows = self.texts::<3>("rules", "SELECT kind, rule_set, value, checksum FROM rules")?;
        Ok(rows.into_iter().map(|[kind, set, value]| (kind, set, value)).collect())
    }

    /// Reads rows of text columns, without the checksum.
    fn texts<const N: usize>(&self, table: &str, select: &str) -> Result<Vec<[String; N]>, StateError> {
        let read = || {
            let mut query = self.connection.prepare(select)?;
            let row = |row: &Row<'_>| {
                let columns: Vec<String> = (0..N).map(|column| row.get(column)).collect::<Result<_, Error>>()?;
                Ok((columns, row.get(N)?))
            };
            query.query_map([], row)?.collect::<Result<Vec<(Vec<String>, i64)>, Error>>()
        };
        let rows = read().map_err(|error| failed(&self.path, &error))?.into_iter().map(|(columns, sum)| {
            let right = sum == checksum(table, columns.iter().map(String::as_bytes));
            columns.try_into().ok().filter(|_| right).ok_or_else(|| self.wrong_checksum(table))
        });
        rows.collect()
    }

    /// Reads the forwards of all sets.
    pub(super) fn forwards(&self) -> Result<Vec<SetRule<Binding>>, StateError> {
        let mut all = Vec::new();
        self.each_forward(&mut self.select_forwards("")?, [], |owned| {
            all.push(owned);
            true
        })?;
        let complete = u64::try_from(all.len()) == Ok(self.forwards);
        let wrong = || StateError::Damaged(self.path.clone(), "the number of forwards is wrong".into());
        complete.then_some(all).ok_or_else(wrong)
    }

    /// Reads the forwards of some sets, at most `limit` of each.
    pub(super) fn forwards_of(&self, sets: &[SetName], limit: usize) -> Result<Vec<SetRule<Binding>>, StateError> {
        let mut select = self.select_forwards("WHERE rule_set = ? LIMIT ?")?;
        let mut found = Vec::new();
        for set in sets {
            self.each_forward(&mut select, params![set.as_str(), i64::try_from(limit).unwrap_or(i64::MAX)], |owned| {
                found.push(owned);
                true
            })?;
        }
        Ok(found)
    }

    /// Reads, for each pair of a set and a binding, the forwards of the set that have the binding's place and one of its
    /// ports.
    ///
    /// The ranges of a set at one place are disjoint, because portfwd refuses conflicts. So the search goes downwards from the
    /// last port of the binding, and ends at the first range without one of its ports.
    pub(super) fn forwards_at<'a>(
        &self,
        pairs: impl Iterator<Item = (&'a SetName, &'a Binding)>,
    ) -> Result<Vec<SetRule<Binding>>, StateError> {
        let clause = "WHERE rule_set = ? AND place = ? AND first_port <= ? ORDER BY first_port DESC";
        let mut select = self.select_forwards(clause)?;
        let mut found = Vec::new();
        for (set, binding) in pairs {
            let last = binding.ports.last();
            self.each_forward(&mut select, params![set.as_str(), place(binding), last], |owned| {
                let overlaps = owned.rule.ports.overlaps(binding.ports);
                found.extend(Some(owned).filter(|_| overlaps));
                overlaps
            })?;
        }
        Ok(found)
    }

    fn select_forwards(&self, clause: &str) -> Result<Statement<'_>, StateError> {
        let select = format!("SELECT rule_set, place, first_port, binding, checksum FROM forwards {clause}");
        self.connection.prepare(&select).map_err(|error| failed(&self.path, &error))
    }

    /// Calls `each` with the forwards of a query until `each` returns false.
    fn each_forward(
        &self,
        select: &mut Statement<'_>,
        parameters: impl Params,
        mut each: impl FnMut(SetRule<Binding>) -> bool,
    ) -> Result<(), StateError> {
        let failed = |error| failed(&self.path, &error);
        let damaged = |error: &dyn ToString| StateError::Damaged(self.path.clone(), error.to_string());
        let mut rows = select.query(parameters).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let (set, binding) = forward_texts(row).map_err(failed)?.ok_or_else(|| self.wrong_checksum("forwards"))?;
            let set = SetName::try_from(set.to_owned()).map_err(|error| damaged(&error))?;
            let rule = serde_json::from_str(binding).map_err(|error| damaged(&error))?;
            if !each(SetRule { set, rule }) {
                break;
            }
        }
        Ok(())
    }

    /// Commits all changes or none, with one fsync.
    pub(super) fn commit(&mut self, changes: &Changes<'_>) -> Result<(), StateError> {
        if let Err(error) = self.transaction(changes) {
            // After a failed fsync, the log may contain the whole transaction, and the next process would read it. An empty
            // transaction overwrites the first page of the failed one.
            let logged = error.sqlite_error().is_some_and(|error| FAILED_SYNC.contains(&error.extended_code));
            self.undecided = logged && self.transaction(&Changes::default()).is_err();
            return Err(failed(&self.path, &error));
        }
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        if fs::metadata(log).is_ok_and(|log| log.len() > LOG_SIZE) {
            // If the checkpoint fails, the log is still valid, and the next commit tries again.
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
        forwards -= delete_forwards(&transaction, &changes.removed_forwards)?;
        forwards += insert_forwards(&transaction, &changes.added_forwards)?;
        for (kind, set, value) in &changes.removed_rules {
            let delete = "DELETE FROM rules WHERE kind = ? AND rule_set = ? AND value = ?";
            changed(transaction.execute(delete, [kind, set, value])?)?;
        }
        for (kind, set, value) in &changes.added_rules {
            let sum = checksum("rules", [kind, set, value].map(|text| text.as_bytes()));
            transaction.execute("REPLACE INTO rules VALUES (?, ?, ?, ?)", params![kind, set, value, sum])?;
        }
        let numbers = [("commit", commit.to_string()), ("forwards", forwards.to_string())];
        for (name, value) in changes.meta.iter().chain(&numbers) {
            let sum = checksum("meta", [name.as_bytes(), value.as_bytes()]);
            transaction.execute("REPLACE INTO meta VALUES (?, ?, ?)", params![name, value, sum])?;
        }
        transaction.commit()?;
        (self.commit, self.forwards) = (commit, forwards);
        Ok(())
    }

    fn wrong_checksum(&self, table: &str) -> StateError {
        StateError::Damaged(self.path.clone(), format!("the checksum of a row of its table `{table}` differs"))
    }
}

/// Returns an error if a statement did not delete exactly one row: a stale row would stay in the table for ever.
fn changed(rows: usize) -> Result<u64, Error> {
    if rows == 1 { Ok(1) } else { Err(Error::StatementChangedRows(rows)) }
}

/// Deletes forwards and returns the number of deleted rows.
fn delete_forwards(transaction: &Transaction<'_>, removed: &[&SetRule<Binding>]) -> Result<u64, Error> {
    let mut delete = transaction
        .prepare("DELETE FROM forwards WHERE rule_set = ? AND place = ? AND first_port = ? AND binding = ?")?;
    let mut deleted = 0;
    for SetRule { set, rule } in removed {
        deleted += changed(delete.execute(params![set.as_str(), place(rule), rule.ports.first(), json(rule)?])?)?;
    }
    Ok(deleted)
}

/// Inserts forwards and returns the number of new rows. A binding that occurs twice in one set is one row.
fn insert_forwards(transaction: &Transaction<'_>, added: &[&SetRule<Binding>]) -> Result<u64, Error> {
    let mut insert = transaction.prepare("INSERT OR IGNORE INTO forwards VALUES (?, ?, ?, ?, ?)")?;
    let mut inserted = 0;
    for SetRule { set, rule } in added {
        let (place, port, binding) = (place(rule), rule.ports.first(), json(rule)?);
        let sum = forward_checksum(set.as_str(), &place, port.into(), &binding);
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

/// Returns the text for the column `place`: `IPv4 tcp port`, `IPv6 udp range at 2001:db8::1 on eth0 from 2001:db8::/32`.
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

fn forward_checksum(set: &str, place: &str, first_port: i64, binding: &str) -> i64 {
    checksum("forwards", [set.as_bytes(), place.as_bytes(), &first_port.to_le_bytes(), binding.as_bytes()])
}

/// Returns the checksum of a row. The checksum includes the table's name, so that SQLite cannot mistake a page of another
/// table for one of this table.
fn checksum<'a>(table: &str, columns: impl IntoIterator<Item = &'a [u8]>) -> i64 {
    let mut hasher = Xxh3::new();
    hasher.update(table.as_bytes());
    for column in columns {
        // The length prevents equal checksums if a byte moves from one column to the next.
        hasher.update(&column.len().to_le_bytes());
        hasher.update(column);
    }
    hasher.digest().cast_signed()
}

/// Converts an error of SQLite to an error for the user.
fn failed(path: &Path, error: &Error) -> StateError {
    let damaged = || StateError::Damaged(path.to_owned(), error.to_string());
    let system = |code: i32| StateError::Io(path.to_owned(), io::Error::from_raw_os_error(code));
    // Any other error means a missing row or a column of another type, so portfwd did not write the file.
    let Error::SqliteFailure(code, what) = error else { return damaged() };
    match code.code {
        // `Unknown` means a missing table or column.
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown => damaged(),
        ErrorCode::SystemIoFailure if code.extended_code == SHORT_READ => damaged(),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StateError::Busy(path.to_owned()),
        ErrorCode::DiskFull => system(nix::libc::ENOSPC),
        ErrorCode::ReadOnly => system(nix::libc::EROFS),
        _ => StateError::Store(path.to_owned(), Box::new(Error::SqliteFailure(*code, what.clone()))),
    }
}
