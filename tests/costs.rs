use std::process::Command;

use crate::support::{Net, PORTFWD, file, privileged, root};

/// Returns a rule set with `count` forwards.
fn many(count: u32) -> String {
    (1..=count).map(|port| format!("[[forward]]\nlisten = \"{port}\"\nto = \"172.17.0.3:80\"\n")).collect()
}

/// The netlink messages and bytes of one phase of a command, as `-v` prints them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Said {
    messages_sent: usize,
    bytes_sent: usize,
    messages_received: usize,
    bytes_received: usize,
}

/// Runs a command with `-v`. Returns the netlink messages and bytes of each phase in `phases`.
fn said<const N: usize>(net: &Net, phases: [&str; N], arguments: &[&str]) -> [Said; N] {
    let done = net.ok(&[&["-v"], arguments].concat());
    phases.map(|phase| {
        let line = done.stderr.lines().find(|line| line.split_whitespace().next() == Some(phase)).unwrap_or_default();
        let numbers = |verb: &str| {
            let words = line.split_once(verb).map(|(_, words)| words).unwrap_or_default();
            let mut numbers = words.split([' ', ',', ';']).filter_map(|word| word.parse().ok());
            (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
        };
        let ((messages_sent, bytes_sent), (messages_received, bytes_received)) = (numbers("sent"), numbers("received"));
        Said { messages_sent, bytes_sent, messages_received, bytes_received }
    })
}

/// Runs a command under strace(1) and returns the log of the system calls that `trace` selects.
fn strace(net: &Net, trace: &str, arguments: &[&str]) -> String {
    let log = net.state.path().join("calls");
    let run = || {
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-qq", "-e", &format!("trace={trace}"), "-o"]).arg(&log).arg(PORTFWD);
        command.arg("--state-dir").arg(net.state.path()).args(arguments).current_dir(root());
        command.env_remove("SSH_CONNECTION").output().expect("strace is installed")
    };
    let done = net.in_host(run);
    assert!(done.status.success(), "{done:?}");
    std::fs::read_to_string(&log).expect("readable")
}

/// Counts the system calls of a command. Calls for memory do not count, because they depend on the allocator.
fn calls(net: &Net, arguments: &[&str]) -> usize {
    let log = strace(net, "!%memory,futex,sched_yield", arguments);
    // The kernel may restart a wait for a lock a thousand times. Restarts do not count.
    log.lines().filter(|line| !line.contains("ERESTART")).count()
}

/// Counts the fsyncs of a command, and its sends to nf_tables. One send contains a whole batch.
///
/// SQLite also syncs the directory of its log once in every process. That sync does not count, because the directory
/// has nothing to write.
fn fsyncs_and_requests(net: &Net, arguments: &[&str]) -> (usize, usize) {
    let log = strace(net, "fsync,fdatasync,sync,syncfs,sync_file_range,msync,sendto,sendmsg", arguments);
    let has = |line: &&str, words: &[&str]| words.iter().any(|word| line.contains(word));
    let syncs = log.lines().filter(|line| has(line, &["sync(", "syncfs(", "sync_file_range("]));
    let requests = log.lines().filter(|line| has(line, &["NFNL_SUBSYS_NFTABLES", "NFNL_MSG_BATCH_BEGIN"]));
    (syncs.filter(|line| line.contains(".db") || !line.contains("fsync(")).count(), requests.count())
}

/// Returns true if `number` is at most `hundredths` percent of `of`.
fn within(number: usize, hundredths: usize, of: usize) -> bool {
    number * 100 <= of * hundredths
}

#[test]
fn the_cost_of_apply_grows_no_faster_than_the_rule_set() {
    if !privileged() {
        return;
    }
    let of = |count| {
        let net = Net::new();
        let path = file(&net.state, &many(count)).to_string_lossy().into_owned();
        let [kernel, read] = said(&net, ["kernel", "read"], &["apply", &path]);
        net.ok(&["flush"]);
        (kernel, read, calls(&net, &["apply", &path]))
    };
    let ((one, read, few), (two, read_of_two, twice)) = (of(5_000), of(10_000));
    assert!(within(two.bytes_sent, 202, one.bytes_sent), "{one:?} {two:?}");
    assert!(within(two.messages_sent, 202, one.messages_sent), "{one:?} {two:?}");
    // An element has a key, a target, a comment and a counter: 60 bytes plus the name of the rule set.
    assert!(one.bytes_sent < 5_000 * 70, "{one:?}");
    assert_eq!((one.messages_received, two.messages_received), (1, 1));
    // The verification after the commit reads only a sample of the elements. The size of the sample does not grow.
    assert!(within(read_of_two.bytes_received, 110, read.bytes_received), "{read:?} {read_of_two:?}");
    assert!(within(twice, 202, few), "{few} {twice}");
}

#[test]
fn add_waits_for_the_disk_once() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["apply", &file(&net.state, &many(1_500)).to_string_lossy()]);
    let log = net.state.path().join("calls");
    let waits = |arguments: &[&str]| {
        let run = || {
            let mut command = Command::new("strace");
            command
                .args(["-f", "-y", "-qq", "-e", "trace=fsync,fdatasync,sync,syncfs,sync_file_range,msync", "-o"])
                .arg(&log);
            command.arg(PORTFWD).arg("--state-dir").arg(net.state.path()).args(arguments).output()
        };
        let done = net.in_host(run).expect("strace is installed");
        assert!(done.status.success(), "{done:?}");
        // SQLite also syncs its directory in every process. The directory has nothing to write, so only syncs of `.db`
        // files count.
        std::fs::read_to_string(&log).expect("readable").lines().filter(|line| line.contains(".db")).count()
    };
    // The first `add` writes the rest of the log of 1,500 forwards, so it does not count.
    net.ok(&["add", "60000", "172.17.0.3:80"]);
    let ports: Vec<String> = (60_001..60_061).map(|port: u32| port.to_string()).collect();
    let mut all: Vec<usize> = ports.iter().map(|port| waits(&["add", port, "172.17.0.3:80"])).collect();
    all.extend(ports.iter().map(|port| waits(&["rm", port])));
    all.push(waits(&["list"]));
    // SQLite sometimes moves its log to the database, with two more syncs. A new start of the log needs one more sync.
    let more = all.iter().filter(|count| **count > 1).count();
    assert!(all.iter().all(|count| *count <= 3) && more <= all.len() / 6, "{all:?}");
    assert!(all.iter().filter(|count| **count == 1).count() > 100 && all.last() == Some(&0), "{all:?}");
}

#[test]
fn a_small_change_reads_and_sends_only_a_few_forwards() {
    if !privileged() {
        return;
    }
    let of = |count| {
        let net = Net::new();
        net.ok(&["apply", &file(&net.state, &many(count)).to_string_lossy()]);
        net.ok(&["add", "60001", "172.17.0.3:80"]);
        let one = said(&net, ["kernel", "read"], &["add", "60002", "172.17.0.3:80"]);
        // After a commit of another program, portfwd reads rules, chains and maps again.
        assert_eq!(net.nft(&["add", "table", "inet", "another"]).code, 0);
        let between = said(&net, ["kernel", "read"], &["add", "60003", "172.17.0.3:80"]);
        net.ok(&["restore"]);
        let path = net.state.path().join("web.toml");
        let forward = |port: u32| format!("[[forward]]\nlisten = \"{port}\"\nto = \"172.17.0.3:80\"\n");
        let mut apply = |first: u32| {
            std::fs::write(&path, (first..first + 206).map(forward).collect::<String>()).expect("written");
            said(&net, ["kernel", "read"], &["apply", &path.to_string_lossy()])
        };
        // The three applied rule sets are: a new set, an equal set, and a set without the element that represents its
        // rule shape.
        (one, between, [61_000, 61_000, 61_001].map(&mut apply))
    };
    let (one, between, sets) = of(3_000);
    assert_eq!((one, between, sets), of(6_000));
    let [set, same, shifted] = sets;
    assert_eq!(same[0], Said::default());
    assert!(shifted[0].messages_sent == 4 && shifted[0].bytes_sent < 300, "{shifted:?}");
    let [kernel, read] = one;
    assert!(kernel.messages_sent == 3 && kernel.bytes_sent < 200, "{kernel:?}");
    // portfwd reads the generation, and the element after the commit.
    assert!(read.messages_sent == 2 && read.bytes_received < 300, "{read:?}");
    let [kernel, read] = between;
    assert!(kernel.messages_sent == 3 && kernel.bytes_sent < 200, "{kernel:?}");
    // portfwd reads rules, chains and maps, the element before and after the commit, and one element that represents
    // its rule shape.
    assert!((8..15).contains(&read.messages_sent) && read.bytes_received < 8_000, "{read:?}");
    let [kernel, read] = set;
    assert!(kernel.messages_sent == 4 && kernel.bytes_sent < 206 * 70, "{kernel:?}");
    // One request reads back 16 elements.
    assert!(read.messages_sent < 5 + 206 / 16 && read.bytes_received < 600 + 206 * 160, "{read:?}");
}

#[test]
fn add_takes_one_fsync_and_three_nf_tables_requests() {
    if !privileged() {
        return;
    }
    for count in [1, 3_000] {
        let net = Net::new();
        net.ok(&["apply", &file(&net.state, &many(count)).to_string_lossy()]);
        net.ok(&["add", "60001", "172.17.0.3:80"]);
        // The three requests read the generation, send the batch and read the element.
        assert_eq!(fsyncs_and_requests(&net, &["add", "60002", "172.17.0.3:80"]), (1, 3), "{count}");
        // After a commit of another program, portfwd reads its table again.
        assert_eq!(net.nft(&["add", "table", "inet", "another"]).code, 0);
        let (fsyncs, _) = fsyncs_and_requests(&net, &["add", "60003", "172.17.0.3:80"]);
        assert_eq!(fsyncs, 1, "{count}");
    }
}

#[test]
fn list_reads_every_element_once() {
    if !privileged() {
        return;
    }
    let of = |count| {
        let net = Net::new();
        net.ok(&["apply", &file(&net.state, &many(count)).to_string_lossy()]);
        let [read, kernel] = said(&net, ["read", "kernel"], &["list", "--json"]);
        assert_eq!(kernel, Said::default());
        (read, calls(&net, &["list", "--json"]))
    };
    let ((one, few), (two, twice)) = (of(5_000), of(10_000));
    assert_eq!(one.messages_sent, two.messages_sent);
    let of_elements = two.bytes_received - one.bytes_received;
    // An element in a netlink dump has at most 120 bytes.
    assert!(of_elements < 5_000 * 120 && one.bytes_received < 5_000 * 120 + 8_000, "{one:?} {two:?}");
    assert!(within(twice, 200, few), "{few} {twice}");
}
