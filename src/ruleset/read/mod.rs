//! The readers: each turns the kernel's answers or a dump into the normal form.

pub mod facts;
pub mod json;
mod live;
pub mod nft;
pub mod save;
pub mod xt;

pub use live::live;

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
    /// The dump is empty.
    #[error("it is empty")]
    Empty,
    /// The format is unknown.
    #[error("it is neither what `iptables-save` nor what `nft -j list ruleset` prints")]
    Neither,
}

/// Reads the output of iptables-save(8) or of `nft -j list ruleset`. `family` is the family of iptables-save output, which
/// does not always contain it.
///
/// # Errors
/// [`DumpError`], with the line.
pub fn dump(text: &str, family: Option<Family>) -> Result<Ruleset, DumpError> {
    if text.trim_ascii().is_empty() {
        return Err(DumpError::Empty);
    }
    match text.trim_start().starts_with('{') {
        true => Ok(json::parse(text)?),
        false if save::is_one(text) => Ok(save::parse(text, family)?),
        false => Err(DumpError::Neither),
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
        all.tables.push(told.unwrap_or(table));
    }
    all.tables.extend(saved);
    all
}
