//! The sysctls that the rules need: which ones change, when, and which old values are restored later.
//!
//! Forwarding is switched on before the rules that need it are sent. route_localnet is set on an interface only while the
//! rules that guard loopback addresses are live: after they are sent, and until before they are removed.
//!
//! The state lists a sysctl from before its change until its old value is restored. So the next command knows
//! which sysctls to restore if this process is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::EngineError;
use crate::model::{DesiredState, IfName};
use crate::store::State;
use crate::sys::{rtnetlink, sysctl};

/// The sysctls that change with a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sysctls {
    /// Forwarding, to be switched on.
    forward: Vec<sysctl::Change>,
    /// route_localnet of interfaces, to be switched on.
    open: Vec<sysctl::Change>,
    /// route_localnet of interfaces, to be restored.
    close: Vec<sysctl::Change>,
    /// Other sysctls, to be restored.
    restore: Vec<sysctl::Change>,
    /// Targets of loopback forwards without a route.
    pub unreachable: Vec<IpAddr>,
}

impl Sysctls {
    /// Reads the sysctls and returns those that `after` needs or no longer needs. Adds to `after` the sysctls that change,
    /// and removes those that are restored.
    ///
    /// # Errors
    /// If a sysctl or the routing table cannot be read.
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
            // The first value counts: the host had it before portfwd changed it.
            if !after.sysctls.iter().any(|known| known.key == change.key) {
                after.sysctls.push(change.clone());
            }
        }
        let gone = before.sysctls.iter().filter(|known| !after.sysctls.iter().any(|kept| kept.key == known.key));
        (sysctls.close, sysctls.restore) = gone.cloned().partition(|change| sysctl::is_route_localnet(&change.key));
        Ok(sysctls)
    }

    /// Returns sysctls to switch on before a commit.
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

    /// Returns `after` with the sysctls that are not restored yet: the state while the change runs.
    pub fn during(&self, after: &State) -> State {
        let mut during = after.clone();
        during.sysctls.extend(self.to_restore().cloned());
        during
    }

    /// Changes the sysctls that come before the rules. Returns the restored ones.
    ///
    /// # Errors
    /// The first sysctl that cannot be set; all have their old values then.
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

    /// Changes the sysctls that come after the rules. Returns the restored ones. `after` keeps those that could not
    /// be restored, so that the next change tries again.
    ///
    /// # Errors
    /// The first sysctl that cannot be set.
    pub fn after_commit(&self, after: &mut State) -> Result<Vec<sysctl::Change>, EngineError> {
        let restored = sysctl::undo(&self.restore);
        after.sysctls.extend(self.to_restore().filter(|change| sysctl::holds(change)).cloned());
        sysctl::set(&self.open).map_err(EngineError::Closed)?;
        Ok(restored)
    }
}

/// Returns the interfaces towards the targets of loopback forwards, and the targets without a route.
///
/// A target in a declared network is behind that network's bridge. The routing table does not matter while the bridge is
/// missing.
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
    // The host reaches itself without route_localnet.
    let interfaces = routes.into_values().flatten().filter(|interface| interface.as_str() != "lo").collect();
    Ok((interfaces, unreachable))
}
