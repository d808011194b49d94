//! `portfwd confirm`: keeps what `apply --confirm` did.

use super::{Failure, Global, Output, failure, json, waiting};
use crate::engine::{Scope, Storage};

#[derive(Debug, clap::Args)]
pub struct ConfirmArgs {
    /// Show what waits to be confirmed, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait in the background, and take back what is not confirmed in time
    #[arg(long, hide = true, conflicts_with = "dry_run")]
    watch: bool,
}

pub fn run(args: &ConfirmArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    if args.watch {
        waiting::watch(global)?;
        return Ok(0);
    }
    let nothing = || Failure::NotFound {
        what: "there is no change that waits to be confirmed".into(),
        help: "`portfwd apply --confirm SECONDS` makes one; see `portfwd list` for the rules that are there".into(),
    };
    if args.dry_run {
        let engine = global.open(Storage::ReadOnly(&global.state_dir), Scope::Full, output)?;
        let left = engine.state().unconfirmed.as_ref().and_then(|waiting| waiting.until.left()).ok_or_else(nothing)?;
        if global.json {
            json::print(&json::Changes::confirmed(Some(failure::whole_seconds(left))), output.stdout)?;
        } else {
            writeln!(output.stdout, "to be confirmed within {} (dry run)", failure::in_words(left))?;
        }
        return Ok(0);
    }
    let mut engine = global.open(Storage::ReadWrite(&global.state_dir), Scope::Full, output)?;
    if engine.roll_back_if_expired()?.is_some() {
        return Err(Failure::Unconfirmed { what: "it is too late to confirm; the rules before are back".into() }.into());
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
