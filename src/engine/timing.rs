//! Measures the time and the netlink traffic of each phase of a command.
//!
//! ```text
//! time     96.214 ms
//!   start    1.310 ms
//!   parse   14.020 ms
//!   kernel  61.905 ms  sent 346 messages, 2106204 bytes; received 1 message, 36 bytes
//!   store   30.876 ms
//! ```
//! The last line, `rest`, is the remaining time. All phases and `rest` add up to the total time.
//!
//! Be aware: phases must not be nested, because their time would count twice.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::nft::transaction::Connection;
use crate::sys::netlink::traffic::{Amount, Traffic};

/// A phase of a command, in the usual order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Start of the process, until the arguments are parsed.
    Start,
    /// Reading and checking of rule-set files, and the merge with the desired state.
    Parse,
    /// Opening, reading and writing of the store, with the wait for its lock.
    Store,
    /// Reading of the live rules, before and after a change.
    Read,
    /// Compilation of the desired state to a program.
    Compile,
    /// Comparison of live and desired rules, and the description of their difference.
    Plan,
    /// Encoding of the changes as netlink messages, or as text for iptables-restore.
    Encode,
    /// The commit: from sending the batch to its last acknowledgement. With iptables, the run of iptables-restore.
    Kernel,
    /// Search for stale conntrack entries, and their deletion.
    Connections,
    /// Printing of the results.
    Print,
}

impl Phase {
    /// Every phase in order.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::Parse,
        Self::Store,
        Self::Read,
        Self::Compile,
        Self::Plan,
        Self::Encode,
        Self::Kernel,
        Self::Connections,
        Self::Print,
    ];

    /// Returns the name that `-v` prints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Parse => "parse",
            Self::Store => "store",
            Self::Read => "read",
            Self::Compile => "compile",
            Self::Plan => "plan",
            Self::Encode => "encode",
            Self::Kernel => "kernel",
            Self::Connections => "connections",
            Self::Print => "print",
        }
    }
}

/// The cost of a phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Part {
    /// The elapsed time.
    pub time: Duration,
    /// The traffic with nf_tables, or the bytes for iptables-restore.
    pub traffic: Traffic,
}

/// The cost of each phase since a start time.
#[derive(Debug, Clone)]
pub struct Timing {
    begun: Instant,
    parts: BTreeMap<Phase, Part>,
}

impl Default for Timing {
    fn default() -> Self {
        Self { begun: Instant::now(), parts: BTreeMap::new() }
    }
}

impl Timing {
    /// Starts the measurement at the start of the process. The time until this call counts as [`Phase::Start`].
    ///
    /// The kernel reports the start time of a process only in hundredths of a second. So this function uses the
    /// processor time of the process, which is exact.
    pub fn of_process() -> Self {
        let taken = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default();
        let now = Instant::now();
        let mut timing = Self { begun: now.checked_sub(taken).unwrap_or(now), ..Self::default() };
        timing.part_mut(Phase::Start).time = now.duration_since(timing.begun);
        timing
    }

    /// Runs `job` and adds its time to a phase.
    pub fn measure<T>(&mut self, phase: Phase, job: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = job();
        self.took(phase, begun.elapsed());
        done
    }

    /// Adds time to a phase.
    pub fn took(&mut self, phase: Phase, time: Duration) {
        self.part_mut(phase).time += time;
    }

    /// Runs `job` and adds its time and its traffic to a phase.
    pub(super) fn talk<T>(
        &mut self,
        phase: Phase,
        connection: &mut Connection,
        job: impl FnOnce(&mut Connection) -> T,
    ) -> T {
        let before = connection.traffic();
        let done = self.measure(phase, || job(connection));
        self.said(phase, connection.traffic().since(before));
        done
    }

    /// Adds traffic to a phase.
    pub(super) fn said(&mut self, phase: Phase, traffic: Traffic) {
        self.part_mut(phase).traffic.add(traffic);
    }

    /// Adds the phases of another measurement, which must lie within the time of this one.
    pub fn add(&mut self, other: &Self) {
        for (phase, more) in &other.parts {
            let part = self.part_mut(*phase);
            part.time += more.time;
            part.traffic.add(more.traffic);
        }
    }

    /// Returns the cost of a phase until now.
    pub fn part(&self, phase: Phase) -> Part {
        self.parts.get(&phase).copied().unwrap_or_default()
    }

    /// Returns the phases that ran, with their costs until now.
    pub fn parts(&self) -> impl Iterator<Item = (Phase, Part)> {
        self.parts.iter().map(|(phase, part)| (*phase, *part))
    }

    /// Returns the time since the start.
    pub fn total(&self) -> Duration {
        self.begun.elapsed()
    }

    fn part_mut(&mut self, phase: Phase) -> &mut Part {
        self.parts.entry(phase).or_default()
    }
}

/// Prints one line for the total time, one for each phase that ran, and one for the remaining time.
impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.total();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        writeln!(f, "{:<13} {:>10.3} ms", "time", milliseconds(whole))?;
        for (phase, part) in self.parts() {
            write!(f, "  {:<11} {:>10.3} ms", phase.name(), milliseconds(part.time))?;
            let Traffic { sent, received } = part.traffic;
            let said = [("sent", sent), ("received", received)].map(|(verb, amount)| in_words(verb, amount));
            let said: Vec<String> = said.into_iter().flatten().collect();
            writeln!(f, "{}{}", if said.is_empty() { "" } else { "  " }, said.join("; "))?;
        }
        let known = self.parts().map(|(_, part)| part.time).sum();
        write!(f, "  {:<11} {:>10.3} ms", "rest", milliseconds(whole.saturating_sub(known)))
    }
}

fn in_words(verb: &str, Amount { messages, bytes }: Amount) -> Option<String> {
    match (messages, bytes) {
        (0, 0) => None,
        (0, bytes) => Some(format!("{verb} {bytes} bytes")),
        (1, bytes) => Some(format!("{verb} 1 message, {bytes} bytes")),
        (messages, bytes) => Some(format!("{verb} {messages} messages, {bytes} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    const WHILE: Duration = Duration::from_millis(20);

    #[test]
    fn the_list_of_phases_is_sorted_and_has_different_names() {
        assert!(Phase::ALL.is_sorted());
        let mut names = Phase::ALL.map(Phase::name).to_vec();
        names.dedup();
        assert_eq!(names.len(), Phase::ALL.len());
    }

    #[test]
    fn the_phases_and_the_rest_add_up_to_the_total_time() {
        let mut timing = Timing::of_process();
        timing.measure(Phase::Plan, || sleep(WHILE));
        let mut within = Timing::default();
        within.measure(Phase::Plan, || sleep(WHILE));
        within.said(Phase::Read, Traffic { sent: Amount { messages: 1, bytes: 20 }, ..Traffic::default() });
        timing.add(&within);
        assert!(timing.part(Phase::Plan).time >= WHILE * 2);
        let text = timing.to_string();
        assert!(text.contains("read") && text.contains("sent 1 message, 20 bytes"), "{text}");
        let number = |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok());
        let numbers: Vec<f64> = text.lines().filter_map(number).collect();
        let whole = numbers[0];
        let sum: f64 = numbers[1..].iter().sum();
        assert!(numbers.len() == 5 && (whole - sum).abs() < 0.01, "{text}");
    }
}
