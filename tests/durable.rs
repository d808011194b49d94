use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use portfwd::iptables::command::Variant;

use crate::support::{Net, PORTFWD, Said, file, ours, privileged};

/// A rule set with one rule of every kind.
pub const EVERYTHING: &str = r#"
[[network]]
name = "docker0"
subnet = ["172.17.0.0/16", "fd00:17::/64"]
isolate = true
[[forward]]
listen = "8080"
to = "172.17.0.3:80"
comment = "web"
[[forward]]
listen = "192.0.2.1:8000-8010/udp"
to = "172.17.0.3:9000-9010"
source = "masquerade"
[[forward]]
listen = "443"
to = "[fd00:17::3]:8443"
hairpin = false
from = ["2001:db8::/64"]
[[forward]]
listen = "81"
to = ":80"
loopback = true
[[masquerade]]
from = "10.0.0.0/24"
out = "eth0"
[[snat]]
from = "10.0.1.0/24"
to = "203.0.113.5-203.0.113.6"
[[netmap]]
listen = "203.0.113.64/28"
to = "172.17.1.0/28"
"#;

/// Returns the words of the live ruleset without counters. The words are sorted, because the kernel's order of elements
/// is undefined.
pub fn words(net: &Net) -> Vec<String> {
    let said = net.nft(&["-s", "list", "ruleset"]).stdout;
    let mut words: Vec<String> = said.split([' ', ',', '\n', '\t']).map(str::to_owned).collect();
    words.retain(|word| !word.is_empty());
    words.sort_unstable();
    words
}

/// Returns the path of the state database of the host's namespace.
pub fn store(net: &Net) -> PathBuf {
    let all = fs::read_dir(net.state.path().join("netns")).expect("readable").flatten().map(|entry| entry.path());
    let mut stores: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|end| end == "db")).collect();
    assert_eq!(stores.len(), 1, "{stores:?}");
    stores.remove(0)
}

pub fn differs(list: &Said) -> bool {
    ["missing", "foreign"].iter().any(|word| list.stdout.contains(word))
}

#[test]
fn restore_adds_lost_rules_and_a_second_restore_changes_nothing() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    net.ok(&["apply", &file(&net.state, EVERYTHING).to_string_lossy()]);
    let before = words(&net);
    // The test clears rules and sysctls, as a reboot or another program does.
    net.nft(&["flush", "ruleset"]);
    net.in_host(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0").expect("written"));
    let list = net.ok(&["list"]);
    assert!(
        list.stdout.contains("missing") && list.stderr.contains("another program changed nftables once"),
        "{list:?}"
    );
    assert_eq!(net.ok(&["restore", "--dry-run"]).code, 0);
    assert_ne!(words(&net), before);
    let said = net.ok(&["restore"]);
    assert!(said.stdout.contains("added"), "{said:?}");
    assert_eq!(words(&net), before);
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
    assert_eq!(net.ok(&["restore"]).stdout, "unchanged\n");
    assert_eq!(net.ok(&["list"]).stderr, "");
    net.ok(&["flush"]);
    assert_eq!(net.ok(&["restore"]).stdout, "unchanged\n");
    assert_eq!(words(&net), Vec::<String>::new());
}

#[test]
fn restore_from_kernel_recovers_a_lost_state() {
    if !privileged() {
        return;
    }
    for variant in [None, Some(Variant::Nft), Some(Variant::Legacy)] {
        let net = Net::new();
        let run = |arguments: &[&str]| match variant {
            None => net.portfwd(arguments),
            Some(variant) => net.try_chains(variant, arguments),
        };
        assert_eq!(run(&["apply", &file(&net.state, EVERYTHING).to_string_lossy()]).code, 0);
        let held = || match variant {
            None => words(&net),
            Some(variant) => ours(&net.saved(variant)).into_iter().map(str::to_owned).collect(),
        };
        let before = held();
        fs::remove_file(store(&net)).expect("removed");
        // A change of an empty state would remove the forwards from the kernel, so portfwd refuses the change.
        for change in [&["add", "9999", "172.17.0.4"][..], &["restore"]] {
            let said = run(change);
            assert!(said.code == 1 && said.stderr.contains("restore --from-kernel"), "{variant:?} {said:?}");
            assert_eq!(held(), before, "{variant:?} {change:?}");
        }
        let said = run(&["restore", "--from-kernel"]);
        assert_eq!(said.code, 0, "{variant:?} {said:?}");
        assert!(said.stdout.contains("recovered 5 forwards and 4 other rules"), "{variant:?} {said:?}");
        assert_eq!(held(), before, "{variant:?}");
        let list = run(&["list"]);
        assert!(list.code == 0 && !differs(&list), "{variant:?} {list:?}");
        assert_eq!(run(&["add", "9999", "172.17.0.4"]).code, 0);
        assert_eq!(run(&["flush"]).code, 0);
        let said = run(&["restore", "--from-kernel"]);
        assert!(said.code == 1 && said.stderr.contains("no rules of portfwd"), "{variant:?} {said:?}");
    }
}

#[test]
fn a_damaged_state_is_an_error_and_changes_no_rules() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["apply", &file(&net.state, EVERYTHING).to_string_lossy()]);
    let (path, before) = (store(&net), words(&net));
    // SQLite prefers pages in its log to pages in the file. So the test first moves the log into the file.
    let log = PathBuf::from(format!("{}-wal", path.display()));
    let carry = |database: rusqlite::Connection| database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    rusqlite::Connection::open(&path).and_then(carry).expect("carried");
    let files = [path.clone(), log, path.with_extension("kernel")];
    let kept = files.each_ref().map(|file| fs::read(file).unwrap_or_default());
    let good = kept[0].clone();
    let mut dice = fastrand::Rng::with_seed(5);
    let mut recognised = 0;
    for round in 0..60 {
        let mut bad = good.clone();
        match round {
            0 => bad.truncate(0),
            1 => bad.truncate(1000),
            2 => bad = b"something else".to_vec(),
            3 => bad.fill(0),
            _ => {
                for _ in 0..1 + round / 8 {
                    let at = dice.usize(..bad.len().min(60_000));
                    bad[at] ^= 1 << dice.u8(..8);
                }
            }
        }
        fs::write(&path, &bad).expect("written");
        let said = net.portfwd(&["add", "9999", "172.17.0.4:80"]);
        assert!(!said.stderr.contains("panicked"), "{round}: {said:?}");
        match said.code {
            // The damage to the state file had no effect.
            0 => {
                net.ok(&["rm", "9999"]);
            }
            1 => {
                recognised += 1;
                assert!(said.stderr.contains("restore --from-kernel"), "{round}: {said:?}");
                assert_eq!(words(&net), before, "{round}");
                let said = net.ok(&["restore", "--from-kernel"]);
                // portfwd keeps a damaged file under another name, but not an empty file.
                let aside = format!("{}.damaged", path.display());
                assert_eq!(said.stderr.contains(&aside), round > 0, "{round}: {said:?}");
                assert_eq!(fs::read(&aside).ok(), (round > 0).then_some(bad), "{round}");
                fs::remove_file(&aside).unwrap_or_default();
            }
            _ => panic!("{round}: {said:?}"),
        }
        let list = net.ok(&["list"]);
        assert!(!differs(&list), "{round}: {list:?}");
        assert_eq!(words(&net), before, "{round}");
        files.iter().zip(&kept).for_each(|(file, kept)| fs::write(file, kept).expect("written"));
    }
    assert!(recognised > 20, "{recognised}");
}

#[test]
fn symbolic_links_in_place_of_state_files_are_not_followed() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["add", "8080", "172.17.0.3:80"]);
    let path = store(&net);
    let other = net.state.path().join("precious");
    for name in [path.clone(), path.with_extension("restore")] {
        fs::write(&other, "precious").expect("written");
        let kept = fs::read(&name).ok();
        fs::remove_file(&name).unwrap_or_default();
        symlink(&other, &name).expect("linked");
        let said = net.try_chains(Variant::Nft, &["add", "8081", "172.17.0.3:80"]);
        assert_eq!(said.code, 1, "{}: {said:?}", name.display());
        assert_eq!(fs::read_to_string(&other).expect("readable"), "precious");
        fs::remove_file(&name).expect("removed");
        if let Some(kept) = kept {
            fs::write(&name, kept).expect("written");
        }
    }
}

#[test]
fn list_reads_the_state_from_a_read_only_file_system() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.ok(&["add", "8080", "172.17.0.3:80"]);
    let state = net.state.path().to_string_lossy().into_owned();
    let list = |prepare: &str| {
        let script = format!("{prepare} mount --bind {state} {state}; mount -o remount,bind,ro {state}; exec \"$@\"");
        let arguments = ["--mount", "sh", "-ec", &script, "sh", PORTFWD, "--state-dir", &state, "list"];
        let run = || Command::new("unshare").args(arguments).output().expect("starts");
        Said::from(net.in_host(run))
    };
    for prepare in ["", "rm -f $(find . -name '*.lock');"] {
        let said = list(&format!("cd {state}; {prepare} cd /;"));
        assert!(said.code == 0 && said.stdout.contains(" live "), "{said:?}");
    }
}

#[test]
fn fifty_concurrent_processes_lose_no_forward() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.nft(&["add table ip other; add chain ip other c; add rule ip other c counter"]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                count += 1;
                let rule = format!("add rule ip other c tcp dport {} accept", 1 + count % 60_000);
                assert_eq!(net.nft(&[&rule]).code, 0);
            }
            count
        });
        let adding: Vec<_> = (0..50)
            .map(|process| {
                let net = &net;
                scope.spawn(move || {
                    for forward in 0..20 {
                        let listen = format!("{}", 10_000 + process * 20 + forward);
                        net.ok(&["add", &listen, "172.17.0.3:80"]);
                    }
                })
            })
            .collect();
        // A scope waits for all its threads. So the nft thread must stop before an assertion can panic.
        let added: Vec<_> = adding.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        assert!(added.iter().all(Result::is_ok), "every process added all of its forwards");
        assert!(other.join().expect("no panic") > 100, "nft committed rules during the whole test");
    });
    let list = net.ok(&["list"]);
    assert!(!differs(&list), "{list:?}");
    assert_eq!(list.stdout.matches("172.17.0.3:80").count(), 1_000);
    // Without the live table, the stored state still contains all forwards.
    net.nft(&["delete", "table", "inet", "portfwd"]);
    assert_eq!(net.ok(&["restore"]).stdout, "1000 added, 0 changed, 0 removed\n");
}
