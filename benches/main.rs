//! What portfwd costs: a bench a module, each against something that is measured in the same run, in turns.
//!
//! `cargo bench` runs all, `cargo bench -- add list` those whose names are given. At the end is one table of all. `--quick` takes
//! less than two minutes and is less exact: fewer forwards, fewer rounds. `--write-docs` writes `docs/benchmarks.md` and
//! `docs/bench.svg`. Only ratios of one run mean anything. Needs root, `nft` and both variants of iptables; everything happens
//! in network namespaces that are made for it, and nothing leaves them.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

mod add;
mod apply;
mod audit;
mod chart;
mod connection;
mod docs;
mod effort;
mod floor;
mod host;
mod list;
mod machine;
mod peer;
mod phases;
mod ports;
mod race;
mod restore;
mod table;
mod throughput;

use effort::Effort;
use race::process;
use table::Report;

/// A bench.
type Bench = fn(Effort, &mut Report);

/// All of them, in the order in which they run.
const BENCHES: [(&str, Bench); 9] = [
    ("apply", apply::bench),
    ("add", add::bench),
    ("ports", ports::bench),
    ("list", list::bench),
    ("restore", restore::bench),
    ("audit", audit::bench),
    ("connection", connection::bench),
    ("throughput", throughput::bench),
    ("phases", phases::bench),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((process::MEASURE, program)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        std::process::exit(process::measure(program));
    }
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    // `cargo test` builds and runs benches too, with `--test`; there is nothing to measure then.
    if has("--test") {
        return;
    }
    // Cargo adds `--bench`.
    let known = ["--bench", "--quick", "--write-docs"];
    let (options, names): (Vec<&str>, Vec<&str>) =
        arguments.iter().map(String::as_str).partition(|argument| argument.starts_with("--"));
    let unknown = options.iter().find(|option| !known.contains(option));
    assert!(unknown.is_none(), "there is no option {unknown:?}: there are --quick and --write-docs");
    let unknown = names.iter().find(|name| BENCHES.iter().all(|(known, _)| known != *name));
    let all = BENCHES.map(|(name, _)| name).join(", ");
    assert!(unknown.is_none(), "no bench is called {unknown:?}: there are {all}");
    assert!(names.is_empty() || !has("--write-docs"), "documents are written of all benches, not of some");
    let (effort, mut report) = (Effort { quick: has("--quick") }, Report::default());
    for (name, bench) in BENCHES {
        if names.is_empty() || names.contains(&name) {
            bench(effort, &mut report);
        }
    }
    host::remove_copy();
    println!("\n{}\n\n{}", machine::words(), table::plain(&report.rows));
    println!("{}", table::phases::table(&report.phases));
    if has("--write-docs") {
        docs::write(&report, effort.quick);
        println!("\nwritten: docs/benchmarks.md, docs/bench.svg");
    } else if !report.panels.is_empty() {
        let path = docs::scratch();
        std::fs::write(&path, chart::svg(&report.panels)).expect("the charts");
        println!("\ncharts: {}", path.display());
    }
}
