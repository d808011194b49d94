//! What portfwd costs: a bench a module, each against something that is measured in the same run, alternating.
//!
//! `cargo bench` runs all, `cargo bench -- connection` those whose names are given; with `--quick` connections take a
//! quarter of the time and are less exact. Only ratios of one run mean anything. Needs root, `nft` and both variants of
//! iptables; everything happens in network namespaces that are made for it.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

mod add;
mod apply;
mod audit;
mod connection;
mod host;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test` builds and runs benches too, with `--test`; there is nothing to measure then.
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    // Cargo adds `--bench`.
    let names: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let unknown = names.iter().find(|name| !["add", "apply", "audit", "connection"].contains(&name.as_str()));
    assert!(unknown.is_none(), "no bench is called {unknown:?}: there are add, apply, audit and connection");
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| *wanted == name);
    if wanted("add") {
        add::bench();
    }
    if wanted("apply") {
        apply::bench();
    }
    if wanted("audit") {
        audit::bench();
    }
    if wanted("connection") {
        connection::bench(quick);
    }
}
