//! Reads the text of `nft list ruleset`.
//!
//! ```text
//! text ──syntax──▶ tables, blocks, items ──commands──▶ nft in a sandbox ──netlink──▶ ruleset ──places──▶ ruleset with lines
//! ```
//! Only nft(8) knows its syntax. So the host's nft loads the text into a network namespace that nothing else uses
//! ([`crate::sys::sandbox`]), and the netlink reader reads the rules there. Each rule becomes one command. If nft refuses a
//! rule, the rule is kept as an unknown one in its place, and a gap contains the reason.
//!
//! Be aware: the text is hostile. It reaches nft through standard input, as commands that this module makes.

mod commands;
mod error;
mod gaps;
mod load;
mod merge;
mod syntax;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use self::commands::{declarations, each_rule, is_terse, links, name, rules};
pub use self::error::{MAX_TEXT, TextError};
use self::gaps::Failures;
use self::load::Loader;
use self::merge::merge;
use super::nft;
use crate::nft::transaction::Connection;
use crate::ruleset::table::Ruleset;
use crate::sys::process;
use crate::sys::sandbox::Sandbox;

/// Returns true if a text looks like the output of nft(8): a line begins a table.
pub fn is_one(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim_start);
    lines.any(|line| line.strip_prefix("table").is_some_and(|rest| rest.starts_with([' ', '\t']) && rest.contains('{')))
}

/// Reads a text. The text may contain handles.
///
/// # Errors
/// [`TextError`].
pub fn parse(text: &str) -> Result<Ruleset, TextError> {
    if text.len() > MAX_TEXT {
        return Err(TextError::TooLong(text.len()));
    }
    let mut tables = syntax::parse(text)?;
    let nft = process::find("nft")?;
    let sandbox = Sandbox::new()?;
    let links = links(&sandbox, &tables)?;
    let loader = Loader::new(&sandbox, nft);
    let mut failures = Failures::default();
    let (commands, places) = declarations(&tables, &mut failures);
    let refused = loader.load(&commands)?;
    let mut plain = Vec::new();
    for (place, message) in places.into_iter().zip(refused) {
        let Some(message) = message else { continue };
        let Some(table) = tables.get_mut(place.table) else { continue };
        let Some(block) = place.block.and_then(|block| table.blocks.get_mut(block)) else {
            failures.add(table, table.line, "the table", &message);
            continue;
        };
        if std::mem::replace(&mut block.refused, true) {
            continue;
        }
        let (line, text, is_chain) = (block.head.line, block.head.text(), block.head.first() == Some("chain"));
        // Rules may jump to a chain without its hook.
        let chain = name(block).filter(|_| is_chain).map(|(_, name)| name);
        plain.extend(chain.map(|name| format!("add chain {} {} {name}", table.family.name(), table.name)));
        failures.add(table, line, &text, &message);
    }
    loader.load(&plain)?;
    let commands = rules(&mut tables, is_terse(text));
    let refused = loader.load(&commands)?;
    let loaded = each_rule(&mut tables).filter(|(_, item)| item.broken.is_none());
    for ((_, item), message) in loaded.zip(refused) {
        item.broken = message.map(Cow::from);
    }
    let mut connection = Connection::over(Box::new(sandbox.netfilter()?));
    let numbers = nft::Numbers { links: &links, ipsets: &nft::Ipsets::default() };
    let read = nft::read_with(&mut connection, numbers)?;
    Ok(merge(&tables, read, failures))
}
