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
use crate::support::{NamedNetns, Net, PORTFWD, Said, file, ours, privileged, root};

/// Tests of `apply --confirm` at a terminal.
mod terminal;

/// The rule set that the tests apply with `--confirm`.
const NEW: &str = "[[forward]]\nlisten = \"8080\"\nto = \"172.17.0.3:80\"\n";
/// The end of the prompt of `apply --confirm`.
const PROMPT_END: &str = "` from the new connection.";
/// The time limit for `--confirm`, in seconds. No test runs that long.
const LONG: &str = "600";

/// A running `apply --confirm` without a terminal. The command has printed its prompt.
struct PendingApply {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl PendingApply {
    fn start(net: &Net, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::after_prompt(net.in_host(move || command.spawn().expect("the program starts")))
    }

    fn after_prompt(mut child: Child) -> Self {
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (mut line, mut all) = (String::new(), String::new());
        while !line.contains(PROMPT_END) {
            line.clear();
            let length = stderr.read_line(&mut line).expect("text");
            assert!(length > 0, "no prompt: {all}");
            all.push_str(&line);
        }
        Self { child, stderr }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().expect("a number"))
    }

    fn wait(mut self) -> Said {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        // This read ends only if no watcher process holds the command's stdout or stderr.
        self.stderr.read_to_string(&mut stderr).expect("text");
        self.child.stdout.take().expect("piped").read_to_string(&mut stdout).expect("text");
        let code = self.child.wait().expect("ends").code().unwrap_or(-1);
        Said { code, stdout, stderr }
    }

    fn kill(mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("killed");
        self.child.wait().expect("ends");
    }
}

/// Returns a portfwd command with the net's state directory. The caller starts the command in the host's namespace.
fn command(net: &Net, arguments: &[&str]) -> Command {
    let mut command = Command::new(PORTFWD);
    command.arg("--state-dir").arg(net.state.path()).args(arguments).current_dir(root());
    command.env_remove("SSH_CONNECTION");
    command
}

/// Starts `apply --confirm` and waits for its prompt.
fn apply(net: &Net, seconds: &str, text: &str) -> PendingApply {
    let path = file(&net.state, text);
    PendingApply::start(net, command(net, &["apply", "--confirm", seconds, &path.to_string_lossy()]))
}

/// Returns the watcher processes, which roll an unconfirmed change back.
fn watchers(net: &Net) -> Vec<Pid> {
    let state = net.state.path().to_string_lossy().into_owned();
    let all = fs::read_dir("/proc").expect("readable").flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_watcher = |number: &i32| {
        let line = fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(&state) && line.contains("\0--watch\0")
    };
    let found: Vec<i32> = numbers.filter(is_watcher).collect();
    // Between fork(2) and execve(2), a child has the command line of its parent.
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
fn a_second_command_confirms_a_change() {
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
        let pending = match variant {
            None => PendingApply::start(&net, command(&net, &arguments[4..])),
            Some(variant) => PendingApply::start(&net, net.command_with(variant, "", PORTFWD, &arguments)),
        };
        assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2", "{variant:?}");
        assert_eq!(watchers(&net).len(), 1, "{variant:?}");
        let said = run(&["confirm", "--dry-run"]);
        assert!(said.code == 0 && said.stdout.contains(" left to confirm"), "{variant:?} {said:?}");
        let said = run(&["list"]);
        assert!(said.stderr.contains("rolls back") && said.stderr.contains("confirm` keeps it"), "{said:?}");
        let said = run(&["confirm"]);
        assert!(said.code == 0 && said.stdout == "confirmed\n", "{variant:?} {said:?}");
        let said = pending.wait();
        assert!(said.code == 0 && said.stderr.contains("confirmed"), "{variant:?} {said:?}");
        eventually("the watcher ends after the confirmation", || watchers(&net).is_empty());
        assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2", "{variant:?}");
        let said = run(&["list"]);
        assert!(said.code == 0 && said.stderr.is_empty(), "{variant:?} {said:?}");
        let said = run(&["confirm"]);
        assert!(said.code == 1 && said.stderr.contains("no pending change"), "{variant:?} {said:?}");
        // If `apply` changes nothing, there is nothing to confirm.
        let said = run(&["apply", "--confirm", LONG, &path]);
        assert!(said.code == 0 && said.stdout == "unchanged\n" && said.stderr.contains("nothing"), "{said:?}");
        assert!(watchers(&net).is_empty());
    }
}

#[test]
fn an_unconfirmed_change_is_rolled_back_and_nothing_else_changes() {
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
    let udp_client = net.client.run(|| UdpSocket::bind("0.0.0.0:0").expect("bound")).expect("the client's namespace");
    udp_client.connect("192.0.2.1:5000").expect("connected");
    udp_client.set_read_timeout(Some(Duration::from_secs(2))).expect("set");
    let exchange = || {
        let mut answer = [0; 64];
        udp_client.send(b"?").expect("sent");
        let length = udp_client.recv(&mut answer).expect("answered");
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    assert!(exchange().starts_with("172.17.0.3"));
    let before = words(&net);
    fs::write(&set, text("172.17.0.4") + "[[forward]]\nlisten = \"81\"\nto = \"172.17.0.3\"\nloopback = true\n")
        .expect("written");
    let local = || net.in_host(|| fs::read_to_string("/proc/sys/net/ipv4/conf/docker0/route_localnet"));
    let pending = PendingApply::start(&net, command(&net, &["apply", "--json", "--confirm", "6", &set]));
    assert!(exchange().starts_with("172.17.0.4"));
    assert_eq!(local().expect("readable"), "1\n");
    let said = pending.wait();
    assert!(said.code == 1 && said.stderr.contains("not confirmed in 6 seconds"), "{said:?}");
    assert!(said.stdout.contains("\"done\":true") && said.stdout.contains("\"confirm_within\":"), "{said:?}");
    assert_eq!(words(&net), before);
    assert!(exchange().starts_with("172.17.0.3"), "the connection follows the previous rules again");
    assert_eq!(local().expect("readable"), "0\n");
    let counted = net.nft(&["list", "chain", "ip", "other", "c"]).stdout;
    assert!(counted.contains("udp dport 53 counter packets 3"), "foreign rules keep counting: {counted}");
    let list = net.ok(&["list"]);
    assert!(list.stderr.is_empty() && !list.stdout.contains("missing") && !list.stdout.contains("foreign"), "{list:?}");
    assert_eq!(net.ok(&["restore"]).stdout, "unchanged\n");
    eventually("the watcher is gone", || watchers(&net).is_empty());
}

#[test]
fn a_killed_apply_is_rolled_back() {
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
                eventually("no watcher is left", || watchers(&net).is_empty());
                assert_eq!(words(&net), before, "{delay}");
                let said = net.ok(&["restore"]);
                assert!(said.stdout == "unchanged\n" && said.stderr.is_empty(), "{delay}: {said:?}");
                assert!(!net.ok(&["list"]).stdout.contains("8080"), "{delay}");
            });
        }
    });
}

/// Makes a pending change, kills its watcher, and waits until the change expires.
fn expire_without_watcher(net: &Net) {
    for seconds in [2, 6, 30] {
        let pending = apply(net, &seconds.to_string(), NEW);
        watchers(net).iter().for_each(|watcher| kill(*watcher, Signal::SIGTERM).unwrap_or_default());
        eventually("SIGTERM ends the watcher, so it does not delay a shutdown", || watchers(net).is_empty());
        pending.kill();
        let flags = fs::read_dir(net.state.path().join("netns")).expect("readable").flatten();
        if flags.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|end| end == "unconfirmed")) {
            return std::thread::sleep(Duration::from_millis(seconds * 1000 + 100));
        }
        // On a slow machine, the watcher rolls the change back before the test ends the watcher.
    }
    panic!("30 seconds are too short on this machine");
}

#[test]
fn the_next_command_rolls_back_an_expired_change_without_a_watcher() {
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
                expire_without_watcher(&net);
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
fn a_pending_change_blocks_every_change_except_flush() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["add", "9000", "172.17.0.4"]);
    let (pending, during) = (apply(&net, LONG, NEW), words(&net));
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
        assert!(said.stderr.contains("rolls back"), "{arguments:?}: {said:?}");
    }
    let list: serde_json::Value = serde_json::from_str(&net.ok(&["list", "--json"]).stdout).expect("JSON");
    assert!(list["confirm_within"].as_u64().is_some_and(|left| left > 0 && left <= 600), "{list}");
    // `restore` adds the rules again after a foreign flush. The change stays pending.
    net.nft(&["flush", "ruleset"]);
    assert!(net.ok(&["restore"]).stdout.contains("added"));
    assert_eq!(words(&net), during);
    net.ok(&["flush"]);
    let said = pending.wait();
    assert!(said.code == 1 && said.stderr.contains("another command removed all rules"), "{said:?}");
    eventually("the watcher is gone", || watchers(&net).is_empty());
    assert_eq!(words(&net), Vec::<String>::new());
    assert_eq!(net.ok(&["restore"]).stdout, "unchanged\n");
}

#[test]
fn a_reboot_does_not_confirm_a_change() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let (state, path) = (net.state.path().to_string_lossy().into_owned(), file(&net.state, NEW));
    let path = path.to_string_lossy().into_owned();
    // portfwd treats the namespace of process 1 as the host's namespace. The state of the host's namespace
    // outlives a boot.
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
    // The end of the pid namespace kills all processes in it, as a power failure does.
    boot(
        "two",
        &format!(
            "p apply --confirm {LONG} \"$R\" 2> \"$S/prompt\" & until grep -q 'from the new connection' \"$S/prompt\"; do sleep 0.1; done"
        ),
    );
    let during = words(&net);
    assert_ne!(during, before);
    assert!(watchers(&net).is_empty());
    net.nft(&["flush", "ruleset"]);
    let said = boot("two", "p restore");
    assert!(said.stderr.contains("rolls back"), "{said:?}");
    assert_eq!(words(&net), during, "in the same boot, the change stays until the deadline");
    net.nft(&["flush", "ruleset"]);
    let said = boot("three", "p restore");
    assert!(said.stderr.contains("rolled back the last change, which was not confirmed in time"), "{said:?}");
    assert_eq!(words(&net), before);
    assert!(boot("three", "p list").stderr.is_empty());
}

#[test]
fn confirm_works_with_netns_and_a_relative_state_directory() {
    if !privileged() {
        return;
    }
    let (net, named) = (Net::new(), NamedNetns::new());
    let path = file(&net.state, NEW).to_string_lossy().into_owned();
    let in_netns = |arguments: &[&str]| {
        let mut command = Command::new(PORTFWD);
        command.args(["--netns", &named.0, "--state-dir", "rel"]).args(arguments).current_dir(net.state.path());
        command
    };
    let has_forward = || {
        let said = Command::new("ip").args(["netns", "exec", &named.0, "nft", "list", "ruleset"]).output();
        String::from_utf8_lossy(&said.expect("ip is installed").stdout).contains("8080")
    };
    let pending = PendingApply::start(&net, in_netns(&["apply", "--confirm", "3", &path]));
    pending.kill();
    eventually("the previous rules are back in the namespace", || !has_forward());
    eventually("the watcher is gone", || watchers(&net).is_empty());
    let pending = PendingApply::start(&net, in_netns(&["apply", "--confirm", LONG, &path]));
    let said: Said = net.in_host(|| in_netns(&["confirm"]).output().expect("the program starts").into());
    assert_eq!((said.code, pending.wait().code), (0, 0), "{said:?}");
    assert!(has_forward());
    assert!(!net.nft(&["list", "ruleset"]).stdout.contains("8080"));
}

#[test]
fn rollback_works_with_iptables() {
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
        let pending = PendingApply::start(&net, net.command_with(variant, "", PORTFWD, &arguments));
        pending.kill();
        eventually("the previous rules are back", || chains() == before);
        eventually("the watcher is gone", || watchers(&net).is_empty());
        assert_eq!(net.chains(variant, &["restore"]).stdout, "unchanged\n");
    }
}
