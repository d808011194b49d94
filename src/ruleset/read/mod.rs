//! The readers: each turns the kernel's answers or a dump into the normal form.

pub mod facts;
pub mod json;
pub mod list;
mod live;
pub mod nft;
pub mod save;
pub mod text;
mod wrap;
pub mod xt;

pub use live::live;

use std::borrow::Cow;

use super::table::{Ruleset, Table, Tool};
use crate::model::Family;

/// The reason that a dump cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The output of iptables-save is malformed.
    #[error(transparent)]
    Save(#[from] save::SaveError),
    /// The output of `nft -j` is malformed.
    #[error(transparent)]
    Json(#[from] json::JsonError),
    /// The text of `nft list ruleset` cannot be read.
    #[error(transparent)]
    Text(#[from] text::TextError),
    /// The dump is empty.
    #[error("it is empty")]
    Empty,
    /// The format is unknown.
    #[error("it is not the output of `iptables-save`, `iptables -S`, `nft list ruleset` or `nft -j list ruleset`")]
    Neither,
}

/// Reads the output of iptables-save(8), `iptables -S`, `nft list ruleset` or `nft -j list ruleset`. `family` is the family
/// of iptables output, which does not always contain it. A code fence and lines of a shell around the output are skipped.
///
/// # Errors
/// [`DumpError`], with the line.
pub fn dump(text: &str, family: Option<Family>) -> Result<Ruleset, DumpError> {
    let text = &*wrap::unwrap(text);
    let mut lines = text.lines().map(str::trim_ascii_start).filter(|line| !line.is_empty()).peekable();
    if lines.peek().is_none() {
        return Err(DumpError::Empty);
    }
    let is_json = lines.find(|line| !line.starts_with('#')).is_some_and(|line| line.starts_with('{'));
    match is_json {
        true => Ok(json::parse(&without_remarks(text))?),
        false if save::is_one(text) => Ok(save::parse(text, family)?),
        false if list::is_one(text) => Ok(list::parse(text, family)?),
        false if text::is_one(text) => Ok(text::parse(text)?),
        false => Err(DumpError::Neither),
    }
}

/// Empties the lines before a JSON text.
fn without_remarks(text: &str) -> Cow<'_, str> {
    let end = text.find('{').unwrap_or(0);
    let (before, object) = text.split_at(end);
    match before.trim().is_empty() {
        true => Cow::Borrowed(text),
        false => Cow::Owned("\n".repeat(before.matches('\n').count()) + object),
    }
}

/// Merges several dumps of one host. If iptables-save and nft both print an iptables table, the rules come from
/// iptables-save and the position from nft.
pub fn together(dumps: Vec<Ruleset>) -> Ruleset {
    let mut all = Ruleset::default();
    let (mut saved, mut listed): (Vec<Table>, Vec<Table>) = Default::default();
    for dump in dumps {
        if dump.saved { &mut saved } else { &mut listed }.extend(dump.tables);
        all.gaps.extend(dump.gaps);
    }
    for table in listed {
        let of_nft = |tool| matches!(tool, Tool::IptablesNft | Tool::Iptables);
        let same = |other: &Table| {
            table.tool == Tool::IptablesNft
                && of_nft(other.tool)
                && (other.family, &other.name) == (table.family, &table.name)
        };
        let told = saved.iter().position(same).map(|at| saved.remove(at));
        if told.is_some() {
            // iptables-save prints the rules that nft cannot print.
            let of_table = format!("{table}, line ");
            all.gaps.retain(|gap| !gap.what.starts_with(&of_table));
        }
        all.tables.push(told.unwrap_or(table));
    }
    all.tables.extend(saved);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_found_in_what_surrounds_it() {
        let save =
            "*nat\n:PREROUTING ACCEPT\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.1\nCOMMIT\n";
        let list = "-P PREROUTING ACCEPT\n-P POSTROUTING ACCEPT\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.1\n";
        let json = "{\"nftables\": [{\"table\": {\"family\": \"ip\", \"name\": \"nat\", \"handle\": 1}}]}\n";
        for text in [save, list, json] {
            for text in [
                text.to_owned(),
                format!("\u{feff}{text}"),
                text.replace('\n', "\r\n"),
                format!("It does not work:\n```\n{text}```\nWhy?\n"),
                format!("root@fw:~# nft -j list ruleset\n{text}root@fw:~#\n"),
                format!("$ iptables -t nat -S\n{text}"),
                format!("\n\n~~~ text\n# iptables-save\n{text}"),
            ] {
                let rules = dump(&text, None).unwrap_or_else(|error| panic!("{error}: {text}"));
                let names: Vec<&str> = rules.tables.iter().map(|table| &*table.name).collect();
                assert_eq!((names, rules.gaps), (vec!["nat"], Vec::new()), "{text}");
            }
        }
        assert!(matches!(dump("```\n```\n", None), Err(DumpError::Empty)));
        assert!(matches!(dump("Chain INPUT (policy ACCEPT)\n", None), Err(DumpError::Neither)));
    }
}
