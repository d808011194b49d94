//! Everything that all sets together ask of a host, in normal form. What is read back from a kernel has the same form.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::binding::SortKey;
use super::{
    Binding, ChainName, Egress, Family, IpForward, Masquerade, Netmap, Network, ParseError, Priority, RuleSet, SetName,
    Settings, Snat,
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
    /// Every source NAT.
    pub snats: Vec<Owned<Snat>>,
    /// Every 1:1 translation.
    pub netmaps: Vec<Owned<Netmap>>,
    /// The settings of every set.
    pub settings: BTreeMap<SetName, Settings>,
}

impl Asked {
    /// Adds a set that is not yet in.
    ///
    /// # Errors
    /// The first forward whose parts do not fit together.
    pub fn add(&mut self, set: &RuleSet) -> Result<(), ParseError> {
        self.bindings.reserve(set.forwards.len());
        for forward in &set.forwards {
            for rule in forward.bindings()? {
                self.bindings.push(Owned { set: set.name.clone(), rule });
            }
        }
        self.networks.extend(owned(&set.name, &set.networks));
        self.masquerades.extend(owned(&set.name, &set.masquerades));
        self.snats.extend(owned(&set.name, &set.snats));
        self.netmaps.extend(owned(&set.name, &set.netmaps));
        self.settings.insert(set.name.clone(), set.settings);
        Ok(())
    }

    /// Removes a set and all that is in it.
    pub fn remove(&mut self, set: &SetName) {
        self.keep(|name| name != set);
    }

    /// What is in a set, alone.
    pub fn part(&self, set: &SetName) -> Self {
        let mut part = self.clone();
        part.keep(|name| name == set);
        part
    }

    fn keep(&mut self, keeps: impl Fn(&SetName) -> bool) {
        self.bindings.retain(|owned| keeps(&owned.set));
        self.networks.retain(|owned| keeps(&owned.set));
        self.masquerades.retain(|owned| keeps(&owned.set));
        self.snats.retain(|owned| keeps(&owned.set));
        self.netmaps.retain(|owned| keeps(&owned.set));
        self.settings.retain(|name, _| keeps(name));
    }

    /// Sorts everything, so that two unions of the same rules are equal.
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

    /// The bindings that `other` does not have as they are, in their order. Both must be sorted, see [`Asked::normalize`].
    pub fn less<'a>(&'a self, other: &Self) -> Vec<&'a Owned<Binding>> {
        fn place(owned: &Owned<Binding>) -> (&SetName, SortKey<'_>) {
            (&owned.set, owned.rule.sort_key())
        }
        let mut rest = other.bindings.as_slice();
        let mut missing = Vec::new();
        // Of one place there may be several ranges, which differ in their ends.
        for alike in self.bindings.chunk_by(|one, next| place(one) == place(next)) {
            // Most are the same in both.
            if let ([one], [next, others @ ..]) = (alike, rest)
                && one == next
            {
                rest = others;
                continue;
            }
            let Some(first) = alike.first() else { continue };
            let before = rest.iter().take_while(|owned| place(owned) < place(first)).count();
            rest = rest.get(before..).unwrap_or_default();
            let count = rest.iter().take_while(|owned| place(owned) == place(first)).count();
            let here = rest.get(..count).unwrap_or_default();
            missing.extend(alike.iter().filter(|owned| !here.contains(owned)));
        }
        missing
    }

    /// Whether nothing at all is asked.
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty()
            && self.networks.is_empty()
            && self.masquerades.is_empty()
            && self.snats.is_empty()
            && self.netmaps.is_empty()
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
        let home = binding.to.address.and_then(|address| self.network_of(address));
        home.map_or_else(ChainName::forwards, |network| network.chain.clone())
    }

    /// The network that an address is in; of several the first by name.
    pub fn network_of(&self, address: IpAddr) -> Option<&Network> {
        let networks = self.networks.iter().map(|owned| &owned.rule);
        let holds = |network: &&Network| network.subnets.iter().any(|subnet| subnet.contains(address));
        networks.filter(holds).min_by_key(|network| &network.name)
    }

    /// The families in which packets must be forwarded between interfaces, as far as the sets want that to be seen to:
    /// those of every rule but a redirect to this host.
    pub fn forwarding(&self) -> Vec<Family> {
        let wants =
            |set: &SetName| self.settings.get(set).is_none_or(|settings| settings.ip_forward == IpForward::Enable);
        // One of each set and family says as much as all of them.
        let bindings: BTreeSet<(&SetName, Family)> =
            (self.bindings.chunk_by(|a, b| a.set == b.set && a.rule.family == b.rule.family))
                .filter_map(|alike| alike.iter().find(|owned| owned.rule.to.address.is_some()))
                .map(|owned| (&owned.set, owned.rule.family))
                .collect();
        let bindings = bindings.into_iter().map(|(set, family)| (set, vec![family]));
        let netmaps = self.netmaps.iter().map(|owned| (&owned.set, vec![Family::of_network(owned.rule.listen)]));
        let networks = self
            .networks
            .iter()
            .map(|owned| (&owned.set, owned.rule.subnets.iter().map(|subnet| Family::of_network(*subnet)).collect()));
        let masquerades =
            self.masquerades.iter().map(|owned| (&owned.set, Egress::of_masquerade(&owned.rule).families()));
        let snats = self.snats.iter().map(|owned| (&owned.set, Egress::of_snat(&owned.rule).families()));
        let all = bindings.chain(netmaps).chain(networks).chain(masquerades).chain(snats);
        let families: BTreeSet<Family> = all.filter(|(set, _)| wants(set)).flat_map(|(_, families)| families).collect();
        families.into_iter().collect()
    }
}

fn owned<T: Clone>(set: &SetName, rules: &[T]) -> impl Iterator<Item = Owned<T>> {
    rules.iter().map(|rule| Owned { set: set.clone(), rule: rule.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Forward;
    use proptest::prelude::*;

    fn asked(of: &[(u8, u16, u16, u8)]) -> Asked {
        let mut asked = Asked::default();
        for (set, port, more, to) in of {
            let listen = format!("{port}-{}", port + more).parse().expect("listen");
            let forward = Forward::new(listen, format!("10.0.0.{to}").parse().expect("target"));
            let set: SetName = format!("set{set}").parse().expect("name");
            let rules = forward.bindings().expect("valid").into_iter();
            asked.bindings.extend(rules.map(|rule| Owned { set: set.clone(), rule }));
        }
        asked.normalize();
        asked
    }

    proptest! {
        #[test]
        fn less_is_what_the_other_does_not_have(
            one in proptest::collection::vec((0u8..2, 1u16..6, 0u16..3, 1u8..3), 0..12),
            other in proptest::collection::vec((0u8..2, 1u16..6, 0u16..3, 1u8..3), 0..12),
        ) {
            let (one, other) = (asked(&one), asked(&other));
            let slow: Vec<_> = one.bindings.iter().filter(|owned| !other.bindings.contains(owned)).collect();
            prop_assert_eq!(one.less(&other), slow);
        }
    }
}
