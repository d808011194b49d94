use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::UdpSocket;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use portfwd::iptables::command::Variant;

use crate::durable::words;
use crate::support::{Named, Net, PORTFWD, Said, file, ours, privileged, root};

/// The question at a terminal, and what becomes of it without one.
mod terminal;

/// What is on trial everywhere here, and what was before.
const NEW: &str = "[[forward]]\nlisten = \"8080\"\nto = \"172.17.0.3:80\"\n";
/// The last words of the question.
const ASKED: &str = "` from the new connection.";
/// More than any machine takes; where the time may run out it is a short one.
const LONG: &str = "600";

/// `apply --confirm` without a terminal, from when it asks.
struct Asking {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Asking {
    fn start(net: &Net, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::asked(net.in_host(move || command.spawn().expect("the program starts")))
    }

    fn asked(mut child: Child) -> Self {
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (mut line, mut all) = (String::new(), String::new());
        while !line.contains(ASKED) {
            line.clear();
            let length = stderr.read_line(&mut line).expect("text");
            assert!(length > 0, "it asks: {all}");
            all.push_str(&line);
        }
        Self { child, stderr }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().expect("a number"))
    }

    fn end(mut self) -> Said {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        // That this ends shows that the watcher holds nothing of ours.
        self.stderr.read_to_string(&mut stderr).expect("text");
        self.child.stdout.take().expect("piped").read_to_string(&mut stdout).expect("text");
        let code = self.child.wait().expect("ends").code().unwrap_or(-1);
        Said { code, stdout, stderr }
    }

    fn killed(mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("killed");
        self.child.wait().expect("ends");
    }
}

/// The program in the host's namespace, to be run there.
fn command(net: &Net, arguments: &[&str]) -> Command {
    let mut command = Command::new(PORTFWD);
    command.arg("--state-dir").arg(net.state.path()).args(arguments).current_dir(root());
    command.env_remove("SSH_CONNECTION");
    command
}

/// Applies a rule set, to be confirmed in so many seconds.
fn apply(net: &Net, seconds: &str, text: &str) -> Asking {
    let path = file(&net.state, text);
    Asking::start(net, command(net, &["apply", "--confirm", seconds, &path.to_string_lossy()]))
}

/// The processes that would put back what is not confirmed.
fn watchers(net: &Net) -> Vec<Pid> {
    let ours = net.state.path().to_string_lossy().into_owned();
    let all = fs::read_dir("/proc").expect("readable").flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_ours = |number: &i32| {
        let line = fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(&ours) && line.contains("\0--watch\0")
    };
    let found: Vec<i32> = numbers.filter(of_ours).collect();
    // A child that is to become another program has the words of its parent until then.
    let is_child = |number: &i32| {
        let status = fs::read_to_string(format!("/proc/{number}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        parent.is_some_and(|parent: i32| found.contains(&parent))
    };
    found.iter().filter(|number| !is_child(number)).copied().map(Pid::from_raw).collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "after a minute: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn confirmed_by_a_second_command_it_stays() {
    if !privileged() {
        return;
    }
    for variant in [None, Some(Variant::Nft), Some(Variant::Legacy)] {
        let net = Net::new();
        net.serve("172.17.0.3:80", false);
        let run = |arguments: &[&str]| match variant {
            None => net.portfwd(arguments),
            Some(variant) => net.try_chains(variant, arguments),
        };
        let (path, state) = (file(&net.state, NEW), net.state.path().to_string_lossy().into_owned());
        let path = path.to_string_lossy().into_owned();
        let arguments = ["--state-dir", &state, "--backend", "iptables", "apply", "--confirm", LONG, &path];
        let asking = match variant {
            None => Asking::start(&net, command(&net, &arguments[4..])),
            Some(variant) => Asking::start(&net, net.command_with(variant, "", PORTFWD, &arguments)),
        };
        assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2", "{variant:?}");
        assert_eq!(watchers(&net).len(), 1, "{variant:?}");
        let said = run(&["confirm", "--dry-run"]);
        assert!(said.code == 0 && said.stdout.contains(" left to confirm"), "{variant:?} {said:?}");
        let said = run(&["list"]);
        assert!(said.stderr.contains("rolls back") && said.stderr.contains("confirm` keeps it"), "{said:?}");
        let said = run(&["confirm"]);
        assert!(said.code == 0 && said.stdout == "confirmed\n", "{variant:?} {said:?}");
        let said = asking.end();
        assert!(said.code == 0 && said.stderr.contains("confirmed"), "{variant:?} {said:?}");
        eventually("the watcher has nothing to wait for", || watchers(&net).is_empty());
        assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2", "{variant:?}");
        let said = run(&["list"]);
        assert!(said.code == 0 && said.stderr.is_empty(), "{variant:?} {said:?}");
        let said = run(&["confirm"]);
        assert!(said.code == 1 && said.stderr.contains("no pending change"), "{variant:?} {said:?}");
        // What is asked already is nothing to be confirmed.
        let said = run(&["apply", "--confirm", LONG, &path]);
        assert!(said.code == 0 && said.stdout == "unchanged\n" && said.stderr.contains("nothing"), "{said:?}");
        assert!(watchers(&net).is_empty());
    }
}

#[test]
fn not_confirmed_all_is_as_before_and_nothing_else_moves() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for target in ["172.17.0.3:53", "172.17.0.4:53"] {
        net.serve(target, true);
    }
    net.nft(&["add table ip other; add chain ip other c { type filter hook prerouting priority 0; }"]);
    net.nft(&["add rule ip other c udp dport 53 counter"]);
    net.ok(&["add", "9000", "172.17.0.4", "--set", "kept"]);
    let set = net.state.path().join("set.toml");
    let text = |to: &str| format!("[[forward]]\nlisten = \"5000/udp\"\nto = \"{to}:53\"\n");
    fs::write(&set, text("172.17.0.3")).expect("written");
    let set = set.to_string_lossy().into_owned();
    net.ok(&["apply", &set]);
    let talker = net.client.run(|| UdpSocket::bind("0.0.0.0:0").expect("bound")).expect("the client's namespace");
    talker.connect("192.0.2.1:5000").expect("connected");
    talker.set_read_timeout(Some(Duration::from_secs(2))).expect("set");
    let say = || {
        let mut answer = [0; 64];
        talker.send(b"?").expect("sent");
        let length = talker.recv(&mut answer).expect("answered");
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    assert!(say().starts_with("172.17.0.3"));
    let before = words(&net);
    fs::write(&set, text("172.17.0.4") + "[[forward]]\nlisten = \"81\"\nto = \"172.17.0.3\"\nloopback = true\n")
        .expect("written");
    let local = || net.in_host(|| fs::read_to_string("/proc/sys/net/ipv4/conf/docker0/route_localnet"));
    let asking = Asking::start(&net, command(&net, &["apply", "--json", "--confirm", "6", &set]));
    assert!(say().starts_with("172.17.0.4"));
    assert_eq!(local().expect("readable"), "1\n");
    let said = asking.end();
    assert!(said.code == 1 && said.stderr.contains("not confirmed in 6 seconds"), "{said:?}");
    assert!(said.stdout.contains("\"done\":true") && said.stdout.contains("\"confirm_within\":"), "{said:?}");
    assert_eq!(words(&net), before);
    assert!(say().starts_with("172.17.0.3"), "a connection follows the rules again");
    assert_eq!(local().expect("readable"), "0\n");
    let counted = net.nft(&["list", "chain", "ip", "other", "c"]).stdout;
    assert!(counted.contains("udp dport 53 counter packets 3"), "what others have goes on: {counted}");
    let list = net.ok(&["list"]);
    assert!(list.stderr.is_empty() && !list.stdout.contains("missing") && !list.stdout.contains("foreign"), "{list:?}");
    assert_eq!(net.ok(&["restore"]).stdout, "unchanged\n");
    eventually("the watcher is gone", || watchers(&net).is_empty());
}

#[test]
fn killed_at_any_moment_of_its_work_the_rules_before_are_there_in_the_end() {
    if !privileged() {
        return;
    }
    std::thread::scope(|scope| {
        for delay in [2, 10, 20, 30, 40, 60, 80, 120] {
            scope.spawn(move || {
                let net = Net::new();
                net.ok(&["add", "9000", "172.17.0.4"]);
                let before = words(&net);
                let path = file(&net.state, NEW);
                let mut command = command(&net, &["apply", "--confirm", "1", &path.to_string_lossy()]);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                let mut child = net.in_host(move || command.spawn().expect("the program starts"));
                std::thread::sleep(Duration::from_millis(delay));
                child.kill().expect("killed");
                child.wait().expect("ends");
                eventually("all who waited are gone", || watchers(&net).is_empty());
                assert_eq!(words(&net), before, "{delay}");
                let said = net.ok(&["restore"]);
                assert!(said.stdout == "unchanged\n" && said.stderr.is_empty(), "{delay}: {said:?}");
                assert!(!net.ok(&["list"]).stdout.contains("8080"), "{delay}");
            });
        }
    });
}

/// Has a change wait that nobody watches any more, until its time is over.
fn left_alone(net: &Net) {
    for seconds in [2, 6, 30] {
        let asking = apply(net, &seconds.to_string(), NEW);
        watchers(net).iter().for_each(|watcher| kill(*watcher, Signal::SIGTERM).unwrap_or_default());
        eventually("a watcher does not stand in the way of a machine that goes down", || watchers(net).is_empty());
        asking.killed();
        let flags = fs::read_dir(net.state.path().join("netns")).expect("readable").flatten();
        if flags.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|end| end == "unconfirmed")) {
            return std::thread::sleep(Duration::from_millis(seconds * 1000 + 100));
        }
        // The machine is too slow for it: they have done it already.
    }
    panic!("half a minute is not enough");
}

#[test]
fn with_nobody_left_to_do_it_the_next_command_puts_back_first() {
    if !privileged() {
        return;
    }
    let commands: [(&[&str], i32, &str); 4] = [
        (&["restore"], 0, "rolled back the last change, which was not confirmed in time"),
        (&["add", "9001", "172.17.0.4"], 0, "rolled back the last change, which was not confirmed in time"),
        (&["rm", "8080", "--set", "none"], 1, "rolled back the last change, which was not confirmed in time"),
        (&["confirm"], 1, "too late to confirm; portfwd rolled back the change"),
    ];
    std::thread::scope(|scope| {
        for (arguments, code, note) in commands {
            scope.spawn(move || {
                let net = Net::new();
                net.ok(&["add", "9000", "172.17.0.4"]);
                let before = words(&net);
                left_alone(&net);
                let list = net.ok(&["list"]);
                assert!(list.stdout.contains("8080") && list.stderr.contains("not confirmed in time"), "{list:?}");
                let said = net.portfwd(arguments);
                assert!(said.code == code && said.stderr.contains(note), "{arguments:?}: {said:?}");
                net.portfwd(&["rm", "9001"]);
                assert_eq!(words(&net), before, "{arguments:?}");
                let list = net.ok(&["list"]);
                assert!(!list.stdout.contains("8080") && list.stderr.is_empty(), "{list:?}");
            });
        }
    });
}

#[test]
fn while_it_waits_nothing_else_is_changed_and_flush_is_the_way_out() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["add", "9000", "172.17.0.4"]);
    let (asking, during) = (apply(&net, LONG, NEW), words(&net));
    let other = file(&net.state, "[[forward]]\nlisten = \"82\"\nto = \"172.17.0.3\"\n").to_string_lossy().into_owned();
    for arguments in
        [&["add", "9001", "172.17.0.4"][..], &["rm", "9000"], &["apply", &other], &["apply", "--confirm", "5", &other]]
    {
        let said = net.portfwd(arguments);
        assert!(said.code == 75 && said.stderr.contains("waits for its confirmation"), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains("`portfwd confirm` keeps it"), "{said:?}");
        assert_eq!(words(&net), during, "{arguments:?}");
    }
    assert_eq!(watchers(&net).len(), 1);
    for arguments in [&["plan", &other][..], &["list"], &["add", "9001", "172.17.0.4", "--dry-run"], &["restore"]] {
        let said = net.ok(arguments);
        assert!(said.stderr.contains("rolls back the pending change in"), "{arguments:?}: {said:?}");
    }
    let list: serde_json::Value = serde_json::from_str(&net.ok(&["list", "--json"]).stdout).expect("JSON");
    assert!(list["confirm_within"].as_u64().is_some_and(|left| left > 0 && left <= 600), "{list}");
    // What somebody else flushed comes back, and waits on.
    net.nft(&["flush", "ruleset"]);
    assert!(net.ok(&["restore"]).stdout.contains("added"));
    assert_eq!(words(&net), during);
    net.ok(&["flush"]);
    let said = asking.end();
    assert!(said.code == 1 && said.stderr.contains("another command removed all rules"), "{said:?}");
    eventually("the watcher is gone", || watchers(&net).is_empty());
    assert_eq!(words(&net), Vec::<String>::new());
    assert_eq!(net.ok(&["restore"]).stdout, "unchanged\n");
}

#[test]
fn a_reboot_is_no_confirmation() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let (state, path) = (net.state.path().to_string_lossy().into_owned(), file(&net.state, NEW));
    let path = path.to_string_lossy().into_owned();
    // Where the first process is in the same network namespace, it is the host's own, whose state outlives a boot.
    let boot = |id: &str, script: &str| {
        let script = format!(
            "set -e; echo {id} > \"$S/boot\"; mount --bind \"$S/boot\" /proc/sys/kernel/random/boot_id
             p() {{ \"$P\" --state-dir \"$S\" \"$@\"; }}
             {script}"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", &script]);
        command.env("S", &state).env("P", PORTFWD).env("R", &path).env_remove("SSH_CONNECTION");
        let said: Said = net.in_host(move || command.output().expect("unshare is installed").into());
        assert_eq!(said.code, 0, "{script}: {said:?}");
        said
    };
    boot("one", "p add 9000 172.17.0.4");
    let before = words(&net);
    // At its end this takes all of its processes along, as a power failure does.
    boot(
        "two",
        &format!(
            "p apply --confirm {LONG} \"$R\" 2> \"$S/asked\" & until grep -q 'the new connection' \"$S/asked\"; do sleep 0.1; done"
        ),
    );
    let during = words(&net);
    assert_ne!(during, before);
    assert!(watchers(&net).is_empty());
    net.nft(&["flush", "ruleset"]);
    let said = boot("two", "p restore");
    assert!(said.stderr.contains("rolls back the pending change in"), "{said:?}");
    assert_eq!(words(&net), during, "the same boot, and in time");
    net.nft(&["flush", "ruleset"]);
    let said = boot("three", "p restore");
    assert!(said.stderr.contains("rolled back the last change, which was not confirmed in time"), "{said:?}");
    assert_eq!(words(&net), before);
    assert!(boot("three", "p list").stderr.is_empty());
}

#[test]
fn in_a_named_namespace_with_a_relative_state_directory_it_is_the_same() {
    if !privileged() {
        return;
    }
    let (net, there) = (Net::new(), Named::new());
    let path = file(&net.state, NEW).to_string_lossy().into_owned();
    let ours = |arguments: &[&str]| {
        let mut command = Command::new(PORTFWD);
        command.args(["--netns", &there.0, "--state-dir", "rel"]).args(arguments).current_dir(net.state.path());
        command
    };
    let holds = || {
        let said = Command::new("ip").args(["netns", "exec", &there.0, "nft", "list", "ruleset"]).output();
        String::from_utf8_lossy(&said.expect("ip is installed").stdout).contains("8080")
    };
    let asking = Asking::start(&net, ours(&["apply", "--confirm", "3", &path]));
    asking.killed();
    eventually("the rules before are back in the namespace", || !holds());
    eventually("the watcher is gone", || watchers(&net).is_empty());
    let asking = Asking::start(&net, ours(&["apply", "--confirm", LONG, &path]));
    let said: Said = net.in_host(|| ours(&["confirm"]).output().expect("the program starts").into());
    assert_eq!((said.code, asking.end().code), (0, 0), "{said:?}");
    assert!(holds());
    assert!(!net.nft(&["list", "ruleset"]).stdout.contains("8080"));
}

#[test]
fn with_iptables_it_is_the_same() {
    if !privileged() {
        return;
    }
    for variant in [Variant::Nft, Variant::Legacy] {
        let net = Net::new();
        net.chains(variant, &["add", "9000", "172.17.0.4"]);
        let chains = || ours(&net.saved(variant)).into_iter().map(str::to_owned).collect::<Vec<_>>();
        let before = chains();
        let (path, state) = (file(&net.state, NEW), net.state.path().to_string_lossy().into_owned());
        let path = path.to_string_lossy().into_owned();
        let arguments = ["--state-dir", &state, "--backend", "iptables", "apply", "--confirm", "4", &path];
        let asking = Asking::start(&net, net.command_with(variant, "", PORTFWD, &arguments));
        asking.killed();
        eventually("the rules before are back", || chains() == before);
        eventually("the watcher is gone", || watchers(&net).is_empty());
        assert_eq!(net.chains(variant, &["restore"]).stdout, "unchanged\n");
    }
}
