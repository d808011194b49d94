//! The source NAT and masquerade rules of all sets in order of precedence, and the conflicts between them.

use std::collections::HashMap;

use ipnetwork::IpNetwork;

use super::egress::{Egress, Rewrite};
use super::{Asked, Family, IfName, Owned};

/// A rule about what leaves, as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleRef {
    /// A network, by its place in [`Asked::networks`].
    Network(usize),
    /// A masquerade, by its place in [`Asked::masquerades`].
    Masquerade(usize),
    /// Source NAT, by its place in [`Asked::snats`].
    Snat(usize),
}

/// Every rule about what leaves, in the order of precedence, with the rule that it comes from. Among equals the order is
/// that of [`Asked`], which is sorted.
pub fn by_precedence(asked: &Asked) -> Vec<(Egress, RuleRef)> {
    let mut all = in_written_order(asked);
    all.sort_by_key(|(egress, _)| egress.precedence());
    all
}

fn in_written_order(asked: &Asked) -> Vec<(Egress, RuleRef)> {
    fn numbered<T>(rules: &[Owned<T>]) -> impl Iterator<Item = (usize, &T)> {
        rules.iter().map(|owned| &owned.rule).enumerate()
    }
    let networks = numbered(&asked.networks)
        .flat_map(|(at, rule)| Egress::from_network(rule).into_iter().map(move |egress| (egress, RuleRef::Network(at))));
    let masquerades =
        numbered(&asked.masquerades).map(|(at, rule)| (Egress::from_masquerade(rule), RuleRef::Masquerade(at)));
    let snats = numbered(&asked.snats).map(|(at, rule)| (Egress::from_snat(rule), RuleRef::Snat(at)));
    networks.chain(masquerades).chain(snats).collect()
}

/// Finds every two source NATs that are about the same packets with the same precedence and name different addresses, by
/// their places in [`Asked::snats`]: (earlier, later).
pub fn snat_conflicts(asked: &Asked) -> Vec<(usize, usize)> {
    type Key = (Family, Option<IfName>, Option<IpNetwork>);
    let mut met: HashMap<Key, (Rewrite, usize)> = HashMap::new();
    let mut pairs = Vec::new();
    for (at, owned) in asked.snats.iter().enumerate() {
        let egress = Egress::from_snat(&owned.rule);
        let key = (owned.rule.to.family(), owned.rule.out.clone(), egress.specific_source());
        let (first, before) = *met.entry(key).or_insert((egress.rewrite, at));
        if first != egress.rewrite {
            pairs.push((before, at));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Masquerade, SetName, Snat};

    fn asked(masquerades: &[(Option<&str>, Option<&str>)], snats: &[(Option<&str>, Option<&str>, &str)]) -> Asked {
        fn own<T>(rule: T) -> Owned<T> {
            Owned { set: SetName::cli(), rule }
        }
        let from = |text: Option<&str>| text.map(|text| text.parse().expect(text));
        let out = |text: Option<&str>| text.map(|text| text.parse().expect(text));
        let masquerade = |(prefix, name): &(_, _)| own(Masquerade { from: from(*prefix), out: out(*name) });
        let snat = |(prefix, name, to): &(_, _, &str)| {
            own(Snat { from: from(*prefix), out: out(*name), to: to.parse().expect(to), mode: None })
        };
        Asked {
            masquerades: masquerades.iter().map(masquerade).collect(),
            snats: snats.iter().map(snat).collect(),
            ..Asked::default()
        }
    }

    #[test]
    fn out_wins_then_the_longer_prefix_then_who_names_addresses() {
        let asked = asked(
            &[(Some("10.0.0.0/24"), None), (None, Some("eth0")), (Some("10.0.0.7/32"), Some("eth0"))],
            &[(Some("10.0.0.7/32"), None, "192.0.2.7"), (Some("10.0.0.7/32"), Some("eth0"), "192.0.2.8")],
        );
        let order: Vec<RuleRef> = by_precedence(&asked).into_iter().map(|(_, written)| written).collect();
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
    fn equals_that_name_different_addresses_conflict() {
        let first = (Some("10.0.0.0/24"), Some("eth0"), "192.0.2.1");
        for (name, other, expected) in [
            ("other out", (Some("10.0.0.0/24"), Some("eth1"), "192.0.2.7"), 0),
            ("other from", (Some("10.0.0.0/25"), Some("eth0"), "192.0.2.7"), 0),
            ("other address", (Some("10.0.0.0/24"), Some("eth0"), "192.0.2.7"), 1),
            ("the same", first, 0),
        ] {
            assert_eq!(snat_conflicts(&asked(&[], &[first, other])).len(), expected, "{name}");
        }
        let both = [(None, Some("e"), "fd00::1"), (Some("0.0.0.0/0"), Some("e"), "192.0.2.1")];
        assert_eq!(snat_conflicts(&asked(&[], &both)), []);
        let everybody = [(Some("0.0.0.0/0"), Some("e"), "192.0.2.1"), (None, Some("e"), "192.0.2.2")];
        assert_eq!(snat_conflicts(&asked(&[], &everybody)), [(0, 1)]);
        assert_eq!(snat_conflicts(&asked(&[(Some("10.0.0.0/24"), Some("eth0"))], &[first])), []);
    }
}
