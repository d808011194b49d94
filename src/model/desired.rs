//! The desired state: the rules of all sets in normal form. Rules that are read back from a kernel have the same form.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::binding::SortKey;
use super::{
    Binding, ChainName, Egress, Family, IpForward, Masquerade, Netmap, Network, ParseError, Priority, RuleSet, SetName,
    Settings, Snat,
};

/// A rule and the set that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetRule<T> {
    /// The name of the set.
    pub set: SetName,
    /// The rule without the set.
    pub rule: T,
}

/// The rules and settings of all sets in normal form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredState {
    /// The bindings of every forward.
    pub bindings: Vec<SetRule<Binding>>,
    /// The networks of every set.
    pub networks: Vec<SetRule<Network>>,
    /// The masquerades of every set.
    pub masquerades: Vec<SetRule<Masquerade>>,
    /// The source NAT rules of every set.
    pub snats: Vec<SetRule<Snat>>,
    /// The 1:1 translations of every set.
    pub netmaps: Vec<SetRule<Netmap>>,
    /// The settings of every set.
    pub settings: BTreeMap<SetName, Settings>,
}

impl DesiredState {
    /// Adds the rules of a set whose name is not in the state yet.
    ///
    /// # Errors
    /// If a forward is invalid. The rules before it stay in the state.
    pub fn add(&mut self, set: &RuleSet) -> Result<(), ParseError> {
        self.bindings.reserve(set.forwards.len());
        for forward in &set.forwards {
            for rule in forward.bindings()? {
                self.bindings.push(SetRule { set: set.name.clone(), rule });
            }
        }
        self.networks.extend(with_set(&set.name, &set.networks));
        self.masquerades.extend(with_set(&set.name, &set.masquerades));
        self.snats.extend(with_set(&set.name, &set.snats));
        self.netmaps.extend(with_set(&set.name, &set.netmaps));
        self.settings.insert(set.name.clone(), set.settings);
        Ok(())
    }

    /// Removes a set with its rules and settings.
    pub fn remove(&mut self, set: &SetName) {
        self.retain_sets(|name| name != set);
    }

    /// Returns a state that contains only `set`.
    pub fn part(&self, set: &SetName) -> Self {
        let mut part = self.clone();
        part.retain_sets(|name| name == set);
        part
    }

    fn retain_sets(&mut self, keeps: impl Fn(&SetName) -> bool) {
        self.bindings.retain(|owned| keeps(&owned.set));
        self.networks.retain(|owned| keeps(&owned.set));
        self.masquerades.retain(|owned| keeps(&owned.set));
        self.snats.retain(|owned| keeps(&owned.set));
        self.netmaps.retain(|owned| keeps(&owned.set));
        self.settings.retain(|name, _| keeps(name));
    }

    /// Sorts all rules and subnets. Afterwards two states with the same rules are equal.
    pub fn normalize(&mut self) {
        self.bindings.sort_by(|a, b| (&a.set, a.rule.sort_key()).cmp(&(&b.set, b.rule.sort_key())));
        for network in &mut self.networks {
            network.rule.subnets.sort_unstable();
        }
        self.networks.sort_unstable();
        self.masquerades.sort_unstable();
        self.snats.sort_unstable();
        self.netmaps.sort_unstable();
    }

    /// Returns the bindings that `other` does not contain, in order. Both states must be sorted by
    /// [`DesiredState::normalize`].
    pub fn less<'a>(&'a self, other: &Self) -> Vec<&'a SetRule<Binding>> {
        fn key(owned: &SetRule<Binding>) -> (&SetName, SortKey<'_>) {
            (&owned.set, owned.rule.sort_key())
        }
        let mut rest = other.bindings.as_slice();
        let mut missing = Vec::new();
        // Several ranges can have the same key and different last ports.
        for group in self.bindings.chunk_by(|one, next| key(one) == key(next)) {
            // Most bindings are equal in both states.
            if let ([binding], [next, tail @ ..]) = (group, rest)
                && binding == next
            {
                rest = tail;
                continue;
            }
            let Some(first) = group.first() else { continue };
            let smaller = rest.iter().take_while(|owned| key(owned) < key(first)).count();
            rest = rest.get(smaller..).unwrap_or_default();
            let count = rest.iter().take_while(|owned| key(owned) == key(first)).count();
            let same_key = rest.get(..count).unwrap_or_default();
            missing.extend(group.iter().filter(|owned| !same_key.contains(owned)));
        }
        missing
    }

    /// Returns true if the state has no rule. Settings do not count.
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty()
            && self.networks.is_empty()
            && self.masquerades.is_empty()
            && self.snats.is_empty()
            && self.netmaps.is_empty()
    }

    /// Returns the priority of the DNAT chains, or the default if no set has one.
    ///
    /// # Errors
    /// Returns the names of two sets if their priorities differ: the chains of one table have one priority.
    pub fn priority(&self) -> Result<Priority, (SetName, SetName)> {
        let mut found: Option<(&SetName, Priority)> = None;
        for (name, settings) in &self.settings {
            match (found, settings.priority) {
                (Some((first, priority)), Some(other)) if priority != other => {
                    return Err((first.clone(), name.clone()));
                }
                (None, Some(priority)) => found = Some((name, priority)),
                _ => {}
            }
        }
        Ok(found.map_or(Priority::DEFAULT, |(_, priority)| priority))
    }

    /// Returns the chain of a binding: the chain of the target's network, or `forwards` if no network contains the
    /// target.
    pub fn chain_of(&self, binding: &Binding) -> ChainName {
        let network = binding.to.address.and_then(|address| self.network_of(address));
        network.map_or_else(ChainName::forwards, |network| network.chain.clone())
    }

    /// Returns the network that contains an address. If several do, returns the first by name.
    pub fn network_of(&self, address: IpAddr) -> Option<&Network> {
        let networks = self.networks.iter().map(|owned| &owned.rule);
        let contains = |network: &&Network| network.subnets.iter().any(|subnet| subnet.contains(address));
        networks.filter(contains).min_by_key(|network| &network.name)
    }

    /// Returns the families that need IP forwarding: the families of every rule except redirects to this host.
    ///
    /// Skips the sets with [`IpForward::Keep`].
    pub fn forwarding(&self) -> Vec<Family> {
        let enables =
            |set: &SetName| self.settings.get(set).is_none_or(|settings| settings.ip_forward == IpForward::Enable);
        // The result needs only one binding of each set and family.
        let bindings: BTreeSet<(&SetName, Family)> =
            (self.bindings.chunk_by(|a, b| a.set == b.set && a.rule.family == b.rule.family))
                .filter_map(|group| group.iter().find(|owned| owned.rule.to.address.is_some()))
                .map(|owned| (&owned.set, owned.rule.family))
                .collect();
        let bindings = bindings.into_iter().map(|(set, family)| (set, vec![family]));
        let netmaps = self.netmaps.iter().map(|owned| (&owned.set, vec![Family::of_network(owned.rule.listen)]));
        let networks = self
            .networks
            .iter()
            .map(|owned| (&owned.set, owned.rule.subnets.iter().map(|subnet| Family::of_network(*subnet)).collect()));
        let masquerades =
            self.masquerades.iter().map(|owned| (&owned.set, Egress::from_masquerade(&owned.rule).families()));
        let snats = self.snats.iter().map(|owned| (&owned.set, Egress::from_snat(&owned.rule).families()));
        let all = bindings.chain(netmaps).chain(networks).chain(masquerades).chain(snats);
        let families: BTreeSet<Family> =
            all.filter(|(set, _)| enables(set)).flat_map(|(_, families)| families).collect();
        families.into_iter().collect()
    }
}

fn with_set<T: Clone>(set: &SetName, rules: &[T]) -> impl Iterator<Item = SetRule<T>> {
    rules.iter().map(|rule| SetRule { set: set.clone(), rule: rule.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Forward;
    use proptest::prelude::*;

    fn desired(forwards: &[(u8, u16, u16, u8)]) -> DesiredState {
        let mut desired = DesiredState::default();
        for (set, port, more, to) in forwards {
            let listen = format!("{port}-{}", port + more).parse().expect("listen");
            let forward = Forward::new(listen, format!("10.0.0.{to}").parse().expect("target"));
            let set: SetName = format!("set{set}").parse().expect("name");
            let rules = forward.bindings().expect("valid").into_iter();
            desired.bindings.extend(rules.map(|rule| SetRule { set: set.clone(), rule }));
        }
        desired.normalize();
        desired
    }

    proptest! {
        #[test]
        fn less_returns_the_bindings_that_the_other_state_lacks(
            one in proptest::collection::vec((0u8..2, 1u16..6, 0u16..3, 1u8..3), 0..12),
            other in proptest::collection::vec((0u8..2, 1u16..6, 0u16..3, 1u8..3), 0..12),
        ) {
            let (one, other) = (desired(&one), desired(&other));
            let slow: Vec<_> = one.bindings.iter().filter(|owned| !other.bindings.contains(owned)).collect();
            prop_assert_eq!(one.less(&other), slow);
        }
    }
}
