//! One more forward, live and durable, compared with `nft add element`, which is live: whole processes, alternating, in one
//! run, in a network namespace that is made for it. And putting all of them back, compared with `nft -f`.
//!
//! Prints for each number of forwards N that are there already the medians and their ratio. The state is in the directory for
//! temporary files, so what it costs to wait for that disk is a part of it. Only ratios of one run mean anything.

use portfwd::lab::Netns;

use crate::apply::{nft_script, rule_set, run};
use crate::{host, median};

const NUMBERS: [u32; 4] = [1, 1_000, 6_000, 60_000];
const ROUNDS: u32 = 41;
const RESTORES: usize = 5;

/// Measures and prints.
pub fn bench() {
    println!("{:<16} {:>22} {:>12} {:>8}", "add/N", "nft add element (ms)", "portfwd (ms)", "ratio");
    for count in NUMBERS {
        with(count);
    }
}

fn with(count: u32) {
    let namespace = Netns::new().expect("run as root");
    let directory = tempfile::tempdir().expect("directory");
    let (set, script) = (directory.path().join("bench.toml"), directory.path().join("rival.nft"));
    std::fs::write(&set, rule_set(count)).expect("written");
    std::fs::write(&script, nft_script(count)).expect("written");
    let (set, script) = (set.to_string_lossy(), script.to_string_lossy());
    let state = directory.path().join("state").to_string_lossy().into_owned();
    let ours = |arguments: &[&str]| run(&namespace, host::ours(), &[&["--state-dir", &state], arguments].concat());
    ours(&["apply", &set]);
    run(&namespace, "nft", &["-f", &script]);
    let (mut mine, mut rival) = (Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        let port = 60_100 + n * 100;
        let element = format!("{{ tcp . {port} comment \"bench\" : 10.9.9.9 . 80 }}");
        rival.push(run(&namespace, "nft", &["add", "element", "inet", "rival", "m", &element]));
        mine.push(ours(&["add", &port.to_string(), "10.9.9.9:80"]));
    }
    print(&format!("add/{count}"), 1e3, rival, mine);
    if count < 60_000 {
        return;
    }
    let (mut mine, mut rival) = (Vec::new(), Vec::new());
    for _ in 0..RESTORES {
        run(&namespace, "nft", &["flush", "ruleset"]);
        rival.push(run(&namespace, "nft", &["-f", &script]));
        run(&namespace, "nft", &["flush", "ruleset"]);
        mine.push(ours(&["restore"]));
    }
    println!("{:<16} {:>22} {:>12} {:>8}", "restore/N", "nft -f (s)", "portfwd (s)", "ratio");
    print(&format!("restore/{count}"), 1.0, rival, mine);
}

fn print(name: &str, unit: f64, rival: Vec<f64>, mine: Vec<f64>) {
    let (rival, mine) = (median(rival), median(mine));
    println!("{name:<16} {:>22.4} {:>12.4} {:>8.2}", rival * unit, mine * unit, mine / rival);
}
