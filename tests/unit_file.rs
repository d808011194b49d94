use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use portfwd::iptables::command::Variant;

use crate::support::{BOTH, Net, PORTFWD, Said, file, ours, privileged, root};

/// A rule set with forwards of both families. The loopback forward needs `route_localnet`, and the range makes portfwd
/// probe iptables.
const SET: &str = r#"
[[network]]
name = "docker0"
subnet = ["172.17.0.0/16", "fd00:17::/64"]
[[forward]]
listen = "8080"
to = "172.17.0.3:80"
loopback = true
[[forward]]
listen = "443"
to = "[fd00:17::3]:8443"
[[forward]]
listen = "8000-8010/udp"
to = "172.17.0.3:9000-9010"
"#;

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const LOCALNET: &str = "/proc/sys/net/ipv4/conf/docker0/route_localnet";

fn unit(name: &str) -> String {
    fs::read_to_string(root().join("systemd").join(name)).expect("text")
}

/// Returns the values of a setting in a unit file, one for each line.
fn settings<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

#[test]
fn systemd_analyze_accepts_the_units() {
    let directory = tempfile::tempdir().expect("directory");
    let paths = ["portfwd.service", "portfwd-online.service"].map(|name| {
        let path = directory.path().join(name);
        // systemd-analyze checks that the program exists, so the test inserts the path of the test build.
        fs::write(&path, unit(name).replace("/usr/local/sbin/portfwd", PORTFWD)).expect("written");
        path
    });
    let said = match Command::new("systemd-analyze").arg("verify").args(&paths).output() {
        Ok(output) => Said::from(output),
        Err(error) => {
            let message = format!("SKIPPED: needs systemd-analyze: {error}");
            assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{message}");
            eprintln!("{message}");
            return;
        }
    };
    // The output may contain warnings about other units of the machine.
    let mentions_portfwd = said.stderr.lines().any(|line| line.contains("portfwd"));
    assert!(said.code == 0 && !mentions_portfwd, "{said:?}");
}

/// Runs portfwd with the unit's sandbox, as far as the sandbox works without systemd.
///
/// portfwd runs as root with the unit's capabilities only, cannot gain privileges, and can write only the unit's paths.
/// portfwd is not process 1, because process 1 has all capabilities.
fn run_as_unit(net: &Net, variant: Option<Variant>, options: &[&str], command: &str) -> Said {
    let unit = unit("portfwd.service");
    let bounds =
        settings(&unit, "CapabilityBoundingSet").join(" ").to_lowercase().replace("cap_", "+").replace(' ', ",");
    let state = net.state.path().to_string_lossy().into_owned();
    // The tmpfs hides the host's lock file. ExecStartPre= of the unit makes the same file.
    let script = format!(
        "set -e; mount -t tmpfs none /run; (umask 077; touch /run/xtables.lock)
         for path in {state} /run/xtables.lock /proc/sys/net; do mount --bind $path $path; done
         cut -d' ' -f5 /proc/self/mountinfo | while read path; do mount -o remount,bind,ro $path 2>/dev/null || true; done
         for path in {state} /run/xtables.lock /proc/sys/net; do mount -o remount,bind,rw $path; done
         for path in /proc/sys/kernel/core_pattern /usr/bin/new /run/new; do
             if (: >> $path) 2>/dev/null; then echo $path can be written >&2; exit 99; fi
         done
         \"$@\""
    );
    let bounds = format!("--bounding-set=-all,{bounds}");
    let backend: &[&str] = if variant.is_some() { &["--backend", "iptables"] } else { &["--backend", "nft"] };
    let arguments = [
        &["--pid", "--fork", "--mount", "--mount-proc", "sh", "-c", &script, "sh"][..],
        &["setpriv", &bounds, "--inh-caps=-all", "--no-new-privs"],
        options,
        &[PORTFWD, "--state-dir", &state],
        backend,
        &command.split(' ').collect::<Vec<_>>(),
    ]
    .concat();
    net.with(variant.unwrap_or(Variant::Nft), "", "unshare", &arguments)
}

/// Returns the words of the live rules in sorted order, without counters.
fn live_rules(net: &Net, variant: Option<Variant>) -> Vec<String> {
    let text = match variant {
        None => net.nft(&["-s", "list", "ruleset"]).stdout,
        Some(variant) => ours(&net.saved(variant)).join("\n"),
    };
    let mut words: Vec<String> = text.split([' ', ',', '\n', '\t']).map(str::to_owned).collect();
    words.sort_unstable();
    words
}

/// Clears rules and sysctls in the kernel, as a reboot does.
fn clear_kernel(net: &Net, variant: Option<Variant>) {
    net.nft(&["flush", "ruleset"]);
    if variant == Some(Variant::Legacy) {
        for (word, table) in ["iptables", "ip6tables"].iter().flat_map(|word| [(word, "nat"), (word, "mangle")]) {
            net.in_host(|| {
                let feed = format!("*{table}\nCOMMIT\n");
                crate::support::feed(&format!("{word}-legacy-restore"), &[], &feed);
            });
        }
    }
    for path in [FORWARD, "/proc/sys/net/ipv6/conf/all/forwarding", LOCALNET] {
        net.in_host(|| fs::write(path, "0").expect("written"));
    }
}

#[test]
fn restore_works_in_the_units_sandbox() {
    if !privileged() {
        return;
    }
    for variant in [None].into_iter().chain(BOTH.map(Some)) {
        let net = Net::new();
        let set = file(&net.state, SET);
        let said = run_as_unit(&net, variant, &[], &format!("apply {}", set.display()));
        assert_eq!(said.code, 0, "{variant:?}: {said:?}");
        // portfwd treats this namespace as the host's, because process 1 is in it. portfwd needs no permission to
        // inspect process 1.
        assert!(net.state.path().join("state.db").exists(), "{variant:?}: {said:?}");
        let before = live_rules(&net, variant);
        clear_kernel(&net, variant);
        assert_ne!(live_rules(&net, variant), before);
        let said = run_as_unit(&net, variant, &[], "restore");
        assert_eq!((said.code, said.stdout.as_str()), (0, "4 added, 0 changed, 0 removed\n"), "{variant:?}: {said:?}");
        assert_eq!(live_rules(&net, variant), before, "{variant:?}");
        for path in [FORWARD, LOCALNET] {
            assert_eq!(net.in_host(|| fs::read_to_string(path)).expect("readable"), "1\n", "{variant:?} {path}");
        }
    }
}

/// Returns the system calls of a systemd group such as `@system-service`, including nested groups.
fn group_calls(name: &str) -> BTreeSet<String> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", name]).output().expect("it started before");
    let mut calls = BTreeSet::new();
    for line in String::from_utf8_lossy(&output.stdout).lines().map(str::trim) {
        if line.starts_with('@') && line != name {
            calls.extend(group_calls(line));
        } else if !line.starts_with(['#', '@']) && !line.is_empty() {
            calls.insert(line.to_owned());
        }
    }
    calls
}

#[test]
fn restore_uses_only_allowed_system_calls_and_sockets() {
    if !privileged() || Command::new("systemd-analyze").arg("--version").output().is_err() {
        // Another test of this file prints why this test is skipped.
        return;
    }
    let unit = unit("portfwd.service");
    let mut allowed = BTreeSet::new();
    for line in settings(&unit, "SystemCallFilter") {
        let word_calls =
            |word: &str| if word.starts_with('@') { group_calls(word) } else { BTreeSet::from([word.to_owned()]) };
        let calls = line.trim_start_matches('~').split(' ').flat_map(word_calls);
        if line.starts_with('~') {
            let refused: BTreeSet<String> = calls.collect();
            allowed.retain(|call| !refused.contains(call));
        } else {
            allowed.extend(calls);
        }
    }
    assert!(allowed.len() > 200 && !allowed.contains("mount"), "{allowed:?}");
    let families = settings(&unit, "RestrictAddressFamilies").join(" ");
    for variant in [None].into_iter().chain(BOTH.map(Some)) {
        let net = Net::new();
        let set = file(&net.state, SET);
        assert_eq!(run_as_unit(&net, variant, &[], &format!("apply {}", set.display())).code, 0);
        clear_kernel(&net, variant);
        let trace = net.state.path().join("trace");
        let strace = ["strace", "-f", "-qq", "-o", &trace.to_string_lossy()];
        let said = run_as_unit(&net, variant, &strace, "restore");
        assert_eq!(said.code, 0, "{said:?}");
        check_trace(&trace, &allowed, &families);
    }
}

/// Checks that a trace contains only allowed system calls and socket families.
fn check_trace(trace: &Path, allowed: &BTreeSet<String>, families: &str) {
    for line in fs::read_to_string(trace).expect("text").lines() {
        let Some((call, arguments)) = line.split_whitespace().nth(1).and_then(|word| word.split_once('(')) else {
            continue;
        };
        assert!(allowed.contains(call), "{line}");
        // iptables looks names up in nscd (AF_UNIX) first. Without nscd, iptables reads the files in /etc.
        if call == "socket" && !arguments.starts_with("AF_UNIX") {
            assert!(families.split(' ').any(|family| arguments.starts_with(&format!("{family},"))), "{line}");
        }
    }
}
