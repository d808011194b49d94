//! Checksums of rows, and errors of SQLite in words.

use std::io;
use std::path::Path;

use rusqlite::{Error, ErrorCode};
use xxhash_rust::xxh3::Xxh3;

use super::state::StateError;

/// `SQLITE_IOERR_SHORT_READ`: the file is shorter than its header says.
const SHORT_READ: i32 = 522;

/// Returns the checksum of a row. The checksum includes the table's name, so that SQLite cannot mistake a page of another
/// table for one of this table.
pub(super) fn checksum(table: &str, columns: &[&str]) -> i64 {
    let mut hasher = Xxh3::new();
    hasher.update(table.as_bytes());
    for column in columns {
        // The length prevents equal checksums if a byte moves from one column to the next.
        hasher.update(&column.len().to_le_bytes());
        hasher.update(column.as_bytes());
    }
    hasher.digest().cast_signed()
}

/// Returns an error if the checksum of a row is wrong.
pub(super) fn check(table: &str, columns: &[&str], sum: i64) -> Result<(), Error> {
    let wrong = || damage(format!("the checksum of a row of its table `{table}` differs"));
    (sum == checksum(table, columns)).then_some(()).ok_or_else(wrong)
}

/// Returns an error for damage that portfwd found, not SQLite; see [`explain`].
pub(super) fn damage(what: impl Into<String>) -> Error {
    Error::ToSqlConversionFailure(what.into().into())
}

/// Converts an error of SQLite to an error for the user.
pub(super) fn explain(path: &Path, error: &Error) -> StateError {
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
