use super::*;

/// Makes of a store one of version 4, which has the same rows in three tables.
pub(in crate::store) fn make_version_4(path: &Path) {
    let database = Connection::open(path).expect("opens");
    let version = sum(Table::Meta, b"version", b"4");
    let tables = Table::ALL.map(|table| {
        let (name, first) = (table.name(), String::from_utf8_lossy(&table.key("")).into_owned());
        format!(
            "CREATE TABLE {name} (key BLOB PRIMARY KEY, value BLOB NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID, STRICT;
             INSERT INTO {name} SELECT CAST(substr(key, 2) AS BLOB), value, sum FROM rows WHERE substr(key, 1, 1) = x'{:02x}';",
            first.as_bytes()[0]
        )
    });
    let all = format!(
        "BEGIN; {} DROP TABLE rows;
         REPLACE INTO meta VALUES (CAST('version' AS BLOB), CAST('4' AS BLOB), {version}); COMMIT",
        tables.concat()
    );
    database.execute_batch(&all).expect("changes");
}

fn one(key: &str, value: &[u8]) -> Changes {
    Changes { sets: vec![(key.to_owned(), Some(value.to_vec()))], ..Changes::default() }
}

fn sets(tables: &Tables) -> Result<Vec<(String, Vec<u8>)>, StateError> {
    let mut found = Vec::new();
    tables.each(Table::Sets, |key, value| {
        found.push((key.to_owned(), value.to_owned()));
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn a_row_that_is_not_what_was_written_is_no_row() {
    let directory = tempfile::tempdir().expect("directory");
    let mut tables = Tables::open(&directory.path().join("t.db")).expect("opens");
    tables.write(Wait::ForDisk, one("cli", b"one")).expect("writes");
    assert_eq!(sets(&tables).expect("reads"), [("cli".to_owned(), b"one".to_vec())]);
    let change = |to: &str| format!("UPDATE rows SET {to} WHERE key = x'73636c69'");
    for change in [change("value = x'6f6e66'"), change("value = x'6f6e65', key = x'73636c6a'")] {
        tables.database.execute_batch(&change).expect("changes");
        assert!(matches!(sets(&tables), Err(StateError::Damaged(..))), "{change}");
    }
}

#[test]
fn what_could_not_be_written_whole_is_not_written() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("t.db");
    let mut tables = Tables::open(&path).expect("opens");
    tables
        .database
        .execute_batch(
            "CREATE TRIGGER no BEFORE INSERT ON rows WHEN new.key > x'6d' AND new.key < x'6e'
             BEGIN SELECT RAISE(FAIL, 'no'); END",
        )
        .expect("set");
    assert!(tables.write(Wait::ForDisk, one("cli", b"one")).is_err());
    assert_eq!((sets(&tables).expect("reads"), tables.commits()), (Vec::new(), 0));
    drop(tables);
    let tables = Tables::open(&path).expect("opens");
    assert_eq!((sets(&tables).expect("reads"), tables.commits()), (Vec::new(), 0));
}

#[test]
fn a_long_log_is_carried_into_the_file_and_keeps_some_room() {
    let directory = tempfile::tempdir().expect("directory");
    let (path, log) = (directory.path().join("t.db"), directory.path().join("t.db-wal"));
    let length = || fs::metadata(&log).map_or(0, |log| log.len());
    let mut tables = Tables::open(&path).expect("opens");
    let (older, value) = (vec![7; 300_000], vec![8; 300_000]);
    tables.write(Wait::ForDisk, one("cli", &older)).expect("writes");
    tables.write(Wait::ForDisk, one("cli", &value)).expect("writes");
    assert!(length() > 2 * LOG);
    tables.tidy(true).expect("tidied");
    let kept = [("cli".to_owned(), value), ("other".to_owned(), b"short".to_vec())];
    assert_eq!(left(&path).0, kept[..1]);
    tables.write(Wait::No, one("other", b"short")).expect("writes");
    // Nothing of the old beginning of the log counts any more.
    assert_eq!((left(&path).0.as_slice(), length()), (&kept[..], LOG));
    assert_eq!(sets(&tables).expect("reads"), kept);
    // Where nothing comes after it nobody would cut it off.
    tables.write(Wait::ForDisk, one("cli", &older)).expect("writes");
    assert!(length() > LOG);
    tables.tidy(false).expect("tidied");
    assert_eq!((left(&path).0.first(), length()), (Some(&("cli".to_owned(), older)), 0));
}

/// The sets, and the number of commits, that are found after a process that is killed now.
fn left(path: &Path) -> (Vec<(String, Vec<u8>)>, u64) {
    let copy = tempfile::tempdir().expect("directory");
    for name in ["t.db", "t.db-wal"] {
        fs::copy(path.with_file_name(name), copy.path().join(name)).expect("copied");
    }
    let tables = Tables::open(&copy.path().join("t.db")).expect("opens");
    (sets(&tables).expect("reads"), tables.commits())
}

#[test]
fn a_log_of_many_small_commits_stays_short_and_loses_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let (path, log) = (directory.path().join("t.db"), directory.path().join("t.db-wal"));
    let mut longest = 0;
    for number in 0..COMMITS * 5 {
        let value = number.to_string().into_bytes();
        let mut tables = Tables::open(&path).expect("opens");
        let seen = || {
            let (mut sets, commits) = left(&path);
            (sets.remove(0).1, commits)
        };
        tables.write(Wait::ForDisk, one("cli", &value)).expect("writes");
        assert_eq!(seen(), (value.clone(), number + 1));
        tables.tidy(true).expect("tidied");
        assert_eq!(seen(), (value.clone(), number + 1));
        tables.write(Wait::No, one("other", &value)).expect("writes");
        assert_eq!(seen(), (value, number + 1));
        longest = longest.max(fs::metadata(&log).map_or(0, |log| log.len()));
    }
    assert!(longest <= COMMITS * 4 * 4_120, "{longest}");
}
