use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use ::iptables::IPTables;
use portfwd::engine::{Choice, Engine, Options, Scope, Storage};
use portfwd::iptables::command::Variant;
use portfwd::store::{State, Unusable};

use crate::support::{BOTH, Net, PORTFWD, ask, examples, file, ours, portfwd, privileged};

/// Returns the crate `iptables` for one program of a variant, with a fixed path. The crate's own constructor searches
/// `PATH`.
///
/// The crate runs the program in the namespace of the calling thread. `is_numeric` stays false: otherwise the crate
/// adds `-n`, `-S` refuses `-n`, and the crate returns an empty list.
pub fn peer(word: &str, variant: Variant) -> IPTables {
    let cmd = match (word, variant) {
        ("iptables", Variant::Nft) => "/usr/sbin/iptables-nft",
        ("iptables", Variant::Legacy) => "/usr/sbin/iptables-legacy",
        ("ip6tables", Variant::Nft) => "/usr/sbin/ip6tables-nft",
        ("ip6tables", Variant::Legacy) => "/usr/sbin/ip6tables-legacy",
        _ => panic!("no program is called {word}"),
    };
    IPTables { cmd, has_check: true, has_wait: true, is_numeric: false }
}

/// Lists the rules of the tables that portfwd writes to. If the program failed, the crate returns a list without
/// policies.
pub fn listed(peer: &IPTables) -> Vec<String> {
    let list = |table| {
        let lines = peer.list_table(table).expect("the program starts");
        assert!(lines.contains(&"-P PREROUTING ACCEPT".to_owned()), "{table}: {lines:?}");
        lines.into_iter().map(move |line| format!("{table} {line}"))
    };
    ["nat", "mangle"].into_iter().flat_map(list).collect()
}

#[test]
fn examples_are_applied_listed_and_flushed() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    for variant in BOTH {
        for path in examples() {
            let path = path.to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).expect("readable");
            if text.contains("\npriority = ") {
                assert_eq!(net.try_chains(variant, &["apply", &path]).code, 5, "{path}");
                continue;
            }
            let said = net.chains(variant, &["-v", "apply", &path]);
            let word = if variant == Variant::Nft { "(nf_tables)" } else { "(legacy)" };
            assert!(said.stderr.contains("the backend is iptables v") && said.stderr.contains(word), "{said:?}");
            let planned = net.chains(variant, &["plan", "--detailed-exitcode", &path]);
            assert_eq!(planned.stdout, "0 to add, 0 to change, 0 to remove\n", "{variant:?} {path}");
            let list = net.chains(variant, &["list"]).stdout;
            assert!(list.contains("live") && !list.contains("missing") && !list.contains("foreign"), "{path}: {list}");
            let other = BOTH.into_iter().find(|other| *other != variant).expect("two");
            assert!(!net.saved(other).contains("PORTFWD"), "{variant:?} {path}");
            net.chains(variant, &["flush"]);
            assert!(!net.saved(variant).contains("PORTFWD"), "{variant:?} {path}");
        }
    }
    // The iptables backend made no table in nftables.
    assert!(!net.nft(&["list", "tables"]).stdout.contains("portfwd"));
}

#[test]
fn a_forward_works_from_add_to_rm_with_iptables() {
    if !privileged() {
        return;
    }
    for variant in BOTH {
        let net = Net::new();
        net.serve("172.17.0.3:80", false);
        net.serve("[fd00:17::3]:80", false);
        assert_eq!(net.tcp("192.0.2.1:8080"), "ConnectionRefused");
        net.chains(variant, &["add", "8080", "172.17.0.3:80", "--comment", "it's $(id) \\ `x`"]);
        net.chains(variant, &["add", "8080", "[fd00:17::3]:80"]);
        assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
        assert_eq!(net.tcp("[2001:db8::1]:8080"), "[fd00:17::3]:80 saw 2001:db8::2");
        // The counters stay when portfwd adds another forward to the same chain.
        net.chains(variant, &["add", "8081", "172.17.0.3:80"]);
        let list = net.chains(variant, &["list", "--json"]).stdout;
        assert_eq!(list.matches(r#""packets":1,"#).count(), 2, "{list}");
        assert!(list.contains(r#""generation":null"#) && list.contains(r#""comment":"it's $(id) \\ `x`""#), "{list}");
        let again = net.chains(variant, &["add", "8081", "172.17.0.3:80"]);
        assert!(again.stdout.starts_with("unchanged "), "{again:?}");
        net.chains(variant, &["rm", "8080", "8081"]);
        assert_eq!(net.tcp("192.0.2.1:8080"), "ConnectionRefused");
        assert!(!net.saved(variant).contains("PORTFWD"));
    }
}

#[test]
fn the_crate_iptables_finds_the_forward_and_the_foreign_rules() {
    if !privileged() {
        return;
    }
    for variant in BOTH {
        let net = Net::new();
        let other = BOTH.into_iter().find(|other| *other != variant).expect("two");
        let both = |job: &(dyn Fn(&str) + Sync)| net.in_host(|| ["iptables", "ip6tables"].into_iter().for_each(job));
        both(&|word| {
            let peer = peer(word, variant);
            peer.new_chain("nat", "NEIGHBOUR").expect("made");
            peer.append("nat", "NEIGHBOUR", "-p tcp -m tcp --dport 22 -j RETURN").expect("appended");
            peer.insert("nat", "PREROUTING", "-j NEIGHBOUR", 1).expect("inserted");
            peer.set_policy("mangle", "FORWARD", "DROP").expect("set");
        });
        let foreign = |word| net.in_host(|| listed(&peer(word, variant)));
        let before = ["iptables", "ip6tables"].map(foreign);
        net.chains(variant, &["add", "8080", "172.17.0.3:80"]);
        net.chains(variant, &["add", "8080", "[fd00:17::3]:80"]);
        both(&|word| {
            let peer = peer(word, variant);
            let to = if word == "iptables" { "172.17.0.3:80" } else { "[fd00:17::3]:80" };
            // ip6tables-legacy 1.8.9 compares no ports and no addresses for `exists`, so the test lists the chain.
            let rule = format!("-A PORTFWD-forwards -p tcp -m tcp --dport 8080 -j DNAT --to-destination {to}");
            let forwards = peer.list("nat", "PORTFWD-forwards").expect("the program starts");
            assert_eq!(forwards, ["-N PORTFWD-forwards", &rule], "{variant:?} {word}");
            let exists = |rule| peer.exists("nat", "NEIGHBOUR", rule).expect("the program starts");
            assert!(exists("-p tcp -m tcp --dport 22 -j RETURN") && !exists("-j RETURN"), "{variant:?} {word}");
            assert!(peer.chain_exists("nat", "PORTFWD.PREROUTING").expect("the program starts"));
            let chain = peer.list("nat", "PREROUTING").expect("the program starts");
            let jumps = ["-P PREROUTING ACCEPT", "-A PREROUTING -j PORTFWD.PREROUTING", "-A PREROUTING -j NEIGHBOUR"];
            assert_eq!(chain, jumps, "{variant:?} {word}");
            assert_eq!(peer.get_policy("mangle", "FORWARD").expect("a policy"), "DROP");
        });
        both(&|word| {
            let lines = listed(&peer(word, other));
            assert!(lines.iter().all(|line| line.contains(" -P ")), "{other:?} {word}: {lines:?}");
        });
        net.chains(variant, &["flush"]);
        assert_eq!(["iptables", "ip6tables"].map(foreign), before, "{variant:?}");
        both(&|word| assert!(!peer(word, variant).chain_exists("nat", "PORTFWD.PREROUTING").expect("it starts")));
    }
}

#[test]
fn rules_that_iptables_cannot_express_are_refused_with_their_position() {
    let directory = tempfile::tempdir().expect("directory");
    for (text, what, at) in [
        ("[settings]\npriority = -110\n", "iptables cannot run at priority -110", ":2:"),
        (
            "[[forward]]\nlisten = \"80/udplite\"\nto = \"10.0.0.1:81\"\n",
            "changes the port, and iptables rewrites no ports of UDP-Lite",
            ":2:",
        ),
        (
            "[[forward]]\nlisten = \"80\"\nto = \"10.0.0.1\"\ninterface = \"eth+\"\n",
            "cannot name the interface `eth+`",
            ":2:",
        ),
        ("[[network]]\nname = \"!br\"\nsubnet = [\"10.0.0.0/24\"]\n", "cannot name the interface `!br`", ":2:"),
        ("[[masquerade]]\nout = \"a\\\"b\"\n", "cannot name the interface `a\"b`", ":1:1"),
    ] {
        let path = file(&directory, text);
        let path = path.to_string_lossy();
        let said = portfwd(&["--backend", "iptables", "check", &path]);
        assert_eq!(said.code, 5, "{text}: {said:?}");
        assert!(said.stderr.contains(what) && said.stderr.contains(at), "{text}: {said:?}");
        let with_nft = portfwd(&["--backend", "nft", "check", &path]);
        assert!(!with_nft.stderr.contains("iptables"), "{with_nft:?}");
    }
}

#[test]
fn plan_shows_drift_and_apply_repairs_it() {
    if !privileged() {
        return;
    }
    for variant in BOTH {
        let net = Net::new();
        let path = "rules/docker.toml";
        net.chains(variant, &["apply", path]);
        let whole = net.saved(variant);
        for (word, drift) in [
            ("iptables", "*nat\n-I PREROUTING 1 -p tcp -j ACCEPT\nCOMMIT\n"),
            ("iptables", "*nat\n-D PREROUTING -j PORTFWD.PREROUTING\nCOMMIT\n"),
            ("iptables", "*nat\n-A PREROUTING -j PORTFWD.PREROUTING\nCOMMIT\n"),
            ("ip6tables", "*nat\n:PORTFWD-DOCKER - [0:0]\nCOMMIT\n"),
            ("iptables", "*nat\n-A PORTFWD-DOCKER -p tcp -m tcp --sport 9 -j RETURN\nCOMMIT\n"),
            ("iptables", "*mangle\n-F FORWARD\n-F PORTFWD.FORWARD\n-X PORTFWD.FORWARD\nCOMMIT\n"),
            ("iptables", "*nat\n:PORTFWD-STRANGER - [0:0]\nCOMMIT\n"),
        ] {
            net.others(variant, word, drift);
            let planned = net.try_chains(variant, &["plan", "--detailed-exitcode", path]);
            assert_eq!(planned.code, 3, "{variant:?} {drift}: {planned:?}");
            net.chains(variant, &["apply", path]);
            let now = net.saved(variant);
            assert_eq!(ours(&now), ours(&whole), "{variant:?} {drift}");
            let chain: Vec<&str> = now.lines().filter(|line| line.starts_with("-A PREROUTING")).collect();
            assert_eq!(chain.first(), Some(&"-A PREROUTING -j PORTFWD.PREROUTING"), "{variant:?} {drift}");
        }
        // portfwd keeps the foreign rule.
        assert!(net.saved(variant).contains("-A PREROUTING -p tcp -j ACCEPT"));
    }
}

/// Connects repeatedly while `job` runs. Returns the number of correct answers, and all wrong answers.
fn while_connecting(net: &Net, job: impl FnOnce()) -> (u32, Vec<String>) {
    let (stop, right) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut wrong = Vec::new();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let connect = || {
                let mut wrong = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match ask("192.0.2.1:8080".parse().expect("address"), false).as_str() {
                        "172.17.0.3:80 saw 192.0.2.2" => drop(right.fetch_add(1, Ordering::Relaxed)),
                        other => wrong.push(other.to_owned()),
                    }
                }
                wrong
            };
            net.client.run(connect).expect("the client's namespace")
        });
        job();
        stop.store(true, Ordering::Relaxed);
        wrong = client.join().expect("ends");
    });
    (right.load(Ordering::Relaxed), wrong)
}

#[test]
fn a_change_of_the_backend_loses_no_connection() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    let set = file(&net.state, "[[forward]]\nlisten = \"8080\"\nto = \"172.17.0.3:80\"\n");
    let path = set.to_string_lossy();
    net.ok(&["--backend", "nft", "apply", &path]);
    let table = |net: &Net| net.nft(&["list", "tables"]).stdout.contains("inet portfwd");
    let (right, wrong) = while_connecting(&net, || {
        for _ in 0..3 {
            for variant in BOTH {
                let other = BOTH.into_iter().find(|other| *other != variant).expect("two");
                let said = net.chains(variant, &["apply", &path]);
                assert!(said.stderr.contains("note: removed the rules of portfwd from "), "{said:?}");
                assert!(net.saved(variant).contains("PORTFWD") && !net.saved(other).contains("PORTFWD"));
                assert!(!table(&net));
            }
            net.ok(&["--backend", "nft", "apply", &path]);
            assert!(table(&net) && !BOTH.into_iter().any(|variant| net.saved(variant).contains("PORTFWD")));
        }
    });
    assert_eq!(wrong, [""; 0], "{right} correct answers");
    assert!(right > 20, "{right}");
}

#[test]
fn no_connection_fails_during_a_change() {
    if !privileged() {
        return;
    }
    for variant in BOTH {
        let net = Net::new();
        net.serve("172.17.0.3:80", false);
        net.chains(variant, &["add", "8080", "172.17.0.3:80"]);
        let (right, wrong) = while_connecting(&net, || {
            for port in 9000..9010 {
                net.chains(variant, &["add", &port.to_string(), "172.17.0.3:80"]);
            }
        });
        assert_eq!(wrong, [""; 0], "{variant:?}: {right} correct answers");
        assert!(right > 20, "{right}");
    }
}

#[test]
fn portfwd_uses_iptables_if_the_kernel_has_no_nf_tables() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    let state = net.state.path().to_string_lossy().into_owned();
    // portfwd opens its first socket to find nf_tables. strace lets that call fail.
    let arguments = ["-o", "/dev/null", "-e", "inject=socket:error=EPROTONOSUPPORT:when=1", PORTFWD];
    let run = |ours: &[&str]| {
        net.with(Variant::Legacy, "", "strace", &[&arguments, &["--state-dir", &state][..], ours].concat())
    };
    let said = run(&["add", "8080", "172.17.0.3:80"]);
    assert_eq!(said.code, 0, "{said:?}");
    let note = "note: this kernel has no nf_tables; portfwd uses iptables-legacy instead";
    assert!(said.stderr.contains(note), "{said:?}");
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
    assert!(run(&["list"]).stdout.contains("live"));
    let asked_for = run(&["--backend", "nft", "list"]);
    assert_eq!(asked_for.code, 5, "{asked_for:?}");
}

#[test]
fn a_missing_nf_tables_feature_is_remembered() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let keep = |kernel: String| {
        net.in_host(|| {
            let mut engine =
                Engine::open(Storage::ReadWrite(net.state.path()), Choice::Nft, Scope::Full).expect("opens");
            let unusable = Some(Unusable { kernel, why: "the nf_tables of this kernel lacks a part of it".into() });
            let after = State { unusable, ..engine.state().clone() };
            engine.commit(after, Options::default()).expect("commits");
        });
    };
    let now = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("readable");
    keep(now.trim().to_owned());
    let said = net.ok(&["add", "80", "172.17.0.3"]);
    assert!(
        said.stderr.contains("note: the nf_tables of this kernel lacks a part of it; portfwd uses iptables-"),
        "{said:?}"
    );
    assert!(net.ok(&["list"]).stdout.contains("live") && !net.nft(&["list", "tables"]).stdout.contains("inet portfwd"));
    // A record of another kernel version does not count.
    keep("0.0".into());
    let said = net.ok(&["add", "81", "172.17.0.3"]);
    assert!(!said.stderr.contains("lacks"), "{said:?}");
    assert!(net.nft(&["list", "tables"]).stdout.contains("inet portfwd"));
}

#[test]
fn foreign_rules_in_portfwds_chains_are_reported() {
    if !privileged() {
        return;
    }
    for variant in BOTH {
        let net = Net::new();
        net.chains(variant, &["apply", "rules/quickstart.toml"]);
        assert_eq!(net.chains(variant, &["list"]).stderr, "");
        let foreign = [
            "*nat\n-I PORTFWD.PREROUTING 1 -p tcp --dport 80 -j DNAT --to-destination 6.6.6.6\nCOMMIT\n",
            "*nat\n-I PORTFWD.OUTPUT 1 -j RETURN\nCOMMIT\n",
            "*nat\n-A PORTFWD.POSTROUTING -j MASQUERADE\nCOMMIT\n",
            "*mangle\n-A PORTFWD.HAIRPIN -j DROP\nCOMMIT\n",
            "*mangle\n-A PORTFWD.FORWARD -s 192.0.2.4 -m mark --mark 1 -j DROP\nCOMMIT\n",
            "*nat\n:PORTFWD-evil - [0:0]\n-A PORTFWD-evil -j DROP\nCOMMIT\n",
        ];
        for text in foreign.iter().filter(|text| !text.contains("-evil -j DROP")) {
            net.others(variant, "iptables", text);
        }
        net.others(variant, "iptables", "*nat\n:PORTFWD-evil - [0:0]\nCOMMIT\n");
        let said = net.chains(variant, &["list"]);
        assert_eq!(said.stderr.matches("is foreign; `portfwd apply` removes it").count(), foreign.len(), "{said:?}");
        assert!(said.stdout.contains("live") && !said.stdout.contains("missing"), "{said:?}");
        let planned = net.try_chains(variant, &["plan", "--detailed-exitcode", "rules/quickstart.toml"]);
        assert_eq!((planned.code, planned.stdout.matches("- ").count()), (3, foreign.len()), "{planned:?}");
        net.chains(variant, &["apply", "rules/quickstart.toml"]);
        assert_eq!(net.chains(variant, &["list"]).stderr, "");
    }
}

#[test]
fn an_isolated_network_blocks_earlier_connections_after_a_change_of_the_backend() {
    if !privileged() {
        return;
    }
    let set = |isolate: bool| {
        format!(
            "[[network]]\nname = \"docker0\"\nsubnet = [\"172.17.0.0/16\"]\nisolate = {isolate}\n[[forward]]\nlisten = \"8080\"\nto = \"172.17.0.3:80\"\n"
        )
    };
    for variant in BOTH {
        let net = Net::new();
        let path = net.state.path().join("set.toml");
        let apply = |isolate: bool, arguments: &[&str], iptables: bool| {
            std::fs::write(&path, set(isolate)).expect("written");
            let path = path.to_string_lossy();
            let all = [arguments, &["apply", &path]].concat();
            if iptables { net.chains(variant, &all) } else { net.ok(&all) }
        };
        let arrived = std::sync::Arc::new(AtomicU32::new(0));
        let listen = || std::net::UdpSocket::bind("172.17.0.3:99").expect("bind");
        let socket = net.target.run(listen).expect("the target's namespace");
        let count = std::sync::Arc::clone(&arrived);
        std::thread::spawn(move || {
            let mut text = [0; 16];
            while socket.recv_from(&mut text).is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let from = || std::net::UdpSocket::bind("192.0.2.2:999").expect("bind");
        let client = net.client.run(from).expect("the client's namespace");
        let send = || {
            let before = arrived.load(Ordering::Relaxed);
            for _ in 0..3 {
                client.send_to(b"?", "172.17.0.3:99").expect("sent");
            }
            std::thread::sleep(Duration::from_millis(150));
            arrived.load(Ordering::Relaxed) - before
        };
        // The target sends no answer, so conntrack treats every packet as the first of a connection.
        apply(false, &[], true);
        assert_eq!(send(), 3, "{variant:?}");
        apply(true, &["--backend", "nft"], false);
        assert_eq!(send(), 0, "{variant:?} to nftables");
        apply(false, &["--backend", "nft"], false);
        assert_eq!(send(), 3, "{variant:?}");
        apply(true, &[], true);
        assert_eq!(send(), 0, "nftables to {variant:?}");
        // Untracked packets do not enter an isolated network.
        for backend in [true, false] {
            apply(true, if backend { &[] } else { &["--backend", "nft"] }, backend);
            net.nft(&["add table ip theirs; add chain ip theirs raw { type filter hook prerouting priority -300; }"]);
            net.nft(&["add rule ip theirs raw udp dport 99 notrack"]);
            assert_eq!(send(), 0, "{variant:?} {backend}");
            net.nft(&["delete table ip theirs"]);
        }
    }
}

#[test]
fn add_starts_few_iptables_programs() {
    if !privileged() {
        return;
    }
    for variant in BOTH {
        let net = Net::new();
        let log = net.state.path().join("log");
        let (file, state) = (log.to_string_lossy().into_owned(), net.state.path().to_string_lossy().into_owned());
        let strace = ["-f", "-qq", "-e", "trace=execve", "-e", "signal=none", "-o", &file, PORTFWD];
        let add = ["--state-dir", &state, "--backend", "iptables", "add", "8080", "172.17.0.3:80"];
        let said = net.with(variant, "", "strace", &[&strace[..], &add].concat());
        assert_eq!(said.code, 0, "{said:?}");
        let text = std::fs::read_to_string(&log).expect("strace wrote it");
        let started: Vec<&str> = text.lines().filter(|line| line.contains("execve(\"")).collect();
        let named = |word: &str| started.iter().filter(|line| line.contains(word)).count();
        // portfwd reads both families at most twice. It reads the changed family also right before and after the
        // change.
        let (saves, restores) = (named("-save\""), named("-restore\""));
        assert!(saves <= 6 && restores == 1, "{variant:?}: {text}");
        assert_eq!(started.len(), 1 + saves + restores, "portfwd runs no program for its version: {text}");
    }
}
