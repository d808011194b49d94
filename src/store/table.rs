//! Rows in SQLite: keys and values as bytes, each row with a checksum, because SQLite takes what it finds in a file for what
//! was written there, and a flipped bit is another port.
//!
//! Commits are written to a log beside the file (`-wal`), so one waits for the disk once. Every process reads the log, so
//! it is carried into the file after [`COMMITS`], and begun anew in its own place, where the disk has nothing to note but
//! what is written. Be aware: what comes behind a damaged place of a log does not count for SQLite, without a word; so
//! commits are numbered, and the last number is kept elsewhere too (`file.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, params};
use xxhash_rust::xxh3::Xxh3;

use super::file;
use super::state::StateError;

/// After how many commits the log is carried into the file. To read what one of them wrote takes each process 4 us, to carry
/// it one of them 400 (Linux 6.18, measured): with so many both together are least.
const COMMITS: u64 = 14;

/// From how many bytes on the log is long, and is carried into the file too: it holds more than changes of a few forwards. At
/// least so much of it stays: of a log that grows the disk notes the size with each commit, and to wait for that takes a third
/// longer than for what is written where something was before (ext4, Linux 6.18, measured).
const LOG: u64 = 256 * 1024;

/// `SQLITE_IOERR_SHORT_READ`: less is there than the file says of itself.
const SHORT_READ: i32 = 522;

/// `SQLITE_IOERR_FSYNC` and `SQLITE_IOERR_DIR_FSYNC`: the disk did not say that it holds what was written.
const SYNC: [i32; 2] = [1034, 1290];

/// Kinds of rows. All are in one table of SQLite's, which reads what makes its tables, as text, each time it opens a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// Key of a block, to its atoms in postcard's format, <https://postcard.jamesmunns.com/wire-format>. As JSON they take
    /// four times the room, and the time to write it.
    Blocks,
    /// Set to the rest of it as JSON.
    Sets,
    /// Everything that is kept once.
    Meta,
}

impl Table {
    const ALL: [Self; 3] = [Self::Blocks, Self::Sets, Self::Meta];

    /// What it is called; up to version 4 it was a table of SQLite's of this name.
    fn name(self) -> &'static str {
        match self {
            Self::Blocks => "blocks",
            Self::Sets => "sets",
            Self::Meta => "meta",
        }
    }

    /// A key as it is kept: behind the first byte of the name, which no two share.
    fn key(self, key: &str) -> Vec<u8> {
        self.name().bytes().take(1).chain(key.bytes()).collect()
    }
}

/// Whether a commit waits until the disk holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// It does: it outlives a loss of power.
    ForDisk,
    /// It does not: it outlives the process.
    No,
}

/// The tables in one file.
#[derive(Debug)]
pub(super) struct Tables {
    path: PathBuf,
    database: Connection,
    /// Whether nothing was in the file.
    made: bool,
    /// The rows of [`Table::Meta`]: they are few, and most are wanted each time.
    meta: BTreeMap<String, Vec<u8>>,
    /// How many commits waited for the disk.
    commits: u64,
    /// Whether a commit that failed could not be written over.
    undecided: bool,
    /// Whether commits wait; SQLite's do until something else is said.
    wait: Wait,
}

/// A row that comes, or takes the place of what its key has; without a value it goes.
pub(super) type Row = (String, Option<Vec<u8>>);

/// Rows of every table.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Whether all that is there goes first.
    pub(super) anew: bool,
    /// Rows of [`Table::Blocks`].
    pub(super) blocks: Vec<Row>,
    /// Rows of [`Table::Sets`].
    pub(super) sets: Vec<Row>,
    /// Rows of [`Table::Meta`].
    pub(super) meta: Vec<Row>,
}

impl Changes {
    /// What is kept once is set, or goes.
    pub(super) fn set(&mut self, key: &str, value: Option<Vec<u8>>) {
        self.meta.push((key.to_owned(), value));
    }
}

impl Tables {
    /// Opens the file, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, StateError> {
        let io = |error| StateError::Io(path.to_owned(), error);
        let made = file::file(path)?.metadata().map_err(io)?.len() == 0;
        // SQLite would refuse a link anywhere in the path; only the file itself must be none.
        let directory = path.parent().unwrap_or(Path::new("/")).canonicalize().map_err(io)?;
        let real = directory.join(path.file_name().unwrap_or_default());
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW
            | OpenFlags::SQLITE_OPEN_EXRESCODE;
        let opened = (|| {
            let database = Connection::open_with_flags(real, flags)?;
            database.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            if made || database.prepare_cached(FIND).is_err() {
                // Who made it may have been killed before there was anything in it.
                let found = "SELECT count(*) = 0, count(*) FILTER (WHERE name = 'meta') > 0 FROM sqlite_schema";
                match database.query_row(found, [], |row| Ok((row.get(0)?, row.get(1)?)))? {
                    (true, _) => {
                        let _: String = database.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
                        database.execute_batch(&schema(false))?;
                    }
                    (_, true) => database.execute_batch(&schema(true))?,
                    // What is wrong with it is told where it is read.
                    (false, false) => {}
                }
            }
            Ok(database)
        })();
        let database = opened.map_err(|error| failed(path, error))?;
        let mut tables = Self {
            path: path.to_owned(),
            database,
            made,
            meta: BTreeMap::new(),
            commits: 0,
            undecided: false,
            wait: Wait::ForDisk,
        };
        let mut meta = BTreeMap::new();
        tables.each(Table::Meta, |key, value| {
            meta.insert(key.to_owned(), value.to_owned());
            Ok(())
        })?;
        tables.meta = meta;
        tables.commits =
            tables.meta("commits").and_then(|number| Some(u64::from_le_bytes(number.try_into().ok()?))).unwrap_or(0);
        Ok(tables)
    }

    /// Whether nothing was in the file when it was opened.
    pub(super) fn made(&self) -> bool {
        self.made
    }

    /// How many commits waited for the disk, ever.
    pub(super) fn commits(&self) -> u64 {
        self.commits
    }

    /// Whether it cannot be told what is in the tables: a commit failed, and what was to take its place too.
    pub(super) fn is_undecided(&self) -> bool {
        self.undecided
    }

    /// Looks through the whole file for what SQLite can tell to be damaged.
    pub(super) fn check(&self) -> Result<(), StateError> {
        let said: String = self
            .database
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|error| self.failed(error))?;
        if said == "ok" { Ok(()) } else { Err(StateError::Damaged(self.path.clone(), said)) }
    }

    /// What is kept once under a key.
    pub(super) fn meta(&self, key: &str) -> Option<&[u8]> {
        self.meta.get(key).map(Vec::as_slice)
    }

    /// Gives every row to `each`.
    pub(super) fn each(
        &self,
        table: Table,
        each: impl FnMut(&str, &[u8]) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        // What begins with the byte behind that of the name is nothing that is kept.
        let end = table.key("").iter().map(|byte| byte + 1).collect::<Vec<_>>();
        self.rows(table, (&table.key(""), &end), each)
    }

    /// Gives every row whose key is from `first` to `last` to `each`.
    pub(super) fn each_of(
        &self,
        table: Table,
        (first, last): (&str, &str),
        each: impl FnMut(&str, &[u8]) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        self.rows(table, (&table.key(first), &table.key(last)), each)
    }

    fn rows(
        &self,
        table: Table,
        (first, last): (&[u8], &[u8]),
        mut each: impl FnMut(&str, &[u8]) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        let mut query = self.database.prepare_cached(FIND).map_err(|error| self.failed(error))?;
        let mut rows = query.query([first, last]).map_err(|error| self.failed(error))?;
        while let Some(row) = rows.next().map_err(|error| self.failed(error))? {
            let parts =
                || Ok::<_, Error>((row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?, row.get::<_, i64>(2)?));
            let (key, value, kept) = parts().map_err(|error| self.failed(error))?;
            let key = key.get(1..).unwrap_or_default();
            match str::from_utf8(key) {
                Ok(text) if sum(table, key, value) == kept => each(text, value)?,
                _ => return Err(self.differs(table)),
            }
        }
        Ok(())
    }

    /// Writes, all of it or nothing.
    pub(super) fn write(&mut self, wait: Wait, mut changes: Changes) -> Result<(), StateError> {
        let commits = self.commits + u64::from(wait == Wait::ForDisk);
        if wait == Wait::ForDisk {
            changes.meta.push(("commits".into(), Some(commits.to_le_bytes().to_vec())));
        }
        if let Err(error) = self.transaction(wait, &changes) {
            // With any other error its last page was not written.
            let synced = error.sqlite_error().is_some_and(|error| SYNC.contains(&error.extended_code));
            self.undecided = synced && self.write_over().is_err();
            return Err(self.failed(error));
        }
        self.commits = commits;
        if changes.anew {
            self.meta.clear();
        }
        for (key, value) in changes.meta {
            match value {
                Some(value) => self.meta.insert(key, value),
                None => self.meta.remove(&key),
            };
        }
        Ok(())
    }

    /// Writes something else in the place of a commit that failed: all of it may be in the log, only that the disk did not say
    /// so, and then it would be found there.
    fn write_over(&mut self) -> Result<(), Error> {
        // SQLite does not write what is there already.
        let next = if self.meta("failed") == Some(b"1") { b"2" } else { b"1" };
        let again = Changes { meta: vec![("failed".into(), Some(next.to_vec()))], ..Changes::default() };
        self.transaction(Wait::No, &again)
    }

    fn transaction(&mut self, wait: Wait, changes: &Changes) -> Result<(), Error> {
        if self.wait != wait {
            self.database.execute_batch(match wait {
                Wait::ForDisk => "PRAGMA synchronous = FULL",
                Wait::No => "PRAGMA synchronous = NORMAL",
            })?;
            self.wait = wait;
        }
        self.run("BEGIN IMMEDIATE")?;
        let written = self.put(changes).and_then(|()| self.run("COMMIT"));
        if written.is_err() && !self.database.is_autocommit() {
            // The first error is the one to tell.
            let _ = self.database.execute_batch("ROLLBACK");
        }
        written
    }

    /// Runs what is run again and again.
    fn run(&self, statement: &str) -> Result<(), Error> {
        self.database.prepare_cached(statement)?.execute([]).map(drop)
    }

    fn put(&self, changes: &Changes) -> Result<(), Error> {
        if changes.anew {
            self.database.execute_batch("DELETE FROM rows")?;
        }
        for (table, rows) in
            [(Table::Blocks, &changes.blocks), (Table::Sets, &changes.sets), (Table::Meta, &changes.meta)]
        {
            for (key, value) in rows {
                match value {
                    Some(value) => {
                        let mut put = self.database.prepare_cached("REPLACE INTO rows VALUES (?, ?, ?)")?;
                        put.execute(params![table.key(key), value, sum(table, key.as_bytes(), value)])?
                    }
                    None => {
                        let mut remove = self.database.prepare_cached("DELETE FROM rows WHERE key = ?")?;
                        remove.execute([table.key(key)])?
                    }
                };
            }
        }
        Ok(())
    }

    /// Carries the log into the file, where there is much in it. Where `more` is written next by this process, that begins the log
    /// anew, and cuts off what is long of it.
    pub(super) fn tidy(&self, more: bool) -> Result<(), StateError> {
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        let long = fs::metadata(log).is_ok_and(|log| log.len() > LOG);
        if long && !more {
            return self.carry();
        }
        if long {
            let limit = format!("PRAGMA journal_size_limit = {LOG}");
            self.database.query_row(&limit, [], |_| Ok(())).map_err(|error| self.failed(error))?;
        }
        if long || self.commits.is_multiple_of(COMMITS) { self.checkpoint("RESTART") } else { Ok(()) }
    }

    /// Carries the log into the file, and cuts it off.
    pub(super) fn carry(&self) -> Result<(), StateError> {
        self.checkpoint("TRUNCATE")
    }

    fn checkpoint(&self, mode: &str) -> Result<(), StateError> {
        let pragma = format!("PRAGMA wal_checkpoint({mode})");
        self.database.query_row(&pragma, [], |_| Ok(())).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: Error) -> StateError {
        failed(&self.path, error)
    }

    fn differs(&self, table: Table) -> StateError {
        let what = format!("the checksum of a row of its table `{}` differs", table.name());
        StateError::Damaged(self.path.clone(), what)
    }
}

/// The query for the rows whose keys are from one up to another.
const FIND: &str = "SELECT key, value, sum FROM rows WHERE key BETWEEN ? AND ?";

/// What makes the table, and carries over to it what those of version 4 hold, where they are there.
fn schema(older: bool) -> String {
    let carry = |table: Table| {
        let (name, first) = (table.name(), String::from_utf8_lossy(&table.key("")).into_owned());
        // What `||` makes is text, whatever its bytes.
        format!("INSERT INTO rows SELECT CAST('{first}' || key AS BLOB), value, sum FROM {name}; DROP TABLE {name};")
    };
    let carried = if older { Table::ALL.map(carry).concat() } else { String::new() };
    format!(
        "BEGIN;
         CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID, STRICT;
         {carried}
         COMMIT"
    )
}

/// The checksum of a row. Of its table too, so that no page of one is taken for one of another.
fn sum(table: Table, key: &[u8], value: &[u8]) -> i64 {
    let mut hasher = Xxh3::new();
    hasher.update(table.name().as_bytes());
    // Where the key ends is a part of it.
    hasher.update(&key.len().to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.digest().cast_signed()
}

/// What an error of SQLite's means: that the file is damaged, that it cannot be reached or written, or something else.
fn failed(path: &Path, error: Error) -> StateError {
    let path = path.to_owned();
    let Error::SqliteFailure(code, what) = &error else {
        // A column of another type, or none: not what was written.
        return StateError::Damaged(path, error.to_string());
    };
    let of_system = |code: i32| io::Error::from_raw_os_error(code);
    match code.code {
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            StateError::Damaged(path, what.clone().unwrap_or_else(|| code.to_string()))
        }
        // Something of its structure that is not there; we ask for nothing else.
        ErrorCode::Unknown => StateError::Damaged(path, error.to_string()),
        ErrorCode::SystemIoFailure if code.extended_code == SHORT_READ => StateError::Damaged(path, error.to_string()),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StateError::Busy(path),
        ErrorCode::DiskFull => StateError::Io(path, of_system(nix::libc::ENOSPC)),
        ErrorCode::ReadOnly => StateError::Io(path, of_system(nix::libc::EROFS)),
        _ => StateError::Store(path, Box::new(error)),
    }
}

#[cfg(test)]
pub(super) mod tests;
