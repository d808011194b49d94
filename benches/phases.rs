//! Measures the phases of commands, as `-v` prints them.

use std::collections::BTreeMap;
use std::process::Command;

use crate::effort::Effort;
use crate::host::{Host, PORTFWD};
use crate::peer;
use crate::race::quantile;
use crate::table::Report;
use crate::table::phases::Phases;

/// The number of rounds for each command.
const ROUNDS: usize = 7;

/// Measures the phases of `apply`, `add`, `rm` and `list`.
pub fn bench(effort: Effort, report: &mut Report) {
    let count = effort.most();
    let (bulk, busy) = (Host::new(), Host::new());
    let set = bulk.file("bench.toml", &peer::rule_set(count));
    let apply = measure(&format!("apply of {count}"), || {
        let output = verbose(&bulk, &["apply", &set]);
        bulk.portfwd(&["flush"]);
        output
    });
    busy.portfwd(&["apply", &busy.file("bench.toml", &peer::rule_set(count))]);
    let mut ports = 61_000..;
    let add = measure("add of one more", || {
        verbose(&busy, &["add", &ports.next().unwrap_or(61_000).to_string(), "10.9.9.9:80"])
    });
    let range = measure("add of a range of 206", || {
        let output = verbose(&busy, &["add", "62001-62206", "10.9.9.9:80"]);
        busy.portfwd(&["rm", "62001-62206"]);
        output
    });
    let remove = measure("rm of one", || {
        busy.portfwd(&["add", "63000", "10.9.9.9:80"]);
        verbose(&busy, &["rm", "63000"])
    });
    let list = measure("list --json", || verbose(&busy, &["list", "--json"]));
    report.phases.extend([apply, add, range, remove, list]);
}

/// Runs portfwd with `-v` and returns its stderr.
fn verbose(host: &Host, arguments: &[&str]) -> String {
    let state = host.state();
    let run = || Command::new(PORTFWD).args(["--state-dir", &state, "-v"]).args(arguments).output();
    let output = host.namespace.run(run).expect("the namespace").expect("the program starts");
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn measure(command: &str, mut run: impl FnMut() -> String) -> Phases {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (name, value) in run().lines().filter_map(line) {
            all.entry(name).or_default().push(value);
        }
    }
    let milliseconds = all.into_iter().map(|(name, values)| (name, quantile(values, 0.5))).collect();
    Phases { command: command.to_owned(), milliseconds }
}

/// Parses a line such as `  kernel      61.905 ms  sent …`. Returns the name of the phase and its milliseconds.
fn line(text: &str) -> Option<(String, f64)> {
    let mut words = text.split_whitespace();
    let (name, value, unit) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    unit.starts_with("ms").then(|| (name.to_owned(), value))
}
