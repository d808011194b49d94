//! The source NAT and masquerade rules of all sets in order of precedence, and the conflicts between source NAT rules.

use std::collections::HashMap;

use ipnetwork::IpNetwork;

use super::egress::{Egress, Rewrite};
use super::{DesiredState, Family, IfName, SetRule};

/// A reference to the rule of the desired state that an [`Egress`] comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleRef {
    /// The index of a network in [`DesiredState::networks`].
    Network(usize),
    /// The index of a masquerade in [`DesiredState::masquerades`].
    Masquerade(usize),
    /// The index of a source NAT rule in [`DesiredState::snats`].
    Snat(usize),
}

/// Returns every source NAT and masquerade rule in order of precedence, each with its origin.
///
/// Rules of equal precedence keep the order of [`DesiredState`], which is sorted.
pub fn by_precedence(desired: &DesiredState) -> Vec<(Egress, RuleRef)> {
    let mut all = all_rules(desired);
    all.sort_by_key(|(egress, _)| egress.precedence());
    all
}

fn all_rules(desired: &DesiredState) -> Vec<(Egress, RuleRef)> {
    fn numbered<T>(rules: &[SetRule<T>]) -> impl Iterator<Item = (usize, &T)> {
        rules.iter().map(|owned| &owned.rule).enumerate()
    }
    let networks = numbered(&desired.networks).flat_map(|(index, rule)| {
        Egress::from_network(rule).into_iter().map(move |egress| (egress, RuleRef::Network(index)))
    });
    let masquerades =
        numbered(&desired.masquerades).map(|(index, rule)| (Egress::from_masquerade(rule), RuleRef::Masquerade(index)));
    let snats = numbered(&desired.snats).map(|(index, rule)| (Egress::from_snat(rule), RuleRef::Snat(index)));
    networks.chain(masquerades).chain(snats).collect()
}

/// Finds the source NAT rules that match the same packets with the same precedence and have different addresses.
///
/// Returns pairs of indexes in [`DesiredState::snats`]: (earlier, later).
pub fn snat_conflicts(desired: &DesiredState) -> Vec<(usize, usize)> {
    type Key = (Family, Option<IfName>, Option<IpNetwork>);
    let mut seen: HashMap<Key, (Rewrite, usize)> = HashMap::new();
    let mut pairs = Vec::new();
    for (index, owned) in desired.snats.iter().enumerate() {
        let egress = Egress::from_snat(&owned.rule);
        let key = (owned.rule.to.family(), owned.rule.out.clone(), egress.specific_source());
        let (first, earlier) = *seen.entry(key).or_insert((egress.rewrite, index));
        if first != egress.rewrite {
            pairs.push((earlier, index));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Masquerade, SetName, Snat};

    fn desired(
        masquerades: &[(Option<&str>, Option<&str>)],
        snats: &[(Option<&str>, Option<&str>, &str)],
    ) -> DesiredState {
        fn in_cli_set<T>(rule: T) -> SetRule<T> {
            SetRule { set: SetName::cli(), rule }
        }
        let from = |text: Option<&str>| text.map(|text| text.parse().expect(text));
        let out = |text: Option<&str>| text.map(|text| text.parse().expect(text));
        let masquerade = |(prefix, name): &(_, _)| in_cli_set(Masquerade { from: from(*prefix), out: out(*name) });
        let snat = |(prefix, name, to): &(_, _, &str)| {
            in_cli_set(Snat { from: from(*prefix), out: out(*name), to: to.parse().expect(to), mode: None })
        };
        DesiredState {
            masquerades: masquerades.iter().map(masquerade).collect(),
            snats: snats.iter().map(snat).collect(),
            ..DesiredState::default()
        }
    }

    #[test]
    fn out_wins_then_the_longer_prefix_then_snat_over_masquerade() {
        let desired = desired(
            &[(Some("10.0.0.0/24"), None), (None, Some("eth0")), (Some("10.0.0.7/32"), Some("eth0"))],
            &[(Some("10.0.0.7/32"), None, "192.0.2.7"), (Some("10.0.0.7/32"), Some("eth0"), "192.0.2.8")],
        );
        let order: Vec<RuleRef> = by_precedence(&desired).into_iter().map(|(_, written)| written).collect();
        let expected = [
            RuleRef::Snat(1),
            RuleRef::Masquerade(2),
            RuleRef::Masquerade(1),
            RuleRef::Snat(0),
            RuleRef::Masquerade(0),
        ];
        assert_eq!(order, expected);
    }

    #[test]
    fn rules_of_equal_precedence_with_different_addresses_conflict() {
        let first = (Some("10.0.0.0/24"), Some("eth0"), "192.0.2.1");
        for (name, other, expected) in [
            ("other out", (Some("10.0.0.0/24"), Some("eth1"), "192.0.2.7"), 0),
            ("other from", (Some("10.0.0.0/25"), Some("eth0"), "192.0.2.7"), 0),
            ("other address", (Some("10.0.0.0/24"), Some("eth0"), "192.0.2.7"), 1),
            ("an equal rule", first, 0),
        ] {
            assert_eq!(snat_conflicts(&desired(&[], &[first, other])).len(), expected, "{name}");
        }
        let both = [(None, Some("e"), "fd00::1"), (Some("0.0.0.0/0"), Some("e"), "192.0.2.1")];
        assert_eq!(snat_conflicts(&desired(&[], &both)), []);
        let all_sources = [(Some("0.0.0.0/0"), Some("e"), "192.0.2.1"), (None, Some("e"), "192.0.2.2")];
        assert_eq!(snat_conflicts(&desired(&[], &all_sources)), [(0, 1)]);
        assert_eq!(snat_conflicts(&desired(&[(Some("10.0.0.0/24"), Some("eth0"))], &[first])), []);
    }
}
