//! Changes that portfwd rolls back unless the user confirms them in time.
//!
//! portfwd saves the state before such a change together with the change, before it changes the kernel's rules. So the next
//! command that writes can roll back, even if the waiting processes die or the machine reboots.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::model::{DesiredState, SetName};
use crate::sys::{boot, sysctl};

/// The state before a change that waits to be confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unconfirmed {
    /// The deadline of the confirmation.
    pub until: Deadline,
    /// The desired rules of all sets.
    pub desired: Arc<DesiredState>,
    /// The file that each set was last applied from.
    pub origins: BTreeMap<SetName, PathBuf>,
    /// The sysctls that portfwd had changed.
    pub sysctls: Vec<sysctl::Change>,
}

/// A monotonic deadline. A reboot counts as expiry. Two deadlines never have the same nanosecond, so a deadline also
/// identifies its change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The id of the boot.
    pub boot: String,
    /// The time of the deadline since that boot, including suspend.
    pub at: Duration,
}

impl Deadline {
    /// Returns the deadline that is `time` from now.
    pub fn after(time: Duration) -> Self {
        let (boot, now) = now();
        Self { boot, at: now + time }
    }

    /// Returns the time that is left; `None` after the deadline.
    pub fn left(&self) -> Option<Duration> {
        let (boot, now) = now();
        self.left_at(&boot, now)
    }

    fn left_at(&self, boot: &str, now: Duration) -> Option<Duration> {
        // An unknown boot counts as expiry, because the rules before the change are known to work.
        let same = self.boot == boot && !boot.is_empty();
        self.at.checked_sub(now).filter(|left| same && !left.is_zero())
    }
}

/// Returns the id of this boot and the time since it; an empty id if either is unknown.
fn now() -> (String, Duration) {
    match (boot::id(), clock_gettime(ClockId::CLOCK_BOOTTIME)) {
        (Ok(boot), Ok(time)) => (boot.to_owned(), time.into()),
        _ => (String::new(), Duration::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_expires_with_time_and_by_a_reboot() {
        let deadline = Deadline { boot: "one".into(), at: Duration::from_secs(100) };
        let left = |boot: &str, seconds| deadline.left_at(boot, Duration::from_secs(seconds));
        assert_eq!(left("one", 99), Some(Duration::from_secs(1)));
        for (boot, seconds) in [("one", 100), ("one", 1000), ("two", 99), ("two", 1000), ("", 99)] {
            assert_eq!(left(boot, seconds), None, "{boot} {seconds}");
        }
        let unknown_boot = Deadline { boot: String::new(), at: Duration::from_secs(100) };
        assert_eq!(unknown_boot.left_at("", Duration::ZERO), None);
    }

    #[test]
    fn the_clock_runs_on_this_machine() {
        let left = Deadline::after(Duration::from_secs(3600)).left().expect("in an hour");
        assert!(left > Duration::from_secs(3000) && left <= Duration::from_secs(3600), "{left:?}");
        assert_eq!(Deadline::after(Duration::ZERO).left(), None);
    }
}
