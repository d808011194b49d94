//! Measures portfwd against other programs and against the kernel alone.
//!
//! `cargo bench` runs every bench; `cargo bench -- add list` runs two. `--quick` runs with fewer forwards and fewer
//! rounds. `--write-docs` writes `docs/benchmarks.md`. Only ratios of one run are comparable.
//!
//! The benches need root, nft, both variants of iptables, conntrack and strace. The benches run in new network
//! namespaces.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

mod add;
mod apply;
mod audit;
mod connection;
mod counted;
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
mod table;

use effort::Effort;
use race::process;
use table::Report;

/// A bench function. The function adds its results to the report.
type Bench = fn(Effort, &mut Report);

/// The benches, in the order in which they run.
const BENCHES: [(&str, Bench); 7] = [
    ("apply", apply::bench),
    ("add", add::bench),
    ("ports", ports::bench),
    ("list", list::bench),
    ("audit", audit::bench),
    ("connection", connection::bench),
    ("phases", phases::bench),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((process::MEASURE, program)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        std::process::exit(process::measure(program));
    }
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    // `cargo test --benches` runs this program with `--test`.
    if has("--test") {
        return;
    }
    // `cargo bench` adds the option `--bench`.
    let known = ["--bench", "--quick", "--write-docs"];
    let (options, names): (Vec<&str>, Vec<&str>) =
        arguments.iter().map(String::as_str).partition(|argument| argument.starts_with("--"));
    let unknown = options.iter().find(|option| !known.contains(option));
    assert!(unknown.is_none(), "unknown option {unknown:?}: use --quick or --write-docs");
    let unknown = names.iter().find(|name| BENCHES.iter().all(|(known, _)| known != *name));
    let all = BENCHES.map(|(name, _)| name).join(", ");
    assert!(unknown.is_none(), "unknown bench {unknown:?}: the benches are {all}");
    assert!(names.is_empty() || !has("--write-docs"), "--write-docs needs every bench");
    let (effort, mut report) = (Effort { quick: has("--quick") }, Report::default());
    for (name, bench) in BENCHES {
        if names.is_empty() || names.contains(&name) {
            bench(effort, &mut report);
        }
    }
    println!("\n{}\n\n{}\n", machine::words(), table::plain(&report));
    println!("{}", table::phases::table(&report.phases));
    if has("--write-docs") {
        docs::write(&report, effort.quick);
        println!("\nwrote docs/benchmarks.md");
    }
}
