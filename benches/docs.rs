//! The page of a run: `docs/benchmarks.md` with the table, and `docs/bench.svg` with the charts.

use std::path::Path;

use crate::table::{Report, markdown, phases};
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

/// What stands above the table.
const HEAD: &str = "\
Everything happens side by side in one run, in turns, in network namespaces. A ratio is the median of those of all rounds,
with their quartiles in brackets; only ratios mean anything elsewhere.

N is the number of forwards, or of foreign rules, that are there. The time ratio is portfwd's time over the peer's, the memory
ratio that of the peaks of resident memory: of whole processes where the row is about a command, and of what one process needs
where a peer needs several. The floor is what the kernel alone needs for the same messages, encoded beforehand and sent at once.
What has no target is there to compare.

portfwd keeps what it does on disk and waits for that; the others do not. `nft -j -f` has a rule for each forward, because nft 1.0.6
reads no map from JSON with an address and a port as its data. The CNI plugin portmap runs iptables some twenty times for one
port, and each time everything is read, so it has fewer forwards than the others. What Docker's nftables backend does for 206
ports is measured for one of them: it writes the chain with all ports again for each.
";

/// What stands above the table of phases.
const PHASES: &str = "\
## Where the time goes

As `-v` tells it, medians in milliseconds of the time that the command was in a phase, or waited for it; what another thread did
meanwhile is not in it. `kernel` is from the sending of the one batch to its acknowledgement, `store` waits for the disk.
";

fn page(report: &Report, quick: bool) -> String {
    let machine = machine::words();
    let command = if quick { "cargo bench -- --quick --write-docs" } else { "cargo bench -- --write-docs" };
    let note = if quick { " It was a quick run: fewer forwards, and fewer rounds than exact ratios need." } else { "" };
    let (table, phases) = (markdown(&report.rows), phases::table(&report.phases));
    format!(
        "# Benchmarks\n\nWritten by `{command}`\non {machine}.{note}\n\n{HEAD}\n{table}\n\n{PHASES}\n{phases}\n\
         ![Cost against the number of forwards](bench.svg)\n"
    )
}
