use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use portfwd::nft::transaction::{CommitError, Connection, KernelError};
use portfwd::nft::{compile::compile, decode::decode, diff::diff, encode::encode};

use crate::support::{Net, file, privileged};

/// Runs a job while one nft(8) process commits each line of `lines`, in a loop without a pause.
///
/// Returns the job's result and the number of rounds.
fn with_concurrent_commits<T>(net: &Net, lines: &str, job: impl FnOnce() -> T) -> (T, u32) {
    let (done, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
    let job = std::thread::scope(|scope| {
        let mut child = net.in_host(|| {
            let mut command = Command::new("nft");
            command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().expect("nft is installed")
        });
        let mut input = child.stdin.take().expect("piped");
        let (done, rounds) = (&done, &rounds);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) && input.write_all(lines.as_bytes()).is_ok() {
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        // The writer must stop before a panic of the job goes on. Otherwise the scope waits for the writer.
        let job = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
        done.store(true, Ordering::Relaxed);
        // Commands may still be in the pipe, so the test kills nft.
        child.kill().expect("killed");
        child.wait().expect("ended");
        job
    });
    match job {
        Ok(job) => (job, rounds.load(Ordering::Relaxed)),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// nft(8) commands that commit in a foreign table.
const FOREIGN_COMMITS: &str = "add chain ip other c\nadd rule ip other c counter accept\ndelete chain ip other c\n";

/// nft(8) commands that commit in portfwd's table.
const OWN_TABLE_COMMITS: &str = "add element inet portfwd ip-ports { tcp . 9 : 10.0.0.1 . 9 }
delete element inet portfwd ip-ports { tcp . 9 }
";

fn forwards_toml(count: u32) -> String {
    (1..=count).map(|port| format!("[[forward]]\nlisten = \"{}\"\nto = \"172.17.0.3:80\"\n", 20_000 + port)).collect()
}

#[test]
fn constant_foreign_commits_stop_no_command() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.nft(&["add table ip other"]);
    let set = file(&net.state, &forwards_toml(5_000)).to_string_lossy().into_owned();
    net.ok(&["apply", &set]);
    let ((), rounds) = with_concurrent_commits(&net, FOREIGN_COMMITS, || {
        for round in 0..5 {
            let port = format!("{}", 10_000 + round);
            net.ok(&["add", &port, "172.17.0.3:80"]);
            let list = net.ok(&["list"]);
            assert_eq!(list.stdout.matches(" live ").count(), 5_001, "{}", list.stderr);
            assert_eq!(net.ok(&["plan", &set]).stdout, "0 to add, 0 to change, 0 to remove\n");
            net.ok(&["rm", &port]);
        }
    });
    assert!(rounds > 100, "too few foreign commits: {rounds}");
    let list = net.ok(&["list"]);
    assert_eq!(list.stdout.matches(" live ").count(), 5_000);
    assert!(!list.stdout.contains("missing") && !list.stdout.contains("foreign"), "{list:?}");
}

#[test]
fn constant_commits_in_portfwds_table_lose_no_forward() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["add", "8000", "172.17.0.3:80"]);
    let (added, rounds) = with_concurrent_commits(&net, OWN_TABLE_COMMITS, || {
        let add = |port: &u32| net.portfwd(&["add", &port.to_string(), "172.17.0.3:80"]);
        (8001..8005)
            .filter(|port| match add(port) {
                said if said.code == 0 => true,
                // Exit code 75 means that every attempt met another commit, and nothing was changed.
                said if said.code == 75 => false,
                said => panic!("{said:?}"),
            })
            .count()
    });
    assert!(rounds > 20, "too few commits in the table: {rounds}");
    net.ok(&["add", "8005", "172.17.0.3:80"]);
    let list = net.ok(&["list"]);
    assert_eq!(list.stdout.matches(" live ").count(), added + 2, "{list:?}");
    assert!(!list.stdout.contains("missing") && !list.stdout.contains("foreign"), "{list:?}");
    let elements = net.nft(&["list", "map", "inet", "portfwd", "ip-ports"]).stdout;
    assert_eq!(elements.matches("172.17.0.3 . 80").count(), added + 2, "{elements}");
    assert!(!elements.contains("10.0.0.1"), "{elements}");
}

#[test]
fn a_batch_is_sent_again_only_if_portfwds_table_is_untouched() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.nft(&["add table ip other"]);
    net.ok(&["add", "8000", "172.17.0.3:80"]);
    let nft = |command: &str| {
        let said = Command::new("nft").arg(command).output().expect("nft is installed");
        assert!(said.status.success(), "{command}: {said:?}");
    };
    net.in_host(|| {
        for (command, ours) in [
            ("add chain ip other c; add rule ip other c accept", false),
            ("flush table ip other", false),
            ("add table ip portfwd", false),
            ("add element inet portfwd ip-ports { tcp . 9 : 10.0.0.1 . 9 }", true),
            ("delete element inet portfwd ip-ports { tcp . 9 }", true),
            ("add chain inet portfwd mine", true),
            ("add rule inet portfwd mine counter", true),
            ("add rule inet portfwd mine meta l4proto vmap { tcp : accept }", true),
            ("flush chain inet portfwd mine", true),
            ("delete chain inet portfwd mine", true),
            ("add counter inet portfwd mine", true),
            ("add table inet portfwd { flags dormant; }", true),
            ("add table ip other; delete table ip other; delete table inet portfwd", true),
            ("add table inet portfwd", true),
            ("flush ruleset", true),
        ] {
            // A connection starts to watch the commits of other programs after the kernel has refused one of its own.
            let mut connection = Connection::open().expect("opens");
            let (live, generation) = decode(&mut connection).expect("reads");
            let mut wanted = live.clone();
            (wanted.table, wanted.flagged) = (true, false);
            wanted.maps.remove("ip-ports");
            wanted.chains.clear();
            let changes = diff(&live, &wanted);
            nft("add table ip foreign; delete table ip foreign");
            let mut batch = encode(&changes, generation);
            assert!(matches!(connection.commit(&batch), Err(CommitError::Stale)), "{command}");
            assert_eq!(connection.moved_from(generation), None, "{command}");
            // After this read, the monitor sees every commit.
            let (live, generation) = decode(&mut connection).expect("reads");
            nft(command);
            batch.move_to(generation);
            assert!(matches!(connection.commit(&batch), Err(CommitError::Stale)), "{command}");
            let moved = connection.moved_from(generation);
            assert_eq!(moved.is_none(), ours, "{command}: {moved:?}");
            // If portfwd's table is unchanged, the earlier read is still valid at the new generation.
            let (now, at) = decode(&mut connection).expect("reads");
            assert!(ours || now == live && moved == Some(at), "{command}: {moved:?} {at}");
        }
    });
}

#[test]
fn starting_the_monitor_changes_nothing() {
    use portfwd::model::{DesiredState, Forward, RuleSet, SetName};
    if !privileged() {
        return;
    }
    let net = Net::new();
    let mut set = RuleSet::new(SetName::cli());
    set.forwards.push(Forward::new("80".parse().expect("listen"), "10.0.0.1".parse().expect("target")));
    let mut desired = DesiredState::default();
    desired.add(&set).expect("valid");
    let program = compile(&desired).expect("compiles");
    net.in_host(|| {
        let mut connection = Connection::open().expect("opens");
        let (live, generation) = decode(&mut connection).expect("reads");
        let changes = diff(&live, &program);
        let mut batch = encode(&changes, generation.wrapping_add(1));
        assert!(matches!(connection.commit(&batch), Err(CommitError::Stale)));
        // `moved_from` starts the monitor, which sends empty batches.
        assert_eq!(connection.moved_from(generation), None);
        assert_eq!(decode(&mut connection).expect("reads"), (live, generation));
        assert_eq!(connection.generation().expect("tells"), generation);
        // Without a notification, the connection does not trust a new generation.
        assert_eq!(connection.moved_from(generation), None);
        // A foreign commit in a foreign table moves the generation by one. portfwd can send its batch again.
        drop(decode(&mut connection).expect("reads"));
        let said = Command::new("nft").arg("add table ip other").output().expect("nft is installed");
        assert!(said.status.success(), "{said:?}");
        batch.move_to(generation);
        assert!(matches!(connection.commit(&batch), Err(CommitError::Stale)));
        let moved = connection.moved_from(generation).expect("a foreign table");
        assert_eq!(moved, generation.wrapping_add(1));
        batch.move_to(moved);
        connection.commit(&batch).expect("commits");
        assert_eq!(decode(&mut connection).expect("reads").0.element_count(), 1);
    });
}

/// Increments the target port of the only forward `times` times. Each increment starts from the port that the
/// connection read.
///
/// Returns how often a batch was sent again, and how often the table was read again.
fn increment_port(times: u32) -> (u32, u32) {
    let mut connection = Connection::open().expect("opens");
    let (mut sent_again, mut read_again) = (0, 0);
    for _ in 0..times {
        loop {
            let (live, mut generation) = match decode(&mut connection) {
                Err(KernelError::Interrupted) => continue,
                read => read.expect("reads"),
            };
            let mut wanted = live.clone();
            let elements = &mut wanted.maps.get_mut("ip-ports").expect("the map").elements;
            let element = elements.values_mut().next().expect("the forward");
            let (address, port) = element.data.split_at(4);
            let port = u16::from_be_bytes([port[0], port[1]]) + 1;
            element.data = [address, &port.to_be_bytes(), &[0, 0]].concat().into();
            let changes = diff(&live, &wanted);
            let mut batch = encode(&changes, generation);
            let done = loop {
                match connection.commit(&batch) {
                    Err(CommitError::Stale) => match connection.moved_from(generation) {
                        Some(moved) => {
                            sent_again += 1;
                            generation = moved;
                            batch.move_to(moved);
                        }
                        None => break false,
                    },
                    committed => {
                        committed.expect("commits");
                        break true;
                    }
                }
            };
            if done {
                break;
            }
            read_again += 1;
        }
    }
    (sent_again, read_again)
}

#[test]
fn concurrent_writers_lose_no_update() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.nft(&["add table ip other"]);
    net.ok(&["add", "8000", "172.17.0.3:1000"]);
    let (counts, _) = with_concurrent_commits(&net, FOREIGN_COMMITS, || {
        std::thread::scope(|scope| {
            let rivals = [0; 3].map(|_| scope.spawn(|| net.in_host(|| increment_port(200))));
            rivals.map(|rival| rival.join().expect("no panic"))
        })
    });
    eprintln!("sent again and read again by three rivals: {counts:?}");
    assert!(counts.iter().any(|(sent, read)| sent + read > 0), "no two writers met: {counts:?}");
    let elements = net.nft(&["list", "map", "inet", "portfwd", "ip-ports"]).stdout;
    assert!(elements.contains("172.17.0.3 . 1600"), "{elements}");
}
