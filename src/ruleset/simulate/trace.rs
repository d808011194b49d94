//! The trace of a packet: its stages, its end, and the assumptions behind them.

use std::net::IpAddr;

use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::Link;
use crate::ruleset::region::Packet;
use crate::ruleset::reject::Rejection;
use crate::ruleset::simulate::chains::Outcome;
use crate::ruleset::table::{At, Hook};
use crate::ruleset::view::Translation;

/// Which chains of a hook a stage is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Those before connections are followed.
    Raw,
    /// Those before addresses are rewritten.
    BeforeNat,
    /// Those that rewrite addresses.
    Nat,
    /// Those behind that; or all, where none rewrites.
    Filter,
}

/// A stage of a packet's way.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all stages are the large one, and millions of traces are made")]
pub enum Stage<'a> {
    /// It met the chains of a hook.
    Rules {
        /// Which hook.
        hook: Hook,
        /// Which of its chains.
        part: Part,
        /// What they did with it.
        outcome: Outcome,
        /// Its new address and port, where they rewrote one: those of its destination, or of its source.
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

/// Where a packet is routed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteDecision<'a> {
    /// To this host.
    Here,
    /// Out by a link, and to the next host on the way unless it is on the link.
    Out(&'a Link, Option<IpAddr>),
    /// Nowhere.
    Refused(Refusal),
    /// From one port of a bridge to another, without routing.
    Switched(&'a Link),
    /// Out, by an unknown interface.
    Somewhere,
    /// That is not known.
    Unknown,
}

/// Why a packet is routed nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No route leads there.
    NoRoute,
    /// It is for a loopback address, came by another interface, and `route_localnet` is off there; of IPv6 always.
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

/// Where a packet's way ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End<'a> {
    /// At this host.
    Arrives,
    /// It leaves, by a link and to the next host on the way where they are known.
    Leaves(Option<&'a Link>, Option<IpAddr>),
    /// A rule or a policy drops the packet. A `reject` rule sends an answer.
    Dropped(Hook, Part, At, Option<Rejection>),
    /// A program decides.
    Queued(Hook, At),
    /// It is routed nowhere.
    Refused(Refusal),
    /// Where it is routed to is not known.
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

/// The way of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketTrace<'a> {
    /// The packet as it came, or was sent.
    pub start: Packet,
    /// The packet as it ended.
    pub packet: Packet,
    /// The stages in order; hooks without chains are none.
    pub stages: Vec<Stage<'a>>,
    /// Where it ended.
    pub end: End<'a>,
    /// What was taken to be so.
    pub guesses: Vec<Guess>,
}

impl<'a> PacketTrace<'a> {
    /// What the chains of a part of a hook did, where it met them; of a packet that met them twice the first time.
    pub fn at(&self, wanted: Hook, of: Part) -> Option<&Outcome> {
        self.outcomes().find(|(hook, part, _)| (*hook, *part) == (wanted, of)).map(|(_, _, outcome)| outcome)
    }

    /// What all chains that it met did, in order.
    pub fn outcomes(&self) -> impl Iterator<Item = (Hook, Part, &Outcome)> {
        self.stages.iter().filter_map(|stage| match stage {
            Stage::Rules { hook, part, outcome, .. } => Some((*hook, *part, outcome)),
            Stage::Route(_) | Stage::Back { .. } => None,
        })
    }

    /// How its destination was rewritten, and by which rule.
    pub fn forwarded_by(&self) -> Option<At> {
        self.rewrites().find(|(what, _)| matches!(what, Translation::Dnat | Translation::Redirect)).map(|(_, at)| at)
    }

    /// Which rule rewrote its source.
    pub fn masqueraded_by(&self) -> Option<At> {
        self.rewrites().find(|(what, _)| matches!(what, Translation::Snat | Translation::Masquerade)).map(|(_, at)| at)
    }

    fn rewrites(&self) -> impl Iterator<Item = (Translation, At)> {
        self.outcomes().filter_map(|(_, _, outcome)| outcome.rewritten.as_ref().map(|(what, _, at)| (*what, *at)))
    }

    /// The rules of which it is not known whether they are about it, or what they do.
    pub fn doubts(&self) -> impl Iterator<Item = At> {
        self.outcomes().flat_map(|(_, _, outcome)| outcome.doubts.iter().copied())
    }

    /// Whether all of it is sure.
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
