//! Where rules and facts come from: the kernel, and dumps of it.

pub mod facts;
pub mod json;
mod live;
pub mod nft;
pub mod save;
pub mod xt;

pub use live::live;

use super::table::{Ruleset, Table, Tool};
use crate::model::Family;

/// Why a dump cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// It is of iptables-save, and wrong.
    #[error(transparent)]
    Save(#[from] save::SaveError),
    /// It is of `nft -j`, and wrong.
    #[error(transparent)]
    Json(#[from] json::JsonError),
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It is of neither program.
    #[error("it is neither what `iptables-save` nor what `nft -j list ruleset` prints")]
    Neither,
}

/// Reads a dump of iptables-save(8) or of `nft -j list ruleset`, whichever it is. `family` is that of iptables-save where the
/// dump does not tell.
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

/// Several dumps of one host. Where both programs tell of a table that is of iptables, iptables-save tells more, and nft in
/// which place it is.
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
