use std::process::Command;
use std::time::{Duration, Instant};

use portfwd::iptables::command::Variant;

use crate::support::{BOTH, Net, PORTFWD, Said, file, ours, privileged};

/// Returns portfwd's rules in one table of one family, in order. `family` is 0 for IPv4 and 1 for IPv6.
fn table_rules<'a>(saved: &'a str, family: usize, table: &str) -> Vec<&'a str> {
    let mut tables = saved.split_inclusive("COMMIT\n").filter(|text| text.starts_with(&format!("*{table}\n")));
    tables.nth(family).map(ours).unwrap_or_default()
}

#[test]
fn after_a_kill_each_family_has_the_old_or_the_new_rules() {
    if !privileged() {
        return;
    }
    std::thread::scope(|scope| {
        let running = BOTH.map(|variant| scope.spawn(move || kill_applies(variant)));
        running.into_iter().for_each(|running| running.join().expect("no panic"));
    });
}

/// Kills `apply` at many of its system calls while it replaces one rule set with another.
fn kill_applies(variant: Variant) {
    let net = Net::new();
    let path = net.state.path().join("set.toml");
    let write = |ports: &str| {
        let forward = |to: &str| format!("[[forward]]\nlisten = \"{ports}\"\nto = \"{to}\"\n");
        std::fs::write(&path, forward("172.17.0.3") + &forward("fd00:17::3")).expect("written");
    };
    let apply = |ports: &str| {
        write(ports);
        net.chains(variant, &["apply", &path.to_string_lossy()])
    };
    let (old, new) = ("80,8000-8010", "443,9000-9010");
    let [of_old, of_new] = [old, new].map(|ports| {
        apply(ports);
        net.saved(variant)
    });
    let mut kills = 0;
    // portfwd's second thread writes the state, so strace follows threads for fdatasync and pwrite64. Programs that
    // portfwd starts do not make these two calls, so they stay alive. For the other calls, strace follows the first
    // thread only.
    for (follow, call) in [
        ("-ff", "fsync"),
        ("-ff", "pwrite64"),
        ("-q", "clone3"),
        ("-q", "wait4"),
        ("-q", "ftruncate"),
        ("-q", "write"),
        ("-q", "lseek"),
        ("-q", "flock"),
    ] {
        for when in [1, 2, 4, 7, 12, 20] {
            apply(old);
            write(new);
            let (state, set) = (net.state.path().to_string_lossy(), path.to_string_lossy());
            let inject = format!("inject={call}:signal=KILL:when={when}");
            let strace = [follow, "-o", "/dev/null", "-e", &inject, PORTFWD];
            let command = ["--state-dir", &state, "--backend", "iptables", "apply", &set];
            let said = net.with(variant, "", "strace", &[&strace[..], &command].concat());
            if said.code == 0 {
                break;
            }
            kills += 1;
            let now = net.saved(variant);
            for family in 0..2 {
                let [now, old, new] = [&now, &of_old, &of_new].map(|saved| table_rules(saved, family, "nat"));
                assert!(now == old || now == new, "{variant:?} {call} {when}: {now:#?}");
            }
            // The next `apply` waits for processes that still run, and repairs the rules.
            apply(new);
            assert_eq!(ours(&net.saved(variant)), ours(&of_new), "{variant:?} {call} {when}");
        }
    }
    assert!(kills > 20, "{variant:?}: {kills}");
}

/// Returns the lines of an iptables-save dump without chain policies, and the packet counter of each policy.
fn split_policies(saved: &str) -> (Vec<&str>, Vec<u64>) {
    let policies = saved.lines().filter_map(|line| line.strip_prefix(':')?.split_once(" ACCEPT ["));
    let packets = |(_, counts): (&str, &str)| counts.split(':').next()?.parse().ok();
    (saved.lines().filter(|line| !line.contains(" ACCEPT [")).collect(), policies.filter_map(packets).collect())
}

#[test]
fn ipv4_rules_are_rolled_back_if_the_kernel_refuses_the_ipv6_rules() {
    if !privileged() {
        return;
    }
    for variant in BOTH {
        let net = Net::new();
        net.serve("172.17.0.3:80", false);
        let set = |chain: &str| {
            format!(
                "[[network]]\nname = \"docker0\"\nsubnet = [\"172.17.0.0/16\", \"fd00:17::/64\"]\nchain = \"{chain}\"\n[[forward]]\nlisten = \"8080\"\nto = \"172.17.0.3:80\"\n[[forward]]\nlisten = \"8080\"\nto = \"[fd00:17::3]:80\"\n"
            )
        };
        let path = net.state.path().join("set.toml");
        std::fs::write(&path, set("ONE")).expect("written");
        net.chains(variant, &["apply", &path.to_string_lossy()]);
        assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
        // A foreign chain jumps to portfwd's chain, so the kernel refuses to delete portfwd's chain.
        net.others(variant, "ip6tables", "*nat\n:THEIRS - [0:0]\n-A THEIRS -j PORTFWD-ONE\nCOMMIT\n");
        let counted = |net: &Net| net.chains(variant, &["list", "--json"]).stdout;
        let (before, list) = (net.saved(variant), counted(&net));
        std::fs::write(&path, set("OTHER")).expect("written");
        let said = net.try_chains(variant, &["apply", &path.to_string_lossy()]);
        assert_eq!(said.code, 1, "{variant:?}: {said:?}");
        assert!(said.stderr.contains("PORTFWD-ONE") && said.stderr.contains("refused"), "{said:?}");
        assert_eq!(counted(&net), list, "the rollback restores the counters");
        let after = net.saved(variant);
        let (before, after) = (split_policies(&before), split_policies(&after));
        assert_eq!(after.0, before.0, "{variant:?}");
        // The rollback does not reset the packet counters of chain policies.
        assert!(before.1.iter().zip(&after.1).all(|(before, after)| before <= after), "{variant:?}");
    }
}

#[test]
fn waiting_for_the_xtables_lock_has_a_limit() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.chains(Variant::Legacy, &["add", "80", "172.17.0.3"]);
    let before = net.saved(Variant::Legacy);
    let state = net.state.path().to_string_lossy().into_owned();
    let start = Instant::now();
    // A tmpfs on /run keeps the lock file of the real host out of the test.
    let hold = "mount -t tmpfs none /run
        (exec 9>/run/xtables.lock; flock 9; exec sleep 60) >/dev/null 2>&1 & holder=$!
        until ! flock -n /run/xtables.lock true; do sleep 0.01; done";
    let script = format!("{hold}; (\"$@\"); code=$?; kill -9 $holder; exit $code");
    let arguments =
        ["-c", &script, "sh", PORTFWD, "--state-dir", &state, "--backend", "iptables", "add", "81", "172.17.0.3"];
    let said = net.with(Variant::Legacy, "", "sh", &arguments);
    assert_eq!(said.code, 75, "{said:?}");
    assert!(said.stderr.contains("another program has held the xtables lock"), "{said:?}");
    assert!(start.elapsed() > Duration::from_secs(4) && start.elapsed() < Duration::from_secs(30));
    assert_eq!(split_policies(&net.saved(Variant::Legacy)).0, split_policies(&before).0);
    let list = net.chains(Variant::Legacy, &["list"]).stdout;
    assert!(!list.contains("81/tcp"), "{list}");
}

#[test]
fn environment_variables_do_not_choose_the_programs_that_portfwd_starts() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let evil = net.state.path().join("evil");
    std::fs::create_dir(&evil).expect("made");
    let marker = net.state.path().join("marker");
    for name in ["iptables", "iptables-nft-save", "iptables-nft-restore", "sh", "modprobe"] {
        let path = evil.join(name);
        std::fs::write(&path, format!("#!/bin/sh\ntouch {}\n", marker.display())).expect("written");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    }
    let said: Said = net.in_host(|| {
        let mut command = Command::new(PORTFWD);
        command.arg("--state-dir").arg(net.state.path()).args(["--backend", "iptables", "add", "80", "172.17.0.3"]);
        command.env("PATH", &evil).env("XTABLES_LIBDIR", &evil).env("XTABLES_LOCKFILE", "/nowhere/lock");
        command.output().expect("the program starts").into()
    });
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!marker.exists());
}

#[test]
fn an_unreadable_iptables_table_does_not_stop_a_flush() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["--backend", "nft", "add", "8080", "172.17.0.3:80"]);
    // iptables-nft cannot show this nft(8) rule in its table `nat`.
    net.nft(&["add table ip nat; add chain ip nat PREROUTING { type nat hook prerouting priority -100; }"]);
    net.nft(&["add rule ip nat PREROUTING fib daddr type local accept"]);
    net.ok(&["--backend", "nft", "flush"]);
    assert!(!net.nft(&["list", "tables"]).stdout.contains("portfwd"));
    assert_eq!(net.in_host(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("readable")).trim(), "0");
}

#[test]
fn iptables_may_be_missing_if_it_has_no_rules_of_portfwd() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.chains(Variant::Nft, &["add", "8080", "172.17.0.3:80"]);
    let without = "for p in nft legacy; do mount --bind /dev/null /usr/sbin/xtables-$p-multi; done";
    let state = net.state.path().to_string_lossy().into_owned();
    let list = || net.with(Variant::Nft, without, PORTFWD, &["--state-dir", &state, "list"]);
    // If portfwd's iptables rules exist, `list` reports that it cannot read these rules.
    let said = list();
    assert!(said.stderr.contains("iptables-nft"), "{said:?}");
    net.nft(&["flush", "ruleset"]);
    let said = list();
    assert!(said.code == 0 && !said.stderr.contains("iptables"), "{said:?}");
    let said = net.with(Variant::Nft, without, PORTFWD, &["--state-dir", &state, "add", "8081", "172.17.0.3:80"]);
    assert_eq!(said.code, 0, "{said:?}");
}

#[test]
fn cap_net_admin_alone_suffices_for_nftables() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    // Only root can enable forwarding, so the test enables it first.
    net.in_host(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("written"));
    let state = net.state.path().join("unprivileged");
    std::fs::create_dir(&state).expect("made");
    std::os::unix::fs::chown(&state, Some(65534), Some(65534)).expect("root");
    let directory = net.state.path();
    std::fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("root");
    let capabilities =
        ["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--bounding-set=-all,+net_admin"];
    let portfwd = directory.join("portfwd");
    std::fs::copy(PORTFWD, &portfwd).expect("copied");
    for arguments in [&["add", "8080", "172.17.0.3:80"][..], &["list"], &["flush"]] {
        let said: Said = net.in_host(|| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(capabilities);
            command.arg(&portfwd).arg("--state-dir").arg(&state).args(["--backend", "nft"]).args(arguments);
            command.output().expect("setpriv is installed").into()
        });
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
    }
}

#[test]
fn foreign_comments_may_contain_any_bytes() {
    if !privileged() {
        return;
    }
    for variant in BOTH {
        let net = Net::new();
        let program = format!("iptables-{}", variant.name());
        for comment in [&b"caf\xe9"[..], b"two\nlines", b"a\n-A PREROUTING -j PORTFWD.PREROUTING"] {
            use std::os::unix::ffi::OsStrExt;
            let status = net.in_host(|| {
                let mut command = Command::new(&program);
                command.args(["-t", "nat", "-A", "PREROUTING", "-m", "comment", "--comment"]);
                command.arg(std::ffi::OsStr::from_bytes(comment)).args(["-j", "ACCEPT"]).status()
            });
            assert!(status.expect("iptables is installed").success());
        }
        net.chains(variant, &["add", "8080", "172.17.0.3:80"]);
        assert!(net.chains(variant, &["list"]).stdout.contains("live"));
        net.chains(variant, &["flush"]);
    }
}

/// Returns shell commands that replace a program in /usr/sbin with a script. The script starts the original program as
/// `$real`.
fn replace_program(program: &str, script: &str) -> String {
    format!(
        "o=$(mktemp -d); s=$(mktemp -d); mount --bind /usr/sbin $o; ln -s $o/* $s; rm $s/{program}
         printf '#!/bin/sh\\nreal=%s/{program}\\n%s\\n' $o '{script}' > $s/{program}; chmod +x $s/{program}
         mount --bind $s /usr/sbin"
    )
}

#[test]
fn the_next_command_waits_for_an_iptables_restore_that_outlives_portfwd() {
    if !privileged() {
        return;
    }
    for next in [&["flush"][..], &["--backend", "nft", "add", "81", "172.17.0.3"]] {
        let net = Net::new();
        let marker = net.state.path().join("at-work");
        let slow = format!("touch {}; sleep 1; exec $real \"$@\"", marker.display());
        let before = replace_program("iptables-legacy-restore", &slow);
        let kill = format!(
            "\"$@\" & p=$!; until [ -e {} ]; do sleep 0.01; done; kill -9 $p; wait $p; exit 0",
            marker.display()
        );
        let state = net.state.path().to_string_lossy().into_owned();
        let add_args = ["--state-dir", &state, "--backend", "iptables", "add", "80", "172.17.0.3"];
        let said = net.with(
            Variant::Legacy,
            &before,
            "setsid",
            &[&["-w", "sh", "-c", &kill, "sh", PORTFWD], &add_args[..]].concat(),
        );
        assert_eq!(said.code, 0, "{said:?}");
        net.ok(next);
        // The test sleeps longer than the slow iptables-restore, which sleeps for one second.
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!net.saved(Variant::Legacy).contains("PORTFWD"), "{next:?}");
    }
}

#[test]
fn ipv4_rules_are_rolled_back_if_the_ipv6_rules_cannot_be_read_again() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    let add = |port: &str| {
        for to in ["172.17.0.3", "fd00:17::3"] {
            net.chains(Variant::Legacy, &["add", port, to]);
        }
    };
    add("80");
    let saved = net.saved(Variant::Legacy);
    let set = file(
        &net.state,
        "[[forward]]\nlisten = \"90\"\nto = \"172.17.0.3\"\n[[forward]]\nlisten = \"90\"\nto = \"fd00:17::3\"\n",
    );
    let marker = net.state.path().join("read-once");
    let once = format!("[ -e {0} ] && {{ echo broken >&2; exit 1; }}; touch {0}; exec $real \"$@\"", marker.display());
    let before = replace_program("ip6tables-legacy-save", &once);
    let (state, set) = (net.state.path().to_string_lossy(), set.to_string_lossy());
    let apply_args = ["--state-dir", &state, "--backend", "iptables", "apply", &set];
    let said = net.with(Variant::Legacy, &before, PORTFWD, &apply_args);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stderr.contains("broken"), "{said:?}");
    assert_eq!(split_policies(&net.saved(Variant::Legacy)).0, split_policies(&saved).0);
}

#[test]
fn foreign_comments_cannot_inject_lines_during_rollback() {
    if !privileged() {
        return;
    }
    for variant in BOTH {
        let net = Net::new();
        let path = net.state.path().join("set.toml");
        let write = |chain: &str| {
            let network = format!(
                "[[network]]\nname = \"docker0\"\nsubnet = [\"172.17.0.0/16\", \"fd00:17::/64\"]\nchain = \"{chain}\"\n"
            );
            let forward = |to: &str| format!("[[forward]]\nlisten = \"8080\"\nto = \"{to}\"\n");
            std::fs::write(&path, network + &forward("172.17.0.3") + &forward("fd00:17::3")).expect("written");
        };
        write("ONE");
        net.chains(variant, &["apply", &path.to_string_lossy()]);
        let comment = "x\nCOMMIT\n*filter\n-A FORWARD -j DROP\nCOMMIT\n*nat\n-A OUTPUT -m comment --comment y";
        let program = format!("iptables-{}", variant.name());
        let status = net.in_host(|| {
            let mut command = Command::new(&program);
            command
                .args(["-t", "nat", "-A", "PORTFWD-ONE", "-m", "comment", "--comment", comment, "-j", "RETURN"])
                .status()
        });
        assert!(status.expect("iptables is installed").success());
        net.others(variant, "ip6tables", "*nat\n:THEIRS - [0:0]\n-A THEIRS -j PORTFWD-ONE\nCOMMIT\n");
        write("OTHER");
        let said = net.try_chains(variant, &["apply", &path.to_string_lossy()]);
        assert_eq!(said.code, 1, "{variant:?}: {said:?}");
        assert!(said.stderr.contains("could not be rolled back"), "{said:?}");
        assert!(!net.saved(variant).lines().any(|line| line == "-A FORWARD -j DROP"), "{variant:?}");
    }
}

#[test]
fn foreign_rules_with_a_quote_in_the_interface_name_are_read() {
    if !privileged() {
        return;
    }
    for variant in BOTH {
        let net = Net::new();
        net.in_host(|| {
            for chain in ["PREROUTING", "POSTROUTING"] {
                let flag = if chain == "PREROUTING" { "-i" } else { "-o" };
                let status = Command::new(format!("iptables-{}", variant.name()))
                    .args(["-t", "nat", "-A", chain, flag, "a\"b", "-j", "ACCEPT"])
                    .status();
                assert!(status.expect("iptables is installed").success());
            }
        });
        for port in ["80", "81"] {
            net.chains(variant, &["add", port, "172.17.0.3"]);
        }
        let saved = net.saved(variant);
        assert_eq!(saved.matches("-A PREROUTING -j PORTFWD.PREROUTING\n").count(), 1, "{saved}");
        net.chains(variant, &["flush"]);
        assert!(!net.saved(variant).contains("PORTFWD"));
    }
}
