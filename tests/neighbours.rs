use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portfwd::iptables::command::Variant;
use portfwd::lab::{Links, Netns};

use crate::peers::View;
use crate::support::{Net, PORTFWD, Said, feed, file, privileged, root};

/// How the words of the IPv4 and the IPv6 programs begin.
const WORDS: [&str; 2] = ["iptables", "ip6tables"];

/// Everything that a rule set can ask, so that we have a jump from every built-in chain that we ever jump from.
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

/// The built-in chains that [`SET`] needs a jump from. IPv6 needs no guard of loopback addresses.
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

/// The tables that we have rules in.
const TABLES: [&str; 4] = ["ip6tables mangle", "ip6tables nat", "iptables mangle", "iptables nat"];

/// What iptables-save prints: by program and table, the lines of each table.
type Saved = BTreeMap<String, Vec<String>>;

/// Makes `iptables` the one of a variant, in a mount namespace that is there for that, and goes on as another program.
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

/// What is not ours, but for tables that hold nothing but empty built-in chains: those are there as soon as anybody looks.
fn theirs(saved: &Saved) -> Saved {
    let mut theirs = saved.clone();
    theirs.values_mut().for_each(|lines| lines.retain(|line| !line.contains("PORTFWD")));
    theirs.retain(|_, lines| !lines.iter().all(|line| line.starts_with(':') && line.contains(" ACCEPT ")));
    theirs
}

/// The parts of `[12:345] -A CHAIN …` and of `:CHAIN POLICY [12:345]`: packets, bytes, and the rest.
fn counted(line: &str) -> (u64, u64, String) {
    let parts = line.split_once('[').and_then(|(before, rest)| Some((before, rest.split_once(']')?)));
    let Some((before, (counter, behind))) = parts.filter(|(before, _)| before.is_empty() || before.starts_with(':'))
    else {
        return (0, 0, line.to_owned());
    };
    let (packets, bytes) = counter.split_once(':').expect("a counter");
    (packets.parse().expect("packets"), bytes.parse().expect("bytes"), format!("{before}{behind}"))
}

/// The built-in chains that jump to ours; each must do it once, without any condition, before everything else.
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

/// A host whose `iptables` is of one variant.
struct Host {
    namespace: Netns,
    variant: Variant,
    state: tempfile::TempDir,
}

impl Host {
    /// One that has the recorded rules of a neighbour, with what they counted.
    fn with(variant: Variant, neighbour: &str) -> Self {
        let namespace = Netns::new().expect("namespace");
        let host = Self { namespace, variant, state: tempfile::tempdir().expect("directory") };
        for (word, family) in WORDS.into_iter().zip(["v4", "v6"]) {
            let path = root().join(format!("tests/neighbours/{neighbour}.{family}"));
            let text = std::fs::read_to_string(path).expect("recorded");
            host.inside(|| feed(&format!("{word}-{}-restore", variant.name()), &["-c", "-w", "20"], &text));
        }
        // ip6tables-nft-restore 1.8.9 forgets the counters that it is given, so these rules count real packets.
        host.inside(|| {
            let links = Links::open().expect("rtnetlink");
            links.up("lo").expect("up");
            links.address("lo", "2001:db8::10".parse().expect("address"), 128).expect("address");
            let bind = |_| {
                // A new address is tentative for a moment.
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

    /// Changes rules as a neighbour does, in a table by its name in [`Saved`].
    fn neighbour(&self, table: &str, arguments: &[&str]) {
        let (word, table) = table.split_once(' ').expect("a program and a table");
        let mut command = Command::new(format!("{word}-{}", self.variant.name()));
        command.args(["-w", "20", "-t", table]).args(arguments);
        let said: Said = self.inside(|| command.output().expect("iptables is installed").into());
        assert_eq!(said.code, 0, "{command:?}: {said:?}");
    }

    fn portfwd(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", AS_VARIANT, self.variant.name(), PORTFWD]);
        command.args(["--backend", "iptables", "--state-dir"]).arg(self.state.path()).args(arguments);
        self.inside(|| command.output().expect("unshare is installed").into())
    }

    /// Runs the program, which must succeed.
    fn ok(&self, arguments: &[&str]) -> Said {
        let said = self.portfwd(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
        said
    }
}

/// Does with each variant everything that changes our rules, and compares the neighbour's rules with those before.
fn leave_alone(neighbour: &str) {
    if !privileged() {
        return;
    }
    for variant in Variant::ALL {
        let host = Host::with(variant, neighbour);
        WORDS.into_iter().for_each(|word| host.neighbour(&format!("{word} mangle"), &["-P", "FORWARD", "DROP"]));
        let before = host.theirs();
        for (table, lines) in &before {
            // Where a rule of theirs counted something, a zero does not go unseen.
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
fn a_neighbour_who_comes_in_front_of_us_or_throws_us_out_is_seen_and_stays() {
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
        let theirs = |at: &str, verb: &str, rest: &[&str]| {
            let (table, chain) = at.rsplit_once(' ').expect("a chain");
            host.neighbour(table, &[&[verb, chain], rest].concat());
        };
        let ours = |at: &str| format!("PORTFWD.{}", at.rsplit(' ').next().unwrap_or_default());
        TABLES.into_iter().for_each(|table| host.neighbour(table, &["-N", "NEIGHBOUR"]));
        mend("one in front", &|at| theirs(at, "-I", &["1", "-j", "NEIGHBOUR"]));
        mend("ours twice", &|at| theirs(at, "-A", &["-j", &ours(at)]));
        mend("ours gone", &|at| theirs(at, "-D", &["-j", &ours(at)]));
        mend("ours in the middle, three times", &|at| {
            theirs(at, "-D", &["-j", &ours(at)]);
            (0..3).for_each(|_| theirs(at, "-I", &["2", "-j", &ours(at)]));
        });
        // What firewalld does when it is told to load its rules again.
        mend("everything gone", &|at| {
            let (table, _) = at.rsplit_once(' ').expect("a chain");
            ["-F", "-X"].into_iter().for_each(|verb| host.neighbour(table, &[verb]));
        });
        host.ok(&["flush"]);
        assert!(!format!("{:?}", host.saved()).contains("PORTFWD"));
    }
}

/// Where programs are, wherever the tests are started.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";

fn installed(program: &str) -> Option<PathBuf> {
    PATH.split(':').map(|directory| Path::new(directory).join(program)).find(|path| path.is_file())
}

/// Whether a Docker Engine can be started. Where not, the test says so and is skipped; with CI set it fails.
fn has_docker() -> bool {
    let missing: Vec<&str> =
        ["dockerd", "docker", "busybox"].into_iter().filter(|program| installed(program).is_none()).collect();
    let message = format!("SKIPPED: needs {}, install docker.io and busybox-static", missing.join(" and "));
    let all = missing.is_empty();
    assert!(all || std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{message}");
    if !all {
        eprintln!("{message}");
    }
    all
}

/// How long an engine may take to start, and a container.
const PATIENCE: Duration = Duration::from_secs(30);

/// What containers answer.
const HELLO: &str = "hello\n";

/// Private mounts and processes for a Docker Engine: nothing of it stays when they end, nothing of a host's own is met.
const ENGINE: &str = r#"
read -r process rest < /proc/self/stat && echo "$process" &&
for directory in /run /opt /etc/docker; do test ! -d "$directory" || mount -t tmpfs tmpfs "$directory" || exit; done &&
mount -t proc proc /proc && exec dockerd --data-root /run/data --storage-driver vfs --userland-proxy=false \
    --cgroup-parent "$0" --experimental --ipv6 --fixed-cidr-v6 fd00:17::/64 --ip6tables >&2
"#;

/// A Docker Engine in the network namespace of a host.
struct Engine<'a> {
    net: &'a Net,
    variant: Variant,
    /// What it began with, and its first process inside, which all others end with.
    unshare: Child,
    first: String,
    cgroup: String,
    home: tempfile::TempDir,
}

impl<'a> Engine<'a> {
    fn start(net: &'a Net, variant: Variant) -> Self {
        let home = tempfile::tempdir().expect("directory");
        let cgroup = format!("portfwd-test-{}-{}", std::process::id(), variant.name());
        let log = File::create(home.path().join("log")).expect("log");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", AS_VARIANT, variant.name()]);
        command.args(["sh", "-c", ENGINE, &cgroup]).env("PATH", PATH).env("HOME", home.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut unshare = net.in_host(|| command.spawn().expect("unshare is installed"));
        let mut first = String::new();
        let read = BufReader::new(unshare.stdout.take().expect("piped")).read_line(&mut first);
        read.expect("the number of a process");
        let mut engine = Self { net, variant, unshare, first: first.trim().to_owned(), cgroup, home };
        let begun = Instant::now();
        while engine.docker(&["version"]).code != 0 {
            let ended = engine.unshare.try_wait().expect("a child");
            let log = || std::fs::read_to_string(engine.home.path().join("log")).unwrap_or_default();
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "dockerd does not answer: {ended:?} {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        engine
    }

    /// Runs a program where the engine is.
    fn run(&self, program: &str, arguments: &[&str]) -> Said {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first, "--mount", "--pid", "--", program]).args(arguments);
        command.env("PATH", PATH).env("HOME", self.home.path()).env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT");
        self.net.in_host(|| command.output().expect("nsenter is installed").into())
    }

    fn docker(&self, arguments: &[&str]) -> Said {
        self.run("docker", arguments)
    }

    /// The same, and it must succeed. Gives what it printed.
    fn done(&self, arguments: &[&str]) -> String {
        let said = self.docker(arguments);
        assert_eq!(said.code, 0, "docker {arguments:?}: {said:?}");
        said.stdout.trim().to_owned()
    }

    /// Runs a container that says `hello` at its port 80, published as said, and waits until clients get that answer.
    fn publish(&self, name: &str, published: &str, clients_ask: &[&str]) {
        let run = ["run", "--detach", "--name", name, "--publish", published, "hello"];
        self.done(&[&run[..], &["/busybox", "nc", "-ll", "-p", "80", "-e", "/busybox", "echo", "hello"]].concat());
        let begun = Instant::now();
        while let Some((at, said)) = clients_ask.iter().map(|at| (at, self.net.tcp(at))).find(|(_, said)| said != HELLO)
        {
            assert!(begun.elapsed() < PATIENCE, "{name} at {at}: {said}, {:?}", self.docker(&["logs", name]));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes the image of these containers: busybox alone.
    fn import(&self) {
        let busybox = installed("busybox").expect("installed");
        let (directory, name) = (busybox.parent().expect("a directory").to_string_lossy().into_owned(), "hello");
        let tar = self.home.path().join("image.tar").to_string_lossy().into_owned();
        let packed = Command::new("tar").args(["-chf", &tar, "-C", &directory, "busybox"]).status().expect("tar");
        assert!(packed.success());
        self.done(&["import", &tar, name]);
    }

    fn portfwd(&self, arguments: &[&str]) {
        let state = self.home.path().join("state").to_string_lossy().into_owned();
        let said = self.run(PORTFWD, &[&["--backend", "iptables", "--state-dir", &state], arguments].concat());
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
    }

    /// The view of an audit, in which nothing that Docker made may be of anybody else.
    fn audited(&self) -> View {
        let state = self.home.path().join("state").to_string_lossy().into_owned();
        let view = View::new(&self.run(PORTFWD, &["--state-dir", &state, "audit", "--json"]));
        let all = || view.forwards.iter().chain(&view.sources);
        assert!(all().all(|row| matches!(row.owner.as_str(), "docker" | "portfwd")), "{view:#?}");
        assert!(view.sources.iter().any(|row| row.owner == "docker"), "{view:#?}");
        view
    }

    fn saved(&self) -> Saved {
        self.net.in_host(|| saved(self.variant))
    }

    fn theirs(&self) -> Saved {
        theirs(&self.saved())
    }
}

/// Removes a control group and those in it, which nobody is in any more.
fn remove_cgroup(path: &Path) {
    for inner in std::fs::read_dir(path).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&inner.path());
    }
    let removed = std::fs::remove_dir(path);
    drop(removed);
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        let killed = Command::new("kill").args(["-KILL", &self.first]).status();
        drop(killed);
        let ended = self.unshare.wait();
        drop(ended);
        let roots = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        roots.chain([PathBuf::from("/sys/fs/cgroup")]).for_each(|root| remove_cgroup(&root.join(&self.cgroup)));
    }
}

/// That the rules are those from before, and nothing was counted to zero; packets may have been counted since.
fn same_or_counted_on(now: &Saved, before: &Saved) {
    let rules = |saved: &Saved| -> Vec<(String, Vec<String>)> {
        let rules = |lines: &Vec<String>| lines.iter().map(|line| counted(line).2).collect();
        saved.iter().map(|(table, lines)| (table.clone(), rules(lines))).collect()
    };
    assert_eq!(rules(now), rules(before));
    for (line, earlier) in now.values().flatten().zip(before.values().flatten()) {
        let ((packets, bytes, _), least) = (counted(line), counted(earlier));
        assert!(packets >= least.0 && bytes >= least.1, "{earlier} is now {line}");
    }
}

fn live_docker(variant: Variant) {
    if !privileged() || !has_docker() {
        return;
    }
    let net = Net::new();
    // Docker makes its bridge itself.
    let removed = net.in_host(|| Command::new("ip").args(["link", "delete", "docker0"]).status());
    assert!(removed.expect("ip is installed").success());
    let engine = Engine::start(&net, variant);
    engine.import();
    engine.publish("first", "8080:80", &["192.0.2.1:8080", "[2001:db8::1]:8080"]);
    let before = engine.theirs();
    let inspect = |what: &str| {
        let format = format!("{{{{.NetworkSettings.Networks.bridge.{what}}}}}");
        engine.done(&["inspect", "--format", &format, "first"])
    };
    let [container, in_ipv6] = ["IPAddress", "GlobalIPv6Address"].map(inspect);
    let published = [format!("{container}:80"), format!("[{in_ipv6}]:80")];
    assert!(engine.audited().targets("docker").into_iter().eq(published.iter().map(String::as_str)));
    let asked = |port: &str| ["192.0.2.1", "[2001:db8::1]"].map(|host| net.tcp(&format!("{host}:{port}")));
    let same = |before: &Saved| {
        assert_eq!(asked("8080"), [HELLO; 2]);
        same_or_counted_on(&engine.theirs(), before);
    };
    engine.portfwd(&["add", "9090", &format!("{container}:80")]);
    same(&before);
    engine.portfwd(&["add", "[2001:db8::1]:9090", &format!("[{in_ipv6}]:80")]);
    same(&before);
    assert_eq!(asked("9090"), [HELLO; 2]);
    // Its network `docker0` is Docker's own, and Docker gives the first container the address that it forwards port 80 to.
    let set = file(&engine.home, SET).to_string_lossy().into_owned();
    engine.portfwd(&["apply", &set]);
    same(&before);
    assert_eq!(hooks(&engine.saved()), HOOKS);
    assert_eq!(net.tcp("192.0.2.1:80"), HELLO);
    // Docker goes on as well. Over IPv4 alone: with ip6tables-legacy, Docker 20.10 publishes one container only.
    engine.publish("second", "192.0.2.1:8081:80", &["192.0.2.1:8081"]);
    let both = engine.theirs();
    assert_ne!(both, before);
    let view = engine.audited();
    assert_eq!(view.targets("docker").len(), 3, "{view:#?}");
    assert!(published.iter().all(|target| view.targets("docker").contains(target.as_str())), "{view:#?}");
    assert!(view.targets("portfwd").contains(published[0].as_str()), "{view:#?}");
    engine.portfwd(&["rm", "9090"]);
    same(&both);
    assert_eq!(asked("9090"), ["ConnectionRefused", HELLO]);
    assert_eq!(net.tcp("192.0.2.1:8081"), HELLO);
    engine.done(&["rm", "--force", "second"]);
    let one = engine.theirs();
    engine.portfwd(&["flush"]);
    same(&one);
    assert_eq!(asked("9090"), ["ConnectionRefused"; 2]);
    assert!(!format!("{:?}", engine.saved()).contains("PORTFWD"));
}

#[test]
fn a_live_docker_engine_keeps_its_rules_and_its_containers_stay_reachable() {
    live_docker(Variant::Nft);
}

#[test]
fn the_same_where_docker_uses_iptables_legacy() {
    live_docker(Variant::Legacy);
}
