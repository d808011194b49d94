//! What people see: steps of a plan, tables.

use super::Output;
use crate::engine::{Outcome, Plan, Sign, Step};
use crate::model::error::printable;

/// Prints the steps of a plan, one a line.
pub fn steps(steps: &[Step], output: &mut Output<'_>) -> std::io::Result<()> {
    steps.iter().filter_map(step).try_for_each(|line| writeln!(output.stdout, "{line}"))
}

/// A step of a plan, `+ 8080/tcp -> 172.17.0.3:80  [cli]`.
pub fn step(step: &Step) -> Option<String> {
    let set = step.set.as_ref().map(|set| format!("  [{set}]")).unwrap_or_default();
    let text = match (&step.before, &step.after) {
        (Some(before), Some(after)) if before != after => format!("{before}  =>  {after}"),
        (_, Some(text)) | (Some(text), None) => text.to_string(),
        (None, None) => return None,
    };
    Some(printable(&format!("{} {text}{set}", step.sign)))
}

/// "N to add, N to change, N to remove".
pub fn to_do(plan: &Plan) -> String {
    let (add, change, remove) = plan.counts();
    format!("{add} to add, {change} to change, {remove} to remove")
}

/// Prints what was sent, and the switches that were set or given back, to stderr.
pub fn aside(outcome: &Outcome, verbose: bool, output: &mut Output<'_>) -> std::io::Result<()> {
    for home in &outcome.moved_from {
        writeln!(output.stderr, "note: the rules that {home} held are gone")?;
    }
    for change in outcome.sysctls.to_set() {
        writeln!(output.stderr, "note: {} was {}, is now {}", change.name(), change.before, change.after)?;
    }
    for target in &outcome.sysctls.unreachable {
        writeln!(
            output.stderr,
            "note: nothing leads to {target} yet; apply again when it does, for loopback to reach it"
        )?;
    }
    for change in &outcome.restored {
        writeln!(output.stderr, "note: {} is {} again", change.name(), change.before)?;
    }
    match &outcome.ended {
        Ok(0) => {}
        Ok(1) => writeln!(output.stderr, "note: ended one connection that followed other rules")?,
        Ok(count) => writeln!(output.stderr, "note: ended {count} connections that followed other rules")?,
        Err(why) => writeln!(
            output.stderr,
            "note: connections that follow other rules could not be ended, the next change tries again: {why}"
        )?,
    }
    if let Some(why) = &outcome.unkept {
        writeln!(output.stderr, "note: done, but the state does not say so yet, the next change looks again: {why}")?;
    }
    if verbose {
        for text in &outcome.messages {
            writeln!(output.stderr, "{}", text.trim_end())?;
        }
    }
    Ok(())
}

/// The word for what a step did.
pub fn verb(sign: Sign) -> &'static str {
    match sign {
        Sign::Add => "added",
        Sign::Change => "changed",
        Sign::Remove => "removed",
    }
}
