//! Rules about what leaves this host, in one form, and which of two wins.
//!
//! Networks that masquerade, `[[masquerade]]` and `[[snat]]` all say: what comes from here and leaves there takes such an
//! address. The one with `out` wins over the one without; then the one with the longer `from` prefix; then the one that
//! names its addresses over a masquerade. Two that are equal in all of that and name different ones are a conflict
//! ([`conflicts`](super::precedence::conflicts)).

use std::cmp::Reverse;

use ipnetwork::IpNetwork;

use super::{Family, IfName, Masquerade, Mode, Network, Pool, Snat};

/// The address that something takes when it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewrite {
    /// The one of the interface that it leaves by.
    Masquerade,
    /// One of a pool.
    Snat(Pool, Option<Mode>),
}

/// Where something must leave for a rule to be about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Anywhere.
    Any,
    /// By this interface.
    By(IfName),
    /// By any interface but this one.
    NotBy(IfName),
}

/// One rule about what leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// Only what comes from here.
    pub from: Option<IpNetwork>,
    /// Where it leaves.
    pub way: Way,
    /// What it takes.
    pub rewrite: Rewrite,
}

impl Egress {
    /// What a masquerade asks.
    pub fn of_masquerade(rule: &Masquerade) -> Self {
        Self { from: rule.from, way: way(rule.out.as_ref()), rewrite: Rewrite::Masquerade }
    }

    /// What source NAT asks.
    pub fn of_snat(rule: &Snat) -> Self {
        Self { from: rule.from, way: way(rule.out.as_ref()), rewrite: Rewrite::Snat(rule.to, rule.mode) }
    }

    /// What a network asks, one for each subnet; nothing where it does not masquerade.
    pub fn of_network(network: &Network) -> Vec<Self> {
        let way = || Way::NotBy(network.name.clone());
        let of = |subnet: &IpNetwork| Self { from: Some(*subnet), way: way(), rewrite: Rewrite::Masquerade };
        if network.masquerade { network.subnets.iter().map(of).collect() } else { Vec::new() }
    }

    /// The key to sort by: who wins comes first.
    pub fn precedence(&self) -> (bool, Reverse<Option<u8>>, bool) {
        let masquerade = self.rewrite == Rewrite::Masquerade;
        (!matches!(self.way, Way::By(_)), Reverse(self.narrowed().map(|from| from.prefix())), masquerade)
    }

    /// The prefix, where it says more than none would: that of everybody does not.
    pub(super) fn narrowed(&self) -> Option<IpNetwork> {
        self.from.filter(|from| from.prefix() > 0)
    }

    /// The families whose packets it is about.
    pub fn families(&self) -> Vec<Family> {
        match (self.from, self.rewrite) {
            (Some(from), _) => vec![Family::of_network(from)],
            (None, Rewrite::Snat(pool, _)) => vec![pool.family()],
            (None, Rewrite::Masquerade) => Family::ALL.to_vec(),
        }
    }
}

fn way(out: Option<&IfName>) -> Way {
    out.map_or(Way::Any, |out| Way::By(out.clone()))
}
