use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;

use std::collections::BTreeMap;

use super::*;
use crate::iptables::command::Variant;
use crate::model::{DesiredState, Forward, Network, RuleSet};
use crate::sys::sysctl;

fn open(directory: &Path) -> Store {
    Store::open(directory, &Identity::Host, true, Duration::ZERO).expect("opens")
}

/// Opens and loads the store; a process that was killed would leave the same files.
fn loaded(directory: &Path) -> Result<State, StateError> {
    Store::open(directory, &Identity::Host, true, Duration::ZERO)?.load()
}

fn rule_set(name: &str, listens: &[&str]) -> RuleSet {
    let mut set = RuleSet::new(name.parse().expect("name"));
    for listen in listens {
        let to = if listen.starts_with('[') { "fd00::1" } else { "10.0.0.1" };
        set.forwards.push(Forward::new(listen.parse().expect("listen"), to.parse().expect("target")));
    }
    set
}

fn desired(sets: &[RuleSet]) -> Arc<DesiredState> {
    let mut desired = DesiredState::default();
    sets.iter().for_each(|set| desired.add(set).expect("valid"));
    desired.normalize();
    desired.into()
}

/// Returns a state with every field set, except `unfinished`.
fn state(listens: &[&str]) -> State {
    let mut set = rule_set("web", listens);
    let network =
        r#"{"name":"docker0","subnets":["172.17.0.0/16"],"masquerade":true,"chain":"DOCKER","isolate":false}"#;
    set.networks.push(serde_json::from_str::<Network>(network).expect("network"));
    if let [forward, ..] = &mut set.forwards[..] {
        forward.comment = Some("\u{e4}\\ 'quoted'".parse().expect("comment"));
        forward.interface = Some("eth0".parse().expect("name"));
        forward.from = vec!["10.0.0.0/8".parse().expect("prefix")];
        forward.source = "masquerade".parse().expect("source");
    }
    let desired = desired(&[set, rule_set("cli", &["[2001:db8::1]:53/udp"])]);
    let origins = BTreeMap::from([("web".parse().expect("name"), PathBuf::from("/etc/portfwd/web.toml"))]);
    let until = Deadline { boot: "boot".into(), at: Duration::from_nanos(1_000_000_001) };
    let sysctls = vec![sysctl::Change { key: "ipv4/ip_forward".into(), before: "0".into(), after: "1".into() }];
    State {
        representatives: desired.bindings.first().into_iter().cloned().collect(),
        unconfirmed: Some(Unconfirmed {
            until: until.clone(),
            desired: desired.clone(),
            origins: origins.clone(),
            sysctls: sysctls.clone(),
        }),
        desired,
        origins,
        sysctls,
        iptables: [Variant::Legacy].into(),
        unusable: Some(Unusable { kernel: "1.0".into(), why: "old".into() }),
        unfinished: None,
        confirmed: Some(until),
        committed: Some(7),
        verified: Some(Verified::new(7, u64::MAX)),
    }
}

fn unfinished(state: &State) -> State {
    let gone = state.desired.bindings.iter().map(|owned| owned.rule.clone()).collect();
    State { unfinished: Some(Unfinished { keep_connections: true, gone }), ..state.clone() }
}

#[test]
fn a_saved_state_is_loaded() {
    let directory = tempfile::tempdir().expect("directory");
    let empty = State::default();
    let (one, two) = (state(&["80", "8000-8010/udp"]), state(&["80", "81"]));
    let plain = State { desired: one.desired.clone(), ..State::default() };
    for (before, after) in [(&empty, &one), (&one, &two), (&two, &plain), (&plain, &one), (&one, &empty)] {
        let mut store = open(directory.path());
        assert_eq!(store.load().expect("loads"), *before);
        store.save(before, after).expect("saves");
        assert_eq!(store.load().expect("loads"), *after);
    }
    assert_eq!(loaded(directory.path()).expect("loads"), empty);
}

#[test]
fn a_change_is_unfinished_until_the_kernel_file_says_otherwise() {
    let directory = tempfile::tempdir().expect("directory");
    let (before, after) = (state(&["80"]), state(&["81"]));
    open(directory.path()).save(&State::default(), &before).expect("saves");
    let during = unfinished(&after);
    open(directory.path()).save(&before, &during).expect("saves");
    // The process is killed: nothing is known about the kernel.
    let killed = State { committed: None, verified: None, representatives: Vec::new(), ..during.clone() };
    assert_eq!(loaded(directory.path()).expect("loads"), killed);
    let kernel = directory.path().join("state.kernel");
    let database = || fs::read(directory.path().join("state.db-wal")).expect("there");
    let (old, written) = (fs::read(&kernel).expect("there"), database());
    open(directory.path()).save(&during, &after).expect("saves");
    assert_eq!(loaded(directory.path()).expect("loads"), after);
    assert!(database() == written, "the result of a change is written without the database");
    let good = String::from_utf8(fs::read(&kernel).expect("there")).expect("JSON");
    let cut = &good[..good.len() - 1];
    for bad in ["", "{}", cut, &format!("{good}}}"), &String::from_utf8(old).expect("JSON")] {
        fs::write(&kernel, bad).expect("written");
        assert_eq!(loaded(directory.path()).expect("loads"), killed, "{bad:?}");
    }
    fs::remove_file(&kernel).expect("removed");
    assert_eq!(loaded(directory.path()).expect("loads"), killed);
    // After a reboot the change is still finished, but the kernel's rules are unknown.
    let boot = crate::sys::boot::id().expect("boot");
    fs::write(&kernel, good.replace(boot, "another")).expect("written");
    assert_eq!(loaded(directory.path()).expect("loads"), State { committed: None, verified: None, ..after.clone() });
    // A later save of another field leaves the change unfinished.
    let mut store = open(directory.path());
    fs::write(&kernel, &good).expect("written");
    store.save(&after, &during).expect("saves");
    let other = State { committed: Some(9), ..during.clone() };
    store.save(&during, &other).expect("saves");
    assert_eq!(store.load().expect("loads"), killed);
}

#[test]
fn a_kernel_file_that_cannot_be_written_fails_only_what_needs_it() {
    let directory = tempfile::tempdir().expect("directory");
    let (before, after) = (state(&["80"]), state(&["81"]));
    let kernel = directory.path().join("state.kernel");
    let mut store = open(directory.path());
    fs::create_dir(&kernel).expect("created");
    store.save(&State::default(), &before).expect("the database has it");
    let during = unfinished(&after);
    store.save(&before, &during).expect("saves");
    assert!(store.save(&during, &after).is_err());
    assert_eq!(store.load().expect("loads").unfinished, during.unfinished);
}

#[test]
fn a_new_namespace_of_the_same_name_has_an_empty_store() {
    let directory = tempfile::tempdir().expect("directory");
    let [first, second] = ["boot-1", "boot-2"].map(|incarnation| Identity::Named("web".into(), incarnation.into()));
    let open = |identity, write| Store::open(directory.path(), identity, write, Duration::ZERO).expect("opens");
    open(&first, true).save(&State::default(), &state(&["80"])).expect("saves");
    assert_eq!(open(&first, true).load().expect("loads"), state(&["80"]));
    assert_eq!(open(&second, false).load().expect("loads"), State::default());
    assert_eq!(open(&first, false).load().expect("loads"), state(&["80"]));
    assert_eq!(open(&second, true).load().expect("loads"), State::default());
    assert_eq!(open(&first, true).load().expect("loads"), State::default());
    assert!(directory.path().join("netns/web.db").exists() && !directory.path().join("state.db").exists());
}

#[test]
fn only_the_owner_may_read_a_store() {
    let directory = tempfile::tempdir().expect("directory");
    let inner = directory.path().join("deep/er");
    open(&inner).save(&State::default(), &state(&["80"])).expect("saves");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    let files: Vec<_> = fs::read_dir(&inner).expect("readable").flatten().map(|entry| entry.path()).collect();
    assert!(files.len() >= 5, "{files:?}");
    assert!(files.iter().all(|path| mode(path) == 0o600), "{files:?}");
}

#[test]
fn a_reader_creates_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let read = || Store::open(directory.path(), &Identity::Host, false, Duration::ZERO);
    let inner = directory.path().join("none");
    let store = Store::open(&inner, &Identity::Host, false, Duration::ZERO).expect("opens");
    assert_eq!((store.load().expect("loads"), store.sibling("restore")), (State::default(), None));
    assert!(!inner.exists());
    fs::write(directory.path().join("state.db"), "").expect("written");
    assert_eq!(read().expect("opens").load().expect("loads"), State::default());
    assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 1);
    open(directory.path()).save(&State::default(), &state(&["80"])).expect("saves");
    let writer = open(directory.path());
    assert!(matches!(read(), Err(StateError::Busy(_))));
    drop(writer);
    assert_eq!(read().expect("opens").load().expect("loads"), state(&["80"]));
}

#[test]
fn a_second_process_waits_and_gives_up() {
    let directory = tempfile::tempdir().expect("directory");
    let first = open(directory.path());
    let second = || Store::open(directory.path(), &Identity::Host, true, Duration::from_millis(20));
    assert!(matches!(second(), Err(StateError::Busy(_))));
    drop(first);
    second().expect("opens");
}

#[test]
fn a_symbolic_link_is_not_followed() {
    for name in ["state.db", "state.lock", "state.kernel", "state.db-wal", "state.db-shm", "state.unconfirmed"] {
        let directory = tempfile::tempdir().expect("directory");
        open(directory.path()).save(&State::default(), &state(&["80"])).expect("saves");
        let (precious, link) = (directory.path().join("precious"), directory.path().join(name));
        fs::write(&precious, "precious").expect("written");
        fs::remove_file(&link).expect("there");
        symlink(&precious, &link).expect("linked");
        let opened = Store::open(directory.path(), &Identity::Host, true, Duration::ZERO);
        let saved = opened.and_then(|mut store| store.save(&state(&["80"]), &state(&["81"])));
        // A commit needs no kernel file, so only that link causes no error.
        assert_eq!(saved.is_ok(), name == "state.kernel", "{name}: {saved:?}");
        assert_eq!(fs::read_to_string(&precious).expect("readable"), "precious", "{name}");
    }
    // The directory may be a symbolic link.
    let directory = tempfile::tempdir().expect("directory");
    let (real, link) = (directory.path().join("real"), directory.path().join("link"));
    fs::create_dir(&real).expect("created");
    symlink(&real, &link).expect("linked");
    open(&link).save(&State::default(), &state(&["80"])).expect("saves");
    assert_eq!(loaded(&real).expect("loads"), state(&["80"]));
}

#[test]
fn a_store_of_another_version_is_not_changed() {
    let directory = tempfile::tempdir().expect("directory");
    let mut store = open(directory.path());
    let changes = Changes { meta: vec![("version", "2".into())], ..Changes::default() };
    store.database.as_mut().expect("a database").commit(&changes).expect("commits");
    drop(store);
    let error = loaded(directory.path()).expect_err("version 2");
    assert!(error.to_string().ends_with("has version 2; this program reads version 1"), "{error}");
}

#[test]
fn a_damaged_file_never_loads_as_another_state() {
    let directory = tempfile::tempdir().expect("directory");
    let good = state(&["80", "8000-8010/udp"]);
    open(directory.path()).save(&State::default(), &good).expect("saves");
    let names = ["state.db", "state.db-wal"].map(|name| directory.path().join(name));
    let kept = names.each_ref().map(|name| fs::read(name).expect("there"));
    let restore = || names.iter().zip(&kept).for_each(|(name, bytes)| fs::write(name, bytes).expect("written"));
    let mut dice = fastrand::Rng::with_seed(18);
    let mut damaged = 0;
    for (round, name) in (0..400).flat_map(|round| names.iter().map(move |name| (round, name))) {
        let mut bytes = fs::read(name).expect("there");
        let at = dice.usize(..bytes.len());
        if round % 8 == 0 {
            bytes.truncate(at.max(1))
        } else {
            bytes[at] ^= 1 << dice.u8(..8)
        }
        fs::write(name, bytes).expect("written");
        match loaded(directory.path()) {
            Ok(state) => assert_eq!(state, good, "{round} {at} of {}", name.display()),
            Err(StateError::Damaged(..) | StateError::Store(..) | StateError::Io(..)) => damaged += 1,
            Err(error) => panic!("{round} {at} of {}: {error:?}", name.display()),
        }
        restore();
    }
    assert!(damaged > 200, "{damaged}");
}

#[test]
fn wrong_rows_that_sqlite_accepts_are_damage() {
    let directory = tempfile::tempdir().expect("directory");
    let good = state(&["80", "8000-8010/udp"]);
    let partial = |store: &Store| store.load_partial(&[good.desired.bindings[0].rule.clone()], &[]);
    for change in [
        "UPDATE forwards SET bindings = replace(bindings, '8000-8010', '8000-8011')",
        "UPDATE forwards SET rule_set = 'other'",
        "UPDATE forwards SET block = block + 1",
        "DELETE FROM forwards WHERE block = 5",
        "UPDATE rules SET value = replace(value, '172.17', '172.18')",
        "UPDATE meta SET value = '8' WHERE name = 'forwards'",
        "DELETE FROM meta WHERE name = 'forwards'",
        "DROP TABLE rules",
    ] {
        let mut store = open(directory.path());
        let before = store.load().expect("loads");
        store.save(&before, &State { unconfirmed: None, ..good.clone() }).expect("saves");
        assert!(partial(&store).expect("loads").is_some());
        drop(store);
        let path = directory.path().join("state.db");
        rusqlite::Connection::open(&path).and_then(|database| database.execute_batch(change)).expect(change);
        let error = loaded(directory.path());
        assert!(matches!(error, Err(StateError::Damaged(..))), "{change}: {error:?}");
        let wait = Duration::ZERO;
        let (store, renamed) = Store::reset_damaged(directory.path(), &Identity::Host, &path, wait).expect("opens");
        assert_eq!(store.load().expect("loads"), State::default());
        assert!(renamed.exists());
    }
    assert!(directory.path().join("state.db.damaged-8").exists());
}

#[test]
fn a_lost_commit_is_damage() {
    let directory = tempfile::tempdir().expect("directory");
    let path = |name: &str| directory.path().join(name);
    let (one, two) = (state(&["80"]), state(&["81"]));
    open(directory.path()).save(&State::default(), &one).expect("saves");
    let old = ["state.db", "state.db-wal"].map(|name| fs::read(path(name)).expect("there"));
    open(directory.path()).save(&one, &two).expect("saves");
    let new = ["state.db", "state.db-wal"].map(|name| fs::read(path(name)).expect("there"));
    let cut = &new[1][..new[1].len() - 9];
    for [database, log] in [[&old[0], &old[1][..]], [&new[0], cut], [&new[0], b""]] {
        fs::write(path("state.db"), database).expect("written");
        fs::write(path("state.db-wal"), log).expect("written");
        let loaded = loaded(directory.path());
        assert!(matches!(loaded, Err(StateError::Damaged(..))), "{loaded:?}");
    }
    // A missing file is a new store.
    fs::remove_file(path("state.db")).expect("removed");
    fs::remove_file(path("state.db-wal")).expect("removed");
    for _ in 0..2 {
        assert_eq!(loaded(directory.path()).expect("loads"), State::default());
    }
}

#[test]
fn a_failed_commit_changes_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let (one, two) = (state(&["80"]), state(&["81"]));
    let mut store = open(directory.path());
    store.save(&State::default(), &one).expect("saves");
    let path = directory.path().join("state.db");
    let trigger =
        "CREATE TRIGGER no BEFORE INSERT ON meta WHEN new.name = 'forwards' BEGIN SELECT RAISE(FAIL, 'no'); END";
    rusqlite::Connection::open(&path).and_then(|database| database.execute_batch(trigger)).expect("created");
    assert!(store.save(&one, &two).is_err() && !store.is_undecided());
    assert_eq!(store.load().expect("loads"), one);
    drop(store);
    assert_eq!(loaded(directory.path()).expect("loads"), one);
}

#[test]
fn the_log_stays_short() {
    let directory = tempfile::tempdir().expect("directory");
    let log = || fs::metadata(directory.path().join("state.db-wal")).map_or(0, |log| log.len());
    let mut before = State::default();
    let mut longest = 0;
    for port in 1..=200_u16 {
        let after = state(&[&port.to_string()]);
        open(directory.path()).save(&before, &after).expect("saves");
        longest = longest.max(log());
        before = after;
    }
    assert!(longest > 100_000 && longest < 300_000, "{longest}");
    assert_eq!(loaded(directory.path()).expect("loads"), before);
}

#[test]
fn the_flag_exists_while_a_change_waits() {
    let directory = tempfile::tempdir().expect("directory");
    let mut store = open(directory.path());
    let flag = store.pending_flag().expect("kept");
    let (nothing, waiting) = (State::default(), state(&["80"]));
    let other = State { committed: None, ..waiting.clone() };
    for (before, after, exists) in
        [(&nothing, &waiting, true), (&waiting, &other, true), (&other, &nothing, false), (&nothing, &nothing, false)]
    {
        store.save(before, after).expect("saves");
        assert_eq!(flag.exists(), exists);
        assert_eq!(store.load().expect("loads"), *after);
    }
    assert_eq!(Store::in_memory().pending_flag(), None);
}

const PLACES: [&str; 4] = ["", "192.0.2.1:", "192.0.2.2:", "[2001:db8::1]:"];

/// Returns one binding; `pick` chooses the place, the ports, the protocol, the interface and the clients.
fn binding(pick: (usize, u16, u16, bool, u8)) -> Binding {
    let (place, first, more, udp, narrow) = pick;
    let ports = if more == 0 { first.to_string() } else { format!("{first}-{}", first + more) };
    let listen = format!("{}{ports}/{}", PLACES[place], if udp { "udp" } else { "tcp" });
    let to = if place == 3 { "fd00::1" } else { "10.0.0.1" };
    let mut forward = Forward::new(listen.parse().expect("listen"), to.parse().expect("target"));
    forward.interface = (narrow & 1 > 0).then(|| "eth0".parse().expect("name"));
    let clients = if place == 3 { "2001:db8::/32" } else { "198.51.100.0/24" };
    forward.from = (narrow & 2 > 0).then(|| clients.parse().expect("prefix")).into_iter().collect();
    forward.bindings().expect("valid").remove(0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_partial_load_finds_every_conflict(
        picks in prop::collection::vec(((0usize..4, 1u16..70, 0u16..24, any::<bool>(), 0u8..4), 0u8..3), 1..90),
        about in prop::collection::vec((0usize..4, 1u16..70, 0u16..40, any::<bool>(), 0u8..4), 1..4),
        replaced in 0u8..3,
    ) {
        let mut desired = DesiredState::default();
        for (pick, set) in picks {
            let rule = binding(pick);
            // Conflicts are refused before a state is saved.
            if !desired.bindings.iter().any(|owned| owned.rule.conflicts_with(&rule)) {
                let set: SetName = format!("set{set}").parse().expect("name");
                desired.settings.entry(set.clone()).or_default();
                desired.bindings.push(SetRule { set, rule });
            }
        }
        desired.normalize();
        let representatives = vec![desired.bindings[desired.bindings.len() / 2].clone()];
        let all = State { desired: desired.into(), representatives, verified: Some(Verified::new(1, 1)), ..State::default() };
        let about: Vec<Binding> = about.into_iter().map(binding).collect();
        let set: SetName = format!("set{replaced}").parse().expect("name");
        let directory = tempfile::tempdir().expect("directory");
        open(directory.path()).save(&State::default(), &all).expect("saves");
        let part = open(directory.path()).load_partial(&about, std::slice::from_ref(&set)).expect("loads");
        let part = part.expect("enough is known");
        let wanted = |owned: &&SetRule<Binding>| {
            owned.set == set || all.representatives.contains(owned) || about.iter().any(|rule| rule.conflicts_with(&owned.rule))
        };
        let wanted: Vec<_> = all.desired.bindings.iter().filter(wanted).cloned().collect();
        prop_assert_eq!(&part.desired.bindings, &wanted);
        let rest = State { desired: all.desired.clone(), ..part.clone() };
        prop_assert_eq!(&rest, &all);
        // Saving a changed part changes the complete state in the same way.
        let mut after = part.clone();
        Arc::make_mut(&mut after.desired).bindings.pop();
        open(directory.path()).save(&part, &after).expect("saves");
        let gone = part.desired.bindings.last().cloned();
        let left: Vec<_> = all.desired.bindings.iter().filter(|owned| Some(*owned) != gone.as_ref()).cloned().collect();
        prop_assert_eq!(&loaded(directory.path()).expect("loads").desired.bindings, &left);
    }
}

#[test]
fn a_partial_load_needs_stored_representatives() {
    let directory = tempfile::tempdir().expect("directory");
    let plain = State { unconfirmed: None, ..state(&["80"]) };
    let about = [plain.desired.bindings[0].rule.clone()];
    let loopback = Binding { loopback: true, ..about[0].clone() };
    let foreign =
        state(&["81"]).desired.bindings.iter().filter(|owned| owned.rule.ports.first() == 81).cloned().collect();
    let mut store = open(directory.path());
    let mut before = State::default();
    for (after, about, enough) in [
        (plain.clone(), &about[0], true),
        (plain.clone(), &loopback, false),
        (State { representatives: Vec::new(), ..plain.clone() }, &about[0], false),
        (State { representatives: foreign, ..plain.clone() }, &about[0], false),
        (State { unconfirmed: state(&["80"]).unconfirmed, ..plain.clone() }, &about[0], false),
        (unfinished(&plain), &about[0], false),
        (plain.clone(), &about[0], true),
    ] {
        store.save(&before, &after).expect("saves");
        let part = store.load_partial(std::slice::from_ref(about), &[]).expect("loads");
        assert_eq!(part.is_some(), enough, "{about} {after:?}");
        before = after;
    }
}
