//! `portfwd restore`: loads the state into the kernel, or rebuilds the state from the kernel's rules.

use super::{Global, Output, change, view};
use crate::engine::{Engine, Options, Scope, Storage};

#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// Rebuild a damaged or lost state from the live rules
    ///
    /// Keeps a damaged file under another name. Cannot recover networks that neither masquerade nor isolate, the files of
    /// rule sets, and the previous values of sysctls.
    #[arg(long)]
    from_kernel: bool,
    /// Show what would change, and change nothing
    #[arg(long, conflicts_with = "from_kernel")]
    dry_run: bool,
}

pub fn run(args: &RestoreArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    if args.from_kernel {
        return from_kernel(global, output);
    }
    let mut engine = if args.dry_run { global.read(output)? } else { global.recover(Scope::Full, output)? };
    let after = engine.state().clone();
    if args.dry_run {
        return change::preview(&mut engine, &after, global, output);
    }
    global.report_pending(&engine, output)?;
    let outcome = engine.commit(after, Options::default())?;
    change::report(&engine, &outcome, global, output)?;
    if !global.json {
        change::summary(&outcome, output)?;
    }
    Ok(0)
}

fn from_kernel(global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let mut engine = Engine::open(Storage::Reset(&global.state_dir), global.choice(), Scope::Full)?;
    if let Some(path) = engine.quarantined() {
        writeln!(output.stderr, "note: kept the damaged state as `{}`", path.display())?;
    }
    let after = engine.state_from_kernel()?;
    let outcome = engine.commit(after, Options::default())?;
    output.done = true;
    output.timing.add(engine.timing());
    view::notes(&outcome, global.verbose, output)?;
    let desired = &engine.state().desired;
    let others = desired.networks.len() + desired.masquerades.len() + desired.snats.len() + desired.netmaps.len();
    writeln!(output.stdout, "recovered {} forwards and {others} other rules", desired.bindings.len())?;
    Ok(0)
}
