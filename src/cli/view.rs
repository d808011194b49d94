//! Text output of plans and commits.

use super::Output;
use crate::engine::{Outcome, Plan, Sign, Step};
use crate::model::error::printable;

/// Prints one line for each step of a plan.
pub fn steps(steps: &[Step], output: &mut Output<'_>) -> std::io::Result<()> {
    steps.iter().filter_map(step).try_for_each(|line| writeln!(output.stdout, "{line}"))
}

/// Returns the text of a step, such as `+ 8080/tcp -> 172.17.0.3:80  [cli]`.
pub fn step(step: &Step) -> Option<String> {
    let set = step.set.as_ref().map(|set| format!("  [{set}]")).unwrap_or_default();
    let text = match (&step.before, &step.after) {
        (Some(before), Some(after)) if before != after => format!("{before}  =>  {after}"),
        (_, Some(text)) | (Some(text), None) => text.to_string(),
        (None, None) => return None,
    };
    Some(printable(&format!("{} {text}{set}", step.sign)))
}

/// Returns the summary of a plan: "N to add, N to change, N to remove".
pub fn to_do(plan: &Plan) -> String {
    let (add, change, remove) = plan.counts();
    format!("{add} to add, {change} to change, {remove} to remove")
}

/// Prints the side effects of a commit to stderr and, if `verbose`, the messages to the kernel.
pub fn notes(outcome: &Outcome, verbose: bool, output: &mut Output<'_>) -> std::io::Result<()> {
    for backend in &outcome.moved_from {
        writeln!(output.stderr, "note: removed the rules of portfwd from {backend}")?;
    }
    for change in outcome.sysctls.to_set() {
        writeln!(output.stderr, "note: set {} to {}, was {}", change.name(), change.after, change.before)?;
    }
    for target in &outcome.sysctls.unreachable {
        writeln!(
            output.stderr,
            "note: there is no interface to {target} yet, so `loopback` does not work; apply again when there is one"
        )?;
    }
    for change in &outcome.restored {
        writeln!(output.stderr, "note: restored {} to {}", change.name(), change.before)?;
    }
    match &outcome.ended {
        Ok(0) => {}
        Ok(1) => writeln!(output.stderr, "note: dropped 1 tracked connection that the new rules invalidate")?,
        Ok(count) => {
            writeln!(output.stderr, "note: dropped {count} tracked connections that the new rules invalidate")?
        }
        Err(why) => writeln!(
            output.stderr,
            "note: cannot drop the connections that the new rules invalidate, the next change tries again: {why}"
        )?,
    }
    if let Some(why) = &outcome.unkept {
        writeln!(
            output.stderr,
            "note: the change is live, but the state could not record that, the next change checks it: {why}"
        )?;
    }
    if verbose {
        for text in &outcome.messages {
            writeln!(output.stderr, "{}", text.trim_end())?;
        }
    }
    Ok(())
}

/// Returns the word for a change: `added`, `changed` or `removed`.
pub fn verb(sign: Sign) -> &'static str {
    match sign {
        Sign::Add => "added",
        Sign::Change => "changed",
        Sign::Remove => "removed",
    }
}
