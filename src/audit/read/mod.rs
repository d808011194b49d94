//! Where rules and facts come from: the kernel, and dumps of it.

pub mod facts;
pub mod json;
mod live;
pub mod nft;
pub mod save;
pub mod xt;

pub use live::live;

use super::ruleset::{Ruleset, Tool};
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
    match text.trim_start().starts_with('{') {
        true => Ok(json::parse(text)?),
        false if save::is_one(text) => Ok(save::parse(text, family)?),
        false => Err(DumpError::Neither),
    }
}

/// Several dumps of one host. Where both programs tell of a table that is of iptables, iptables-save tells more.
pub fn together(dumps: Vec<Ruleset>) -> Ruleset {
    let mut all = Ruleset::default();
    for dump in dumps {
        all.tables.extend(dump.tables);
        all.gaps.extend(dump.gaps);
    }
    let saved: Vec<_> =
        all.tables.iter().filter(|table| table.is_of_save()).map(|table| (table.family, table.name.clone())).collect();
    all.tables.retain(|table| {
        table.is_of_save() || table.tool != Tool::IptablesNft || !saved.contains(&(table.family, table.name.clone()))
    });
    all
}
