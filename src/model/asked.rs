//! Everything that all sets together ask of a host, in normal form. What is read back from a kernel has the same form.

use std::collections::BTreeMap;

use super::{
    Binding, ChainName, Family, IpForward, Masquerade, Network, ParseError, Priority, RuleSet, SetName, Settings,
};

/// A rule together with the set that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owned<T> {
    /// The set.
    pub set: SetName,
    /// The rule.
    pub rule: T,
}

/// The union of all sets in normal form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Every forward's atoms.
    pub bindings: Vec<Owned<Binding>>,
    /// Every network.
    pub networks: Vec<Owned<Network>>,
    /// Every masquerade.
    pub masquerades: Vec<Owned<Masquerade>>,
    /// The settings of every set.
    pub settings: BTreeMap<SetName, Settings>,
}

impl Asked {
    /// Adds a set that is not yet in.
    ///
    /// # Errors
    /// The first forward whose parts do not fit together.
    pub fn add(&mut self, set: &RuleSet) -> Result<(), ParseError> {
        for forward in &set.forwards {
            for rule in forward.bindings()? {
                self.bindings.push(Owned { set: set.name.clone(), rule });
            }
        }
        let own = |set: &SetName| set.clone();
        self.networks.extend(set.networks.iter().map(|rule| Owned { set: own(&set.name), rule: rule.clone() }));
        self.masquerades.extend(set.masquerades.iter().map(|rule| Owned { set: own(&set.name), rule: rule.clone() }));
        self.settings.insert(set.name.clone(), set.settings);
        Ok(())
    }

    /// Removes a set and all that is in it.
    pub fn remove(&mut self, set: &SetName) {
        self.bindings.retain(|owned| owned.set != *set);
        self.networks.retain(|owned| owned.set != *set);
        self.masquerades.retain(|owned| owned.set != *set);
        self.settings.remove(set);
    }

    /// Sorts everything, so that two unions of the same rules are equal.
    pub fn normalize(&mut self) {
        self.bindings.sort_by(|a, b| (&a.set, a.rule.sort_key()).cmp(&(&b.set, b.rule.sort_key())));
        for network in &mut self.networks {
            network.rule.subnets.sort_unstable();
        }
        self.networks.sort_unstable();
        self.masquerades.sort_unstable();
    }

    /// Whether nothing at all is asked.
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty() && self.networks.is_empty() && self.masquerades.is_empty()
    }

    /// The priority of the DNAT chains.
    ///
    /// # Errors
    /// The two sets that disagree: one table cannot run at two places.
    pub fn priority(&self) -> Result<Priority, (SetName, SetName)> {
        let mut given: Option<(&SetName, Priority)> = None;
        for (name, settings) in &self.settings {
            match (given, settings.priority) {
                (Some((first, one)), Some(other)) if one != other => return Err((first.clone(), name.clone())),
                (None, Some(priority)) => given = Some((name, priority)),
                _ => {}
            }
        }
        Ok(given.map_or(Priority::DEFAULT, |(_, priority)| priority))
    }

    /// The chain that a binding lives in: its network's, or the one of those in no network.
    pub fn chain_of(&self, binding: &Binding) -> ChainName {
        let home = binding.to.address.and_then(|address| {
            let holds = |network: &&Owned<Network>| network.rule.subnets.iter().any(|subnet| subnet.contains(address));
            self.networks.iter().filter(holds).min_by_key(|network| &network.rule.name)
        });
        home.map_or_else(ChainName::forwards, |network| network.rule.chain.clone())
    }

    /// The families in which packets must be forwarded between interfaces, as far as the sets want that to be seen to.
    pub fn forwarding(&self) -> Vec<Family> {
        let wants =
            |set: &SetName| self.settings.get(set).is_none_or(|settings| settings.ip_forward == IpForward::Enable);
        let to_others = |family: Family| {
            (self.bindings.iter())
                .any(|owned| owned.rule.family == family && owned.rule.to.address.is_some() && wants(&owned.set))
                || self.networks.iter().any(|owned| {
                    wants(&owned.set) && owned.rule.subnets.iter().any(|subnet| Family::of_network(*subnet) == family)
                })
        };
        Family::ALL.into_iter().filter(|family| to_others(*family)).collect()
    }
}
