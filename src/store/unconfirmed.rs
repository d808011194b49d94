//! What is kept of a change that is taken back unless somebody confirms it in time: what was asked before it, and until when.
//!
//! It is kept together with the change, before the kernel is touched. So whatever happens to those who wait, and to the
//! machine, the next command that writes finds it. It is a copy of all that was asked: what it costs is paid by those alone
//! who ask to confirm.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::model::{Asked, Binding, SetName};
use crate::sys::{boot, sysctl};

/// What was before a change that waits to be confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unconfirmed {
    /// Until when it waits.
    pub until: Deadline,
    /// What all sets asked.
    pub asked: Arc<Asked>,
    /// The file that each set was last applied from.
    pub origins: BTreeMap<SetName, PathBuf>,
    /// The sysctls that we had changed.
    pub sysctls: Vec<sysctl::Change>,
}

/// A moment that nobody who sets a clock moves, and that a reboot passes. There are no two at the same nanosecond, so it is
/// also what a change that waits is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The boot that it is a moment of.
    pub boot: String,
    /// Since then, the time that the machine slept included.
    pub at: Duration,
}

impl Deadline {
    /// The moment that comes after some time.
    pub fn after(time: Duration) -> Self {
        let (boot, now) = now();
        Self { boot, at: now + time }
    }

    /// How long it is until then; nothing where it is past.
    pub fn left(&self) -> Option<Duration> {
        let (boot, now) = now();
        self.left_at(&boot, now)
    }

    fn left_at(&self, boot: &str, now: Duration) -> Option<Duration> {
        // What cannot be told is past: the rules before are those that are known to be good.
        let same = self.boot == boot && !boot.is_empty();
        self.at.checked_sub(now).filter(|left| same && !left.is_zero())
    }
}

/// A word that no other boot has; empty where it cannot be told.
pub(super) fn boot() -> String {
    boot::id().unwrap_or_default().to_owned()
}

/// The boot, and how long ago it was.
fn now() -> (String, Duration) {
    let boot = boot();
    match clock_gettime(ClockId::CLOCK_BOOTTIME) {
        Ok(time) => (boot, time.into()),
        Err(_) => (String::new(), Duration::ZERO),
    }
}

/// The same as it is on disk.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) until: Deadline,
    pub(super) sysctls: Vec<sysctl::Change>,
    /// Set to the rest of it as JSON, as in the table of those that are asked now.
    pub(super) records: Vec<(String, String)>,
    /// Set to its forwards.
    pub(super) forwards: Vec<(String, Vec<Binding>)>,
}

impl Kept {
    /// Reads what [`Kept::write`] made.
    pub(super) fn read(bytes: &[u8]) -> postcard::Result<Self> {
        postcard::from_bytes(bytes)
    }

    pub(super) fn write(waiting: &Unconfirmed, records: BTreeMap<SetName, String>) -> postcard::Result<Vec<u8>> {
        // They are in the order of their sets.
        let of_sets = waiting.asked.bindings.chunk_by(|one, next| one.set == next.set);
        let forwards = of_sets.filter_map(|of_set| {
            let rules = of_set.iter().map(|owned| owned.rule.clone()).collect();
            of_set.first().map(|first| (first.set.to_string(), rules))
        });
        postcard::to_allocvec(&Self {
            until: waiting.until.clone(),
            sysctls: waiting.sysctls.clone(),
            records: records.into_iter().map(|(set, json)| (set.to_string(), json)).collect(),
            forwards: forwards.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_a_reboot_pass_a_deadline() {
        let deadline = Deadline { boot: "one".into(), at: Duration::from_secs(100) };
        let left = |boot: &str, seconds| deadline.left_at(boot, Duration::from_secs(seconds));
        assert_eq!(left("one", 99), Some(Duration::from_secs(1)));
        for (boot, seconds) in [("one", 100), ("one", 1000), ("two", 99), ("two", 1000), ("", 99)] {
            assert_eq!(left(boot, seconds), None, "{boot} {seconds}");
        }
        let nowhere = Deadline { boot: String::new(), at: Duration::from_secs(100) };
        assert_eq!(nowhere.left_at("", Duration::ZERO), None);
    }

    #[test]
    fn the_clock_runs_on_this_machine() {
        let left = Deadline::after(Duration::from_secs(3600)).left().expect("in an hour");
        assert!(left > Duration::from_secs(3000) && left <= Duration::from_secs(3600), "{left:?}");
        assert_eq!(Deadline::after(Duration::ZERO).left(), None);
    }

    #[test]
    fn what_is_on_disk_does_not_change() {
        let until = Deadline { boot: "b".into(), at: Duration::from_secs(1) };
        let change = sysctl::Change { key: "k".into(), before: "0".into(), after: "1".into() };
        let waiting = Unconfirmed { until, asked: Arc::default(), origins: BTreeMap::new(), sysctls: vec![change] };
        let records = BTreeMap::from([(SetName::cli(), "{}".to_owned())]);
        let bytes = Kept::write(&waiting, records).expect("encoded");
        assert_eq!(bytes, b"\x01b\x01\x00\x01\x01k\x010\x011\x01\x03cli\x02{}\x00");
        assert_eq!(Kept::read(&bytes).expect("read").until, waiting.until);
    }
}
