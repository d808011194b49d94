//! The trace of a packet: its stages, its end, and the assumptions behind them.

use std::net::IpAddr;

use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::Link;
use crate::ruleset::region::Packet;
use crate::ruleset::reject::Rejection;
use crate::ruleset::simulate::chains::Outcome;
use crate::ruleset::table::{At, Hook};
use crate::ruleset::view::Translation;

/// A part of the chains of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The chains before connection tracking.
    Raw,
    /// The chains before NAT.
    BeforeNat,
    /// The chains of type nat.
    Nat,
    /// The chains after NAT, or all chains of a hook without NAT.
    Filter,
}

/// A stage of a packet's path.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all stages are the large one, and millions of traces are made")]
pub enum Stage<'a> {
    /// The chains of a hook evaluated the packet.
    Rules {
        /// The hook.
        hook: Hook,
        /// The part of its chains.
        part: Part,
        /// The effect.
        outcome: Outcome,
        /// The new address and port of the destination or of the source, if NAT rewrote it.
        rewritten: Option<(Option<IpAddr>, Option<u16>)>,
    },
    /// The packet was routed.
    Route(RouteDecision<'a>),
    /// Connection tracking rewrote an address of an answer back: the destination at prerouting and output, otherwise the
    /// source.
    Back {
        /// The hook.
        hook: Hook,
        /// The address and port.
        to: (Option<IpAddr>, Option<u16>),
    },
}

/// The result of a routing decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteDecision<'a> {
    /// To this host.
    Here,
    /// Out by a link, to a router or to a host on the link.
    Out(&'a Link, Option<IpAddr>),
    /// The kernel does not route the packet.
    Refused(Refusal),
    /// From one port of a bridge to another, without routing.
    Switched(&'a Link),
    /// Out, by an unknown interface.
    Somewhere,
    /// The route is unknown.
    Unknown,
}

/// The reason for which the kernel does not route a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No route matches, or the route refuses packets.
    NoRoute,
    /// The destination is a loopback address, and the ingress interface is another one without `route_localnet`. IPv6 has no
    /// such setting.
    Loopback,
    /// The packet is for another host, and this host does not forward packets (`ip_forward`, `forwarding`).
    NotForwarding,
    /// The packet arrives by another interface than packets to its source leave by (`rp_filter`).
    ReversePath,
    /// The source is an address of this host, a loopback address or no host's address.
    Martian,
    /// The packet must leave a bridge by the port by which it arrived, and the port is not in hairpin mode.
    SamePort,
}

/// The end of a packet's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End<'a> {
    /// The packet arrives at this host.
    Arrives,
    /// The packet leaves by a link, to a router or to a host on the link. The link is `None` if it is unknown.
    Leaves(Option<&'a Link>, Option<IpAddr>),
    /// A rule or a policy drops the packet. A `reject` rule sends an answer.
    Dropped(Hook, Part, At, Option<Rejection>),
    /// A program gives the verdict.
    Queued(Hook, At),
    /// The kernel does not route the packet.
    Refused(Refusal),
    /// The route is unknown.
    Unknown,
}

/// An assumption of a trace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guess {
    /// The interfaces, addresses and routes are unknown.
    NoFacts,
    /// Routing depends on rules or routes that the simulator does not model.
    PolicyRouting,
    /// The kernel chooses one of several addresses or routes. The simulator takes the first.
    OneOfSeveral,
    /// The addresses or settings of an interface are unknown.
    Interface(String),
    /// A program (XDP, tc) or a chain of family netdev sees the packets of an interface outside of the IP hooks.
    SeenBefore(String),
    /// A chain of family bridge sees the packets of a bridge.
    Bridge(String),
    /// Two hosts may be behind the same port of a bridge.
    Port(String),
    /// The host has IPsec policies.
    Ipsec,
    /// The host has virtual services.
    Ipvs,
    /// A part of the rules or of the host could not be read.
    Unread(String),
}

impl Guess {
    /// Returns true if the assumption is the usual case. Otherwise the result is unknown.
    pub(super) fn is_likely(&self) -> bool {
        matches!(self, Self::NoFacts | Self::OneOfSeveral | Self::Interface(_))
    }
}

/// The path of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketTrace<'a> {
    /// The packet at the start.
    pub start: Packet,
    /// The packet at the end.
    pub packet: Packet,
    /// The stages in order. A hook without chains has none.
    pub stages: Vec<Stage<'a>>,
    /// The end.
    pub end: End<'a>,
    /// The assumptions.
    pub guesses: Vec<Guess>,
}

impl<'a> PacketTrace<'a> {
    /// Returns the first outcome of a part of a hook.
    pub fn at(&self, wanted: Hook, of: Part) -> Option<&Outcome> {
        self.outcomes().find(|(hook, part, _)| (*hook, *part) == (wanted, of)).map(|(_, _, outcome)| outcome)
    }

    /// Returns all outcomes in order.
    pub fn outcomes(&self) -> impl Iterator<Item = (Hook, Part, &Outcome)> {
        self.stages.iter().filter_map(|stage| match stage {
            Stage::Rules { hook, part, outcome, .. } => Some((*hook, *part, outcome)),
            Stage::Route(_) | Stage::Back { .. } => None,
        })
    }

    /// Returns the rule that rewrote the destination.
    pub fn forwarded_by(&self) -> Option<At> {
        self.rewrites().find(|(what, _)| matches!(what, Translation::Dnat | Translation::Redirect)).map(|(_, at)| at)
    }

    /// Returns the rule that rewrote the source.
    pub fn masqueraded_by(&self) -> Option<At> {
        self.rewrites().find(|(what, _)| matches!(what, Translation::Snat | Translation::Masquerade)).map(|(_, at)| at)
    }

    fn rewrites(&self) -> impl Iterator<Item = (Translation, At)> {
        self.outcomes().filter_map(|(_, _, outcome)| outcome.rewritten.as_ref().map(|(what, _, at)| (*what, *at)))
    }

    /// Returns the rules with an unknown condition or effect.
    pub fn doubts(&self) -> impl Iterator<Item = At> {
        self.outcomes().flat_map(|(_, _, outcome)| outcome.doubts.iter().copied())
    }

    /// Returns true if the trace is certain.
    pub fn is_sure(&self) -> bool {
        self.guesses.is_empty() && self.outcomes().all(|(_, _, outcome)| outcome.is_sure())
    }

    /// Returns the confidence of the trace. It is unknown if the end is unknown, if a rule on the way is not understood, if
    /// the result depends on an unknown order of chains, or if a part of the kernel that is not modelled may act.
    pub fn confidence(&self) -> Confidence {
        let sure = self.end != End::Unknown && self.outcomes().all(|(_, _, outcome)| outcome.is_sure());
        match (sure && self.guesses.iter().all(Guess::is_likely), self.guesses.is_empty()) {
            (true, true) => Confidence::Proved,
            (true, false) => Confidence::Likely,
            (false, _) => Confidence::Unknown,
        }
    }
}
