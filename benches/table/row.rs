//! Rows of the result table: a measurement, its rival and its target.

use crate::race::{Ratio, Samples};

/// What must be reached. All of it must.
#[derive(Debug, Clone, Copy, Default)]
pub struct Target {
    /// At most so many times the time of the peer.
    pub time: Option<f64>,
    /// At most so many times the memory of the peer.
    pub memory: Option<f64>,
    /// At most so many seconds, whatever the peer takes.
    pub seconds: Option<f64>,
    /// What to come near to, in times the time of the floor. No failure where it is not.
    pub towards: Option<f64>,
}

impl Target {
    /// At most so many times the time of the peer.
    pub fn time(ratio: f64) -> Self {
        Self { time: Some(ratio), ..Self::default() }
    }
}

/// One comparison.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was done.
    pub what: String,
    /// How many forwards, or rules, there are.
    pub count: u32,
    /// What did the same, or what it is compared with.
    pub peer: String,
    /// The median of our times, in seconds.
    pub seconds: f64,
    /// Our time over the peer's.
    pub time: Ratio,
    /// Our peak of memory over the peer's.
    pub memory: Option<f64>,
    /// Our time over that of the floor.
    pub floor: Option<f64>,
    /// What must be reached.
    pub target: Target,
}

impl Row {
    /// Of us and a peer.
    pub fn new(what: impl Into<String>, count: u32, ours: &Samples, peer: impl Into<String>, theirs: &Samples) -> Self {
        Self {
            what: what.into(),
            count,
            peer: peer.into(),
            seconds: ours.seconds(),
            time: ours.over(theirs),
            memory: ours.kilobytes().zip(theirs.kilobytes()).map(|(mine, theirs)| mine / theirs),
            floor: None,
            target: Target::default(),
        }
    }

    /// With what must be reached.
    pub fn target(self, target: Target) -> Self {
        Self { target, ..self }
    }

    /// With the floor, beside what was ours in the same race.
    pub fn floor(self, ours: &Samples, floor: &Samples) -> Self {
        let floor = Some(ours.over(floor).middle);
        Self { floor, ..self }
    }

    /// Which parts of the target are not reached, with what was measured; `None` where there is no target.
    pub fn missed(&self) -> Option<Vec<String>> {
        let Target { time, memory, seconds, .. } = self.target;
        let parts = [
            (time, Some(self.time.middle), "time"),
            (memory, self.memory, "memory"),
            (seconds, Some(self.seconds), "seconds"),
        ];
        let asked: Vec<_> = parts.into_iter().filter_map(|(most, is, name)| Some((most?, is, name))).collect();
        let missed = |(most, is, name): &(f64, Option<f64>, &str)| match is {
            Some(is) if is <= most => None,
            Some(is) => Some(format!("{name} {is:.2}")),
            None => Some(format!("{name} not measured")),
        };
        (!asked.is_empty()).then(|| asked.iter().filter_map(missed).collect())
    }
}
