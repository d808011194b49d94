use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use portfwd::iptables::command::Variant;

use crate::durable::{EVERYTHING, differs, words};
use crate::support::{BOTH, Net, PORTFWD, Said, feed, file, ours, privileged, root};

/// A command that something happens to: one that goes wrong at one of its system calls.
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

    /// What is between our program's name and its command.
    fn options(&self) -> Vec<String> {
        let state = self.net.state.path().to_string_lossy().into_owned();
        let backend = if self.variant.is_some() { "iptables" } else { "nft" };
        vec!["--state-dir".into(), state, "--backend".into(), backend.into()]
    }

    fn portfwd(&self, arguments: &[&str]) -> Said {
        self.start(PORTFWD, &[], arguments)
    }

    /// Runs our program, or it through another one.
    fn start(&self, program: &str, before: &[&str], arguments: &[&str]) -> Said {
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

    /// Runs the command, followed by strace.
    fn strace(&self, options: &[&str]) -> Said {
        let before = [&["-qq"][..], options, &[PORTFWD]].concat();
        self.start("strace", &before, self.command)
    }

    /// What the kernel holds in each of its tables, whatever else is there, and its switches.
    fn held(&self) -> Vec<Vec<String>> {
        let switches = ["ip_forward", "conf/docker0/route_localnet"].map(|name| {
            self.net.in_host(|| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"))).expect("readable")
        });
        let mut tables = match self.variant {
            None => vec![words(&self.net)],
            Some(variant) => {
                let saved = self.net.saved(variant);
                let tables = saved.split_inclusive("COMMIT\n").map(ours);
                // A table that nobody has asked for yet is as good as an empty one.
                let tables = tables.filter(|table| table.len() > 1);
                tables.map(|table| table.into_iter().map(str::to_owned).collect()).collect()
            }
        };
        tables.push(switches.into());
        tables
    }

    /// As after a boot: no rules, and nothing is forwarded.
    fn forget(&self) {
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

    /// Makes what is there before the command, and gives it.
    fn begin(&self) -> Vec<Vec<String>> {
        self.ok(&["flush"]);
        self.prepare.iter().for_each(|arguments| drop(self.ok(arguments)));
        if self.command == ["restore"] {
            self.forget();
        }
        self.held()
    }

    /// The same again, where `now` is there and the state says so too.
    fn begin_again(&self, now: &[Vec<String>], old: &[Vec<String>]) {
        if self.command == ["restore"] {
            self.forget();
        } else if now != old {
            assert_eq!(self.begin(), old, "{:?} {:?}", self.variant, self.command);
        }
    }

    /// The system calls of the command by their names, and how often one of its threads and processes makes them.
    fn calls(&self) -> BTreeMap<String, u32> {
        self.log().into_iter().fold(BTreeMap::new(), |mut most, (_, name, number, _)| {
            let before = most.entry(name).or_insert(0);
            *before = number.max(*before);
            most
        })
    }

    /// The system calls of the command: the thread, the name, the how many-th of that thread it is, and its arguments.
    fn log(&self) -> Vec<(String, String, u32, String)> {
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

/// The step from one point to the next, which a variable makes smaller: all of them take some minutes.
fn every(variable: &str, usual: usize) -> usize {
    std::env::var(variable).ok().and_then(|every| every.parse().ok()).unwrap_or(usual)
}

/// What a command makes of the kernel, killed at any of its system calls: the old or the new, and the next one mends. With
/// iptables that is so for each table, and what it starts is killed too.
fn kill_everywhere(variant: Option<Variant>, prepare: &[&[&str]], command: &[&str]) -> usize {
    let trial = Trial::new(variant, prepare, command);
    let old = trial.begin();
    trial.ok(command);
    let new = trial.held();
    assert_ne!(old, new, "{command:?}");
    trial.begin();
    let mut calls = trial.calls();
    // strace kills before a call; what ends the process does it anyway.
    calls.retain(|name, _| !name.starts_with("exit"));
    let points = calls.iter().flat_map(|(name, count)| (1..=*count).map(move |when| (name, when)));
    let mut kills = 0;
    let mut now = new.clone();
    for (name, when) in points.step_by(every("KILLS_EVERY", if variant.is_some() { 67 } else { 11 })) {
        let place = format!("{variant:?} {command:?} killed at {name} {when}");
        trial.begin_again(&now, &old);
        let said = trial.strace(&["-f", "-o", "/dev/null", "-e", &format!("inject={name}:signal=KILL:when={when}")]);
        now = trial.held();
        // Threads count for themselves, so some are not met.
        if said.code == 0 {
            assert_eq!(now, new, "{place}");
            continue;
        }
        kills += 1;
        let known = |table: &Vec<String>| table.is_empty() || old.contains(table) || new.contains(table);
        assert!(now.iter().all(known), "{place}: {now:?}");
        trial.ok(&["restore"]);
        now = trial.held();
        let list = trial.ok(&["list"]);
        assert!(!differs(&list), "{place}: {list:?}");
        assert!(now == new || now == old && command != ["restore"], "{place}: {now:?}");
    }
    kills
}

#[test]
fn killed_at_any_system_call_the_old_or_the_new_is_there_and_the_next_command_mends() {
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
    // With so many forwards it is seen alone.
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
fn what_fails_changes_nothing_and_says_so_by_its_exit_code() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let state = net.state.path().to_string_lossy().into_owned();
    net.ok(&["apply", &file(&net.state, EVERYTHING).to_string_lossy()]);
    let before = words(&net);
    let mut failed = BTreeMap::new();
    for (calls, errors, code) in [
        (&["sendto", "recvfrom"][..], &["EPERM"][..], 5),
        (&["sendto", "recvfrom"], &["ENOBUFS", "ENOMEM"], 1),
        (&["recvfrom"], &["EINTR"], 0),
        (&["pwrite64", "fdatasync", "fsync", "ftruncate"], &["ENOSPC", "EIO", "EROFS"], 1),
    ] {
        for (call, error) in calls.iter().flat_map(|call| errors.iter().map(move |error| (*call, *error))) {
            for when in 1..=12 {
                let inject = format!("inject={call}:error={error}:when={when}");
                let ours = ["-f", "-qq", "-o", "/dev/null", "-e", &inject, PORTFWD, "--state-dir", &state];
                let run = || Command::new("strace").args(ours).args(["add", "9999", "172.17.0.4:80"]).output();
                let said: Said = net.in_host(run).expect("strace is installed").into();
                let place = format!("{call} {error} {when}: {said:?}");
                assert!(!said.stderr.contains("panicked"), "{place}");
                if said.code == 0 {
                    // Not met, tried again, or only connections could not be looked at; it is done whole then.
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

/// Errors, and the system calls that a kernel gives them to.
///
/// Left out are `getsockopt`, because a kernel has `SO_NETNS_COOKIE` or has not; `poll`, by which Rust's library finds out
/// before us whether there are a stdin and a stdout; and `close`, which nobody can do anything about.
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

/// Where a command can fail: at which system call, with which error, the how many-th.
fn faults(trial: &Trial<'_>) -> Vec<(String, &'static str, u32)> {
    let log = trial.log();
    let first = log.first().map(|(thread, ..)| thread.clone());
    let mut numbers: BTreeMap<(&str, u32), bool> = BTreeMap::new();
    for (thread, name, number, arguments) in &log {
        // The threads of a runtime wake each other by an eventfd, and what iptables prints comes by a pipe: neither can fail.
        let possible = !arguments.contains("[eventfd]") && !arguments.contains("<pipe:");
        // What iptables-restore and the like do is their own business.
        let business = match (trial.variant, &**name) {
            // Whether the kernel has nf_tables, and which namespace this is.
            (_, "socket" | "bind" | "getsockname") if *number == 1 => false,
            (None, _) => true,
            // They are as many as iptables prints pieces.
            (Some(_), "read") => false,
            (Some(_), _) => Some(thread) == first.as_ref(),
        };
        if business {
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

/// What a command makes of kernel and state where one of its system calls fails: both are the old or both the new, its exit
/// code says which, and the next command works as if nothing had been.
fn fail_everywhere(
    variant: Option<Variant>,
    prepare: &[&[&str]],
    command: &[&str],
) -> BTreeMap<(&'static str, i32), usize> {
    let trial = Trial::new(variant, prepare, command);
    let old = trial.begin();
    trial.ok(command);
    let new = trial.held();
    assert_ne!(old, new, "{command:?}");
    trial.begin();
    let (mut ends, mut wrong, mut now) = (BTreeMap::new(), Vec::new(), new.clone());
    let usual = if variant.is_some() { 97 } else { 41 };
    for (name, error, when) in faults(&trial).into_iter().step_by(every("FAULTS_EVERY", usual)) {
        trial.begin_again(&now, &old);
        let inject = format!("inject={name}:error={error}:when={when}");
        let follow: &[&str] = if variant.is_some() { &[] } else { &["-f"] };
        let said = trial.strace(&[follow, &["-o", "/dev/null", "-e", &inject]].concat());
        now = trial.held();
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
            // A switch that could not be set or given back; the next command sees to that.
            trial.ok(&["restore"]);
            now = trial.held();
        }
        let codes: &[i32] = match error {
            "EPERM" => &[0, 5],
            // Of the state's directory it is a failure, of a switch a privilege that is missing.
            "EROFS" => &[0, 1, 5],
            // SQLite takes a lock that it could not get for one that another process holds.
            "EINTR" => &[0, 1, 75],
            _ => &[0, 1],
        };
        // 2 is for a rule set that cannot be read, 127 the loader's, where it is no program of ours yet that fails.
        let expected = codes.contains(&said.code)
            || said.code == 1 && said.stderr.contains("the rules were committed")
            // Why is lost on the way.
            || said.code == 1 && ["netlink request failed", "could not be heard"].iter().any(|why| said.stderr.contains(why))
            // A program that cannot be started is as good as none.
            || said.code == 5 && said.stderr.contains("a rule needs IPv6, but cannot run")
            || said.code == 2 && said.stderr.contains("cannot read `")
            || said.code == 127 && said.stdout.is_empty();
        if !expected || said.stderr.contains("panicked") {
            faults.push("this end is not promised".to_owned());
        }
        if is(&now) != promised {
            faults.push(format!("the kernel holds {}", is(&now)));
        }
        // What the state says the kernel is made to hold.
        trial.forget();
        let mended = trial.portfwd(&["restore"]);
        now = trial.held();
        let wanted = if command == ["restore"] { "the new" } else { promised };
        // Threads count for themselves, so two may fail.
        let undecided = said.stderr.contains("nor put back") && is(&now) == "the new";
        if mended.code != 0 || is(&now) != wanted && !undecided {
            faults.push(format!("the state holds {}: {mended:?}", is(&now)));
        }
        if !faults.is_empty() {
            wrong.push(format!(
                "{variant:?} {}: {error} of {name} {when}: {}: {said:?}",
                command[0],
                faults.join(", ")
            ));
            trial.begin();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    ends
}

#[test]
fn where_any_system_call_fails_kernel_and_state_are_both_the_old_or_both_the_new() {
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
fn what_was_done_is_done_where_it_cannot_be_printed() {
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
        // And what is said aside is not even missed.
        let run = || Command::new(PORTFWD).args(["--state-dir", &state]).args(command).stderr(full()).output();
        assert!(net.in_host(run).expect("starts").status.success(), "{command:?}");
        assert!(!differs(&net.ok(&["list"])), "{command:?}");
    }
    assert_eq!(net.ok(&["list"]).stdout.matches("172.17.0.3:80").count(), 2);
    let list = || Command::new(PORTFWD).args(["--state-dir", &state, "list"]).stdout(full()).output();
    assert_eq!(net.in_host(list).expect("starts").status.code(), Some(1));
}

#[test]
fn a_standard_file_that_is_closed_and_a_reader_that_is_gone_stop_nothing() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let state = net.state.path().to_string_lossy().into_owned();
    // What is printed goes into no file of the state that was opened in the place of a standard one.
    for (port, closed) in [("8080", "<&- >&- 2>&-"), ("8081", "<&-"), ("8082", ">&-"), ("8083", "2>&-")] {
        let script = format!("exec \"$@\" {closed}");
        let arguments = ["-c", &script, "sh", PORTFWD, "-v", "--state-dir", &state, "add", port, "172.17.0.3:80"];
        let run = || Command::new("sh").args(arguments).output();
        let said: Said = net.in_host(run).expect("starts").into();
        assert_eq!(said.code, 0, "{closed}: {said:?}");
    }
    // Nor into one of a program that is started in our place.
    for (number, closed) in [("0", "<&-"), ("2", "2>&-")] {
        let lab = root().join("rules/lab/red-blue.toml");
        let script = format!("exec \"$@\" {closed}");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", PORTFWD, "lab", "exec", "--file"]).arg(&lab);
        command.args(["red", "--", "readlink", &format!("/proc/self/fd/{number}")]);
        let said: Said = command.output().expect("starts").into();
        assert!(said.code == 0 && said.stdout == "/dev/null\n", "{closed}: {said:?}");
    }
    // Nobody reads: no signal ends what is not done.
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
fn no_answer_about_the_way_to_a_target_is_not_taken_for_a_no() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let state = net.state.path().to_string_lossy().into_owned();
    net.ok(&["add", "8080", "172.17.0.3:80", "--loopback"]);
    let mut failed = 0;
    for when in 1..=8 {
        let inject = format!("inject=recvfrom:error=EIO:when={when}");
        let strace = ["-f", "-qq", "-o", "/dev/null", "-e", &inject, PORTFWD, "--state-dir", &state];
        let run = || Command::new("strace").args(strace).args(["add", "8081", "172.17.0.3:81"]).output();
        let said: Said = net.in_host(run).expect("strace is installed").into();
        let open = net.in_host(|| fs::read_to_string("/proc/sys/net/ipv4/conf/docker0/route_localnet"));
        assert_eq!(open.expect("readable"), "1\n", "{when}: {said:?}");
        failed += usize::from(said.stderr.contains("cannot look up the route"));
    }
    assert!(failed > 0);
}
