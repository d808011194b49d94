use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use expect_test::expect_file;
use portfwd::iptables::command::Variant;
use portfwd::lab::{Links, Netns};

use crate::support::{BOTH, PORTFWD, Said, bind, feed, privileged, root};

/// A host with the rules of another program. Its addresses are 192.0.2.1, 192.0.2.10, 2001:db8::1 and 2001:db8::10.
pub struct Peer {
    namespace: Netns,
    state: tempfile::TempDir,
}

/// A row in the output of `audit`, without handles and counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub owner: String,
    pub to: String,
    pub sure: bool,
    /// The whole row as text.
    pub words: String,
    /// The row as text, without the parts that only the kernel or only a dump contains.
    comparable: String,
    /// The sort keys of a row from a map: the map, then the element. Rows outside of maps have no keys.
    ///
    /// The test sorts rows from maps, because the kernel's order of map elements is undefined.
    mapped: Option<[String; 2]>,
}

impl Row {
    fn new(row: &serde_json::Value) -> Self {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let list = |name: &str| -> Vec<String> {
            let all = row[name].as_array().into_iter().flatten();
            all.map(|one| one.as_str().unwrap_or_default().to_owned()).collect()
        };
        let hooks: Vec<&str> =
            row["hooks"].as_array().into_iter().flatten().filter_map(|at| at["hook"].as_str()).collect();
        let family = row["family"].as_str().unwrap_or("both").to_owned();
        let mut parts = vec![text("owner"), family, text("action")];
        for (word, name) in [
            ("", "protocol"),
            ("to", "address"),
            ("at", "ports"),
            ("in", "interface"),
            ("out", "output"),
            ("from", "from"),
        ] {
            if !row[name].is_null() {
                parts.push(format!("{word} {}", text(name)).trim_start().to_owned());
            }
        }
        let sure = row["sure"].as_bool().expect("a word");
        let conditions = list("conditions").join(" ");
        if !conditions.is_empty() {
            parts.push(format!("if {conditions}"));
        }
        let except = list("except");
        if !except.is_empty() {
            parts.push(format!("but {}", except.join("; ")));
        }
        parts.push(format!("-> {}", text("to")).trim_end().to_owned());
        parts.push(format!("({} in {} {})", hooks.join(" "), text("table"), text("chain")));
        if !sure {
            parts.push("?".into());
        }
        let words = parts.join(" ");
        let (table, chain) = (text("table"), text("chain"));
        let packets = ["family", "protocol", "address", "ports"].map(text).join(" ");
        let mapped = match chain.split_once("__") {
            _ if table.ends_with("crio-hostports") => {
                Some([format!("{table} {chain} {}", row["handle"]), words.clone()])
            }
            // Rows of services come before rows of node ports.
            _ if chain.starts_with("endpoint-") => {
                let of_node = text("ports").starts_with('3');
                Some([format!("{table} {of_node}"), format!("{packets} {chain}")])
            }
            Some((kind, bridge)) if table.ends_with("docker-bridges") => {
                Some([format!("{table} {kind}"), bridge.into()])
            }
            _ => None,
        };
        let comparable = without_unknown(&words);
        Self { owner: text("owner"), to: text("to"), sure, words, comparable, mapped }
    }
}

/// Replaces unknown expressions in brackets with `[…]`, because the kernel and a dump name them differently.
fn without_unknown(text: &str) -> String {
    let mut depth = 0_usize;
    let mut out = String::new();
    for (at, letter) in text.char_indices() {
        // IPv6 addresses are in brackets too, but they are not replaced.
        let address = text[at..].split(']').next().is_some_and(|inner| inner.contains("::") && !inner.contains(' '));
        match letter {
            '[' if !address => depth += 1,
            ']' if depth > 0 => {
                depth -= 1;
                out.push_str("[…]");
            }
            _ if depth > 0 => {}
            letter => out.push(letter),
        }
    }
    // The kernel reports several unknown expressions as one, so neighbouring `[…]` become one.
    while out.contains("[…] […]") {
        out = out.replace("[…] […]", "[…]");
    }
    out
}

/// The forwards and the source rules that `audit` lists.
#[derive(Debug, Clone)]
pub struct View {
    pub forwards: Vec<Row>,
    pub sources: Vec<Row>,
    /// The parts of the ruleset that `audit` could not read.
    unknown: Vec<String>,
}

impl View {
    /// Parses the output of `audit --json`. Panics if the command failed.
    pub fn new(said: &Said) -> Self {
        assert_eq!(said.code, 0, "{said:?}");
        let all: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
        let rows = |name: &str| {
            let mut rows: Vec<Row> = all[name].as_array().expect("rows").iter().map(Row::new).collect();
            let shared = |row: &Row| row.mapped.as_ref().map(|[shared, _]| shared.clone());
            for same in rows.chunk_by_mut(|one, next| shared(one).is_some() && shared(one) == shared(next)) {
                same.sort_by(|one, other| one.mapped.cmp(&other.mapped));
            }
            rows
        };
        let (forwards, sources) = (rows("forwards"), rows("sources"));
        // No dump contains the facts of a host.
        let unknown = all["unknown"].as_array().expect("a list").iter().filter(|gap| gap["kind"] != "facts");
        let unknown = unknown.map(ToString::to_string).collect();
        Self { forwards, sources, unknown }
    }

    fn words(&self) -> String {
        let lines = |rows: &[Row]| rows.iter().map(|row| format!("{}\n", row.words)).collect::<String>();
        format!("{}\n{}", lines(&self.forwards), lines(&self.sources))
    }

    /// Returns the rows without the parts that only the kernel or only a dump contains.
    fn comparable(&self) -> [Vec<&str>; 2] {
        [&self.forwards, &self.sources].map(|rows| {
            let mut comparable: Vec<&str> = rows.iter().map(|row| row.comparable.as_str()).collect();
            comparable.dedup();
            comparable
        })
    }

    /// Returns the targets of an owner's forwards, without duplicates.
    pub fn targets(&self, owner: &str) -> BTreeSet<&str> {
        self.forwards.iter().filter(|row| row.owner == owner).map(|row| row.to.as_str()).collect()
    }
}

impl Peer {
    fn new() -> Self {
        let peer = Self { namespace: Netns::new().expect("namespace"), state: tempfile::tempdir().expect("directory") };
        peer.run_inside(|| {
            let links = Links::open().expect("rtnetlink");
            links.up("lo").expect("up");
            links.bridge("eth0").expect("bridge");
            links.up("eth0").expect("up");
            for (address, length) in [("192.0.2.1", 24), ("192.0.2.10", 24), ("2001:db8::1", 64), ("2001:db8::10", 64)]
            {
                links.address("eth0", address.parse().expect("address"), length).expect("address");
                // A tentative IPv6 address is not local yet, so the test waits.
                bind(|| std::net::UdpSocket::bind((address, 0)));
            }
        });
        peer
    }

    fn run_inside<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(job).expect("the host's namespace")
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Said {
        let mut command = Command::new(program);
        command.args(arguments).env_remove("SSH_CONNECTION");
        self.run_inside(|| command.output().expect("the program starts").into())
    }

    fn view(&self, files: &[&str]) -> View {
        let state = self.state.path().join("state").to_string_lossy().into_owned();
        let view = View::new(&self.run(PORTFWD, &[&["--state-dir", &state, "audit", "--json"], files].concat()));
        assert!(view.unknown.is_empty(), "{:#?}", view.unknown);
        view
    }

    /// Returns the view of dumps. Each entry has a file name, and the program and arguments that print the dump.
    fn dump_view(&self, dumps: &[(&str, &str, &[&str])]) -> View {
        let files: Vec<String> = dumps
            .iter()
            .map(|(name, program, arguments)| {
                let said = self.run(program, arguments);
                assert_eq!(said.code, 0, "{program}: {said:?}");
                let path = self.state.path().join(name);
                std::fs::write(&path, said.stdout).expect("written");
                path.to_string_lossy().into_owned()
            })
            .collect();
        self.view(&files.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

fn path(name: &str) -> PathBuf {
    root().join("tests/audit/peers").join(name)
}

fn read(path: &PathBuf) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the DNAT targets in recorded rules.
fn targets_in_text(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        for word in ["--to-destination ", "dnat to ", "dnat ip to ", "dnat ip6 to "] {
            let target = line.split_once(word).and_then(|(_, rest)| rest.split(' ').next());
            found.extend(target.filter(|target| target.contains(|one: char| one.is_ascii_digit())).map(str::to_owned));
        }
        // Map elements such as `tcp . 8080 : 10.85.0.2 . 80` contain targets too.
        if line.contains("elements =") {
            let targets = line.split(',').filter_map(|element| element.split_once(" : "));
            for (address, port) in targets.filter_map(|(_, to)| to.trim_end_matches([' ', '}']).split_once(" . ")) {
                found.insert(if address.contains(':') {
                    format!("[{address}]:{port}")
                } else {
                    format!("{address}:{port}")
                });
            }
        }
    }
    found
}

/// Checks that a view equals the recorded rows, contains all targets of the rules, and has the right owners.
fn check_view(view: &View, name: &str, texts: &[String], owner: &str, user_targets: &[&str]) {
    expect_file![path(&format!("{name}.rows"))].assert_eq(&view.words());
    let users: BTreeSet<&str> = user_targets.iter().copied().collect();
    assert_eq!(view.targets("user"), users, "{name}");
    let mut all: BTreeSet<String> = view.targets(owner).into_iter().map(str::to_owned).collect();
    all.extend(users.into_iter().map(str::to_owned));
    // A redirect has no target address, because its target is this host.
    all.retain(|target| !target.starts_with(':'));
    let written: BTreeSet<String> = texts.iter().flat_map(|text| targets_in_text(text)).collect();
    assert_eq!(all, written, "{name}: {}", view.words());
    let strange = |row: &&Row| row.owner != owner && row.owner != "user";
    let strangers: Vec<&Row> = view.forwards.iter().chain(&view.sources).filter(strange).collect();
    assert!(strangers.is_empty(), "{name}: {strangers:#?}");
}

/// Tests recorded nft(8) rules: from the kernel, and from a dump of `nft -j list ruleset`.
fn test_nft(name: &str, owner: &str) {
    if !privileged() {
        return;
    }
    let file = path(&format!("{name}.nft"));
    let peer = Peer::new();
    peer.run_inside(|| feed("nft", &["-f", "-"], &read(&file)));
    let live = peer.view(&[]);
    check_view(&live, name, &[read(&file)], owner, &[]);
    for arguments in [&["-j", "list", "ruleset"][..], &["-a", "list", "ruleset"], &["-s", "-a", "list", "ruleset"]] {
        let dumped = peer.dump_view(&[("rules", "nft", arguments)]);
        assert_eq!(dumped.comparable(), live.comparable(), "{name} {arguments:?}");
    }
}

/// Tests recorded iptables(8) rules with both variants: from the kernel, and from a dump of iptables-save.
fn test_iptables(name: &str, files: &[&str], owner: &str, user_targets: &[&str]) {
    if !privileged() {
        return;
    }
    let texts: Vec<String> = files.iter().map(|file| read(&root().join("tests").join(file))).collect();
    for variant in BOTH {
        let peer = Peer::new();
        let program = |word: &str, rest: &str| format!("{word}-{}-{rest}", variant.name());
        for (file, text) in files.iter().zip(&texts) {
            let word = if file.contains("v6") { "ip6tables" } else { "iptables" };
            peer.run_inside(|| feed(&program(word, "restore"), &["-w", "20"], text));
        }
        let live = peer.view(&[]);
        if variant == Variant::Legacy {
            check_view(&live, name, &texts, owner, user_targets);
        }
        let [four, six] = ["iptables", "ip6tables"].map(|word| program(word, "save"));
        let all: [(&str, &str, &[&str]); 2] = [("iptables.save", &four, &[]), ("ip6tables.save", &six, &[])];
        let dumps: Vec<_> =
            all.into_iter().filter(|(_, program, _)| !peer.run(program, &[]).stdout.is_empty()).collect();
        let dumped = peer.dump_view(&dumps);
        assert_eq!(dumped.comparable(), live.comparable(), "{name}, {}", variant.name());
        let programs = ["iptables", "ip6tables"].map(|word| format!("{word}-{}", variant.name()));
        let tables: [[&str; 3]; 3] = ["filter", "nat", "mangle"].map(|table| ["-t", table, "-S"]);
        let names: Vec<String> =
            programs.iter().flat_map(|program| tables.map(|[_, table, _]| format!("{program}.{table}"))).collect();
        let all = programs.iter().flat_map(|program| tables.iter().map(move |table| (program.as_str(), &table[..])));
        let dumps: Vec<_> =
            names.iter().zip(all).map(|(name, (program, table))| (name.as_str(), program, table)).collect();
        let listed = peer.dump_view(&dumps);
        // `iptables -S` does not print its variant.
        let tables = |view: &View| {
            let word = |row: &&str| row.replace("ip6tables-legacy", "ip6").replace("iptables-legacy", "ip");
            view.comparable().map(|rows| rows.iter().map(word).collect::<Vec<_>>())
        };
        assert_eq!(tables(&listed), tables(&live), "{name}, {} -S", variant.name());
    }
}

#[test]
fn audit_lists_the_iptables_rules_of_docker() {
    let files = ["audit/peers/docker-iptables.v4.save", "audit/peers/docker-iptables.v6.save"];
    test_iptables("docker-iptables", &files, "docker", &["10.9.9.9:22"]);
}

#[test]
fn audit_lists_the_iptables_rules_of_docker_20() {
    test_iptables("docker-20", &["neighbours/docker.v4", "neighbours/docker.v6"], "docker", &[]);
}

#[test]
fn audit_lists_the_nftables_rules_of_docker() {
    test_nft("docker-nftables", "docker");
}

#[test]
fn audit_lists_the_iptables_rules_of_netavark() {
    let files = ["audit/peers/netavark-iptables.v4.save", "audit/peers/netavark-iptables.v6.save"];
    test_iptables("netavark-iptables", &files, "podman", &[]);
}

#[test]
fn audit_lists_the_nftables_rules_of_netavark() {
    test_nft("netavark-nftables", "podman");
}

#[test]
fn audit_lists_the_iptables_rules_of_cni_portmap() {
    let files = ["audit/peers/cni-iptables.v4.save", "audit/peers/cni-iptables.v6.save"];
    test_iptables("cni-iptables", &files, "cni", &[]);
}

#[test]
fn audit_lists_the_nftables_rules_of_cni_portmap() {
    test_nft("cni-nftables", "cni");
}

#[test]
fn audit_lists_the_iptables_rules_of_crio_hostports() {
    test_iptables("crio-iptables", &["audit/peers/crio-iptables.v4.save"], "cri-o", &[]);
}

#[test]
fn audit_lists_the_nftables_rules_of_crio_hostports() {
    test_nft("crio-nftables", "cri-o");
}

#[test]
fn audit_lists_the_iptables_rules_of_kube_proxy() {
    test_iptables("kube-proxy-iptables", &["audit/peers/kube-proxy-iptables.v4.save"], "kube-proxy", &[]);
}

#[test]
fn audit_lists_the_nftables_rules_of_kube_proxy() {
    test_nft("kube-proxy-nftables", "kube-proxy");
}

#[test]
fn audit_lists_the_iptables_rules_of_firewalld() {
    test_iptables("firewalld-iptables", &["neighbours/firewalld.v4", "neighbours/firewalld.v6"], "firewalld", &[]);
}

#[test]
fn audit_lists_the_nftables_rules_of_firewalld() {
    test_nft("firewalld", "firewalld");
}

#[test]
fn ufw_has_only_the_nat_rules_of_its_user() {
    test_iptables("ufw", &["neighbours/ufw.v4", "neighbours/ufw.v6"], "ufw", &["10.10.10.2:80"]);
}

#[test]
fn audit_lists_the_iptables_rules_of_libvirt() {
    test_iptables("libvirt-iptables", &["audit/peers/libvirt-iptables.v4.save"], "libvirt", &["192.168.122.10:22"]);
}

#[test]
fn audit_lists_the_nftables_rules_of_libvirt() {
    test_nft("libvirt-nftables", "libvirt");
}

#[test]
fn audit_lists_the_nftables_rules_of_fw4() {
    test_nft("fw4", "fw4");
}

#[test]
fn audit_lists_the_nftables_rules_of_incus() {
    test_nft("incus", "incus");
}
