//! The services that load or flush rules at boot, and the content of portfwd's own state.

use std::collections::BTreeSet;

use crate::ruleset::table::TableFamily;

/// The services of systemd(1) that start at boot and load or flush rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Boot {
    /// The units.
    pub units: Vec<Unit>,
}

/// A service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// The name, for example `nftables.service`.
    pub name: String,
    /// The units before this one (`After=`).
    pub after: BTreeSet<String>,
    /// The units that this one stops and restarts with (`PartOf=`).
    pub part_of: BTreeSet<String>,
    /// True if one of its commands restores portfwd's rules.
    pub restores: bool,
    /// The `flush ruleset` commands of the unit and of the files that it loads.
    pub flushes: Vec<Flush>,
}

/// A `flush ruleset` of nft(8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flush {
    /// The file and line, or the setting of the unit.
    pub at: String,
    /// The family of the tables. `None` means all.
    pub family: Option<TableFamily>,
}

/// The content of portfwd's own state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnState {
    /// True if the desired state has rules.
    pub asks: bool,
    /// The rule-set files that differ from the applied state, each with the difference.
    pub unapplied: Vec<(String, String)>,
    /// The reason for which the iptables backend is used instead of nf_tables.
    pub instead: Option<String>,
}

impl Boot {
    /// Returns true if a service restores portfwd's rules after a unit starts or restarts.
    pub fn is_put_back_after(&self, unit: &str) -> bool {
        self.units.iter().any(|one| one.restores && one.after.contains(unit) && one.part_of.contains(unit))
    }
}
