//! Prints the results of commands that change rules: the preview of `--dry-run`, and the report of a commit.

use super::{Global, Output, failure, json, view};
use crate::engine::{Engine, Outcome};
use crate::store::State;

/// Prints the changes that a commit of `after` would make. Returns the exit code.
pub fn preview(engine: &mut Engine, after: &State, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let plan = engine.plan(after)?;
    output.timing.add(engine.timing());
    if global.json {
        json::print(&json::Changes::new(&plan, false), output.stdout)?;
    } else {
        view::steps(&plan.steps, output)?;
        writeln!(output.stdout, "{} (dry run)", view::to_do(&plan))?;
    }
    Ok(0)
}

/// Prints the notes of a commit to stderr, and with `--json` its changes to stdout.
pub fn report(engine: &Engine, outcome: &Outcome, global: &Global, output: &mut Output<'_>) -> anyhow::Result<()> {
    output.done = true;
    output.timing.add(engine.timing());
    view::notes(outcome, global.verbose, output)?;
    if global.json {
        let waiting = engine.state().unconfirmed.as_ref().and_then(|waiting| waiting.until.left());
        let confirm_within = waiting.map(failure::seconds_rounded_up);
        json::print(&json::Changes { confirm_within, ..json::Changes::new(&outcome.plan, true) }, output.stdout)?;
    }
    Ok(())
}

/// Prints the number of changes in one line.
pub fn summary(outcome: &Outcome, output: &mut Output<'_>) -> std::io::Result<()> {
    if outcome.plan.steps.is_empty() {
        return writeln!(output.stdout, "unchanged");
    }
    let (add, change, remove) = outcome.plan.counts();
    writeln!(output.stdout, "{add} added, {change} changed, {remove} removed")
}

/// Prints one line for each changed rule.
pub fn details(outcome: &Outcome, output: &mut Output<'_>) -> std::io::Result<()> {
    for step in &outcome.plan.steps {
        if let Some(words) = step.after.as_ref().or(step.before.as_ref()) {
            writeln!(output.stdout, "{} {words}", view::verb(step.sign))?;
        }
    }
    Ok(())
}
