//! Tests with a live Docker Engine beside portfwd.

use super::*;

/// The directories of programs. The caller's `PATH` does not matter.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";

fn installed(program: &str) -> Option<PathBuf> {
    PATH.split(':').map(|directory| Path::new(directory).join(program)).find(|path| path.is_file())
}

/// Returns true if a Docker Engine can be started. Otherwise prints `SKIPPED`, or panics if `CI` is set.
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

/// The longest time for the start of an engine or of a container.
const PATIENCE: Duration = Duration::from_secs(30);

/// The answer of each container.
const HELLO: &str = "hello\n";

/// A script that starts a Docker Engine with private mounts and processes. The engine leaves nothing behind, and does
/// not touch a Docker Engine of the machine.
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
    /// The process of unshare(1). `first` is the pid of the first process inside. If the first process ends, all others
    /// end.
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

    /// Runs a program in the namespaces of the engine.
    fn run(&self, program: &str, arguments: &[&str]) -> Said {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first, "--mount", "--pid", "--", program]).args(arguments);
        command.env("PATH", PATH).env("HOME", self.home.path()).env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT");
        self.net.in_host(|| command.output().expect("nsenter is installed").into())
    }

    fn docker(&self, arguments: &[&str]) -> Said {
        self.run("docker", arguments)
    }

    /// Runs docker(1) and returns its stdout. Panics if docker(1) fails.
    fn done(&self, arguments: &[&str]) -> String {
        let said = self.docker(arguments);
        assert_eq!(said.code, 0, "docker {arguments:?}: {said:?}");
        said.stdout.trim().to_owned()
    }

    /// Runs a container that answers `hello` at its port 80, and publishes the port as `published`. Waits until clients
    /// get the answer.
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

    /// Imports the image of the containers. The image contains only busybox.
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

    /// Returns the view of `audit`. Panics if a rule belongs neither to Docker nor to portfwd.
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

/// Removes a control group and the groups inside. No process is in them any more.
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

/// Checks that the rules are the same, and that no counter is lower than before.
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
    // Docker creates the bridge `docker0` itself, so the test deletes it first.
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
    let desired = |port: &str| ["192.0.2.1", "[2001:db8::1]"].map(|host| net.tcp(&format!("{host}:{port}")));
    let same = |before: &Saved| {
        assert_eq!(desired("8080"), [HELLO; 2]);
        same_or_counted_on(&engine.theirs(), before);
    };
    engine.portfwd(&["add", "9090", &format!("{container}:80")]);
    same(&before);
    engine.portfwd(&["add", "[2001:db8::1]:9090", &format!("[{in_ipv6}]:80")]);
    same(&before);
    assert_eq!(desired("9090"), [HELLO; 2]);
    // The network `docker0` of [`SET`] is Docker's own. Docker gives the first container the address to which the set
    // forwards port 80.
    let set = file(&engine.home, SET).to_string_lossy().into_owned();
    engine.portfwd(&["apply", &set]);
    same(&before);
    assert_eq!(hooks(&engine.saved()), HOOKS);
    assert_eq!(net.tcp("192.0.2.1:80"), HELLO);
    // Docker can publish another container. Only IPv4 is used: with ip6tables-legacy, Docker 20.10 publishes one
    // container only.
    engine.publish("second", "192.0.2.1:8081:80", &["192.0.2.1:8081"]);
    let both = engine.theirs();
    assert_ne!(both, before);
    let view = engine.audited();
    assert_eq!(view.targets("docker").len(), 3, "{view:#?}");
    assert!(published.iter().all(|target| view.targets("docker").contains(target.as_str())), "{view:#?}");
    assert!(view.targets("portfwd").contains(published[0].as_str()), "{view:#?}");
    engine.portfwd(&["rm", "9090"]);
    same(&both);
    assert_eq!(desired("9090"), ["ConnectionRefused", HELLO]);
    assert_eq!(net.tcp("192.0.2.1:8081"), HELLO);
    engine.done(&["rm", "--force", "second"]);
    let one = engine.theirs();
    engine.portfwd(&["flush"]);
    same(&one);
    assert_eq!(desired("9090"), ["ConnectionRefused"; 2]);
    assert!(!format!("{:?}", engine.saved()).contains("PORTFWD"));
}

#[test]
fn a_live_docker_engine_keeps_its_rules_and_containers() {
    live_docker(Variant::Nft);
}

#[test]
fn a_live_docker_engine_with_iptables_legacy_keeps_its_rules_and_containers() {
    live_docker(Variant::Legacy);
}
