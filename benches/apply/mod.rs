//! Whole processes compared with `nft -f`, and with iptables-restore, in one run, in a network namespace that is made for it.
//!
//! Prints for each number of forwards N: the medians of several runs of each, alternating, their ratio, and, where GNU
//! time(1) is installed, the ratio of their peak memories. Only ratios of one run mean anything. Needs root and `nft`.
//!
//! Unfair to nobody that we know of: both read a file, both send one batch with a comment and a counter for each element;
//! portfwd also keeps its state on disk and reads the kernel again to check.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Instant;

use portfwd::iptables::command::Variant;
use portfwd::lab::Netns;

use crate::{host, median};

const NUMBERS: [u32; 5] = [1, 1_000, 6_000, 10_000, 60_000];
const ROUNDS: usize = 7;

/// A target for forward number `n`.
fn target(n: u32) -> String {
    format!("10.{}.{}.{}", n >> 14, (n >> 6) & 255, (n & 63) + 1)
}

/// So many forwards as a rule set.
pub fn rule_set(count: u32) -> String {
    let mut text = String::new();
    for n in 1..=count {
        let written = writeln!(text, "[[forward]]\nlisten = \"{n}\"\nto = \"{}:80\"", target(n));
        written.expect("text grows");
    }
    text
}

/// The same rules for `nft -f`.
pub fn nft_script(count: u32) -> String {
    let elements: Vec<String> =
        (1..=count).map(|n| format!("tcp . {n} comment \"bench\" : {} . 80", target(n))).collect();
    let elements = elements.join(",\n");
    format!(
        "table inet rival {{\n map m {{ type inet_proto . inet_service : ipv4_addr . inet_service; counter;\n elements = {{ {elements} }}\n }}\n chain c {{ type nat hook prerouting priority -105;\n fib daddr type local meta nfproto ipv4 dnat ip to meta l4proto . th dport map @m\n }}\n}}\n"
    )
}

/// Runs a program in the namespace and gives its wall-clock seconds.
pub fn run(namespace: &Netns, program: &str, arguments: &[&str]) -> f64 {
    let (seconds, output) = namespace
        .run(|| {
            let mut command = Command::new(program);
            command.args(arguments);
            let start = Instant::now();
            let output = command.output().expect("the program starts");
            (start.elapsed().as_secs_f64(), output)
        })
        .expect("the namespace");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    seconds
}

/// The peak resident kilobytes of a program, by GNU time(1); none where that is not installed.
pub fn peak(namespace: &Netns, program: &str, arguments: &[&str]) -> Option<f64> {
    let output = namespace.run(|| Command::new("/usr/bin/time").args(["-f", "%M", program]).args(arguments).output());
    let output = output.expect("the namespace").ok()?;
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).lines().last()?.trim().parse().ok()
}

/// One rule a forward in one chain, as others write them.
fn plain(count: u32) -> String {
    let mut text = "*nat\n:RIVAL - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j RIVAL\n".to_owned();
    for n in 1..=count {
        let written = writeln!(text, "-A RIVAL -p tcp --dport {n} -j DNAT --to-destination {}:80", target(n));
        written.expect("text grows");
    }
    text + "COMMIT\n"
}

/// Measures and prints.
pub fn bench() {
    with_nft();
    println!("{:<28} {:>12} {:>12} {:>8}", "apply/iptables-VARIANT/N", "restore (s)", "portfwd (s)", "ratio");
    for variant in Variant::ALL {
        for count in CHAINS {
            crate::host::with(variant, || with_iptables(variant, count));
        }
    }
}

/// How many forwards are compared with iptables-restore.
const CHAINS: [u32; 3] = [1, 6_000, 60_000];

fn with_iptables(variant: Variant, count: u32) {
    let namespace = Netns::new().expect("run as root");
    let directory = tempfile::tempdir().expect("directory");
    let state = directory.path().join("state").to_string_lossy().into_owned();
    let (set, rules) = (directory.path().join("bench.toml"), directory.path().join("rival.rules"));
    std::fs::write(&set, rule_set(count)).expect("written");
    std::fs::write(&rules, plain(count)).expect("written");
    let (set, rules) = (set.to_string_lossy(), rules.to_string_lossy());
    let restore = format!("/usr/sbin/iptables-{}-restore", variant.name());
    let (mut mine, mut rival) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        rival.push(run(&namespace, &restore, &["--noflush", &rules]));
        for table in ["-F", "-X"] {
            run(&namespace, &format!("/usr/sbin/iptables-{}", variant.name()), &["-t", "nat", table]);
        }
        let ours = ["--state-dir", &state, "--backend", "iptables"];
        mine.push(run(&namespace, host::ours(), &[&ours[..], &["apply", &set]].concat()));
        run(&namespace, host::ours(), &[&ours[..], &["flush"]].concat());
    }
    let (rival, mine) = (median(rival), median(mine));
    let name = format!("apply/iptables-{}/{count}", variant.name());
    println!("{name:<28} {rival:>12.4} {mine:>12.4} {:>8.2}", mine / rival);
}

fn with_nft() {
    let namespace = Netns::new().expect("run as root");
    let directory = tempfile::tempdir().expect("directory");
    let state = directory.path().join("state").to_string_lossy().into_owned();
    let ours = host::ours();
    let flush = || {
        run(&namespace, ours, &["--state-dir", &state, "flush"]);
        run(&namespace, "nft", &["flush", "ruleset"]);
    };
    println!("{:<16} {:>12} {:>12} {:>8} {:>14}", "apply/nft/N", "nft -f (s)", "portfwd (s)", "ratio", "memory ratio");
    let mut times = Vec::new();
    for count in NUMBERS {
        let set = directory.path().join("bench.toml");
        let script = directory.path().join("rival.nft");
        std::fs::write(&set, rule_set(count)).expect("written");
        std::fs::write(&script, nft_script(count)).expect("written");
        let apply = ["--state-dir", &state, "apply", &set.to_string_lossy()].map(str::to_owned);
        let apply: Vec<&str> = apply.iter().map(String::as_str).collect();
        let load = ["-f", &script.to_string_lossy()].map(str::to_owned);
        let load: Vec<&str> = load.iter().map(String::as_str).collect();
        let (mut mine, mut rival) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            rival.push(run(&namespace, "nft", &load));
            flush();
            mine.push(run(&namespace, ours, &apply));
            flush();
        }
        let rival_peak = peak(&namespace, "nft", &load);
        flush();
        let memory = peak(&namespace, ours, &apply).zip(rival_peak).map(|(mine, rival)| format!("{:.2}", mine / rival));
        flush();
        let (rival, mine) = (median(rival), median(mine));
        let memory = memory.unwrap_or_else(|| "-".into());
        println!("{:<16} {rival:>12.4} {mine:>12.4} {:>8.2} {memory:>14}", format!("apply/nft/{count}"), mine / rival);
        times.push((count, mine));
    }
    let of = |wanted: u32| times.iter().find(|(count, _)| *count == wanted).map_or(f64::NAN, |(_, time)| *time);
    println!("growth: apply(60,000) / apply(6,000) = {:.1}", of(60_000) / of(6_000));
}
