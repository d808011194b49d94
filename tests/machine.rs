use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::support::{PORTFWD, Said, file, root};

/// An isolated machine: a network namespace, a pid namespace, and a mount namespace with an empty /run and /var/lib.
///
/// A sleeping process holds the namespaces. Two machines can both contain a namespace `red`. A drop of the value ends
/// all processes in the machine.
pub struct Machine {
    holder: Child,
    /// The pid of the machine's first process, outside of the machine's pid namespace.
    init_pid: String,
    pub directory: tempfile::TempDir,
}

impl Machine {
    pub fn new() -> Self {
        let script = "
            grep ' /run/netns' /proc/self/mounts | cut -d' ' -f2 | tac | while read m; do umount -l $m; done
            for d in /run /var/lib; do mount -t tmpfs tmpfs $d; done && ip link set lo up && echo ready && exec sleep 3600";
        let mut command = Command::new("unshare");
        let namespaces = ["--net", "--mount", "--pid", "--mount-proc", "--kill-child"];
        command.args(namespaces).args(["sh", "-c", script]).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare is installed");
        let mut ready = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut ready).expect("readable");
        assert_eq!(ready, "ready\n");
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let init_pid = std::fs::read_to_string(children).expect("readable").trim().to_owned();
        Self { holder, init_pid, directory: tempfile::tempdir().expect("directory") }
    }

    /// Starts Open vSwitch in the machine, with its files in the machine's /run.
    ///
    /// Returns false and prints `SKIPPED` if Open vSwitch is not installed. Panics in this case if `CI` is set.
    pub fn open_vswitch(&self) -> bool {
        if !std::path::Path::new("/usr/sbin/ovs-vswitchd").exists() {
            let message = "SKIPPED: needs Open vSwitch, install the package openvswitch-switch";
            assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{message}");
            eprintln!("{message}");
            return false;
        }
        let script = "
            set -e; d=/run/openvswitch; mkdir $d
            ovsdb-tool create $d/conf.db /usr/share/openvswitch/vswitch.ovsschema
            quiet='--detach -vconsole:off -vsyslog:off'
            ovsdb-server $d/conf.db --remote=punix:$d/db.sock --pidfile=$d/ovsdb-server.pid --unixctl=$d/ovsdb.ctl $quiet
            ovs-vsctl -vsyslog:off --db=unix:$d/db.sock --no-wait init
            ovs-vswitchd unix:$d/db.sock --pidfile=$d/ovs-vswitchd.pid --unixctl=$d/ovs.ctl --disable-system $quiet";
        self.stdout_of("sh", &["-c", script]);
        true
    }

    /// Runs a program in the machine.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Said {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init_pid, "--net", "--mount", "--pid"]).env_remove("SSH_CONNECTION");
        command.arg(format!("--wd={}", root().display())).arg(program).args(arguments);
        command.output().expect("nsenter is installed").into()
    }

    pub fn lab(&self, arguments: &[&str]) -> Said {
        self.run(PORTFWD, &[&["lab"], arguments].concat())
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        let said = self.lab(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
        said.stdout
    }

    /// Runs a program in the machine and returns its stdout. Panics if it fails.
    pub fn stdout_of(&self, program: &str, arguments: &[&str]) -> String {
        let said = self.run(program, arguments);
        assert_eq!(said.code, 0, "{program} {arguments:?}: {said:?}");
        said.stdout
    }

    /// Returns true if an address answers a ping from a namespace.
    pub fn pings(&self, from: &str, to: &str) -> bool {
        self.lab(&["exec", from, "--", "busybox", "ping", "-c1", "-W2", to]).code == 0
    }

    pub fn file(&self, text: &str) -> String {
        file(&self.directory, text).to_string_lossy().into_owned()
    }

    /// Lists everything that a lab could leave behind: namespaces, links, journals, routes, rules, sysctls, processes,
    /// bridges.
    pub fn traces(&self) -> String {
        let script = "
            ls -A /run/netns 2>/dev/null; ls -A /run/portfwd/lab | grep -v lab.lock; ip -br link; ip route
            grep netns/ /proc/self/mounts; nft list ruleset; grep -H 1 /proc/sys/net/ipv4/ip_forward
            for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done | grep -E 'lab ini[t]|sleep (inf|1234|4321|5678|8765)'
            [ ! -e /run/openvswitch ] || ovs-vsctl -vsyslog:off --db=unix:/run/openvswitch/db.sock list-br; true";
        self.stdout_of("sh", &["-c", script])
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let ended = self.holder.kill().and_then(|()| self.holder.wait());
        drop(ended);
    }
}

/// Returns true if the output of [`Machine::traces`] contains only the loopback interface.
pub fn is_bare(traces: &str) -> bool {
    let mut lines = traces.lines();
    lines.next().is_some_and(|line| line.starts_with("lo ")) && lines.next().is_none()
}

/// Counts the system calls of a command by name. Each count is the highest of any thread. Programs that the command
/// starts do not count.
fn system_calls(machine: &Machine, arguments: &[&str]) -> BTreeMap<String, u32> {
    let log = machine.directory.path().join("calls");
    let log = log.to_string_lossy();
    let said = machine.run("strace", &[&["-f", "-b", "execve", "-qq", "-o", &log, PORTFWD, "lab"], arguments].concat());
    assert_eq!(said.code, 0, "{said:?}");
    let mut counts: BTreeMap<(String, String), u32> = BTreeMap::new();
    for line in std::fs::read_to_string(&*log).expect("readable").lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((name, _)) = rest.trim_start().split_once('(') else { continue };
        *counts.entry((thread.to_owned(), name.to_owned())).or_default() += 1;
    }
    counts.into_iter().fold(BTreeMap::new(), |mut highest, ((_, name), count)| {
        let before = highest.entry(name).or_insert(0);
        *before = count.max(*before);
        highest
    })
}

/// Kills `up` and `down` of a lab at every `every`-th system call. Then checks that `down` leaves no trace.
///
/// In every second run of `up`, the lab exists without its namespace `lost`. The environment variable `KILLS_EVERY`
/// overrides `every`.
pub fn kill_at_system_calls(machine: &Machine, path: &str, lost: &str, every: usize) {
    let every = std::env::var("KILLS_EVERY").ok().and_then(|every| every.parse().ok()).unwrap_or(every);
    let mut killed = [0, 0];
    for (index, command) in [["up", path], ["down", path]].into_iter().enumerate() {
        if index == 1 {
            machine.ok(&["up", path]);
        }
        let mut calls = system_calls(machine, &command);
        calls.retain(|name, _| !name.starts_with("exit"));
        let points = calls.iter().flat_map(|(name, count)| (1..=*count).map(move |when| (name, when)));
        for (name, when) in points.step_by(every) {
            let place = format!("{command:?} killed at {name} {when}");
            if index == 1 || when % 2 == 0 {
                machine.ok(&["up", path]);
                if index == 0 {
                    machine.stdout_of("ip", &["netns", "del", lost]);
                }
            } else {
                machine.lab(&["down", path]);
            }
            let inject = format!("inject={name}:signal=KILL:when={when}");
            let strace_args = ["-f", "-b", "execve", "-qq", "-o", "/dev/null", "-e", &inject, PORTFWD, "lab"];
            killed[index] += u32::from(machine.run("strace", &[&strace_args[..], &command].concat()).code != 0);
            let said = machine.lab(&["down", path]);
            assert!(said.code == 0 || said.stderr.contains("there is no lab"), "{place}: {said:?}");
            assert!(is_bare(&machine.traces()), "{place}: {}", machine.traces());
        }
        machine.lab(&["down", path]);
    }
    eprintln!("lab up and down of {path}: killed at {killed:?} system calls");
    assert!(killed.iter().all(|count| *count > 5), "{killed:?}");
}
