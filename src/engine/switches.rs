//! The switches of the kernel that the rules need: which must be changed, when, and back to what.
//!
//! Forwarding is switched on before the rules that need it. Loopback addresses are let in by an interface only while the
//! rules that guard them are there: after those come, and until before those go.
//!
//! The state remembers a switch from before it is changed until after it is given back, so whatever ends this process, the
//! next command knows what is ours to give back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::EngineError;
use crate::model::{Asked, IfName};
use crate::store::State;
use crate::sys::{rtnetlink, sysctl};

/// The switches that change with a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Switches {
    /// Forwarding, to be switched on.
    forward: Vec<sysctl::Change>,
    /// Loopback addresses on an interface, to be switched on.
    open: Vec<sysctl::Change>,
    /// The same, to be given back.
    close: Vec<sysctl::Change>,
    /// Others, to be given back.
    give_back: Vec<sysctl::Change>,
    /// Targets of loopback forwards that nothing leads to yet.
    pub unreachable: Vec<IpAddr>,
}

impl Switches {
    /// What `after` needs, and what `before` had and `after` does not ask to be kept. `after` is made to remember what is
    /// set, and to forget what is given back.
    ///
    /// # Errors
    /// Where a switch or the routing table cannot be read.
    pub fn of(after: &mut State, before: &State) -> Result<Self, EngineError> {
        let mut switches = Self::default();
        for family in after.asked.forwarding() {
            switches.forward.extend(sysctl::forwarding(family)?);
        }
        let (interfaces, unreachable) = leading_to_loopback_targets(&after.asked)?;
        switches.unreachable = unreachable;
        for interface in &interfaces {
            switches.open.extend(sysctl::route_localnet(interface)?);
        }
        let needed: BTreeSet<String> = interfaces.iter().map(sysctl::route_localnet_key).collect();
        after.sysctls.retain(|known| !sysctl::is_route_localnet(&known.key) || needed.contains(&known.key));
        for change in switches.to_set() {
            // Only the first value counts: what the host had before we came.
            if !after.sysctls.iter().any(|known| known.key == change.key) {
                after.sysctls.push(change.clone());
            }
        }
        let gone = before.sysctls.iter().filter(|known| !after.sysctls.iter().any(|kept| kept.key == known.key));
        (switches.close, switches.give_back) = gone.cloned().partition(|change| sysctl::is_route_localnet(&change.key));
        Ok(switches)
    }

    /// Those that must be set.
    pub fn to_set(&self) -> impl Iterator<Item = &sysctl::Change> {
        self.forward.iter().chain(&self.open)
    }

    /// Those that are given back.
    pub fn to_give_back(&self) -> impl Iterator<Item = &sysctl::Change> {
        self.close.iter().chain(&self.give_back)
    }

    /// What a state must remember while they change: what `after` does, and what is not given back yet.
    pub fn during(&self, after: &State) -> State {
        let mut during = after.clone();
        during.sysctls.extend(self.to_give_back().cloned());
        during
    }

    /// Changes what must be changed before the rules; gives what was given back by that.
    ///
    /// # Errors
    /// The first switch that cannot be set; then all are as before.
    pub fn before_commit(&self) -> Result<Vec<sysctl::Change>, EngineError> {
        sysctl::may_set(&self.open)?;
        sysctl::set(&self.forward)?;
        Ok(sysctl::undo(&self.close))
    }

    /// Takes back what was changed before a commit that then failed.
    pub fn commit_failed(&self, given_back: &[sysctl::Change]) {
        sysctl::redo(given_back);
        sysctl::undo(&self.forward);
    }

    /// Changes what must be changed after the rules; gives what was given back by that. What should have been and could not
    /// `after` is made to remember again, for the next change to try.
    ///
    /// # Errors
    /// The first switch that cannot be set.
    pub fn after_commit(&self, after: &mut State) -> Result<Vec<sysctl::Change>, EngineError> {
        let given_back = sysctl::undo(&self.give_back);
        after.sysctls.extend(self.to_give_back().filter(|change| sysctl::holds(change)).cloned());
        sysctl::set(&self.open).map_err(EngineError::Closed)?;
        Ok(given_back)
    }
}

/// The interfaces that lead to the targets of loopback forwards, and the targets that nothing leads to yet.
///
/// A target in a declared network is behind that network's bridge, whatever the routing table says while the bridge is not
/// there.
fn leading_to_loopback_targets(asked: &Asked) -> Result<(BTreeSet<IfName>, Vec<IpAddr>), EngineError> {
    let opened = asked.bindings.iter().map(|owned| &owned.rule).filter(|rule| rule.loopback);
    let mut ways: BTreeMap<IpAddr, Option<IfName>> = BTreeMap::new();
    let mut unknown: BTreeSet<IpAddr> = BTreeSet::new();
    for target in opened.filter_map(|rule| rule.to.address) {
        match asked.network_of(target) {
            Some(network) => {
                let there = sysctl::has_interface(&network.name).then(|| network.name.clone());
                ways.insert(target, there);
            }
            None => {
                unknown.insert(target);
            }
        }
    }
    ways.extend(rtnetlink::interfaces_to(unknown).map_err(|(target, error)| EngineError::Route(target, error))?);
    let unreachable = ways.iter().filter(|(_, way)| way.is_none()).map(|(target, _)| *target).collect();
    // To itself this host gets without any switch.
    let interfaces = ways.into_values().flatten().filter(|interface| interface.as_str() != "lo").collect();
    Ok((interfaces, unreachable))
}
