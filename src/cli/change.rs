//! What every command that changes has in common: the dry run, the commit, what is printed of them.

use super::{Global, Output, failure, json, view};
use crate::engine::{self, Engine, Outcome};
use crate::store::State;

/// Makes the kernel hold what `after` asks, or with `dry_run` only shows what would be done. Gives the outcome where its
/// plain text is left to be printed.
pub fn carry_out(
    engine: &mut Engine,
    after: State,
    dry_run: bool,
    global: &Global,
    output: &mut Output<'_>,
) -> anyhow::Result<Option<Outcome>> {
    if dry_run {
        let plan = engine.plan_all(&after)?;
        output.timing.add(engine.timing());
        if global.json {
            json::print(&json::Changes::new(&plan, false), output.stdout)?;
        } else {
            view::steps(&plan.steps, output)?;
            writeln!(output.stdout, "{} (dry run)", view::to_do(&plan))?;
        }
        return Ok(None);
    }
    let outcome = engine::commit(engine, after)?;
    output.done = true;
    output.timing.add(engine.timing());
    view::aside(&outcome, global.verbose, output)?;
    if global.json {
        let waiting = engine.state().unconfirmed.as_ref().and_then(|waiting| waiting.until.left());
        let confirm_within = waiting.map(failure::whole_seconds);
        json::print(&json::Changes { confirm_within, ..json::Changes::new(&outcome.plan, true) }, output.stdout)?;
        return Ok(None);
    }
    Ok(Some(outcome))
}

/// Prints what was done in one line.
pub fn summary(outcome: &Outcome, output: &mut Output<'_>) -> std::io::Result<()> {
    if outcome.plan.steps.is_empty() {
        return writeln!(output.stdout, "unchanged");
    }
    let (add, change, remove) = outcome.plan.counts();
    writeln!(output.stdout, "{add} added, {change} changed, {remove} removed")
}

/// Prints what was done, a line for each rule.
pub fn details(outcome: &Outcome, output: &mut Output<'_>) -> std::io::Result<()> {
    for step in &outcome.plan.steps {
        if let Some(words) = step.after.as_ref().or(step.before.as_ref()) {
            writeln!(output.stdout, "{} {words}", view::verb(step.sign))?;
        }
    }
    Ok(())
}
