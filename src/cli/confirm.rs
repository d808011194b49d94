//! `portfwd confirm`: keeps the change that `apply --confirm` made.

use super::{Failure, Global, Output, failure, json, rollback_watcher};
use crate::engine::{Scope, Storage};

#[derive(Debug, clap::Args)]
pub struct ConfirmArgs {
    /// Show the time left for the pending change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait in the background, and roll back the change if it is not confirmed in time
    #[arg(long, hide = true, conflicts_with = "dry_run")]
    watch: bool,
}

pub fn run(args: &ConfirmArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    if args.watch {
        rollback_watcher::watch(global)?;
        return Ok(0);
    }
    let nothing = || Failure::NotFound {
        what: "there is no pending change".into(),
        help: "`portfwd apply --confirm SECONDS` makes one; `portfwd list` shows the live rules".into(),
    };
    if args.dry_run {
        let engine = global.open(Storage::ReadOnly(&global.state_dir), Scope::Full, output)?;
        let left = engine.state().unconfirmed.as_ref().and_then(|waiting| waiting.until.left()).ok_or_else(nothing)?;
        if global.json {
            json::print(&json::Changes::confirmed(Some(failure::seconds_rounded_up(left))), output.stdout)?;
        } else {
            writeln!(output.stdout, "{} left to confirm (dry run)", failure::seconds_text(left))?;
        }
        return Ok(0);
    }
    let mut engine = global.open(Storage::ReadWrite(&global.state_dir), Scope::Full, output)?;
    if engine.roll_back_if_expired()?.is_some() {
        return Err(
            Failure::Unconfirmed { what: "it is too late to confirm; portfwd rolled back the change".into() }.into()
        );
    }
    global.finish(&mut engine, output)?;
    if !engine.confirm()? {
        return Err(nothing().into());
    }
    if global.json {
        json::print(&json::Changes::confirmed(None), output.stdout)?;
    } else {
        writeln!(output.stdout, "confirmed")?;
    }
    Ok(0)
}
