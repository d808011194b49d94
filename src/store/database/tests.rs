use std::fs::File;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::iptables::command::Variant;
use crate::model::{Forward, RuleSet};
use crate::store::unconfirmed::{Deadline, Unconfirmed};
use crate::store::{Unfinished, Unusable, Whole};
use crate::sys::sysctl;

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
    let (asked, origins, sysctls) = (state.asked.clone(), state.origins.clone(), Vec::new());
    let until = Deadline { boot: "boot".into(), at: Duration::from_nanos(1_000_000_001) };
    state.committed = Some(7);
    state.whole = Some(Whole::at(7, 1));
    state.confirmed = Some(until.clone());
    state.unconfirmed = Some(Unconfirmed { until, asked, origins, sysctls });
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
        let mut store = open(directory.path(), &Identity::Host);
        assert_eq!(store.load().expect("loads"), State::default());
        store.save(&State::default(), &one).expect("saves");
    }
    let mut store = open(directory.path(), &Identity::Host);
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
    let mut store = open(directory.path(), &first);
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
    assert_eq!(mode(&inner.join("state.db")), 0o600);
}

#[test]
fn a_second_process_waits_and_gives_up() {
    let directory = tempfile::tempdir().expect("directory");
    let _first = open(directory.path(), &Identity::Host);
    let second = Store::open(directory.path(), &Identity::Host, true, Duration::from_millis(20));
    assert!(matches!(second, Err(StateError::Busy(_))));
}

#[test]
fn a_newer_store_is_left_alone() {
    let directory = tempfile::tempdir().expect("directory");
    let mut store = open(directory.path(), &Identity::Host);
    let tables = store.tables.as_mut().expect("tables");
    let newer = Changes { meta: vec![("version".into(), Some(b"6".to_vec()))], ..Changes::default() };
    tables.write(Wait::ForDisk, newer).expect("writes");
    drop(store);
    let newer = Store::open(directory.path(), &Identity::Host, true, Duration::ZERO);
    assert!(matches!(newer, Err(StateError::Version(_, version)) if version == "6"));
}

#[test]
fn what_is_older_than_the_last_commit_is_damaged() {
    let directory = tempfile::tempdir().expect("directory");
    let path = |name: &str| directory.path().join(name);
    open(directory.path(), &Identity::Host).save(&State::default(), &state(&["80"])).expect("saves");
    let (good, log) = (fs::read(path("state.db")).expect("there"), fs::read(path("state.db-wal")).expect("there"));
    for (good, log) in [(&good[..], &b""[..]), (&[], &[]), (&good[..100], &log[..]), (&good[..], &log[..log.len() - 9])]
    {
        fs::write(path("state.db"), good).expect("written");
        fs::write(path("state.db-wal"), log).expect("written");
        let opened = Store::open(directory.path(), &Identity::Host, true, Duration::ZERO);
        let loaded = opened.and_then(|store| store.load());
        if good.is_empty() {
            // Gone is not damaged; what the kernel holds tells that it was there.
            assert_eq!(loaded.expect("made"), State::default());
            file::note_commit(&File::options().write(true).open(path("state.lock")).expect("opens"), 2);
        } else {
            assert!(matches!(loaded, Err(StateError::Damaged(..))), "{loaded:?}");
        }
    }
}

#[test]
fn a_store_of_an_older_version_is_taken_over() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("state.redb");
    old::tests::one_forward(&path);
    let store = open(directory.path(), &Identity::Host);
    let asked = store.load().expect("loads").asked;
    assert_eq!(asked.bindings.len(), 1);
    assert_eq!(asked.bindings[0].rule.to_string(), "80/tcp -> 10.0.0.1:80");
    drop(store);
    assert!(!path.exists());
    assert_eq!(open(directory.path(), &Identity::Host).load().expect("loads").asked, asked);
}

#[test]
fn the_flag_is_up_as_long_as_a_change_waits() {
    let directory = tempfile::tempdir().expect("directory");
    let mut store = open(directory.path(), &Identity::Host);
    let flag = store.flag().expect("kept");
    let (nothing, waiting) = (State::default(), state(&["80"]));
    let other = State { unfinished: None, ..waiting.clone() };
    for (before, after, up) in
        [(&nothing, &waiting, true), (&waiting, &other, true), (&other, &nothing, false), (&nothing, &nothing, false)]
    {
        store.save(before, after).expect("saves");
        assert_eq!(flag.exists(), up);
        assert_eq!(store.load().expect("loads"), *after);
    }
    assert_eq!(Store::in_memory().flag(), None);
}

#[test]
fn what_is_damaged_is_set_aside_and_what_is_left_is_opened() {
    let directory = tempfile::tempdir().expect("directory");
    let path = |name: &str| directory.path().join(name);
    let opens = || Store::open(directory.path(), &Identity::Host, true, Duration::ZERO).and_then(|store| store.load());
    let anew = |damaged: &Path| {
        let (store, aside) = Store::anew(directory.path(), &Identity::Host, damaged, Duration::ZERO).expect("opens");
        assert!(aside.exists());
        store.load().expect("loads").asked.bindings.len()
    };
    fs::write(path("state.redb"), vec![7; 5_000]).expect("written");
    let Err(StateError::Damaged(damaged, _)) = opens() else { panic!("damaged") };
    assert_eq!((&damaged, anew(&damaged)), (&path("state.redb"), 0));
    // The older one had been taken over, but not been removed yet.
    old::tests::one_forward(&path("state.redb"));
    fs::write(path("state.db"), "something else").expect("written");
    let Err(StateError::Damaged(damaged, _)) = opens() else { panic!("damaged") };
    assert_eq!((&damaged, anew(&damaged)), (&path("state.db"), 1));
}

#[test]
fn a_store_of_three_tables_is_carried_over_to_one() {
    let directory = tempfile::tempdir().expect("directory");
    let one = state(&["80", "8000-8010/udp", "[2001:db8::1]:53"]);
    let path = {
        let mut store = open(directory.path(), &Identity::Host);
        store.save(&State::default(), &one).expect("saves");
        store.path.clone()
    };
    crate::store::table::tests::make_version_4(&path);
    for _ in 0..2 {
        let mut store = open(directory.path(), &Identity::Host);
        assert_eq!(store.tables.as_ref().and_then(|tables| tables.meta("version")), Some(VERSION.as_bytes()));
        assert_eq!(store.load().expect("loads"), one);
        store.save(&one, &State::default()).expect("saves");
        store.save(&State::default(), &one).expect("saves");
    }
}
