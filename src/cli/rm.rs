//! `portfwd rm`: removes forwards.

use super::{Failure, Global, Output, add, change};
use crate::model::{Asked, Binding, Listen, Owned, SetName};

/// Remove forwards
#[derive(Debug, clap::Args)]
#[command(visible_alias = "del")]
pub struct RmArgs {
    /// Where they listen, as `add` takes it; without a protocol, all of them
    #[arg(value_name = "LISTEN", required = true)]
    listens: Vec<String>,
    /// The rule set that they are removed from
    #[arg(long, value_name = "NAME", default_value = "cli")]
    set: String,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &RmArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let mut listens = Vec::with_capacity(args.listens.len());
    for text in &args.listens {
        listens.push(add::parse("LISTEN", text, str::parse::<Listen>)?);
    }
    let set = add::parse("--set", &args.set, str::parse::<SetName>)?;
    let mut engine = global.engine(!args.dry_run)?;
    let mut after = engine.state().clone();
    for listen in &listens {
        take(&mut after.asked, &set, listen)?;
    }
    if let Some(outcome) = change::carry_out(&mut engine, after, args.dry_run, global, output)? {
        change::details(&outcome, output)?;
    }
    Ok(0)
}

/// Takes the bindings of a set that listen at a place out of what is asked.
fn take(asked: &mut Asked, set: &SetName, listen: &Listen) -> Result<(), Failure> {
    let same = |owned: &Owned<Binding>| {
        owned.set == *set
            && owned.rule.address == listen.address
            && (listen.protocols.is_empty() || listen.protocols.contains(&owned.rule.protocol))
    };
    for range in listen.ports.ranges() {
        let part = asked.bindings.iter().find(|owned| {
            same(owned)
                && owned.rule.ports.overlaps(*range)
                && !range.contains(owned.rule.ports)
                && !owned.rule.ports.is_single()
        });
        let whole = |owned: &Owned<Binding>| same(owned) && range.contains(owned.rule.ports);
        if asked.bindings.iter().any(whole) {
            asked.bindings.retain(|owned| !whole(owned));
        } else if let Some(part) = part {
            return Err(Failure::NotFound {
                what: format!("`{range}` is only a part of `{}`", part.rule.listen()),
                help: format!("remove all of it, `{}`, and add what shall stay", part.rule.ports),
            });
        } else {
            return Err(Failure::NotFound {
                what: format!("nothing listens at `{listen}` in the rule set `{set}`"),
                help: "see `portfwd list`; name another set with `--set`".into(),
            });
        }
    }
    Ok(())
}
