//! The table of where the time of commands goes.

use std::collections::BTreeMap;

use portfwd::engine::timing::Phase;

/// What one command took: medians in milliseconds by phase, of the time that the command waited for it.
#[derive(Debug, Clone)]
pub struct Phases {
    /// The command.
    pub command: String,
    /// By the name of the phase; the whole is `time`, what is in none of them `rest`.
    pub milliseconds: BTreeMap<String, f64>,
}

/// A table, a column a command, in Markdown; nothing where nothing was measured.
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
