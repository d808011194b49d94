//! Sets the sysctls that the rules need, and restores their old values later.
//!
//! Forwarding is switched on before the rules are sent. route_localnet is on only while the rules that protect loopback
//! addresses are live. So it is set after these rules are sent, and restored before they are removed.
//!
//! The state lists a sysctl from before its change until its old value is restored. So the next command can restore
//! sysctls if this process is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::EngineError;
use crate::model::{DesiredState, IfName};
use crate::store::State;
use crate::sys::{rtnetlink, sysctl};

/// The sysctls that change with a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sysctls {
    /// Forwarding sysctls to switch on.
    forward: Vec<sysctl::Change>,
    /// route_localnet sysctls to switch on.
    open: Vec<sysctl::Change>,
    /// route_localnet sysctls to restore.
    close: Vec<sysctl::Change>,
    /// All sysctls to restore, except route_localnet.
    restore: Vec<sysctl::Change>,
    /// Targets of loopback forwards to which the host has no route.
    pub unreachable: Vec<IpAddr>,
}

impl Sysctls {
    /// Reads the sysctls, and plans which sysctls to set and to restore. Updates the list of sysctls in `after`.
    ///
    /// # Errors
    /// Fails if a sysctl or the routing table cannot be read.
    pub fn needed(after: &mut State, before: &State) -> Result<Self, EngineError> {
        let mut sysctls = Self::default();
        for family in after.desired.forwarding() {
            sysctls.forward.extend(sysctl::forwarding(family)?);
        }
        let (interfaces, unreachable) = interfaces_to_loopback_targets(&after.desired)?;
        sysctls.unreachable = unreachable;
        for interface in &interfaces {
            sysctls.open.extend(sysctl::route_localnet(interface)?);
        }
        let needed: BTreeSet<String> = interfaces.iter().map(sysctl::route_localnet_key).collect();
        after.sysctls.retain(|known| !sysctl::is_route_localnet(&known.key) || needed.contains(&known.key));
        for change in sysctls.to_set() {
            // Keeps the first recorded value, which the host had before portfwd changed the sysctl.
            if !after.sysctls.iter().any(|known| known.key == change.key) {
                after.sysctls.push(change.clone());
            }
        }
        let gone = before.sysctls.iter().filter(|known| !after.sysctls.iter().any(|kept| kept.key == known.key));
        (sysctls.close, sysctls.restore) = gone.cloned().partition(|change| sysctl::is_route_localnet(&change.key));
        Ok(sysctls)
    }

    /// Returns a plan that only switches `forward` on.
    #[cfg(test)]
    pub(super) fn to_switch_on(forward: Vec<sysctl::Change>) -> Self {
        Self { forward, ..Self::default() }
    }

    /// Returns the sysctls to set.
    pub fn to_set(&self) -> impl Iterator<Item = &sysctl::Change> {
        self.forward.iter().chain(&self.open)
    }

    /// Returns the sysctls to restore.
    pub fn to_restore(&self) -> impl Iterator<Item = &sysctl::Change> {
        self.close.iter().chain(&self.restore)
    }

    /// Returns the state while the change runs: `after`, with the sysctls that are not restored yet.
    pub fn during(&self, after: &State) -> State {
        let mut during = after.clone();
        during.sysctls.extend(self.to_restore().cloned());
        during
    }

    /// Sets and restores the sysctls that must change before the rules. Returns the restored sysctls.
    ///
    /// # Errors
    /// Returns the error of the first sysctl that cannot be set. Then all sysctls have their old values.
    pub fn before_commit(&self) -> Result<Vec<sysctl::Change>, EngineError> {
        sysctl::may_set(&self.open)?;
        sysctl::set(&self.forward)?;
        Ok(sysctl::undo(&self.close))
    }

    /// Undoes [`Sysctls::before_commit`].
    pub fn commit_failed(&self, restored: &[sysctl::Change]) {
        sysctl::redo(restored);
        sysctl::undo(&self.forward);
    }

    /// Sets and restores the sysctls that must change after the rules. Returns the restored sysctls. `after` keeps
    /// the sysctls that could not be restored, so the next change tries again.
    ///
    /// # Errors
    /// Returns the error of the first sysctl that cannot be set.
    pub fn after_commit(&self, after: &mut State) -> Result<Vec<sysctl::Change>, EngineError> {
        let restored = sysctl::undo(&self.restore);
        after.sysctls.extend(self.to_restore().filter(|change| sysctl::holds(change)).cloned());
        sysctl::set(&self.open).map_err(EngineError::Closed)?;
        Ok(restored)
    }
}

/// Returns the egress interfaces to the targets of loopback forwards, and the targets without a route.
///
/// A target in a `[[network]]` is behind the bridge of that network, whatever the routing table contains. If the bridge
/// is missing, the target has no route.
fn interfaces_to_loopback_targets(desired: &DesiredState) -> Result<(BTreeSet<IfName>, Vec<IpAddr>), EngineError> {
    let opened = desired.bindings.iter().map(|owned| &owned.rule).filter(|rule| rule.loopback);
    let mut routes: BTreeMap<IpAddr, Option<IfName>> = BTreeMap::new();
    let mut unknown: BTreeSet<IpAddr> = BTreeSet::new();
    for target in opened.filter_map(|rule| rule.to.address) {
        match desired.network_of(target) {
            Some(network) => {
                let there = sysctl::has_interface(&network.name).then(|| network.name.clone());
                routes.insert(target, there);
            }
            None => {
                unknown.insert(target);
            }
        }
    }
    routes.extend(rtnetlink::interfaces_to(unknown).map_err(|(target, error)| EngineError::Route(target, error))?);
    let unreachable = routes.iter().filter(|(_, interface)| interface.is_none()).map(|(target, _)| *target).collect();
    // A target on this host needs no route_localnet.
    let interfaces = routes.into_values().flatten().filter(|interface| interface.as_str() != "lo").collect();
    Ok((interfaces, unreachable))
}
