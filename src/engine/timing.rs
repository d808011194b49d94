//! Where the time of a command goes, and what it said to the kernel.
//!
//! ```text
//! time     96.214 ms
//!   start    1.310 ms
//!   parse   14.020 ms
//!   kernel  61.905 ms  sent 346 messages, 2106204 bytes; received 1 message, 36 bytes
//!   store   30.876 ms
//! ```
//! The phases and the rest add up to the total time.
//!
//! Be aware: it is always kept, because to look at the clock costs some ten nanoseconds: clock_gettime(2) is no system call
//! where the kernel's vDSO has it. No phase is measured within another.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::nft::transaction::Connection;
use crate::sys::netlink::traffic::{Amount, Traffic};

/// What a command does at a time, in the order in which it mostly does so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The process starts, and reads its arguments.
    Start,
    /// Rule-set files are read, checked, and put together with all else that is asked.
    Parse,
    /// The state is opened, with the wait for other processes that have it open; read; written.
    Store,
    /// The kernel's rules are read: before a change, and to check what became of it.
    Read,
    /// What is asked becomes a program.
    Compile,
    /// Two programs are compared, and what differs is put into words.
    Plan,
    /// What differs becomes messages.
    Encode,
    /// The kernel carries a batch out: from its sending to its last acknowledgement. With iptables the run of
    /// iptables-restore.
    Kernel,
    /// Connections that follow other rules are looked for and ended.
    Connections,
    /// The answer is written.
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

    /// Its name.
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

/// What a phase took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Part {
    /// How long the thread that does the work was in it, or waited for it.
    pub time: Duration,
    /// What was said to nf_tables and by it; of the text for iptables-restore the bytes.
    pub traffic: Traffic,
}

/// Where time went since it was made.
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
    /// One that has run since the process started; what went until now is [`Phase::Start`].
    ///
    /// How long that was is not kept anywhere more exactly than to a hundredth of a second; the processor's time is, and
    /// there was nothing else to wait for than the program's own pages.
    pub fn of_process() -> Self {
        let taken = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default();
        let now = Instant::now();
        let mut timing = Self { begun: now.checked_sub(taken).unwrap_or(now), ..Self::default() };
        timing.part_mut(Phase::Start).time = now.duration_since(timing.begun);
        timing
    }

    /// Does something that belongs to a phase.
    pub fn of<T>(&mut self, phase: Phase, job: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = job();
        self.took(phase, begun.elapsed());
        done
    }

    /// Counts time that went in a phase.
    pub fn took(&mut self, phase: Phase, time: Duration) {
        self.part_mut(phase).time += time;
    }

    /// Does something that belongs to a phase and talks to the kernel.
    pub(super) fn talk<T>(
        &mut self,
        phase: Phase,
        connection: &mut Connection,
        job: impl FnOnce(&mut Connection) -> T,
    ) -> T {
        let before = connection.traffic();
        let done = self.of(phase, || job(connection));
        self.said(phase, connection.traffic().since(before));
        done
    }

    /// Counts what was said in a phase.
    pub(super) fn said(&mut self, phase: Phase, traffic: Traffic) {
        self.part_mut(phase).traffic.add(traffic);
    }

    /// Adds the parts of another one, which ran within this one's time.
    pub fn add(&mut self, other: &Self) {
        for (phase, more) in &other.parts {
            let part = self.part_mut(*phase);
            part.time += more.time;
            part.traffic.add(more.traffic);
        }
    }

    /// What a phase took until now.
    pub fn part(&self, phase: Phase) -> Part {
        self.parts.get(&phase).copied().unwrap_or_default()
    }

    /// Every phase that there was, with what it took until now.
    pub fn parts(&self) -> impl Iterator<Item = (Phase, Part)> {
        self.parts.iter().map(|(phase, part)| (*phase, *part))
    }

    /// How long it is since it was made.
    pub fn whole(&self) -> Duration {
        self.begun.elapsed()
    }

    fn part_mut(&mut self, phase: Phase) -> &mut Part {
        self.parts.entry(phase).or_default()
    }
}

/// The whole, each phase that there was, and what is left, a line each.
impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.whole();
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
    fn phases_are_in_the_order_of_their_list() {
        assert!(Phase::ALL.is_sorted());
        let mut names = Phase::ALL.map(Phase::name).to_vec();
        names.dedup();
        assert_eq!(names.len(), Phase::ALL.len());
    }

    #[test]
    fn the_parts_and_the_rest_are_the_whole() {
        let mut timing = Timing::of_process();
        timing.of(Phase::Plan, || sleep(WHILE));
        let mut within = Timing::default();
        within.of(Phase::Plan, || sleep(WHILE));
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
