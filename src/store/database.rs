//! The tables of a store, in SQLite; `value` and `bindings` are JSON:
//!
//! ```sql
//! meta(name, value, checksum)             -- single values: version, namespace, commit, forwards, sysctls, unfinished, …
//! rules(kind, rule_set, value, checksum)  -- networks, masquerades, snats, netmaps; settings and origin of a set
//! forwards(rule_set, place, block, bindings, checksum)
//! ```
//! SQLite does not detect a flipped bit in a value, so every row has a checksum. Two rows of `meta` detect losses: `forwards`
//! is the number of bindings, and `commit` is the number of the last commit, also in the kernel file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, OpenFlags, Transaction, TransactionBehavior, params};

use super::row::{check, checksum, damage, explain};
use super::state::StateError;
use super::{file, forwards};
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
        rule_set TEXT, place TEXT, block INTEGER, bindings TEXT NOT NULL, checksum INTEGER NOT NULL,
        PRIMARY KEY (rule_set, place, block)
    ) STRICT";

/// The size from which the log is truncated after a commit. Unit: bytes.
///
/// SQLite's automatic checkpoint (1,000 pages) starts the log again only if one process writes twice after it, and most
/// portfwds write once: the log would grow for ever. Every portfwd reads the log when it opens the database.
const LOG_SIZE: u64 = 256 * 1024;

/// The codes of a failed fsync: `SQLITE_IOERR_FSYNC` and `SQLITE_IOERR_DIR_FSYNC`.
const FAILED_SYNC: [i32; 2] = [1034, 1290];

/// A row of the table `rules`: kind, rule set, JSON.
pub(super) type RuleRow = (String, String, String);

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
    pub(super) forwards: usize,
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
    pub(super) removed_rules: Vec<RuleRow>,
    pub(super) added_rules: Vec<RuleRow>,
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
        let (connection, has_tables) = opened.map_err(|error| explain(path, &error))?;
        let mut database = Self { path: path.to_owned(), connection, commit: 0, forwards: 0, undecided: false };
        if has_tables {
            let meta = database.meta()?;
            let number = |name| meta.get(name).and_then(|value| value.parse::<u64>().ok());
            let missing =
                || StateError::Damaged(path.to_owned(), "the number of commits or forwards is missing".into());
            database.commit = number("commit").ok_or_else(missing)?;
            database.forwards = number("forwards").and_then(|count| count.try_into().ok()).ok_or_else(missing)?;
        }
        Ok(database)
    }

    /// Checks the whole file for damage that SQLite can detect.
    pub(super) fn check(&self) -> Result<(), StateError> {
        let answer = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        match self.explained(answer)? {
            answer if answer == "ok" => Ok(()),
            answer => Err(StateError::Damaged(self.path.clone(), answer)),
        }
    }

    /// Begins a transaction for several queries. Without one, SQLite locks and unlocks the file for each query.
    pub(super) fn begin_read(&self) -> Result<Transaction<'_>, StateError> {
        self.explained(self.connection.unchecked_transaction())
    }

    /// Reads the table `meta`.
    pub(super) fn meta(&self) -> Result<BTreeMap<String, String>, StateError> {
        let rows = self.texts::<2>("meta", "SELECT name, value, checksum FROM meta");
        Ok(self.explained(rows)?.into_iter().map(|[name, value]| (name, value)).collect())
    }

    /// Reads the table `rules`.
    pub(super) fn rules(&self) -> Result<Vec<RuleRow>, StateError> {
        let rows = self.texts::<3>("rules", "SELECT kind, rule_set, value, checksum FROM rules");
        Ok(self.explained(rows)?.into_iter().map(|[kind, set, value]| (kind, set, value)).collect())
    }

    /// Reads rows of `N` text columns and a checksum.
    fn texts<const N: usize>(&self, table: &str, select: &str) -> Result<Vec<[String; N]>, Error> {
        let mut select = self.connection.prepare(select)?;
        let rows = select.query_map([], |row| {
            let columns: Vec<String> = (0..N).map(|column| row.get(column)).collect::<Result<_, Error>>()?;
            check(table, &columns.iter().map(String::as_str).collect::<Vec<_>>(), row.get(N)?)?;
            columns.try_into().map_err(|_| damage("it has another number of columns"))
        })?;
        rows.collect()
    }

    /// Reads the forwards of all sets.
    pub(super) fn forwards(&self) -> Result<Vec<SetRule<Binding>>, StateError> {
        let all = self.explained(forwards::all(&self.connection))?;
        let wrong = || StateError::Damaged(self.path.clone(), "the number of forwards is wrong".into());
        (all.len() == self.forwards).then_some(all).ok_or_else(wrong)
    }

    /// Reads the forwards of some sets, about `limit` of each at most.
    pub(super) fn forwards_of(&self, sets: &[SetName], limit: usize) -> Result<Vec<SetRule<Binding>>, StateError> {
        self.explained(forwards::of_sets(&self.connection, sets, limit))
    }

    /// Reads, for each pair of a set and a binding, the forwards of the set that the binding would conflict with or replace.
    pub(super) fn forwards_meeting<'a>(
        &self,
        pairs: impl Iterator<Item = (&'a SetName, &'a Binding)>,
    ) -> Result<Vec<SetRule<Binding>>, StateError> {
        self.explained(forwards::meeting(&self.connection, pairs))
    }

    /// Commits all changes or none, with one fsync.
    pub(super) fn commit(&mut self, changes: &Changes<'_>) -> Result<(), StateError> {
        if let Err(error) = self.transaction(changes) {
            // After a failed fsync, the log may contain the whole transaction, and the next process would read it. An empty
            // transaction overwrites the first page of the failed one.
            let logged = error.sqlite_error().is_some_and(|error| FAILED_SYNC.contains(&error.extended_code));
            self.undecided = logged && self.transaction(&Changes::default()).is_err();
            return self.explained(Err(error));
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
        if changes.create {
            transaction.execute_batch(SCHEMA)?;
        }
        let before = if changes.create { 0 } else { self.forwards };
        let forwards = forwards::change(&transaction, &changes.removed_forwards, &changes.added_forwards, before)?;
        let commit = self.commit + 1;
        for (kind, set, value) in &changes.removed_rules {
            let delete = "DELETE FROM rules WHERE kind = ? AND rule_set = ? AND value = ?";
            if transaction.execute(delete, [kind, set, value])? != 1 {
                return Err(damage("a rule that the change removes is missing"));
            }
        }
        for (kind, set, value) in &changes.added_rules {
            let sum = checksum("rules", &[kind, set, value]);
            transaction.execute("REPLACE INTO rules VALUES (?, ?, ?, ?)", params![kind, set, value, sum])?;
        }
        let numbers = [("commit", commit.to_string()), ("forwards", forwards.to_string())];
        for (name, value) in changes.meta.iter().chain(&numbers) {
            let sum = checksum("meta", &[name, value]);
            transaction.execute("REPLACE INTO meta VALUES (?, ?, ?)", params![name, value, sum])?;
        }
        transaction.commit()?;
        (self.commit, self.forwards) = (commit, forwards);
        Ok(())
    }

    fn explained<T>(&self, result: Result<T, Error>) -> Result<T, StateError> {
        result.map_err(|error| explain(&self.path, &error))
    }
}
