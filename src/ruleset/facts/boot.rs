//! What services that are started at boot do about rules, and what our own state says of ours.

use std::collections::BTreeSet;

use crate::ruleset::table::TableFamily;

/// The services of systemd(1) that are started at boot and have something to do with rules, or with each other's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Boot {
    /// The units.
    pub units: Vec<Unit>,
}

/// A service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// Its name, `nftables.service`.
    pub name: String,
    /// The units that it is started after.
    pub after: BTreeSet<String>,
    /// The units that it is stopped and restarted with.
    pub part_of: BTreeSet<String>,
    /// Whether one of its commands puts our rules back.
    pub restores: bool,
    /// Where one of its commands, or a file that it loads, says `flush ruleset`.
    pub flushes: Vec<Flush>,
}

/// A `flush ruleset` of nft(8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flush {
    /// Where it is: a file and its line, or the setting of a unit.
    pub at: String,
    /// Of which tables; none: of all.
    pub family: Option<TableFamily>,
}

/// What our own state says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnState {
    /// Whether it asks for anything.
    pub asks: bool,
    /// The files of rule sets that say something else than what was applied from them, each with what is the matter.
    pub unapplied: Vec<(String, String)>,
    /// Why nf_tables is not used, where the kernel or the host lacks something for it.
    pub instead: Option<String>,
}

impl Boot {
    /// Whether a service that puts our rules back is started behind a unit, and again whenever that is.
    pub fn is_put_back_after(&self, unit: &str) -> bool {
        self.units.iter().any(|one| one.restores && one.after.contains(unit) && one.part_of.contains(unit))
    }
}
