use std::fmt::Write as _;
use std::net::TcpListener;
use std::process::Command;

use crate::durable::store;
use crate::support::{Net, PORTFWD, file, privileged, root};

/// Returns a rule set with a network, `count` forwards from port 10,001 on, and three forwards of other kinds.
fn many(count: u16) -> String {
    let mut text = "[[network]]\nname = \"docker0\"\nsubnet = [\"172.17.0.0/16\"]\n".to_owned();
    let mut forward = |listen: &str, to: &str, more: &str| {
        write!(text, "[[forward]]\nlisten = \"{listen}\"\nto = \"{to}\"\n{more}").expect("written");
    };
    for port in 0..count {
        forward(&(10_001 + port).to_string(), "172.17.0.3:80", "");
    }
    forward("8000-8100", "172.17.0.4", "");
    forward("192.0.2.1:53/udp", "10.0.0.1", "from = [\"198.51.100.0/24\"]\n");
    forward("[2001:db8::1]:443", "[fd00::1]", "source = \"masquerade\"\n");
    text
}

/// Returns a network whose host has `count` simple forwards and three other forwards.
fn busy(count: u16) -> Net {
    let net = Net::new();
    net.ok(&["apply", &file(&net.state, &many(count)).to_string_lossy()]);
    net
}

/// Returns the lines of `portfwd list` that report missing or foreign rules.
fn differences(net: &Net) -> Vec<String> {
    let list = net.ok(&["list"]);
    let differs = |line: &&str| ["missing", "foreign"].iter().any(|word| line.contains(word));
    list.stdout.lines().chain(list.stderr.lines()).filter(differs).map(str::to_owned).collect()
}

/// Checks that the live rules equal the desired state, and that `restore` makes the same rules from the stored state.
fn whole(net: &Net) {
    assert_eq!(differences(net), [""; 0]);
    assert_eq!(net.ok(&["restore"]).stdout, "unchanged\n");
    let elements = || {
        let said = net.nft(&["-s", "list", "ruleset"]).stdout;
        let mut words: Vec<String> = said.split([' ', ',', '\n', '\t']).map(str::to_owned).collect();
        words.retain(|word| !word.is_empty());
        words.sort_unstable();
        words
    };
    let before = elements();
    net.nft(&["flush", "ruleset"]);
    net.ok(&["restore"]);
    assert!(elements() == before, "what was restored differs");
}

/// Counts the system calls of a command.
fn calls(net: &Net, arguments: &[&str]) -> usize {
    // Every command reads SQLite's log, and its length depends on earlier commands. So the test first empties the log.
    let checkpoint = |database: rusqlite::Connection| database.query_row("PRAGMA wal_checkpoint", [], |_| Ok(()));
    rusqlite::Connection::open(store(net)).and_then(checkpoint).expect("the log is empty");
    let log = net.state.path().join("calls");
    let run = || {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o"]).arg(&log).arg(PORTFWD).arg("--state-dir").arg(net.state.path());
        command.args(arguments).current_dir(root()).env_remove("SSH_CONNECTION").output().expect("strace is installed")
    };
    let said = net.in_host(run);
    assert!(said.status.success(), "{said:?}");
    std::fs::read_to_string(&log).expect("readable").lines().count()
}

#[test]
fn add_takes_as_many_system_calls_on_a_large_host_as_on_a_small_one() {
    if !privileged() {
        return;
    }
    let [few, thousands] = [1_500, 15_000].map(|count| {
        let net = busy(count);
        net.ok(&["add", "1000", "172.17.0.3:80"]);
        let taken = calls(&net, &["add", "1001", "172.17.0.3:80"]);
        assert_eq!(net.ok(&["list"]).stdout.matches(" live ").count(), usize::from(count) + 5);
        taken
    });
    // A database tree with one more level costs one more page.
    assert!(thousands.abs_diff(few) <= 20, "{few} {thousands}");
    assert!(few < 600, "{few}");
}

#[test]
fn every_kind_of_forward_can_be_added_to_many_forwards() {
    if !privileged() {
        return;
    }
    let net = busy(1_200);
    let adds: &[&[&str]] = &[
        &["1000", "172.17.0.3:80"],
        &["1000", "172.17.0.3:80"],
        &["1000", "172.17.0.3:80", "--comment", "web"],
        &["1000/udp", "10.0.0.1"],
        &["1001,1003-1009", "10.0.0.1"],
        &["2000-2999", "172.17.0.3", "--set", "other"],
        &["3000-3100", "10.0.0.1:4000-4100"],
        &["192.0.2.1:1000", "172.17.0.4:80", "-i", "eth0"],
        &["1000", "172.17.0.4:80", "--from", "203.0.113.0/24"],
        &["1000", "172.17.0.4:81", "--from", "203.0.113.0/25", "--set", "other"],
        &["1010", "10.0.0.1", "--source", "192.0.2.1"],
        &["1011", "10.0.0.1", "--source", "192.0.2.1", "--no-hairpin"],
        &["1012", ":22", "-p", "tcp", "-p", "sctp"],
        &["[2001:db8::1]:1013", "[fd00:17::3]:80"],
        &["1014", "172.17.0.3:80", "--loopback"],
        &["1015", "172.17.0.3:80"],
    ];
    for add in adds {
        net.ok(&[&["add"][..], add].concat());
        let list = net.ok(&["list"]);
        assert!(!["missing", "foreign"].iter().any(|word| list.stdout.contains(word)), "{add:?}: {list:?}");
        assert_eq!(
            net.ok(&["restore", "--dry-run"]).stdout,
            "0 to add, 0 to change, 0 to remove (dry run)\n",
            "{add:?}"
        );
    }
    whole(&net);
    for gone in [&["1000"][..], &["2000-2999", "--set", "other"], &["[2001:db8::1]:1013"], &["1014"]] {
        net.ok(&[&["rm"][..], gone].concat());
    }
    net.ok(&["add", "1016", "172.17.0.3:80"]);
    whole(&net);
}

#[test]
fn add_finds_a_conflict_among_many_forwards() {
    if !privileged() {
        return;
    }
    let net = busy(1_200);
    net.ok(&["add", "2000-2999", "172.17.0.3", "--set", "other"]);
    let before = net.nft(&["list", "ruleset"]).stdout;
    for (listen, met) in [("10500", "10500/tcp"), ("2500-2510", "2000-2999/tcp"), ("8050-8200", "8000-8100/tcp")] {
        for set in ["cli", "other"] {
            let said = net.portfwd(&["add", listen, "172.17.0.9:1", "--set", set]);
            assert!(said.code == 6 && said.stderr.contains(met), "{listen} {set}: {said:?}");
        }
    }
    assert_eq!(net.nft(&["list", "ruleset"]).stdout, before);
    // A single port inside the range of another forward is no conflict.
    net.ok(&["add", "2500", "172.17.0.9:1"]);
    whole(&net);
}

#[test]
fn add_repairs_a_table_that_another_program_changed() {
    if !privileged() {
        return;
    }
    let net = busy(1_200);
    let all = |count: usize| assert_eq!(net.ok(&["list"]).stdout.matches(" live ").count(), 1_203 + count);
    for (number, (what, arguments)) in [
        ("all", &["flush", "ruleset"][..]),
        ("a chain", &["flush", "chain", "inet", "portfwd", "nat-prerouting"]),
        ("a map more", &["add", "map", "inet", "portfwd", "strange", "{ type ipv4_addr : ipv4_addr; }"]),
        ("asleep", &["add", "table", "inet", "portfwd", "{ flags dormant; }"]),
    ]
    .into_iter()
    .enumerate()
    {
        let done = net.nft(arguments);
        assert_eq!(done.code, 0, "{what}: {done:?}");
        net.ok(&["add", &(1_000 + number).to_string(), "172.17.0.3:80"]);
        all(number + 1);
        whole(&net);
    }
}

#[test]
fn a_connection_follows_its_forward_among_many_forwards() {
    if !privileged() {
        return;
    }
    let net = busy(1_200);
    net.serve("172.17.0.3:80", true);
    net.serve("172.17.0.4:80", true);
    net.ok(&["add", "53/udp", "172.17.0.3:80"]);
    net.ok(&["add", "54/udp", "172.17.0.3:80"]);
    let client = net.client.run(|| std::net::UdpSocket::bind("0.0.0.0:0").expect("bind")).expect("client");
    client.set_read_timeout(Some(std::time::Duration::from_secs(2))).expect("set");
    let ask = |to: &str| {
        client.send_to(b"?", to).expect("sent");
        let mut text = [0; 64];
        let length = client.recv(&mut text).expect("answered");
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    assert_eq!(ask("192.0.2.1:53"), "172.17.0.3:80 saw 192.0.2.2");
    assert_eq!(ask("192.0.2.1:54"), "172.17.0.3:80 saw 192.0.2.2");
    // A forward with higher precedence takes a connection over. A forward with lower precedence takes none.
    let said = net.ok(&["add", "192.0.2.1:53/udp", "172.17.0.4:80"]);
    assert!(said.stderr.contains("dropped 1 tracked connection"), "{said:?}");
    assert_eq!(ask("192.0.2.1:53"), "172.17.0.4:80 saw 192.0.2.2");
    let said = net.ok(&["add", "50-60/udp", "172.17.0.4:80"]);
    assert!(!said.stderr.contains("dropped"), "{said:?}");
    assert_eq!(ask("192.0.2.1:54"), "172.17.0.3:80 saw 192.0.2.2");
    whole(&net);
}

#[test]
fn a_forward_of_a_port_in_use_is_refused_among_many_forwards() {
    if !privileged() {
        return;
    }
    let net = busy(1_200);
    let listen = |at: &str| net.in_host(|| TcpListener::bind(at).expect("bind"));
    let _sockets = [listen("0.0.0.0:8050"), listen("0.0.0.0:2222")];
    let said = net.portfwd(&["add", "2222", "172.17.0.3:22"]);
    assert!(said.code == 6 && said.stderr.contains("`0.0.0.0:2222/tcp`"), "{said:?}");
    // The forward of 8000-8100 already takes port 8050, so portfwd allows the new forward.
    net.ok(&["add", "8050", "172.17.0.3:22"]);
    net.ok(&["add", "2222", "172.17.0.3:22", "--force"]);
    whole(&net);
}

/// Writes a rule set of `count` forwards from port `first` on, with the given name. Returns the path of the file.
fn small(net: &Net, name: &str, first: u16, count: u16, to: &str) -> String {
    let path = net.state.path().join(format!("{name}.toml"));
    let forward = |port: u16| format!("[[forward]]\nlisten = \"{port}\"\nto = \"{to}\"\n");
    std::fs::write(&path, (first..first + count).map(forward).collect::<String>()).expect("written");
    path.to_string_lossy().into_owned()
}

#[test]
fn apply_of_a_small_set_costs_the_same_on_large_and_small_hosts() {
    if !privileged() {
        return;
    }
    let [few, thousands] = [1_500, 15_000].map(|count| {
        let net = busy(count);
        let first = calls(&net, &["apply", &small(&net, "web", 1_000, 206, "172.17.0.3:80")]);
        let again = calls(&net, &["apply", &small(&net, "web", 1_000, 206, "172.17.0.3:80")]);
        // This `apply` removes three forwards, adds three, and changes the targets of the remaining forwards. One
        // changed element represents their rule shape.
        let other = calls(&net, &["apply", &small(&net, "web", 1_003, 206, "172.17.0.4:80")]);
        let list = net.ok(&["list"]).stdout;
        assert_eq!(list.matches(" live ").count(), usize::from(count) + 3 + 206);
        assert_eq!(list.matches(" 172.17.0.4:80 ").count(), 206);
        whole(&net);
        [first, again, other]
    });
    // The number of threads and the calls of the allocator differ between runs.
    let close = |(few, thousands): (&usize, &usize)| few.abs_diff(*thousands) * 8 < *few;
    assert!(few.iter().zip(&thousands).all(close), "{few:?} {thousands:?}");
}

#[test]
fn a_small_set_that_conflicts_with_a_large_set_is_refused() {
    if !privileged() {
        return;
    }
    let net = busy(1_200);
    net.ok(&["apply", &small(&net, "web", 1_000, 20, "172.17.0.3:80")]);
    let before = net.nft(&["list", "ruleset"]).stdout;
    let said = net.portfwd(&["apply", &small(&net, "web", 9_990, 20, "172.17.0.3:80")]);
    assert!(said.code == 6 && said.stderr.contains("`10001/tcp` already goes to 172.17.0.3:80"), "{said:?}");
    let said = net.portfwd(&["apply", &small(&net, "other", 1_019, 1, "172.17.0.3:80")]);
    assert!(said.code == 6 && said.stderr.contains("`1019/tcp` already goes to 172.17.0.3:80"), "{said:?}");
    assert_eq!(net.nft(&["list", "ruleset"]).stdout, before);
    // A new version of a set does not conflict with the set's own old forwards.
    net.ok(&["apply", &small(&net, "web", 1_010, 20, "172.17.0.4:80")]);
    whole(&net);
}

#[test]
fn a_small_set_with_networks_and_source_rules_is_applied_correctly() {
    if !privileged() {
        return;
    }
    let net = busy(1_200);
    let path = small(&net, "web", 1_000, 2, "10.0.0.1:80");
    let with = |more: &str| {
        let forwards = "[[forward]]\nlisten = \"1000\"\nto = \"10.0.0.1\"\n";
        std::fs::write(&path, format!("{forwards}{more}")).expect("written");
        net.ok(&["apply", &path]);
        assert_eq!(differences(&net), [""; 0], "{more}");
        whole(&net);
    };
    // The targets of forwards in the other rule set are in this network.
    with("[[network]]\nname = \"br1\"\nsubnet = [\"10.0.0.0/8\"]\nchain = \"ELSEWHERE\"\n");
    with("[[masquerade]]\nfrom = \"10.9.0.0/24\"\n");
    with("[[forward]]\nlisten = \"1001-1100\"\nto = \"10.0.0.9:80\"\nsource = \"192.0.2.1\"\n");
    with("[[forward]]\nlisten = \"[2001:db8::1]:1001/udp\"\nto = \"[fd00::9]:80\"\ninterface = \"eth0\"\n");
    with("");
    std::fs::write(&path, "").expect("written");
    net.ok(&["apply", &path]);
    whole(&net);
}

#[test]
fn apply_of_a_small_set_repairs_drift_in_another_set() {
    if !privileged() {
        return;
    }
    let net = busy(1_200);
    let path = small(&net, "web", 1_000, 20, "172.17.0.3:80");
    net.ok(&["apply", &path]);
    let map = "DOCKER-ip-ports";
    let spoil = || {
        let done = net.nft(&["delete", "element", "inet", "portfwd", map, "{ tcp . 10500 }"]);
        assert_eq!(done.code, 0, "{done:?}");
    };
    for between in [None, Some("999")] {
        spoil();
        if let Some(port) = between {
            // `add` checks only its own forward, so the drift stays.
            net.ok(&["add", port, "172.17.0.3:80"]);
            assert_eq!(differences(&net).len(), 1);
        }
        assert_eq!(net.ok(&["apply", &path]).stdout, "1 added, 0 changed, 0 removed\n", "{between:?}");
        assert_eq!(differences(&net), [""; 0]);
    }
}

#[test]
fn add_repairs_drift_on_a_host_with_few_forwards() {
    if !privileged() {
        return;
    }
    let net = busy(20);
    for (port, spoil) in [
        ("999", &["delete", "element", "inet", "portfwd", "DOCKER-ip-ports", "{ tcp . 10005 }"][..]),
        ("998", &["flush", "chain", "inet", "portfwd", "nat-prerouting"]),
        ("997", &["flush", "ruleset"]),
    ] {
        net.ok(&["add", &format!("1{port}"), "172.17.0.3:80"]);
        assert_eq!(net.nft(spoil).code, 0, "{spoil:?}");
        net.ok(&["add", port, "172.17.0.3:80"]);
        assert_eq!(differences(&net), [""; 0], "{spoil:?}");
        whole(&net);
    }
}

/// If the kernel's answer to a batch is lost, the next change reads everything.
#[test]
fn the_next_change_repairs_a_batch_without_an_answer() {
    if !privileged() {
        return;
    }
    let net = busy(1_500);
    let path = small(&net, "second", 30_000, 20, "172.17.0.3");
    net.ok(&["apply", &path]);
    let told = net.state.path().to_string_lossy().into_owned();
    let mut unheard = 0;
    for when in 1..=60 {
        // Each round changes the target of the forwards. strace drops every netlink answer from the `when`-th on.
        let to = if when % 2 == 0 { "172.17.0.3" } else { "172.17.0.5" };
        let path = small(&net, "second", 30_000, 20, to);
        let inject = format!("inject=recvmsg:error=ENOBUFS:when={when}+");
        let ours = ["-f", "-qq", "-o", "/dev/null", "-e", &inject, PORTFWD, "--state-dir", &told, "apply", &path];
        let run = || Command::new("strace").args(ours).current_dir(root()).env_remove("SSH_CONNECTION").output();
        let output = net.in_host(run).expect("strace is installed");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "{when}: {said}");
        unheard += usize::from(said.contains("did not report whether it committed the batch"));
        net.ok(&["add", &(40_000 + when).to_string(), "172.17.0.3:80"]);
        assert_eq!(differences(&net), [""; 0], "{when}: {said}");
    }
    assert!(unheard >= 1, "{unheard}");
}
