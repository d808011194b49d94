//! The page of a run: `docs/benchmarks.md` with the table, and `docs/bench.svg` with the charts.

use std::path::Path;

use crate::table::{Report, markdown};
use crate::{chart, machine};

/// Where a run leaves its charts when it is not asked to write documents.
pub fn scratch() -> std::path::PathBuf {
    std::env::temp_dir().join("portfwd-bench.svg")
}

/// Writes both into the sources' documents.
pub fn write(report: &Report, quick: bool) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    std::fs::write(docs.join("bench.svg"), chart::svg(&report.panels)).expect("docs/bench.svg");
    std::fs::write(docs.join("benchmarks.md"), page(report, quick)).expect("docs/benchmarks.md");
}

fn page(report: &Report, quick: bool) -> String {
    let (command, note) = if quick {
        (
            "cargo bench -- --quick --write-docs",
            " It is a quick run: fewer forwards, and fewer rounds than a ratio needs.",
        )
    } else {
        ("cargo bench -- --write-docs", "")
    };
    format!(
        "# Benchmarks\n\n\
         Written by `{command}` on {machine}.{note} Everything happens side by side in one run, alternating, in network\n\
         namespaces; a ratio is the median of those of all rounds, with their quartiles in brackets. Only ratios mean anything\n\
         elsewhere.\n\n\
         N is the number of forwards, or of foreign rules, that are there. The time ratio is portfwd's time over the peer's, for whole\n\
         processes where the row is about a command, and so is the memory ratio of the peaks of resident memory. The floor is what\n\
         the kernel alone needs for the same messages, encoded beforehand and sent at once. What has no target is there to compare.\n\n\
         {table}\n\n\
         ![Cost against the number of forwards](bench.svg)\n",
        machine = machine::words(),
        table = markdown(&report.rows),
    )
}
