//! The parts of a text that could not be read.

use super::syntax::Table;
use crate::ruleset::table::Gap;

/// The largest number of gaps that name one rule each.
pub(super) const MAX_GAPS: usize = 100;

/// The objects of a text that could not be read.
#[derive(Default)]
pub(super) struct Failures {
    gaps: Vec<Gap>,
    more: usize,
}

impl Failures {
    pub(super) fn add(&mut self, table: &Table<'_>, line: usize, text: &str, why: &str) {
        if self.gaps.len() == MAX_GAPS {
            self.more += 1;
            return;
        }
        let text: String = text.chars().take(160).collect();
        let what = format!("{} {}, line {line}: `{text}`", table.family.name(), table.name);
        self.gaps.push(Gap { what, why: why.to_owned() });
    }

    pub(super) fn end(mut self) -> Vec<Gap> {
        if self.more > 0 {
            let what = format!("{} more lines", self.more);
            self.gaps.push(Gap { what, why: "nft refused them".into() });
        }
        self.gaps
    }
}
