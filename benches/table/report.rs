//! The results of all benches.

use super::phases::Phases;
use super::row::Row;

/// The results of all benches.
#[derive(Default)]
pub struct Report {
    /// The comparisons, in the order in which they were measured.
    pub rows: Vec<Row>,
    /// The counts: the name, the number of forwards, the count, and the largest count allowed.
    pub counts: Vec<(String, u32, usize, usize)>,
    /// The phases of commands.
    pub phases: Vec<Phases>,
}
