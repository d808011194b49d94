//! Findings about services at boot and about portfwd's own state.

use std::fs;
use std::process::Command;

use portfwd::engine::{Choice, Engine, Options, Scope, Storage};
use portfwd::store::{State, Unusable};
use serde_json::Value;

use super::{SHELL_FUNCTIONS, expect_finding, expect_none, json, reset_and_run};
use crate::support::{Net, PORTFWD, Said, privileged};

/// Shell commands that make a host look booted by systemd. The host has only the services in the test's directory
/// `etc`.
const BOOTED: &str = "
    mount -t tmpfs none /run; mkdir -p /run/systemd/system
    mount --bind $d/etc /etc/systemd/system
    portfwd() { $portfwd --state-dir $d/state \"$@\"; }
    enable() { SYSTEMD_OFFLINE=1 systemctl enable \"$@\" 2> /dev/null; }
    disable() { SYSTEMD_OFFLINE=1 systemctl disable \"$@\" 2> /dev/null; }
";

/// Runs a script on a host whose process 1 is in the host's network namespace. Panics if the script fails.
#[track_caller]
fn booted(net: &Net, script: &str) -> String {
    let directory = net.state.path();
    fs::create_dir_all(directory.join("etc")).expect("made");
    let text = format!("d={} portfwd={PORTFWD}\n{SHELL_FUNCTIONS}{BOOTED}{script}", directory.display());
    let run = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--mount-proc", "sh", "-ec", &text]).env_remove("SSH_CONNECTION");
        command.output().expect("unshare").into()
    };
    let said: Said = net.in_host(run);
    assert_eq!(said.code, 0, "{script}: {said:?}");
    said.stdout
}

/// Returns the confidence, the severity and the fix of each finding with one id, on the booted host.
#[track_caller]
fn booted_findings(net: &Net, id: &str) -> Vec<[String; 3]> {
    let report = json(&booted(net, &format!("portfwd audit --json --only {id}")));
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let all = report["findings"].as_array().expect("a list");
    all.iter().map(|one| ["confidence", "severity", "fix"].map(|key| text(one, key))).collect()
}

/// Installs portfwd.service on the booted host.
fn install_unit(net: &Net) {
    fs::create_dir_all(net.state.path().join("etc")).expect("made");
    fs::write(
        net.state.path().join("etc/portfwd.service"),
        include_str!("../../systemd/portfwd.service").replace("/usr/local/sbin/portfwd", PORTFWD),
    )
    .expect("written");
}

#[test]
fn finds_rules_that_a_reboot_loses() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    reset_and_run(&net, "");
    install_unit(&net);
    assert!(booted_findings(&net, "F47").is_empty(), "there are no rules to lose");
    let file = net.state.path().join("web.toml");
    let write = |port: u16| {
        let text = format!("[[forward]]\nlisten = \"{port}\"\nto = \"172.17.0.3:80\"\n");
        fs::write(&file, text).expect("written");
    };
    write(8080);
    booted(&net, "portfwd apply $d/web.toml");
    let all = booted_findings(&net, "F47");
    let [[confidence, severity, fix]] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!([confidence, severity], ["likely", "warning"]);
    booted(&net, &fix.replace("systemctl enable", "enable"));
    assert!(booted_findings(&net, "F47").is_empty());
    // In a namespace without systemd, `audit` does not know any services.
    booted(&net, "disable portfwd.service");
    assert!(!booted_findings(&net, "F47").is_empty());
    expect_none(&net, "F47");
    booted(&net, "enable portfwd.service");

    // The rule-set file differs from the applied rule set.
    write(8081);
    let all = booted_findings(&net, "F47");
    let [[confidence, severity, fix]] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!([confidence, severity], ["proved", "warning"]);
    booted(&net, "nft flush ruleset; portfwd restore; portfwd list | grep 8080");
    booted(&net, fix);
    assert!(booted_findings(&net, "F47").is_empty());
    booted(&net, "portfwd list | grep 8081");
    fs::remove_file(&file).expect("removed");
    assert_eq!(booted_findings(&net, "F47").len(), 1);
}

#[test]
fn finds_services_that_flush_foreign_rules() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    net.serve("172.17.0.3:80", false);
    reset_and_run(&net, "");
    install_unit(&net);
    let write = |name: &str, text: &str| fs::write(net.state.path().join("etc").join(name), text).expect("written");
    let install = "\n[Install]\nWantedBy=sysinit.target\n";
    write(
        "wall.service",
        &format!("[Service]\nExecStart=/usr/sbin/nft -f {}{install}", net.state.path().join("wall.nft").display()),
    );
    fs::write(net.state.path().join("wall.nft"), "# ours\nflush ruleset\ntable inet wall { }\n").expect("written");
    booted(&net, "portfwd add 8080 172.17.0.3:80; enable portfwd.service");
    assert!(booted_findings(&net, "F48").is_empty(), "wall.service is not enabled");
    booted(&net, "enable wall.service");
    let all = booted_findings(&net, "F48");
    let [[confidence, severity, fix]] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!([confidence, severity], ["proved", "warning"]);
    // The flush deletes portfwd's rules, and `portfwd restore` adds them again.
    let flushes = "nft -f $d/wall.nft";
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
    booted(&net, flushes);
    assert_eq!(net.tcp("192.0.2.1:8080"), "ConnectionRefused");
    booted(&net, "portfwd restore");
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
    let (after, part_of) = fix.split_once("After=").and_then(|(_, rest)| rest.split_once(" and ")).expect("a fix");
    fs::create_dir_all(net.state.path().join("etc/portfwd.service.d")).expect("made");
    write("portfwd.service.d/wall.conf", &format!("[Unit]\nAfter={after}\n{part_of}\n"));
    assert!(booted_findings(&net, "F48").is_empty(), "{fix}");

    // Docker does not add its rules again after a flush.
    booted(
        &net,
        "xt nat ':DOCKER -
            -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
            -A DOCKER ! -i docker0 -p tcp --dport 81 -j DNAT --to 172.17.0.3:80'",
    );
    let all = booted_findings(&net, "F48");
    assert_eq!(all.iter().map(|one| &one[0]).collect::<Vec<_>>(), ["likely"]);
    fs::write(net.state.path().join("wall.nft"), "delete table inet wall\ntable inet wall { }\n").expect("written");
    assert!(booted_findings(&net, "F48").is_empty());
    booted(&net, flushes);
    assert_eq!(net.tcp("192.0.2.1:81"), "172.17.0.3:80 saw 192.0.2.2");
}

#[test]
fn finds_a_recorded_missing_kernel_feature() {
    if !privileged() {
        return;
    }
    let net = Net::new();
    reset_and_run(&net, "");
    let record = |kernel: String| {
        net.in_host(|| {
            let mut engine =
                Engine::open(Storage::ReadWrite(net.state.path()), Choice::Nft, Scope::Full).expect("opens");
            let unusable = Some(Unusable { kernel, why: "the nf_tables of this kernel lacks a part of it".into() });
            let after = State { unusable, ..engine.state().clone() };
            engine.commit(after, Options::default()).expect("commits");
        });
    };
    expect_none(&net, "F51");
    let now = fs::read_to_string("/proc/sys/kernel/osrelease").expect("readable");
    record(now.trim().to_owned());
    expect_finding(&net, "F51", ["proved", "info", ""]);
    // A record of another kernel version does not count.
    record("0.0".into());
    expect_none(&net, "F51");
}
