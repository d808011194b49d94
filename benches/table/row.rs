//! A row of the result table: portfwd's measurement, a peer's measurement, and limits.

use crate::race::{Ratio, Samples};

/// The upper limits of a table row.
#[derive(Debug, Clone, Copy, Default)]
pub struct Target {
    /// The largest allowed ratio of times.
    pub time: Option<f64>,
    /// The largest allowed ratio of memory peaks.
    pub memory: Option<f64>,
}

impl Target {
    /// Returns a limit for the ratio of times only.
    pub fn time(ratio: f64) -> Self {
        Self { time: Some(ratio), memory: None }
    }
}

/// A comparison of portfwd with one peer.
#[derive(Debug, Clone)]
pub struct Row {
    /// The name of the operation, in the first column.
    pub what: String,
    /// The number of forwards or rules.
    pub count: u32,
    /// The name of the peer's operation.
    pub peer: String,
    /// The median of portfwd's times, in seconds.
    pub seconds: f64,
    /// The ratio of portfwd's times to the peer's.
    pub time: Ratio,
    /// The ratio of portfwd's memory peak to the peer's. `None` if either is not measured.
    pub memory: Option<f64>,
    /// The limits of the ratios.
    pub target: Target,
}

impl Row {
    /// Compares portfwd's costs with a peer's costs. The row has no limits yet.
    pub fn new(what: impl Into<String>, count: u32, own: &Samples, peer: impl Into<String>, other: &Samples) -> Self {
        Self {
            what: what.into(),
            count,
            peer: peer.into(),
            seconds: own.seconds(),
            time: own.over(other),
            memory: own.kilobytes().zip(other.kilobytes()).map(|(own, other)| own / other),
            target: Target::default(),
        }
    }

    /// Returns the row with `target` as its limits.
    pub fn target(self, target: Target) -> Self {
        Self { target, ..self }
    }

    /// Returns the exceeded limits, each with its measured ratio. Returns `None` if the row has no limits.
    pub fn missed(&self) -> Option<Vec<String>> {
        let Target { time, memory } = self.target;
        let parts = [(time, Some(self.time.middle), "time"), (memory, self.memory, "memory")];
        let limited: Vec<_> =
            parts.into_iter().filter_map(|(limit, value, name)| Some((limit?, value, name))).collect();
        let missed = |(limit, value, name): &(f64, Option<f64>, &str)| match value {
            Some(value) if value <= limit => None,
            Some(value) => Some(format!("{name} {value:.2}")),
            None => Some(format!("{name} not measured")),
        };
        (!limited.is_empty()).then(|| limited.iter().filter_map(missed).collect())
    }
}
