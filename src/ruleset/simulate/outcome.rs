//! The effect of a hook on a packet, and the parts of a hook's base chains.

use std::ops::RangeInclusive;

use crate::ruleset::reject::Rejection;
use crate::ruleset::table::{At, Rewrite};
use crate::ruleset::view::Translation;

/// The verdict of a hook about a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The packet continues.
    #[default]
    Passes,
    /// A rule or a policy drops the packet. For a policy, the index of the rule equals the number of rules. A `reject` rule
    /// also sends an answer.
    Dropped(At, Option<Rejection>),
    /// A program gives the verdict.
    Queued(At),
}

/// The effect of a hook on a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// The rules that accepted the packet and so ended a base chain.
    pub accepted: Vec<At>,
    /// The rewrite of an address, and its rule.
    pub rewritten: Option<(Translation, Rewrite, At)>,
    /// The rule that excludes the packet from connection tracking.
    pub untracked: Option<At>,
    /// The rule that assigns the packet to a socket (TPROXY), and the address of the socket.
    pub proxied: Option<(Rewrite, At)>,
    /// True if a chain of type `route` changed the packet, so the kernel routes it again.
    pub reroutes: bool,
    /// The rules with an unknown condition or an unknown effect. Without any, the rest is certain.
    pub doubts: Vec<At>,
    /// True if the result depends on the order of two chains of the same priority.
    pub tied: bool,
}

impl Outcome {
    /// Returns true if the outcome is certain.
    pub fn is_sure(&self) -> bool {
        self.doubts.is_empty() && !self.tied
    }

    /// Returns the rule or policy that ends the packet at this hook.
    pub fn dropped_by(&self) -> Option<At> {
        match self.verdict {
            Verdict::Dropped(at, _) => Some(at),
            Verdict::Passes | Verdict::Queued(_) => None,
        }
    }

    /// Adds the outcome of the next chains.
    pub(super) fn append(&mut self, next: Self) {
        self.verdict = next.verdict;
        self.accepted.extend(next.accepted);
        self.rewritten = next.rewritten.or(self.rewritten.take());
        self.untracked = next.untracked.or(self.untracked);
        self.proxied = next.proxied.or(self.proxied.take());
        self.reroutes |= next.reroutes;
        self.doubts.extend(next.doubts);
        self.tied |= next.tied;
    }

    /// Returns true if a packet has the same fate in both outcomes. Two chains that both drop it have the same effect.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let answer = |outcome: &Self| match outcome.verdict {
            Verdict::Passes => (0, None),
            Verdict::Dropped(_, answer) => (1, answer),
            Verdict::Queued(_) => (2, None),
        };
        let rewrite = |outcome: &Self| {
            let rewritten = outcome.rewritten.clone().map(|(what, to, _)| (what, to));
            (rewritten, outcome.proxied.clone().map(|(to, _)| to))
        };
        (answer(self), self.reroutes, self.untracked.is_some())
            == (answer(other), other.reroutes, other.untracked.is_some())
            && rewrite(self) == rewrite(other)
    }
}

/// A part of the base chains of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The chains of type nat.
    Nat,
    /// The other chains with these priorities.
    Filter(RangeInclusive<i32>),
}

/// Chains before DNAT: `NF_IP_PRI_NAT_DST` is −100.
pub const BEFORE_DNAT: RangeInclusive<i32> = i32::MIN..=-101;

/// Chains after DNAT.
pub const AFTER_DNAT: RangeInclusive<i32> = -100..=i32::MAX;

/// Chains before connection tracking. There, the state of every packet is invalid (measured on Linux 6.18;
/// `nft_ct_get_eval` in net/netfilter/nft_ct.c).
pub const BEFORE_TRACKING: RangeInclusive<i32> = i32::MIN..=-201;

/// Chains after connection tracking and before DNAT.
pub const TRACKED_BEFORE_DNAT: RangeInclusive<i32> = -200..=-101;

/// Chains before SNAT: `NF_IP_PRI_NAT_SRC` is 100.
pub const BEFORE_SNAT: RangeInclusive<i32> = i32::MIN..=99;

/// Chains after SNAT.
pub const AFTER_SNAT: RangeInclusive<i32> = 100..=i32::MAX;
