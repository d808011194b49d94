//! The table of phases: one row for each phase, one column for each command.

use std::collections::BTreeMap;

use portfwd::engine::timing::Phase;

/// The phases of one command, with their times.
#[derive(Debug, Clone)]
pub struct Phases {
    /// The name of the command, which is the heading of its column.
    pub command: String,
    /// The median time of each phase, in milliseconds. `time` is the total. `rest` is the time outside of all phases.
    pub milliseconds: BTreeMap<String, f64>,
}

/// Returns a Markdown table with a column for each command. Returns an empty text if nothing was measured.
pub fn table(all: &[Phases]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let commands: Vec<&str> = all.iter().map(|phases| phases.command.as_str()).collect();
    let mut text = format!("| ms | {} |\n|---|{}\n", commands.join(" | "), "---:|".repeat(all.len()));
    let names = Phase::ALL.map(Phase::name);
    for name in names.iter().chain(&["rest", "time"]) {
        if all.iter().all(|phases| !phases.milliseconds.contains_key(*name)) {
            continue;
        }
        let cells = all.iter().map(|phases| phases.milliseconds.get(*name).map_or("-".into(), |ms| format!("{ms:.2}")));
        text += &format!(
            "| {} | {} |\n",
            if *name == "time" { "all" } else { name },
            cells.collect::<Vec<_>>().join(" | ")
        );
    }
    text
}
