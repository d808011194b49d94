//! The results of all benches.

use super::phases::Phases;
use super::row::Row;

/// The results of all benches.
#[derive(Default)]
pub struct Report {
    /// The comparisons, in the order of measurement.
    pub rows: Vec<Row>,
    /// The counts. Each has a name, the number of forwards, the counted value and its upper limit.
    pub counts: Vec<(String, u32, usize, usize)>,
    /// The phases of each measured command.
    pub phases: Vec<Phases>,
}
