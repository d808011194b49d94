use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use portfwd::iptables::command::Variant;

use crate::durable::{EVERYTHING, differs, words};
use crate::support::{BOTH, Net, PORTFWD, Said, feed, file, ours, privileged, root};

/// A command under test. strace kills the command, or lets it fail, at one of its system calls.
struct Trial<'a> {
    net: Net,
    variant: Option<Variant>,
    prepare: &'a [&'a [&'a str]],
    command: &'a [&'a str],
}

impl<'a> Trial<'a> {
    fn new(variant: Option<Variant>, prepare: &'a [&'a [&'a str]], command: &'a [&'a str]) -> Self {
        Self { net: Net::new(), variant, prepare, command }
    }

    /// Returns portfwd's global options: the state directory and the backend.
    fn options(&self) -> Vec<String> {
        let state = self.net.state.path().to_string_lossy().into_owned();
        let backend = if self.variant.is_some() { "iptables" } else { "nft" };
        vec!["--state-dir".into(), state, "--backend".into(), backend.into()]
    }

    fn portfwd(&self, arguments: &[&str]) -> Said {
        self.run(PORTFWD, &[], arguments)
    }

    /// Runs `program` with `before`, portfwd's options and `arguments`. `program` is portfwd, or strace that starts
    /// portfwd.
    fn run(&self, program: &str, before: &[&str], arguments: &[&str]) -> Said {
        let options = self.options();
        let options = options.iter().map(String::as_str);
        let arguments: Vec<&str> = before.iter().copied().chain(options).chain(arguments.iter().copied()).collect();
        match self.variant {
            Some(variant) => self.net.with(variant, "", program, &arguments),
            None => {
                let mut command = Command::new(program);
                command.args(arguments).env_remove("SSH_CONNECTION");
                self.net.in_host(|| command.output().expect("strace is installed").into())
            }
        }
    }

    fn ok(&self, arguments: &[&str]) -> Said {
        let said = self.portfwd(arguments);
        assert_eq!(said.code, 0, "{:?} {arguments:?}: {said:?}", self.variant);
        said
    }

    /// Runs the command under test with strace(1).
    fn strace(&self, options: &[&str]) -> Said {
        let before = [&["-qq"][..], options, &[PORTFWD]].concat();
        self.run("strace", &before, self.command)
    }

    /// Returns portfwd's live rules, one entry for each table. The last entry contains the sysctls.
    fn live(&self) -> Vec<Vec<String>> {
        let switches = ["ip_forward", "conf/docker0/route_localnet"].map(|name| {
            self.net.in_host(|| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"))).expect("readable")
        });
        let mut tables = match self.variant {
            None => vec![words(&self.net)],
            Some(variant) => {
                let saved = self.net.saved(variant);
                let tables = saved.split_inclusive("COMMIT\n").map(ours);
                // An empty table counts as a table that was never created.
                let tables = tables.filter(|table| table.len() > 1);
                tables.map(|table| table.into_iter().map(str::to_owned).collect()).collect()
            }
        };
        tables.push(switches.into());
        tables
    }

    /// Clears rules and sysctls in the kernel, as a reboot does.
    fn clear_kernel(&self) {
        self.net.nft(&["flush", "ruleset"]);
        if self.variant == Some(Variant::Legacy) {
            for table in ["nat", "mangle"] {
                let flush = format!("*{table}\nCOMMIT\n");
                self.net.in_host(|| feed("iptables-legacy-restore", &[], &flush));
                self.net.in_host(|| feed("ip6tables-legacy-restore", &[], &flush));
            }
        }
        for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/docker0/route_localnet"] {
            self.net.in_host(|| fs::write(format!("/proc/sys/net/{name}"), "0")).expect("written");
        }
    }

    /// Prepares the state that exists before the command. Returns the live rules.
    fn reset(&self) -> Vec<Vec<String>> {
        self.ok(&["flush"]);
        self.prepare.iter().for_each(|arguments| drop(self.ok(arguments)));
        if self.command == ["restore"] {
            self.clear_kernel();
        }
        self.live()
    }

    /// Prepares the state that exists before the command, unless the rules `now` equal the rules `old`.
    fn reset_from(&self, now: &[Vec<String>], old: &[Vec<String>]) {
        if self.command == ["restore"] {
            self.clear_kernel();
        } else if now != old {
            assert_eq!(self.reset(), old, "{:?} {:?}", self.variant, self.command);
        }
    }

    /// Counts the system calls of the command by name. Each count is the highest of any thread or process.
    fn call_counts(&self) -> BTreeMap<String, u32> {
        self.trace().into_iter().fold(BTreeMap::new(), |mut highest, (_, name, number, _)| {
            let before = highest.entry(name).or_insert(0);
            *before = number.max(*before);
            highest
        })
    }

    /// Traces the command. Returns the thread, name, number and arguments of each call. Numbers count per thread and
    /// name.
    fn trace(&self) -> Vec<(String, String, u32, String)> {
        let log = self.net.state.path().join("calls");
        let said = self.strace(&["-f", "-y", "-o", &log.to_string_lossy()]);
        assert_eq!(said.code, 0, "{said:?}");
        let mut counts: BTreeMap<(String, String), u32> = BTreeMap::new();
        let log = fs::read_to_string(&log).expect("readable");
        let calls = log.lines().filter_map(|line| {
            let (thread, rest) = line.split_once(' ')?;
            let (name, arguments) = rest.trim_start().split_once('(')?;
            let count = counts.entry((thread.to_owned(), name.to_owned())).or_default();
            *count += 1;
            Some((thread.to_owned(), name.to_owned(), *count, arguments.to_owned()))
        });
        calls.collect()
    }
}

/// Reads the distance between two tested points from an environment variable. A test of all points takes some minutes.
fn step_from_env(variable: &str, usual: usize) -> usize {
    std::env::var(variable).ok().and_then(|step| step.parse().ok()).unwrap_or(usual)
}

/// Kills a command at its system calls. Returns the number of kills.
///
/// After a kill, the rules must be the old or the new ones, and `restore` must repair them. With iptables, each table
/// has its old or its new rules. strace also kills the programs that portfwd starts.
fn kill_everywhere(variant: Option<Variant>, prepare: &[&[&str]], command: &[&str]) -> usize {
    let trial = Trial::new(variant, prepare, command);
    let old = trial.reset();
    trial.ok(command);
    let new = trial.live();
    assert_ne!(old, new, "{command:?}");
    trial.reset();
    let mut calls = trial.call_counts();
    // strace kills a process before the call. An `exit` call ends the process anyway, so the test skips these calls.
    calls.retain(|name, _| !name.starts_with("exit"));
    let points = calls.iter().flat_map(|(name, count)| (1..=*count).map(move |when| (name, when)));
    let mut kills = 0;
    let mut now = new.clone();
    for (name, when) in points.step_by(step_from_env("KILLS_EVERY", if variant.is_some() { 67 } else { 11 })) {
        let place = format!("{variant:?} {command:?} killed at {name} {when}");
        trial.reset_from(&now, &old);
        let said = trial.strace(&["-f", "-o", "/dev/null", "-e", &format!("inject={name}:signal=KILL:when={when}")]);
        now = trial.live();
        // strace counts calls per thread, so a process may end without the kill.
        if said.code == 0 {
            assert_eq!(now, new, "{place}");
            continue;
        }
        kills += 1;
        let known = |table: &Vec<String>| table.is_empty() || old.contains(table) || new.contains(table);
        assert!(now.iter().all(known), "{place}: {now:?}");
        trial.ok(&["restore"]);
        now = trial.live();
        let list = trial.ok(&["list"]);
        assert!(!differs(&list), "{place}: {list:?}");
        assert!(now == new || now == old && command != ["restore"], "{place}: {now:?}");
    }
    kills
}

#[test]
fn a_kill_at_any_system_call_leaves_old_or_new_rules() {
    if !privileged() {
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    let set = file(&directory, EVERYTHING).to_string_lossy().into_owned();
    let some: [&[&str]; 2] = [&["add", "7000", "172.17.0.3:80"], &["add", "7001/udp", "172.17.0.3:80"]];
    let (add, apply) = (["add", "7002", "172.17.0.4:80"], ["apply", set.as_str()]);
    let both = || BOTH.into_iter().flat_map(|variant| [(Some(variant), &add[..]), (Some(variant), &["restore"])]);
    let nft: [&[&str]; 4] = [&add, &["rm", "7000"], &apply, &["restore"]];
    let many: String =
        (1..=1_100).map(|port| format!("[[forward]]\nlisten = \"{port}\"\nto = \"172.17.0.3\"\n")).collect();
    let many = file(&directory, &many).to_string_lossy().into_owned();
    // With 1,100 forwards, `add` loads only a part of the state.
    let many: [&[&str]; 1] = [&["apply", &many]];
    let small = directory.path().join("small.toml");
    fs::write(&small, "[[forward]]\nlisten = \"7100-7102\"\nto = \"172.17.0.4\"\n").expect("written");
    let small = ["apply", &*small.to_string_lossy()];
    let among_few = nft.into_iter().map(|command| (None, command)).chain(both());
    let all: Vec<_> = among_few.map(|(variant, command)| (variant, &some[..], command)).collect();
    let all: Vec<_> = all.into_iter().chain([(None, &many[..], &add[..]), (None, &many[..], &small[..])]).collect();
    let counts: Vec<usize> = std::thread::scope(|scope| {
        let running: Vec<_> = (all.iter())
            .map(|(variant, prepare, command)| scope.spawn(|| kill_everywhere(*variant, prepare, command)))
            .collect();
        running.into_iter().map(|running| running.join().expect("no panic")).collect()
    });
    for ((variant, prepare, command), count) in all.iter().zip(&counts) {
        let iptables = variant.map(|variant| format!("iptables-{} ", variant.name())).unwrap_or_default();
        let among = if *prepare == many { " among many" } else { "" };
        eprintln!("{iptables}{}{among}: killed at {count} system calls", command[0]);
    }
    assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
}

#[test]
fn a_failed_command_changes_nothing_and_exits_with_the_right_code() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let state = net.state.path().to_string_lossy().into_owned();
    net.ok(&["apply", &file(&net.state, EVERYTHING).to_string_lossy()]);
    let before = words(&net);
    let mut failed = BTreeMap::new();
    for (calls, errors, code) in [
        (&["sendto", "recvmsg"][..], &["EPERM"][..], 5),
        (&["sendto", "recvmsg"], &["ENOBUFS", "ENOMEM"], 1),
        (&["recvmsg"], &["EINTR"], 0),
        (&["pwrite64", "fdatasync", "fsync", "ftruncate"], &["ENOSPC", "EIO", "EROFS"], 1),
    ] {
        for (call, error) in calls.iter().flat_map(|call| errors.iter().map(move |error| (*call, *error))) {
            for when in 1..=12 {
                let inject = format!("inject={call}:error={error}:when={when}");
                let strace_args = ["-f", "-qq", "-o", "/dev/null", "-e", &inject, PORTFWD, "--state-dir", &state];
                let run = || Command::new("strace").args(strace_args).args(["add", "9999", "172.17.0.4:80"]).output();
                let said: Said = net.in_host(run).expect("strace is installed").into();
                let place = format!("{call} {error} {when}: {said:?}");
                assert!(!said.stderr.contains("panicked"), "{place}");
                if said.code == 0 {
                    // `add` is complete if strace did not reach the call, portfwd repeated the call, or only conntrack
                    // failed.
                    assert!(!differs(&net.ok(&["list"])), "{place}");
                    net.ok(&["rm", "9999"]);
                } else {
                    *failed.entry((call, error)).or_insert(0) += 1;
                    assert_eq!(said.code, code, "{place}");
                    assert_eq!(words(&net), before, "{place}");
                }
                let list = net.ok(&["list"]);
                assert!(!differs(&list), "{place}: {list:?}");
                assert_eq!(words(&net), before, "{place}");
            }
        }
    }
    assert!(failed.len() >= 9, "{failed:?}");
}

/// Groups of system calls, and the errors that the kernel can return for each group.
///
/// `getsockopt` is left out: a kernel either has `SO_NETNS_COOKIE` or not. `poll` is left out: Rust's runtime calls it
/// before main to check the standard files. `close` is left out: no caller can handle its errors.
const FAULTS: [(&[&str], &[&str]); 3] = [
    (
        &["socket", "bind", "connect", "getsockname", "setsockopt", "sendto", "sendmsg", "recvfrom", "recvmsg"],
        &["EPERM", "ENOBUFS", "ENOMEM", "EINTR"],
    ),
    (CHANGING, &["ENOSPC", "EROFS", "EIO", "EINTR"]),
    (&["read", "pread64", "statx", "newfstatat", "lseek", "fcntl", "getdents64", "readlink"], &["EIO", "EINTR"]),
];

const CHANGING: &[&str] =
    &["openat", "mkdir", "chmod", "fchmod", "flock", "pwrite64", "write", "fdatasync", "fsync", "ftruncate"];

/// Returns the points at which a command can fail: the name of a system call, an error and the number of the call.
fn fault_points(trial: &Trial<'_>) -> Vec<(String, &'static str, u32)> {
    let log = trial.trace();
    let first = log.first().map(|(thread, ..)| thread.clone());
    let mut numbers: BTreeMap<(&str, u32), bool> = BTreeMap::new();
    for (thread, name, number, arguments) in &log {
        // Runtime threads use an eventfd, and iptables prints into a pipe. Calls on these two files cannot fail.
        let possible = !arguments.contains("[eventfd]") && !arguments.contains("<pipe:");
        // The test lets only portfwd fail, and not iptables-restore or other programs that portfwd starts.
        let is_tested = match (trial.variant, &**name) {
            // The first socket shows whether the kernel has nf_tables, and in which namespace portfwd runs.
            (_, "socket" | "bind" | "getsockname") if *number == 1 => false,
            (None, _) => true,
            // The number of reads depends on how iptables splits its output.
            (Some(_), "read") => false,
            (Some(_), _) => Some(thread) == first.as_ref(),
        };
        if is_tested {
            *numbers.entry((name, *number)).or_insert(true) &= possible;
        }
    }
    let possible = numbers.into_iter().filter(|(_, possible)| *possible).map(|(point, _)| point);
    let points = possible.flat_map(|(name, number)| {
        let groups = FAULTS.iter().filter(move |(calls, _)| calls.contains(&name));
        groups.flat_map(|(_, errors)| *errors).map(move |error| (name.to_owned(), *error, number))
    });
    points.collect()
}

/// Lets a command fail at its system calls. Returns how often each error caused each exit code.
///
/// Kernel and state must both be old or both be new. The exit code must agree, and the next `restore` must succeed.
fn fail_everywhere(
    variant: Option<Variant>,
    prepare: &[&[&str]],
    command: &[&str],
) -> BTreeMap<(&'static str, i32), usize> {
    let trial = Trial::new(variant, prepare, command);
    let old = trial.reset();
    trial.ok(command);
    let new = trial.live();
    assert_ne!(old, new, "{command:?}");
    trial.reset();
    let (mut ends, mut wrong, mut now) = (BTreeMap::new(), Vec::new(), new.clone());
    let usual = if variant.is_some() { 97 } else { 41 };
    for (name, error, when) in fault_points(&trial).into_iter().step_by(step_from_env("FAULTS_EVERY", usual)) {
        trial.reset_from(&now, &old);
        let inject = format!("inject={name}:error={error}:when={when}");
        let follow: &[&str] = if variant.is_some() { &[] } else { &["-f"] };
        let said = trial.strace(&[follow, &["-o", "/dev/null", "-e", &inject]].concat());
        now = trial.live();
        *ends.entry((error, said.code)).or_insert(0) += 1;
        let is = |tables: &[Vec<String>]| match tables {
            tables if tables == old => "the old",
            tables if tables == new => "the new",
            _ => "neither the old nor the new",
        };
        let committed = said.code == 0 || said.stderr.contains("the rules were committed");
        let promised = if committed { "the new" } else { "the old" };
        let mut faults = Vec::new();
        let without_switches = |tables: &[Vec<String>]| tables.split_last().map(|(_, rules)| rules.to_vec());
        if committed && now != new && without_switches(&now) == without_switches(&new) {
            // If the command could not set or restore a sysctl, the next command does so.
            trial.ok(&["restore"]);
            now = trial.live();
        }
        let codes: &[i32] = match error {
            "EPERM" => &[0, 5],
            // EROFS of the state directory is a failure (exit code 1). EROFS of a sysctl is a missing privilege (exit
            // code 5).
            "EROFS" => &[0, 1, 5],
            // If a lock call fails, SQLite reports that another process holds the lock.
            "EINTR" => &[0, 1, 75],
            _ => &[0, 1],
        };
        // Exit code 2: portfwd cannot read the rule set. Exit code 127: the dynamic loader fails before portfwd starts.
        let expected = codes.contains(&said.code)
            || said.code == 1 && said.stderr.contains("the rules were committed")
            // These messages do not contain the errno.
            || said.code == 1 && ["netlink request failed", "did not report whether"].iter().any(|why| said.stderr.contains(why))
            // portfwd treats a program that cannot start as missing.
            || said.code == 5 && said.stderr.contains("a rule needs IPv6, but cannot run")
            || said.code == 2 && said.stderr.contains("cannot read `")
            || said.code == 127 && said.stdout.is_empty();
        if !expected || said.stderr.contains("panicked") {
            faults.push("the exit code or the message is not documented".to_owned());
        }
        if is(&now) != promised {
            faults.push(format!("the kernel holds {}", is(&now)));
        }
        // After the kernel is cleared, `restore` shows which rules the state contains.
        trial.clear_kernel();
        let restored = trial.portfwd(&["restore"]);
        now = trial.live();
        let wanted = if command == ["restore"] { "the new" } else { promised };
        // strace counts calls per thread, so a call can fail in two threads.
        let undecided = said.stderr.contains("could not be written again") && is(&now) == "the new";
        if restored.code != 0 || is(&now) != wanted && !undecided {
            faults.push(format!("the state holds {}: {restored:?}", is(&now)));
        }
        if !faults.is_empty() {
            wrong.push(format!(
                "{variant:?} {}: {error} of {name} {when}: {}: {said:?}",
                command[0],
                faults.join(", ")
            ));
            trial.reset();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    ends
}

#[test]
fn if_any_system_call_fails_kernel_and_state_are_both_old_or_both_new() {
    if !privileged() {
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    let set = file(&directory, EVERYTHING).to_string_lossy().into_owned();
    let some: [&[&str]; 2] = [&["add", "7000", "172.17.0.3:80", "--loopback"], &["add", "7001/udp", "172.17.0.3:80"]];
    let (some, none): (&[&[&str]], &[&[&str]]) = (&some, &[]);
    let apply: &[&str] = &["apply", &set];
    let all = [
        (None, some, &["add", "7002", "172.17.0.4:80"][..]),
        (None, some, &["rm", "7000"]),
        (None, none, apply),
        (None, some, &["restore"]),
        (Some(Variant::Nft), some, &["restore"]),
        (Some(Variant::Legacy), some, &["restore"]),
        (Some(Variant::Legacy), none, apply),
    ];
    let ends: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = all
            .iter()
            .map(|(variant, prepare, command)| scope.spawn(|| fail_everywhere(*variant, prepare, command)))
            .collect();
        running.into_iter().map(|running| running.join().expect("no panic")).collect()
    });
    for ((variant, _, command), ends) in all.iter().zip(&ends) {
        let iptables = variant.map(|variant| format!("iptables-{} ", variant.name())).unwrap_or_default();
        eprintln!("{iptables}{}: exit codes and how often: {ends:?}", command[0]);
    }
}

#[test]
fn a_full_stdout_does_not_undo_a_change() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let state = net.state.path().to_string_lossy().into_owned();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("there is one");
    for command in [&["add", "8080", "172.17.0.3:80"][..], &["add", "8081", "172.17.0.3:80", "--json"], &["restore"]] {
        let run = |stdout: fs::File| {
            Command::new(PORTFWD).args(["--state-dir", &state]).args(command).stdout(stdout).output().expect("starts")
        };
        let said: Said = net.in_host(|| run(full()).into());
        assert!(said.code == 0 && said.stderr.contains("note: the change is done, but"), "{command:?}: {said:?}");
        // portfwd ignores an error of a write to stderr.
        let run = || Command::new(PORTFWD).args(["--state-dir", &state]).args(command).stderr(full()).output();
        assert!(net.in_host(run).expect("starts").status.success(), "{command:?}");
        assert!(!differs(&net.ok(&["list"])), "{command:?}");
    }
    assert_eq!(net.ok(&["list"]).stdout.matches("172.17.0.3:80").count(), 2);
    let list = || Command::new(PORTFWD).args(["--state-dir", &state, "list"]).stdout(full()).output();
    assert_eq!(net.in_host(list).expect("starts").status.code(), Some(1));
}

#[test]
fn closed_standard_files_and_pipes_stop_no_command() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let state = net.state.path().to_string_lossy().into_owned();
    // A state file must not get the number of a closed standard file. Otherwise portfwd would print into the state
    // file.
    for (port, closed) in [("8080", "<&- >&- 2>&-"), ("8081", "<&-"), ("8082", ">&-"), ("8083", "2>&-")] {
        let script = format!("exec \"$@\" {closed}");
        let arguments = ["-c", &script, "sh", PORTFWD, "-v", "--state-dir", &state, "add", port, "172.17.0.3:80"];
        let run = || Command::new("sh").args(arguments).output();
        let said: Said = net.in_host(run).expect("starts").into();
        assert_eq!(said.code, 0, "{closed}: {said:?}");
    }
    // If a standard file is closed, programs that portfwd executes get /dev/null in its place.
    for (number, closed) in [("0", "<&-"), ("2", "2>&-")] {
        let lab = root().join("rules/lab/red-blue.toml");
        let script = format!("exec \"$@\" {closed}");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", PORTFWD, "lab", "exec", "--file"]).arg(&lab);
        command.args(["red", "--", "readlink", &format!("/proc/self/fd/{number}")]);
        let said: Said = command.output().expect("starts").into();
        assert!(said.code == 0 && said.stdout == "/dev/null\n", "{closed}: {said:?}");
    }
    // Stdout is a pipe without a reader. SIGPIPE must not end the command.
    let run = || {
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        Command::new(PORTFWD).args(["--state-dir", &state, "add", "8084", "172.17.0.3:80"]).stdout(writer).output()
    };
    let said: Said = net.in_host(run).expect("starts").into();
    assert!(said.code == 0 && !said.stderr.contains("panicked"), "{said:?}");
    let list = net.ok(&["list"]);
    assert_eq!(list.stdout.matches("live").count(), 5, "{list:?}");
}

#[test]
fn a_failed_route_lookup_keeps_route_localnet_on() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let state = net.state.path().to_string_lossy().into_owned();
    net.ok(&["add", "8080", "172.17.0.3:80", "--loopback"]);
    let mut failed = 0;
    for when in 1..=40 {
        let inject = format!("inject=recvmsg:error=EIO:when={when}");
        let strace = ["-f", "-qq", "-o", "/dev/null", "-e", &inject, PORTFWD, "--state-dir", &state];
        let run = || Command::new("strace").args(strace).args(["add", "8081", "172.17.0.3:81"]).output();
        let said: Said = net.in_host(run).expect("strace is installed").into();
        let route_localnet = net.in_host(|| fs::read_to_string("/proc/sys/net/ipv4/conf/docker0/route_localnet"));
        assert_eq!(route_localnet.expect("readable"), "1\n", "{when}: {said:?}");
        failed += usize::from(said.stderr.contains("cannot look up the route"));
    }
    assert!(failed > 0);
}
