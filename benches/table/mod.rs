//! The table at the end: every row of what is promised, beside what was measured.

pub mod phases;
mod row;
mod text;

pub use row::{Row, Target};
pub use text::{markdown, plain};

use crate::chart::Panel;
use crate::race::Results;
use phases::Phases;

/// What all benches report.
#[derive(Default)]
pub struct Report {
    /// The rows, in the order in which they were measured.
    pub rows: Vec<Row>,
    /// The charts of cost against number.
    pub panels: Vec<Panel>,
    /// Where the time of commands goes.
    pub phases: Vec<Phases>,
}

impl Report {
    /// A row for each contender but these, compared with the one that is ours.
    pub fn against_all(&mut self, what: &str, count: u32, ours: &str, results: &Results, but: &[&str]) {
        let names = [but, &[ours]].concat();
        for (peer, theirs) in results.but(&names) {
            self.rows.push(Row::new(what, count, results.of(ours), peer, theirs));
        }
    }
}
