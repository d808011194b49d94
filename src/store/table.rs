//! Rows in SQLite: keys and values as bytes, each row with a checksum, because SQLite takes what it finds in a file for what
//! was written there, and a flipped bit is another port.
//!
//! Commits are appended to a log beside the file (`-wal`), so one waits for the disk once. The log is carried into the file
//! when it has become long. Be aware: what comes behind a damaged place of a log does not count for SQLite, without a word;
//! so commits are numbered, and the last number is kept elsewhere too (`file.rs`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, OptionalExtension, params};

use super::file;
use super::state::StateError;

/// How long the log may become, in bytes: about a hundred commits of one forward. Each process reads it once.
const LOG: u64 = 256 * 1024;

/// `SQLITE_IOERR_SHORT_READ`: less is there than the file says of itself.
const SHORT_READ: i32 = 522;

/// Where rows are kept.
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

    fn name(self) -> &'static str {
        match self {
            Self::Blocks => "blocks",
            Self::Sets => "sets",
            Self::Meta => "meta",
        }
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
    /// How many commits waited for the disk.
    commits: u64,
}

/// Writes that become true together.
pub(super) struct Transaction<'a>(&'a Tables);

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
            // Who else wants to use it waits for its turn before it opens it, so nothing needs to be shared.
            database.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA wal_autocheckpoint = 0")?;
            let _: String = database.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
            let tables: u32 = database.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
            if tables == 0 {
                database.execute_batch(&schema())?;
            }
            Ok(database)
        })();
        let database = opened.map_err(|error| failed(path, error))?;
        let mut tables = Self { path: path.to_owned(), database, made, commits: 0 };
        let commits =
            tables.get(Table::Meta, "commits")?.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
        tables.commits = commits.unwrap_or(0);
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

    /// Looks through the whole file for what SQLite can tell to be damaged.
    pub(super) fn check(&self) -> Result<(), StateError> {
        let said: String = self
            .database
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|error| self.failed(error))?;
        if said == "ok" { Ok(()) } else { Err(StateError::Damaged(self.path.clone(), said)) }
    }

    /// The value of a key.
    pub(super) fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        let query = format!("SELECT value, sum FROM {} WHERE key = ?", table.name());
        let row = self.database.query_row(&query, [key.as_bytes()], |row| {
            let value = row.get_ref(0)?.as_blob()?;
            Ok((sum(table, key.as_bytes(), value) == row.get::<_, u32>(1)?).then(|| value.to_vec()))
        });
        match row.optional().map_err(|error| self.failed(error))? {
            None => Ok(None),
            Some(Some(value)) => Ok(Some(value)),
            Some(None) => Err(self.damaged(&format!("the checksum of a row of its table `{}` differs", table.name()))),
        }
    }

    /// Gives every row to `each`.
    pub(super) fn each(
        &self,
        table: Table,
        mut each: impl FnMut(&str, &[u8]) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        let mut query = (self.database.prepare(&format!("SELECT key, value, sum FROM {}", table.name())))
            .map_err(|error| self.failed(error))?;
        let mut rows = query.query([]).map_err(|error| self.failed(error))?;
        while let Some(row) = rows.next().map_err(|error| self.failed(error))? {
            let parts =
                || Ok::<_, Error>((row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?, row.get::<_, u32>(2)?));
            let (key, value, kept) = parts().map_err(|error| self.failed(error))?;
            match str::from_utf8(key) {
                Ok(text) if sum(table, key, value) == kept => each(text, value)?,
                _ => {
                    let what = format!("the checksum of a row of its table `{}` differs", table.name());
                    return Err(self.damaged(&what));
                }
            }
        }
        Ok(())
    }

    /// Writes, all of it or nothing.
    pub(super) fn write(
        &mut self,
        wait: Wait,
        body: impl FnOnce(&Transaction<'_>) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        let commits = self.commits() + u64::from(wait == Wait::ForDisk);
        let written = self.transaction(wait, |transaction| {
            body(transaction)?;
            transaction.put(Table::Meta, "commits", &commits.to_le_bytes())
        });
        match &written {
            Ok(()) => self.commits = commits,
            Err(_) => self.write_over(),
        }
        written
    }

    /// Writes something else in the place of a commit that failed: all of it may be in the log, only that the disk did not say
    /// so, and then it would be found there. Where this fails too, nothing more can be done.
    fn write_over(&self) {
        // SQLite does not write what is there already.
        let failed = self.get(Table::Meta, "failed").ok().flatten().unwrap_or_default();
        let next = if failed == b"1" { b"2" } else { b"1" };
        let _ = self.transaction(Wait::No, |again| again.put(Table::Meta, "failed", next));
    }

    fn transaction(
        &self,
        wait: Wait,
        body: impl FnOnce(&Transaction<'_>) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        let synchronous = match wait {
            Wait::ForDisk => "FULL",
            Wait::No => "NORMAL",
        };
        let begin = format!("PRAGMA synchronous = {synchronous}; BEGIN IMMEDIATE");
        self.database.execute_batch(&begin).map_err(|error| self.failed(error))?;
        let written = body(&Transaction(self))
            .and_then(|()| self.database.execute_batch("COMMIT").map_err(|error| self.failed(error)));
        if written.is_err() && !self.database.is_autocommit() {
            // The first error is the one to tell.
            let _ = self.database.execute_batch("ROLLBACK");
        }
        written
    }

    /// Carries the log into the file, where it has become long.
    pub(super) fn tidy(&self) -> Result<(), StateError> {
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        if fs::metadata(log).is_ok_and(|log| log.len() > LOG) { self.carry() } else { Ok(()) }
    }

    /// Carries the log into the file.
    pub(super) fn carry(&self) -> Result<(), StateError> {
        (self.database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: Error) -> StateError {
        failed(&self.path, error)
    }

    fn damaged(&self, what: &str) -> StateError {
        StateError::Damaged(self.path.clone(), what.to_owned())
    }
}

impl Transaction<'_> {
    /// Puts rows into a table, or in the place of what their keys have; a row without a value goes.
    pub(super) fn put_all<'a>(
        &self,
        table: Table,
        rows: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Result<(), StateError> {
        let name = table.name();
        let put = || {
            let mut replace = self.0.database.prepare(&format!("REPLACE INTO {name} VALUES (?, ?, ?)"))?;
            let mut delete = self.0.database.prepare(&format!("DELETE FROM {name} WHERE key = ?"))?;
            for (key, value) in rows {
                let key = key.as_bytes();
                match value {
                    Some(value) => replace.execute(params![key, value, sum(table, key, value)])?,
                    None => delete.execute([key])?,
                };
            }
            Ok(())
        };
        put().map_err(|error| self.0.failed(error))
    }

    /// Puts one row into a table, or in the place of what its key has.
    pub(super) fn put(&self, table: Table, key: &str, value: &[u8]) -> Result<(), StateError> {
        self.put_all(table, [(key, Some(value))])
    }

    /// Removes every row.
    pub(super) fn clear(&self) -> Result<(), StateError> {
        let clear = |table: Table| self.0.database.execute_batch(&format!("DELETE FROM {}", table.name()));
        Table::ALL.into_iter().try_for_each(clear).map_err(|error| self.0.failed(error))
    }
}

/// What makes the tables.
fn schema() -> String {
    let create = |table: Table| {
        format!(
            "CREATE TABLE {} (key BLOB PRIMARY KEY, value BLOB NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID, STRICT;",
            table.name()
        )
    };
    format!("BEGIN; {} COMMIT", Table::ALL.map(create).concat())
}

/// The checksum of a row. Of its table too, so that no page of one is taken for one of another.
fn sum(table: Table, key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(table.name().as_bytes());
    // Where the key ends is a part of it.
    hasher.update(&key.len().to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
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
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_not_what_was_written_is_no_row() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("t.db");
        let mut tables = Tables::open(&path).expect("opens");
        tables.write(Wait::ForDisk, |rows| rows.put(Table::Sets, "cli", b"one")).expect("writes");
        assert_eq!(tables.get(Table::Sets, "cli").expect("reads").as_deref(), Some(&b"one"[..]));
        for change in ["UPDATE sets SET value = x'6f6e66'", "UPDATE sets SET value = x'6f6e65', key = x'636c6a'"] {
            tables.database.execute_batch(change).expect("changes");
            assert!(matches!(tables.each(Table::Sets, |_, _| Ok(())), Err(StateError::Damaged(..))), "{change}");
        }
        assert!(tables.get(Table::Sets, "cli").expect("reads").is_none());
    }

    #[test]
    fn what_could_not_be_written_whole_is_not_written() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("t.db");
        let mut tables = Tables::open(&path).expect("opens");
        let refused = tables.write(Wait::ForDisk, |rows| {
            rows.put(Table::Sets, "cli", b"one")?;
            Err(StateError::Busy(path.clone()))
        });
        assert!(refused.is_err());
        assert_eq!((tables.get(Table::Sets, "cli").expect("reads"), tables.commits()), (None, 0));
        drop(tables);
        let tables = Tables::open(&path).expect("opens");
        assert_eq!((tables.get(Table::Sets, "cli").expect("reads"), tables.commits()), (None, 0));
    }

    #[test]
    fn a_long_log_is_carried_into_the_file() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("t.db");
        let mut tables = Tables::open(&path).expect("opens");
        let log = || fs::metadata(directory.path().join("t.db-wal")).map_or(0, |log| log.len());
        let value = vec![7; 300_000];
        tables.write(Wait::ForDisk, |rows| rows.put(Table::Sets, "cli", &value)).expect("writes");
        assert!(log() > LOG);
        tables.tidy().expect("tidied");
        assert_eq!(log(), 0);
        assert_eq!(tables.get(Table::Sets, "cli").expect("reads"), Some(value));
    }
}
