use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use portfwd::nft::transaction::{CommitError, Connection, KernelError};
use portfwd::nft::{compile::compile, decode::decode, diff::diff, encode::encode};

use crate::support::{Net, file, privileged};

/// Has one `nft` make a commit of each of these lines, again and again without a pause, while something else is done.
/// Gives how many there were.
fn beside<T>(net: &Net, lines: &str, job: impl FnOnce() -> T) -> (T, u32) {
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
        // It is told to end before a panic goes on: a scope waits for all its threads.
        let job = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
        done.store(true, Ordering::Relaxed);
        // What waits in the pipe is not worth its time.
        child.kill().expect("killed");
        child.wait().expect("ended");
        job
    });
    match job {
        Ok(job) => (job, rounds.load(Ordering::Relaxed)),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

const FOREIGN: &str = "add chain ip other c\nadd rule ip other c counter accept\ndelete chain ip other c\n";

const IN_OURS: &str = "add element inet portfwd ip-ports { tcp . 9 : 10.0.0.1 . 9 }
delete element inet portfwd ip-ports { tcp . 9 }
";

fn many(count: u32) -> String {
    (1..=count).map(|port| format!("[[forward]]\nlisten = \"{}\"\nto = \"172.17.0.3:80\"\n", 20_000 + port)).collect()
}

#[test]
fn a_neighbour_who_never_pauses_stops_nothing() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.nft(&["add table ip other"]);
    let set = file(&net.state, &many(5_000)).to_string_lossy().into_owned();
    net.ok(&["apply", &set]);
    let ((), rounds) = beside(&net, FOREIGN, || {
        for round in 0..5 {
            let port = format!("{}", 10_000 + round);
            net.ok(&["add", &port, "172.17.0.3:80"]);
            let list = net.ok(&["list"]);
            assert_eq!(list.stdout.matches(" live ").count(), 5_001, "{}", list.stderr);
            assert_eq!(net.ok(&["plan", &set]).stdout, "0 to add, 0 to change, 0 to remove\n");
            net.ok(&["rm", &port]);
        }
    });
    assert!(rounds > 100, "the neighbour was at work all the time: {rounds}");
    let list = net.ok(&["list"]);
    assert_eq!(list.stdout.matches(" live ").count(), 5_000);
    assert!(!list.stdout.contains("missing") && !list.stdout.contains("foreign"), "{list:?}");
}

#[test]
fn a_rival_in_our_own_table_takes_nothing_away() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["add", "8000", "172.17.0.3:80"]);
    let (added, rounds) = beside(&net, IN_OURS, || {
        let add = |port: &u32| net.portfwd(&["add", &port.to_string(), "172.17.0.3:80"]);
        (8001..8005)
            .filter(|port| match add(port) {
                said if said.code == 0 => true,
                // It was kept away all the time, said so, and did nothing.
                said if said.code == 75 => false,
                said => panic!("{said:?}"),
            })
            .count()
    });
    assert!(rounds > 20, "the rival was at work all the time: {rounds}");
    net.ok(&["add", "8005", "172.17.0.3:80"]);
    let list = net.ok(&["list"]);
    assert_eq!(list.stdout.matches(" live ").count(), added + 2, "{list:?}");
    assert!(!list.stdout.contains("missing") && !list.stdout.contains("foreign"), "{list:?}");
    let elements = net.nft(&["list", "map", "inet", "portfwd", "ip-ports"]).stdout;
    assert_eq!(elements.matches("172.17.0.3 . 80").count(), added + 2, "{elements}");
    assert!(!elements.contains("10.0.0.1"), "{elements}");
}

#[test]
fn a_batch_is_sent_again_only_where_nobody_touched_our_table() {
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
            // The first is too late without a watch, and has one begun.
            let mut connection = Connection::open().expect("opens");
            let (live, generation) = decode(&mut connection).expect("reads");
            let mut wanted = live.clone();
            (wanted.table, wanted.flagged) = (true, false);
            wanted.maps.remove("ip-ports");
            wanted.chains.clear();
            let changes = diff(&live, &wanted);
            nft("add table ip someone; delete table ip someone");
            let mut batch = encode(&changes, generation);
            assert!(matches!(connection.commit(&batch), Err(CommitError::Stale)), "{command}");
            assert_eq!(connection.moved_from(generation), None, "{command}");
            // What is read now is watched.
            let (live, generation) = decode(&mut connection).expect("reads");
            nft(command);
            batch.move_to(generation);
            assert!(matches!(connection.commit(&batch), Err(CommitError::Stale)), "{command}");
            let moved = connection.moved_from(generation);
            assert_eq!(moved.is_none(), ours, "{command}: {moved:?}");
            // Where nothing of ours changed, what was decided on it is true at that generation.
            let (now, at) = decode(&mut connection).expect("reads");
            assert!(ours || now == live && moved == Some(at), "{command}: {moved:?} {at}");
        }
    });
}

#[test]
fn waiting_for_who_is_at_work_changes_nothing() {
    use portfwd::model::{Asked, Forward, RuleSet, SetName};
    if !privileged() {
        return;
    }
    let net = Net::new();
    let mut set = RuleSet::new(SetName::cli());
    set.forwards.push(Forward::new("80".parse().expect("listen"), "10.0.0.1".parse().expect("target")));
    let mut asked = Asked::default();
    asked.add(&set).expect("valid");
    let program = compile(&asked).expect("compiles");
    net.in_host(|| {
        let mut connection = Connection::open().expect("opens");
        let (live, generation) = decode(&mut connection).expect("reads");
        let changes = diff(&live, &program);
        let mut batch = encode(&changes, generation.wrapping_add(1));
        assert!(matches!(connection.commit(&batch), Err(CommitError::Stale)));
        // A watch begins, with batches that have nothing in them.
        assert_eq!(connection.moved_from(generation), None);
        assert_eq!(decode(&mut connection).expect("reads"), (live, generation));
        assert_eq!(connection.generation().expect("tells"), generation);
        // A generation that moved without a word is not trusted.
        assert_eq!(connection.moved_from(generation), None);
        // Somebody in a table of his own; then it is ours at the next generation.
        drop(decode(&mut connection).expect("reads"));
        let said = Command::new("nft").arg("add table ip other").output().expect("nft is installed");
        assert!(said.status.success(), "{said:?}");
        batch.move_to(generation);
        assert!(matches!(connection.commit(&batch), Err(CommitError::Stale)));
        let moved = connection.moved_from(generation).expect("not ours");
        assert_eq!(moved, generation.wrapping_add(1));
        batch.move_to(moved);
        connection.commit(&batch).expect("commits");
        assert_eq!(decode(&mut connection).expect("reads").0.element_count(), 1);
    });
}

/// Adds one to the port that the only forward goes to, on what was read, as often as asked.
/// Gives how often a batch was sent again, and how often all had to be read again.
fn count_up(times: u32) -> (u32, u32) {
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
fn no_update_is_lost_among_rivals_and_neighbours() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.nft(&["add table ip other"]);
    net.ok(&["add", "8000", "172.17.0.3:1000"]);
    let (counts, _) = beside(&net, FOREIGN, || {
        std::thread::scope(|scope| {
            let rivals = [0; 3].map(|_| scope.spawn(|| net.in_host(|| count_up(200))));
            rivals.map(|rival| rival.join().expect("no panic"))
        })
    });
    eprintln!("sent again and read again by three rivals: {counts:?}");
    assert!(counts.iter().any(|(sent, read)| sent + read > 0), "they were in each other's way: {counts:?}");
    let elements = net.nft(&["list", "map", "inet", "portfwd", "ip-ports"]).stdout;
    assert!(elements.contains("172.17.0.3 . 1600"), "{elements}");
}
