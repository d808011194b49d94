use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portfwd::iptables::command::Variant;
use portfwd::lab::{Links, Netns};

use crate::iptables::{listed, peer};
use crate::peers::View;
use crate::support::{Net, PORTFWD, Said, feed, file, privileged, root};

/// Tests with a live Docker Engine beside portfwd.
mod docker;

/// The names of the IPv4 and the IPv6 program.
const WORDS: [&str; 2] = ["iptables", "ip6tables"];

/// A rule set with every feature, so that portfwd needs a jump from each built-in chain that it ever uses.
const SET: &str = r#"
[[network]]
name = "docker0"
subnet = ["172.17.0.0/16", "fd00:17::/64"]

[[network]]
name = "br-backend"
subnet = ["172.18.0.0/16", "fd00:18::/64"]
isolate = true

[[forward]]
listen = "80,443"
to = "172.17.0.2"
comment = "hairpin is on"

[[forward]]
listen = "80,443"
to = "fd00:17::2"

[[forward]]
listen = "8000-8010/tcp,udp"
to = "172.18.0.2:9000-9010"
loopback = true

[[forward]]
listen = "192.0.2.10:53/udp"
from = "198.51.100.0/24"
to = "172.17.0.3"
source = "198.18.0.1"

[[netmap]]
listen = "203.0.113.0/24"
to = "10.1.0.0/24"

[[netmap]]
listen = "2001:db8:1::/64"
to = "fd00:10::/64"

[[snat]]
from = "10.0.0.0/24"
out = "wan0"
to = "203.0.113.8-203.0.113.15:1024-2047"

[[snat]]
from = "fd00:11::/64"
out = "wan0"
to = "2001:db8::10"

[[masquerade]]
out = "wan1"
"#;

/// The built-in chains from which [`SET`] needs a jump. IPv6 needs no guard of loopback addresses, so one chain is
/// missing.
const HOOKS: [&str; 9] = [
    "ip6tables mangle FORWARD",
    "ip6tables nat OUTPUT",
    "ip6tables nat POSTROUTING",
    "ip6tables nat PREROUTING",
    "iptables mangle FORWARD",
    "iptables mangle PREROUTING",
    "iptables nat OUTPUT",
    "iptables nat POSTROUTING",
    "iptables nat PREROUTING",
];

/// The tables that contain rules of portfwd.
const TABLES: [&str; 4] = ["ip6tables mangle", "ip6tables nat", "iptables mangle", "iptables nat"];

/// The output of iptables-save: the lines of each table, by program and table.
type Saved = BTreeMap<String, Vec<String>>;

/// A script that links `iptables` to one variant in a private mount namespace, and then starts a program.
const AS_VARIANT: &str = r#"d=$(mktemp -d) && mount -t tmpfs none "$d" && cp -a /etc/alternatives/. "$d" &&
    for p in iptables ip6tables; do ln -sfn "/usr/sbin/$p-$0" "$d/$p"; done &&
    mount --move "$d" /etc/alternatives && rmdir "$d" && exec "$@""#;

fn saved(variant: Variant) -> Saved {
    let save = |word: &'static str| {
        let program = format!("{word}-{}-save", variant.name());
        let said: Said = Command::new(&program).arg("-c").output().expect("iptables is installed").into();
        assert_eq!(said.code, 0, "{program}: {said:?}");
        let table = |text: &str| -> Option<(String, Vec<String>)> {
            let mut lines = text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned);
            let name = lines.next()?.replace('*', &format!("{word} "));
            Some((name, lines.collect()))
        };
        said.stdout.split("COMMIT\n").filter_map(table).collect::<Vec<_>>()
    };
    WORDS.into_iter().flat_map(save).collect()
}

/// Returns the rules without portfwd's rules. Tables with only empty built-in chains are left out, because any read
/// creates them.
fn theirs(saved: &Saved) -> Saved {
    let mut theirs = saved.clone();
    theirs.values_mut().for_each(|lines| lines.retain(|line| !line.contains("PORTFWD")));
    theirs.retain(|_, lines| !lines.iter().all(|line| line.starts_with(':') && line.contains(" ACCEPT ")));
    theirs
}

/// Splits a line such as `[12:345] -A CHAIN …` or `:CHAIN POLICY [12:345]` into packets, bytes and the rest.
fn counted(line: &str) -> (u64, u64, String) {
    let parts = line.split_once('[').and_then(|(before, rest)| Some((before, rest.split_once(']')?)));
    let Some((before, (counter, behind))) = parts.filter(|(before, _)| before.is_empty() || before.starts_with(':'))
    else {
        return (0, 0, line.to_owned());
    };
    let (packets, bytes) = counter.split_once(':').expect("a counter");
    (packets.parse().expect("packets"), bytes.parse().expect("bytes"), format!("{before}{behind}"))
}

/// Returns the built-in chains that jump to portfwd's chains. Panics unless each jump is the first rule, without a
/// condition, and unique.
fn hooks(saved: &Saved) -> Vec<String> {
    let mut hooks = Vec::new();
    for (table, lines) in saved {
        let mut chains: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (chain, rule) in lines.iter().filter_map(|line| line.split_once(" -A ")?.1.split_once(' ')) {
            chains.entry(chain).or_default().push(rule);
        }
        for (chain, rules) in chains.into_iter().filter(|(chain, _)| !chain.starts_with("PORTFWD")) {
            let ours: Vec<usize> = (0..rules.len()).filter(|at| rules[*at].contains("PORTFWD")).collect();
            if !ours.is_empty() {
                assert_eq!(
                    (ours.as_slice(), rules[0]),
                    (&[0][..], format!("-j PORTFWD.{chain}").as_str()),
                    "{table}: {rules:?}"
                );
                hooks.push(format!("{table} {chain}"));
            }
        }
    }
    hooks
}

/// A host with one variant of iptables.
struct Host {
    namespace: Netns,
    variant: Variant,
    state: tempfile::TempDir,
}

impl Host {
    /// Makes a host with the recorded rules and counters of another program.
    fn with(variant: Variant, neighbour: &str) -> Self {
        let namespace = Netns::new().expect("namespace");
        let host = Self { namespace, variant, state: tempfile::tempdir().expect("directory") };
        for (word, family) in WORDS.into_iter().zip(["v4", "v6"]) {
            let path = root().join(format!("tests/neighbours/{neighbour}.{family}"));
            let text = std::fs::read_to_string(path).expect("recorded");
            host.inside(|| feed(&format!("{word}-{}-restore", variant.name()), &["-c", "-w", "20"], &text));
        }
        // ip6tables-nft-restore 1.8.9 does not restore counters, so the IPv6 rules count a real packet.
        host.inside(|| {
            let links = Links::open().expect("rtnetlink");
            links.up("lo").expect("up");
            links.address("lo", "2001:db8::10".parse().expect("address"), 128).expect("address");
            let bind = |_| {
                // A new IPv6 address is tentative for a moment.
                std::thread::sleep(Duration::from_millis(10));
                UdpSocket::bind("[2001:db8::10]:0").ok()
            };
            let socket = (0..500).find_map(bind).expect("bind");
            socket.send_to(b"count", socket.local_addr().expect("address")).expect("sent");
        });
        host
    }

    fn inside<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(job).expect("the host's namespace")
    }

    fn saved(&self) -> Saved {
        self.inside(|| saved(self.variant))
    }

    fn theirs(&self) -> Saved {
        theirs(&self.saved())
    }

    /// Changes a table as another program does. `table` is a name in [`Saved`].
    fn neighbour(&self, table: &str, command: &str) {
        let (word, table) = table.split_once(' ').expect("a program and a table");
        let said: Said =
            self.inside(|| peer(word, self.variant).execute(table, command).expect("iptables is installed").into());
        assert_eq!(said.code, 0, "{word} -t {table} {command}: {said:?}");
    }

    /// Returns the foreign rules, as the crate `iptables` reads them with `iptables -S`.
    fn listed(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.inside(|| WORDS.into_iter().flat_map(|word| listed(&peer(word, self.variant))).collect());
        lines.retain(|line| !line.contains("PORTFWD"));
        lines
    }

    /// Returns the built-in chains of [`HOOKS`] that jump to portfwd's chain of the same name. Panics if a jump exists
    /// without its chain, or a chain without its jump.
    fn hooked(&self) -> Vec<&'static str> {
        let hooked = |at: &&str| {
            let (word, at) = at.split_once(' ').expect("a program");
            let (table, chain) = at.split_once(' ').expect("a table and a chain");
            let (peer, target) = (peer(word, self.variant), format!("PORTFWD.{chain}"));
            let jumps = peer.exists(table, chain, &format!("-j {target}")).expect("the program starts");
            assert_eq!(peer.chain_exists(table, &target).expect("the program starts"), jumps, "{word} {at}");
            jumps
        };
        self.inside(|| HOOKS.into_iter().filter(hooked).collect())
    }

    fn portfwd(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", AS_VARIANT, self.variant.name(), PORTFWD]);
        command.args(["--backend", "iptables", "--state-dir"]).arg(self.state.path()).args(arguments);
        self.inside(|| command.output().expect("unshare is installed").into())
    }

    /// Runs portfwd. Panics if portfwd fails.
    fn ok(&self, arguments: &[&str]) -> Said {
        let said = self.portfwd(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
        said
    }
}

/// Makes every kind of change with each variant. Checks that the other program's rules stay the same.
fn leave_alone(neighbour: &str) {
    if !privileged() {
        return;
    }
    for variant in Variant::ALL {
        let host = Host::with(variant, neighbour);
        WORDS.into_iter().for_each(|word| host.neighbour(&format!("{word} mangle"), "-P FORWARD DROP"));
        let (before, listed) = (host.theirs(), host.listed());
        for (table, lines) in &before {
            // If the counters of foreign rules are not zero, the test sees a reset of the counters.
            let counts: Vec<u64> =
                lines.iter().filter(|line| line.contains(" -A ")).map(|line| counted(line).0).collect();
            let recorded = table.starts_with("iptables") || variant == Variant::Legacy;
            let ours_too = TABLES.contains(&table.as_str());
            assert!(!recorded || !counts.contains(&0), "{table}: {lines:#?}");
            assert!(!ours_too || counts.is_empty() || counts.iter().any(|packets| *packets > 0), "{table}: {lines:#?}");
        }
        let same = |what: &str, hooked: &[&str]| {
            let saved = host.saved();
            assert_eq!(theirs(&saved), before, "{neighbour}, {}, {what}", variant.name());
            assert_eq!(hooks(&saved), hooked, "{neighbour}, {}, {what}", variant.name());
            assert_eq!(host.listed(), listed, "{neighbour}, {}, {what}", variant.name());
            assert_eq!(host.hooked(), hooked, "{neighbour}, {}, {what}", variant.name());
            for word in WORDS {
                let policy = host.inside(|| peer(word, variant).get_policy("mangle", "FORWARD").expect("a policy"));
                assert_eq!(policy, "DROP", "{neighbour}, {}, {what}", variant.name());
            }
            saved
        };
        host.ok(&["add", "8080", "172.17.0.3:80"]);
        let four = ["iptables mangle FORWARD", HOOKS[6], HOOKS[7], HOOKS[8]];
        same("add", &four);
        let set = file(&host.state, SET).to_string_lossy().into_owned();
        host.ok(&["apply", &set]);
        let all = same("apply", &HOOKS);
        host.ok(&["apply", &set]);
        assert_eq!(same("apply again", &HOOKS), all);
        host.ok(&["rm", "8080"]);
        same("rm", &HOOKS);
        host.ok(&["add", "8080", "172.17.0.3:80"]);
        assert_eq!(same("add again", &HOOKS), all);
        host.ok(&["flush"]);
        let saved = same("flush", &[]);
        assert!(!format!("{saved:?}").contains("PORTFWD"), "{saved:#?}");
    }
}

#[test]
fn the_rules_of_docker_are_the_same_after_every_change() {
    leave_alone("docker");
}

#[test]
fn the_rules_of_firewalld_are_the_same_after_every_change() {
    leave_alone("firewalld");
}

#[test]
fn the_rules_of_ufw_are_the_same_after_every_change() {
    leave_alone("ufw");
}

#[test]
fn apply_repairs_portfwds_jumps_and_keeps_foreign_rules() {
    if !privileged() {
        return;
    }
    for (variant, neighbour) in
        Variant::ALL.into_iter().flat_map(|variant| ["docker", "firewalld"].map(|name| (variant, name)))
    {
        let host = Host::with(variant, neighbour);
        let set = file(&host.state, SET).to_string_lossy().into_owned();
        host.ok(&["apply", &set]);
        let mend = |what: &str, done: &dyn Fn(&str)| {
            let context = format!("{neighbour}, {}, {what}", variant.name());
            HOOKS.into_iter().for_each(done);
            let before = host.theirs();
            let planned = host.portfwd(&["plan", "--detailed-exitcode", &set]);
            assert_eq!(planned.code, 3, "{context}: {planned:?}");
            assert_eq!(host.theirs(), before, "{context}");
            host.ok(&["apply", &set]);
            let saved = host.saved();
            assert_eq!(theirs(&saved), before, "{context}");
            assert_eq!(hooks(&saved), HOOKS, "{context}");
            let planned = host.ok(&["plan", "--detailed-exitcode", &set]);
            assert_eq!(planned.stdout, "0 to add, 0 to change, 0 to remove\n", "{context}");
        };
        let theirs = |at: &str, verb: &str, rest: &str| {
            let (table, chain) = at.rsplit_once(' ').expect("a chain");
            host.neighbour(table, &format!("{verb} {chain} {rest}"));
        };
        let ours = |at: &str| format!("-j PORTFWD.{}", at.rsplit(' ').next().unwrap_or_default());
        TABLES.into_iter().for_each(|table| host.neighbour(table, "-N NEIGHBOUR"));
        mend("one in front", &|at| theirs(at, "-I", "1 -j NEIGHBOUR"));
        mend("ours twice", &|at| theirs(at, "-A", &ours(at)));
        mend("ours gone", &|at| theirs(at, "-D", &ours(at)));
        mend("ours in the middle, three times", &|at| {
            theirs(at, "-D", &ours(at));
            (0..3).for_each(|_| theirs(at, "-I", &format!("2 {}", ours(at))));
        });
        // firewalld deletes every rule and every chain when it reloads.
        mend("everything gone", &|at| {
            let (table, _) = at.rsplit_once(' ').expect("a chain");
            ["-F", "-X"].into_iter().for_each(|verb| host.neighbour(table, verb));
        });
        host.ok(&["flush"]);
        assert!(!format!("{:?}", host.saved()).contains("PORTFWD"));
    }
}
