//! Writes the results of a run to `docs/benchmarks.md`.

use std::path::Path;

use crate::machine;
use crate::table::phases;
use crate::table::{Report, markdown};

/// Writes `docs/benchmarks.md`: the tables, the machine and the explanations.
pub fn write(report: &Report, quick: bool) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks.md");
    std::fs::write(path, page(report, quick)).expect("docs/benchmarks.md");
}

/// The text above the tables of results and counts.
const HEAD: &str = "\
All programs take turns in one run, in network namespaces. A ratio is the median of the ratios of all rounds, with their quartiles
in brackets. Times depend on the machine; ratios depend on it less.

N is the number of forwards, or of foreign rules for the audit. The time ratio is portfwd's time divided by the time of the other
program. The memory ratio compares the peaks of resident memory of whole processes. `the floor: one send` is the kernel alone: it
takes the same messages, encoded beforehand, in one send. Rows without a limit are for comparison only.

portfwd waits until its state is on disk; the other programs keep no state. Every forward has a counter in all programs. The crate
`iptables` starts one process for each rule, and each process reads and writes the whole table.
The second table counts system calls, which do not depend on the machine: an nf_tables request is one send to the kernel.
";

/// The text above the table of phases.
const PHASES: &str = "\
## The phases of a command

The output of `-v`: medians in milliseconds of the time that the main thread works in a phase or waits for it. `kernel` is the
time from the send of the batch to its acknowledgement. `store` includes the wait for the disk.
";

fn page(report: &Report, quick: bool) -> String {
    let machine = machine::words();
    let command = if quick { "cargo bench -- --quick --write-docs" } else { "cargo bench -- --write-docs" };
    let note = if quick { " This was a quick run, with fewer forwards and fewer rounds." } else { "" };
    let (table, phases) = (markdown(report), phases::table(&report.phases));
    format!("# Benchmarks\n\nWritten by `{command}`\non {machine}.{note}\n\n{HEAD}\n{table}\n\n{PHASES}\n{phases}")
}
