//! The tables of a store, in SQLite; `value` and `bindings` are JSON:
//!
//! ```sql
//! meta(name, value, checksum)             -- single values: version, namespace, commit, forwards, sysctls, unfinished, …
//! rules(kind, rule_set, value, checksum)  -- networks, masquerades, snats, netmaps; settings and origin of a set
//! forwards(rule_set, place, block, bindings, checksum)
//! ```
//! SQLite does not notice a flipped bit in a value, so every row has a checksum. Two numbers in `meta` detect lost rows:
//! `forwards` is the number of bindings, `commit` the number of the last commit, which the kernel file has, too.
//!
//! `place` is what two bindings share if they can conflict: family, protocol, port or range, address, interface, clients. A
//! row of `forwards` holds the bindings of one set at one place whose first ports are in the same block of 16. So a change
//! of one forward among N reads its neighbours in O(log N) and writes one small row. MEASURED

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, Params, Statement, Transaction, TransactionBehavior, params};
use xxhash_rust::xxh3::Xxh3;

use super::file;
use super::state::StateError;
use crate::model::{Binding, Owned, SetName};

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

/// How many first ports share a row of `forwards`.
const BLOCK: u16 = 16;

/// The state before a change is not what the tables hold, so the change would leave a row for ever.
const MISSING: &str = "a rule that the change removes is missing";

/// The size from which the log is truncated after a commit. Unit: bytes.
///
/// SQLite's automatic checkpoint (1,000 pages) starts the log again only if one process writes twice after it, and most
/// portfwds write once: the log would grow for ever. Every portfwd reads the log when it opens the database.
const LOG_SIZE: u64 = 256 * 1024;

/// `SQLITE_IOERR_SHORT_READ`: the file is shorter than its header says.
const SHORT_READ: i32 = 522;

/// The codes of a failed fsync: `SQLITE_IOERR_FSYNC` and `SQLITE_IOERR_DIR_FSYNC`.
const FAILED_SYNC: [i32; 2] = [1034, 1290];

/// A row of the table `rules`: kind, rule set, JSON.
pub(super) type RuleRow = (String, String, String);

/// An open database.
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

/// What a commit changes.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes<'a> {
    /// True to replace the tables by empty ones.
    pub(super) create: bool,
    /// Rows of `meta`, which replace the rows of the same name.
    pub(super) meta: Vec<(&'static str, String)>,
    pub(super) removed_rules: Vec<RuleRow>,
    pub(super) added_rules: Vec<RuleRow>,
    pub(super) removed_forwards: Vec<&'a Owned<Binding>>,
    pub(super) added_forwards: Vec<&'a Owned<Binding>>,
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
            let number = |name| meta.get(name).and_then(|value| value.parse().ok());
            let missing = || StateError::Damaged(path.to_owned(), "its numbers are missing".into());
            database.commit = number("commit").ok_or_else(missing)?;
            database.forwards = number("forwards").ok_or_else(missing)?;
        }
        Ok(database)
    }

    /// Looks through the whole file for damage that SQLite can find.
    pub(super) fn check(&self) -> Result<(), StateError> {
        let answer = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        match self.explained(answer)? {
            answer if answer == "ok" => Ok(()),
            answer => Err(StateError::Damaged(self.path.clone(), answer)),
        }
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
            check_sum(table, columns.iter().map(String::as_bytes), row.get(N)?)?;
            columns.try_into().map_err(|_| damage("it has another number of columns"))
        })?;
        rows.collect()
    }

    /// Reads all forwards.
    pub(super) fn forwards(&self) -> Result<Vec<Owned<Binding>>, StateError> {
        let mut all = Vec::new();
        let read = self.select_blocks("").and_then(|mut select| {
            each_block(&mut select, [], |set, bindings| {
                all.extend(bindings.into_iter().map(|rule| Owned { set: set.clone(), rule }));
                true
            })
        });
        self.explained(read)?;
        let complete = u64::try_from(all.len()) == Ok(self.forwards);
        let wrong = || StateError::Damaged(self.path.clone(), "the number of forwards is wrong".into());
        complete.then_some(all).ok_or_else(wrong)
    }

    /// Reads the forwards of some sets, about `limit` of each at most.
    pub(super) fn forwards_of(&self, sets: &[SetName], limit: usize) -> Result<Vec<Owned<Binding>>, StateError> {
        let mut found = Vec::new();
        let mut read = || {
            let mut select = self.select_blocks("WHERE rule_set = ?")?;
            for set in sets {
                let before = found.len();
                each_block(&mut select, [set.as_str()], |set, bindings| {
                    found.extend(bindings.into_iter().map(|rule| Owned { set: set.clone(), rule }));
                    found.len() - before < limit
                })?;
            }
            Ok(())
        };
        self.explained(read())?;
        Ok(found)
    }

    /// Reads, for pairs of a set and a binding, the forwards of the set that are at the same place as the binding and have a
    /// port in common with it.
    ///
    /// The ranges of a set at one place are disjoint, because portfwd refuses conflicts. So downwards from the last port of
    /// the binding, the range that begins at or before its first port is the last one that can meet it.
    pub(super) fn forwards_at<'a>(
        &self,
        pairs: impl Iterator<Item = (&'a SetName, &'a Binding)>,
    ) -> Result<Vec<Owned<Binding>>, StateError> {
        let mut found = Vec::new();
        let read = || {
            let clause = "WHERE rule_set = ? AND place = ? AND block BETWEEN ? AND ? ORDER BY block DESC";
            let mut select = self.select_blocks(clause)?;
            for (set, binding) in pairs {
                let (first, last) = (binding.ports.first(), binding.ports.last());
                let lowest = if binding.is_exact() { first / BLOCK } else { 0 };
                let parameters = params![set.as_str(), place(binding), lowest, last / BLOCK];
                each_block(&mut select, parameters, |set, bindings| {
                    let reaches = bindings.iter().any(|other| other.ports.first() <= first);
                    let meeting = bindings.into_iter().filter(|other| other.ports.overlaps(binding.ports));
                    found.extend(meeting.map(|rule| Owned { set: set.clone(), rule }));
                    !reaches
                })?;
            }
            Ok(())
        };
        self.explained(read())?;
        Ok(found)
    }

    fn select_blocks(&self, clause: &str) -> Result<Statement<'_>, Error> {
        self.connection.prepare(&format!("SELECT rule_set, place, block, bindings, checksum FROM forwards {clause}"))
    }

    /// Commits all changes or none, with one fsync.
    pub(super) fn commit(&mut self, changes: &Changes<'_>) -> Result<(), StateError> {
        if let Err(error) = self.transaction(changes) {
            // After a failed fsync the log may hold the whole transaction, and the next process would find it. An empty
            // transaction overwrites its first page.
            let logged = error.sqlite_error().is_some_and(|error| FAILED_SYNC.contains(&error.extended_code));
            self.undecided = logged && self.transaction(&Changes::default()).is_err();
            return self.explained(Err(error));
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
        if changes.create {
            transaction.execute_batch(SCHEMA)?;
        }
        let before = if changes.create { 0 } else { self.forwards };
        let (commit, forwards) = (self.commit + 1, change_forwards(&transaction, changes, before)?);
        for (kind, set, value) in &changes.removed_rules {
            let delete = "DELETE FROM rules WHERE kind = ? AND rule_set = ? AND value = ?";
            if transaction.execute(delete, [kind, set, value])? != 1 {
                return Err(damage(MISSING));
            }
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

    fn explained<T>(&self, result: Result<T, Error>) -> Result<T, StateError> {
        result.map_err(|error| explain(&self.path, &error))
    }
}

/// Which row of `forwards` a binding is in.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct BlockKey<'a> {
    set: &'a SetName,
    place: String,
    block: u16,
}

/// Returns true if two forwards are in one row. Cheaper than [`place`].
fn share_block(one: &Owned<Binding>, other: &Owned<Binding>) -> bool {
    one.set == other.set
        && one.rule.is_exact() == other.rule.is_exact()
        && one.rule.ports.first() / BLOCK == other.rule.ports.first() / BLOCK
        && one.rule.listens_like(&other.rule)
}

/// Removes and adds forwards; returns how many there are, if there were `count`. The state may be partial, so every row is
/// read before it is written.
fn change_forwards(transaction: &Transaction<'_>, changes: &Changes<'_>, mut count: u64) -> Result<u64, Error> {
    let mut blocks: BTreeMap<BlockKey<'_>, (Vec<&Binding>, Vec<&Binding>)> = BTreeMap::new();
    for (forwards, removes) in [(&changes.removed_forwards, true), (&changes.added_forwards, false)] {
        for run in forwards.chunk_by(|one, next| share_block(one, next)) {
            let Some(Owned { set, rule }) = run.first() else { continue };
            let key = BlockKey { set, place: place(rule), block: rule.ports.first() / BLOCK };
            let (removed, added) = blocks.entry(key).or_default();
            (if removes { removed } else { added }).extend(run.iter().map(|owned| &owned.rule));
        }
    }
    let key = "rule_set = ? AND place = ? AND block = ?";
    let select = format!("SELECT rule_set, place, block, bindings, checksum FROM forwards WHERE {key}");
    let mut select = transaction.prepare(&select)?;
    let mut delete = transaction.prepare(&format!("DELETE FROM forwards WHERE {key}"))?;
    let mut insert = transaction.prepare("REPLACE INTO forwards VALUES (?, ?, ?, ?, ?)")?;
    for (BlockKey { set, place, block }, (removed, added)) in &blocks {
        let mut bindings = Vec::new();
        each_block(&mut select, params![set.as_str(), place, block], |_, row| {
            bindings = row;
            true
        })?;
        let before = bindings.len();
        bindings.retain(|rule| !removed.contains(&rule));
        if before - bindings.len() != removed.len() {
            return Err(damage(MISSING));
        }
        bindings.extend(added.iter().map(|rule| Binding::clone(rule)));
        count = (count + number(bindings.len())).saturating_sub(number(before));
        if bindings.is_empty() {
            delete.execute(params![set.as_str(), place, block])?;
        } else {
            let json = serde_json::to_string(&bindings).map_err(damage)?;
            let sum = block_checksum(set.as_str(), place, (*block).into(), &json);
            insert.execute(params![set.as_str(), place, block, json, sum])?;
        }
    }
    Ok(count)
}

fn number(length: usize) -> u64 {
    length.try_into().unwrap_or(u64::MAX)
}

/// Calls `each` with the set and the bindings of each row of a query until `each` returns false.
fn each_block(
    select: &mut Statement<'_>,
    parameters: impl Params,
    mut each: impl FnMut(&SetName, Vec<Binding>) -> bool,
) -> Result<(), Error> {
    let mut rows = select.query(parameters)?;
    while let Some(row) = rows.next()? {
        let (set, place) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
        let (block, json) = (row.get(2)?, row.get_ref(3)?.as_str()?);
        if row.get::<_, i64>(4)? != block_checksum(set, place, block, json) {
            return Err(wrong_checksum("forwards"));
        }
        let set = SetName::try_from(set.to_owned()).map_err(damage)?;
        if !each(&set, serde_json::from_str(json).map_err(damage)?) {
            break;
        }
    }
    Ok(())
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

fn block_checksum(set: &str, place: &str, block: i64, bindings: &str) -> i64 {
    checksum("forwards", [set.as_bytes(), place.as_bytes(), &block.to_le_bytes(), bindings.as_bytes()])
}

/// Returns the checksum of a row. The table is a part of it, so that no page passes for one of another table.
fn checksum<'a>(table: &str, columns: impl IntoIterator<Item = &'a [u8]>) -> i64 {
    let mut hasher = Xxh3::new();
    hasher.update(table.as_bytes());
    for column in columns {
        // With its length, so that a byte cannot move from one column to the next.
        hasher.update(&column.len().to_le_bytes());
        hasher.update(column);
    }
    hasher.digest().cast_signed()
}

fn check_sum<'a>(table: &str, columns: impl IntoIterator<Item = &'a [u8]>, sum: i64) -> Result<(), Error> {
    if sum == checksum(table, columns) { Ok(()) } else { Err(wrong_checksum(table)) }
}

fn wrong_checksum(table: &str) -> Error {
    damage(format!("the checksum of a row of its table `{table}` differs"))
}

/// Returns an error for damage that portfwd found, not SQLite; see [`explain`].
fn damage(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ToSqlConversionFailure(what.into())
}

/// Turns an error of SQLite into what it means for the user.
fn explain(path: &Path, error: &Error) -> StateError {
    let damaged = || StateError::Damaged(path.to_owned(), error.to_string());
    let system = |code: i32| StateError::Io(path.to_owned(), io::Error::from_raw_os_error(code));
    // The other errors mean that a column has another type or that a row is missing: the file is not what portfwd wrote.
    let Error::SqliteFailure(code, what) = error else { return damaged() };
    match code.code {
        // `Unknown` is a table or column that is missing.
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown => damaged(),
        ErrorCode::SystemIoFailure if code.extended_code == SHORT_READ => damaged(),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StateError::Busy(path.to_owned()),
        ErrorCode::DiskFull => system(nix::libc::ENOSPC),
        ErrorCode::ReadOnly => system(nix::libc::EROFS),
        _ => StateError::Store(path.to_owned(), Box::new(Error::SqliteFailure(*code, what.clone()))),
    }
}
