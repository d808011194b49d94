//! The common form of all source NAT rules, and the precedence of these rules.
//!
//! A network with `masquerade`, a `[[masquerade]]` and a `[[snat]]` all rewrite the source address of packets from a
//! prefix that leave by an interface. A rule with `out` wins over a rule without; then the longer `from` prefix wins;
//! then `snat` wins over `masquerade`. Two rules that are equal in all of these and have different addresses are a
//! conflict ([`snat_conflicts`](super::precedence::snat_conflicts)).

use std::cmp::Reverse;

use ipnetwork::IpNetwork;

use super::{Family, IfName, Masquerade, Mode, Network, Pool, Snat};

/// The new source address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewrite {
    /// The address of the egress interface.
    Masquerade,
    /// An address of a pool.
    Snat(Pool, Option<Mode>),
}

/// The egress interfaces that a rule matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutInterface {
    /// All egress interfaces.
    Any,
    /// Only the interface with this name.
    Is(IfName),
    /// All egress interfaces except the one with this name.
    Not(IfName),
}

/// A source NAT rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// The source prefix, or `None` for every source.
    pub from: Option<IpNetwork>,
    /// The egress interfaces that the rule matches.
    pub out: OutInterface,
    /// The new source address.
    pub rewrite: Rewrite,
}

impl Egress {
    /// Returns the rule of a `[[masquerade]]`.
    pub fn from_masquerade(rule: &Masquerade) -> Self {
        Self { from: rule.from, out: out_interface(rule.out.as_ref()), rewrite: Rewrite::Masquerade }
    }

    /// Returns the rule of a `[[snat]]`.
    pub fn from_snat(rule: &Snat) -> Self {
        Self { from: rule.from, out: out_interface(rule.out.as_ref()), rewrite: Rewrite::Snat(rule.to, rule.mode) }
    }

    /// Returns the rules of a network: one for each subnet, or none if the network does not masquerade.
    pub fn from_network(network: &Network) -> Vec<Self> {
        let out = || OutInterface::Not(network.name.clone());
        let rule = |subnet: &IpNetwork| Self { from: Some(*subnet), out: out(), rewrite: Rewrite::Masquerade };
        if network.masquerade { network.subnets.iter().map(rule).collect() } else { Vec::new() }
    }

    /// Returns the sort key of the precedence. The rule with the lesser key wins.
    pub fn precedence(&self) -> (bool, Reverse<Option<u8>>, bool) {
        let masquerade = self.rewrite == Rewrite::Masquerade;
        (
            !matches!(self.out, OutInterface::Is(_)),
            Reverse(self.specific_source().map(|from| from.prefix())),
            masquerade,
        )
    }

    /// Returns the source prefix, or `None` if the rule matches every source. `0.0.0.0/0` and `::/0` count as `None`.
    pub(super) fn specific_source(&self) -> Option<IpNetwork> {
        self.from.filter(|from| from.prefix() > 0)
    }

    /// Returns the families of the packets that the rule matches.
    pub fn families(&self) -> Vec<Family> {
        match (self.from, self.rewrite) {
            (Some(from), _) => vec![Family::of_network(from)],
            (None, Rewrite::Snat(pool, _)) => vec![pool.family()],
            (None, Rewrite::Masquerade) => Family::ALL.to_vec(),
        }
    }
}

fn out_interface(out: Option<&IfName>) -> OutInterface {
    out.map_or(OutInterface::Any, |out| OutInterface::Is(out.clone()))
}
