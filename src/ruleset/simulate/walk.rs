//! The walk of one packet: the chains in their order, and the routing decisions between them.

use std::net::{IpAddr, Ipv6Addr};

use super::bridge::Bridge;
use super::outside::Side;
use super::simulator::Simulator;
use super::trace::{End, Guess, PacketTrace, Part, Refusal, RouteDecision, Stage};
use crate::model::Family;
use crate::ruleset::host::Host;
use crate::ruleset::region::{CONFIRMED, Field, Packet, State, Truth};
use crate::ruleset::set::{name_of, number_of, number_of_name};
use crate::ruleset::simulate::chains::{self, Verdict, Which};
use crate::ruleset::table::{At, Hook, Rewrite};
use crate::ruleset::view::Translation;

mod nat;

impl<'a> PacketTrace<'a> {
    /// Simulates a packet on a host. For many packets, a [`Simulator`] is faster.
    pub fn new(host: &'a Host, packet: Packet) -> Self {
        Simulator::new(host).simulate(packet)
    }
}

impl<'a> Simulator<'a> {
    /// Simulates a packet that arrives by its [`Field::Input`], or that this host sends if the field is 0. Sets the kinds of
    /// its addresses if they are known.
    pub fn simulate(&self, packet: Packet) -> PacketTrace<'a> {
        Walk::new(self, packet, true, None).whole()
    }

    /// Simulates a packet as [`Simulator::simulate`] does, but skips the rewrite of its source if no later chain sees it. So
    /// an unknown rule there causes no doubt about whether the packet passes.
    pub fn simulate_passage(&self, packet: Packet) -> PacketTrace<'a> {
        Walk::new(self, packet, false, None).whole()
    }
}

/// The state of a walk.
pub(super) struct Walk<'g, 'a> {
    simulator: &'g Simulator<'a>,
    packet: Packet,
    stages: Vec<Stage<'a>>,
    guesses: Vec<Guess>,
    /// The rewrite of the destination.
    rewritten: Option<Translation>,
    /// True if connection tracking sees the packet, so NAT can rewrite it.
    tracked: bool,
    /// True after the packet returned by the loopback interface, with its connection.
    returned: bool,
    /// True if the rewrite of the source matters even if no later chain sees it.
    sources: bool,
    /// True if a chain of type `route` changed the packet after its last route lookup.
    reroutes: bool,
    /// The router that the packet leaves to.
    gateway: Option<IpAddr>,
    /// The addresses of the connection if the packet is an answer.
    reply: Option<Reply>,
    start: Packet,
}

/// The addresses that connection tracking puts back into an answer: those of the connection's first packet, as it arrived.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply {
    /// The address and port that the first packet was for: the source of the answer.
    pub listen: (Option<u128>, Option<u128>),
    /// The source of the first packet: the destination of the answer.
    pub client: (Option<u128>, Option<u128>),
}

/// A step of the walk. An error is the end of the packet.
type Step<'a, T = ()> = Result<T, End<'a>>;

impl<'g, 'a> Walk<'g, 'a> {
    pub(super) fn new(simulator: &'g Simulator<'a>, mut packet: Packet, sources: bool, reply: Option<Reply>) -> Self {
        for (original, field) in [(Field::OriginalDestination, Field::Destination), (Field::OriginalPort, Field::Port)]
        {
            if packet.get(original).is_none() {
                packet.set(original, packet.get(field));
            }
        }
        let start = packet.clone();
        let stages = Vec::with_capacity(6);
        let mut walk = Self {
            simulator,
            packet,
            stages,
            guesses: Vec::new(),
            rewritten: None,
            tracked: true,
            returned: false,
            sources,
            reroutes: false,
            gateway: None,
            reply,
            start,
        };
        walk.kinds();
        walk.start = walk.packet.clone();
        walk
    }

    pub(super) fn whole(mut self) -> PacketTrace<'a> {
        if self.simulator.host.facts.is_none() {
            self.guess(Guess::NoFacts);
        }
        let mut guesses = Vec::new();
        self.simulator.add_host_guesses(&mut guesses);
        self.add(guesses);
        let own = self.packet.get(Field::Input) == Some(0);
        let end = match if own { self.sent() } else { self.arrived() } {
            Ok(end) | Err(end) => end,
        };
        let Self { packet, stages, guesses, start, .. } = self;
        PacketTrace { start, packet, stages, end, guesses }
    }

    /// Walks a packet that arrives.
    fn arrived(&mut self) -> Step<'a, End<'a>> {
        self.packet.put(Field::Output, 0);
        if let Some(input) = self.packet.get(Field::Input) {
            self.seen_at(input, Side::Ingress);
        }
        let loopback = number_of(Ipv6Addr::LOCALHOST.into());
        if self.packet.family == Family::Ipv6
            && self.packet.get(Field::Destination) == Some(loopback)
            && !self.simulator.is_from_loopback(&self.packet)
        {
            // `ip6_rcv_core` in net/ipv6/ip6_input.c drops the packet before any hook.
            return Err(self.refused(Refusal::Loopback));
        }
        let bridge = self.simulator.bridge(&self.packet);
        let switched = bridge.as_ref().is_some_and(|bridge| bridge.switches);
        if let Some(Bridge { link, switches: true, calls: false }) = bridge {
            self.stages.push(Stage::Route(RouteDecision::Switched(link)));
            return Ok(End::Leaves(Some(link), None));
        }
        let before = self.packet.get(Field::Destination);
        self.before_nat(Hook::Prerouting)?;
        self.nat(Hook::Prerouting)?;
        self.filter(Hook::Prerouting, Part::Filter, Which::Filter(chains::AFTER_DNAT))?;
        let rewritten = self.packet.get(Field::Destination) != before;
        if switched
            && !rewritten
            && let Some(Bridge { link, .. }) = bridge
        {
            return self.switched(RouteDecision::Switched(link));
        }
        match self.route() {
            // The bridge forwards the packet: `br_nf_pre_routing_finish` in net/bridge/br_netfilter_hooks.c.
            leg @ RouteDecision::Out(link, None)
                if rewritten && bridge.is_some_and(|bridge| bridge.calls && bridge.link.index == link.index) =>
            {
                // The lookup checks whether the host forwards IPv4 packets. For IPv6 that check comes later.
                if self.packet.family == Family::Ipv4 {
                    self.passed_on()?;
                    self.check_source(&leg)?;
                }
                self.switched(leg)
            }
            leg @ RouteDecision::Here => {
                self.check_source(&leg)?;
                self.stages.push(Stage::Route(leg));
                self.delivered()
            }
            leg @ (RouteDecision::Out(..) | RouteDecision::Somewhere) => {
                self.passed_on()?;
                self.check_source(&leg)?;
                self.stages.push(Stage::Route(leg));
                self.leave_by(leg);
                self.filter(Hook::Forward, Part::Filter, Which::Filter(i32::MIN..=i32::MAX))?;
                self.leaving(leg)
            }
            leg => Err(self.ended(leg)),
        }
    }

    /// Follows a packet from one port of a bridge to another, through the hooks that br_netfilter calls.
    fn switched(&mut self, leg: RouteDecision<'a>) -> Step<'a, End<'a>> {
        let (RouteDecision::Switched(link) | RouteDecision::Out(link, _)) = leg else { return Err(self.ended(leg)) };
        match self.simulator.is_same_port(&self.packet, link) {
            Truth::Yes => return Err(self.refused(Refusal::SamePort)),
            Truth::Maybe => self.guess(Guess::Port(link.name.clone())),
            Truth::No => {}
        }
        self.stages.push(Stage::Route(leg));
        self.leave_by(RouteDecision::Out(link, None));
        self.filter(Hook::Forward, Part::Filter, Which::Filter(i32::MIN..=i32::MAX))?;
        // `br_nf_post_routing` in net/bridge/br_netfilter_hooks.c passes no ingress interface.
        self.packet.put(Field::Input, 0);
        self.leaving(RouteDecision::Out(link, None))
    }

    /// Walks a packet of this host. Chains at output see the egress interface of the first routing decision
    /// (`nf_nat_ipv4_local_fn` in net/netfilter/nf_nat_proto.c).
    fn sent(&mut self) -> Step<'a, End<'a>> {
        let leg = self.route();
        self.leave_by(leg);
        self.stages.push(Stage::Route(leg));
        self.before_nat(Hook::Output)?;
        let leg = self.routed_again(leg)?;
        let before = self.packet.get(Field::Destination);
        self.nat(Hook::Output)?;
        self.reroutes |= self.packet.get(Field::Destination) != before || self.rewritten.is_some();
        let leg = self.routed_again(leg)?;
        self.filter(Hook::Output, Part::Filter, Which::Filter(chains::AFTER_DNAT))?;
        let leg = self.routed_again(leg)?;
        match leg {
            RouteDecision::Out(link, _) if !self.simulator.may_leave(&self.packet, link) => {
                return Err(self.refused(Refusal::Loopback));
            }
            RouteDecision::Refused(refusal) => return Err(End::Refused(refusal)),
            RouteDecision::Unknown => return Err(End::Unknown),
            _ => self.leave_by(leg),
        }
        let end = self.leaving(leg)?;
        if leg != RouteDecision::Here {
            return Ok(end);
        }
        // The packet arrives again by the loopback interface. Its connection has its NAT already.
        let lo = self.packet.get(Field::Output);
        self.packet.set(Field::Input, lo);
        self.packet.put(Field::Output, 0);
        self.returned = true;
        self.status(CONFIRMED);
        self.before_nat(Hook::Prerouting)?;
        self.filter(Hook::Prerouting, Part::Filter, Which::Filter(chains::AFTER_DNAT))?;
        self.filter(Hook::Input, Part::Filter, Which::Filter(i32::MIN..=i32::MAX))?;
        Ok(End::Arrives)
    }

    /// Routes a packet of this host again if a chain changed it: `ip_route_me_harder` in net/ipv4/netfilter.c. Later chains of
    /// the hook still see the first egress interface.
    fn routed_again(&mut self, leg: RouteDecision<'a>) -> Step<'a, RouteDecision<'a>> {
        if !std::mem::take(&mut self.reroutes) {
            return Ok(leg);
        }
        let leg = self.route();
        match leg {
            RouteDecision::Refused(_) => Err(self.ended(leg)),
            _ => {
                self.stages.push(Stage::Route(leg));
                Ok(leg)
            }
        }
    }

    fn delivered(&mut self) -> Step<'a, End<'a>> {
        self.filter(Hook::Input, Part::Filter, Which::Filter(chains::BEFORE_SNAT))?;
        self.nat(Hook::Input)?;
        self.filter(Hook::Input, Part::Filter, Which::Filter(chains::AFTER_SNAT))?;
        Ok(End::Arrives)
    }

    fn leaving(&mut self, leg: RouteDecision<'a>) -> Step<'a, End<'a>> {
        self.filter(Hook::Postrouting, Part::BeforeNat, Which::Filter(chains::BEFORE_SNAT))?;
        self.nat(Hook::Postrouting)?;
        self.filter(Hook::Postrouting, Part::Filter, Which::Filter(chains::AFTER_SNAT))?;
        if let Some(output) = self.packet.get(Field::Output) {
            self.seen_at(output, Side::Egress);
        }
        Ok(match leg {
            RouteDecision::Out(link, gateway) => End::Leaves(Some(link), gateway),
            _ => End::Leaves(None, None),
        })
    }

    /// Evaluates the chains before DNAT. Those before connection tracking see no connection.
    fn before_nat(&mut self, hook: Hook) -> Step<'a> {
        const OF_CONNECTION: [Field; 5] =
            [Field::State, Field::Status, Field::ConnectionMark, Field::Label, Field::Direction];
        let raw = Which::Filter(chains::BEFORE_TRACKING);
        let new = self.tracked && !self.returned;
        if self.simulator.tracer.is_asked(self.packet.family, hook, &raw) {
            let values = OF_CONNECTION.map(|field| self.packet.get(field));
            if new {
                OF_CONNECTION.iter().for_each(|field| self.packet.set(*field, None));
                self.packet.put(Field::State, State::Invalid.number());
            }
            self.filter(hook, Part::Raw, raw)?;
            if new {
                let state = self.packet.get(Field::State);
                OF_CONNECTION.iter().zip(values).for_each(|(field, value)| self.packet.set(*field, value));
                if !self.tracked {
                    self.packet.set(Field::State, state);
                }
            }
        }
        self.filter(hook, Part::BeforeNat, Which::Filter(chains::TRACKED_BEFORE_DNAT))
    }

    fn filter(&mut self, hook: Hook, part: Part, which: Which) -> Step<'a> {
        self.rules(hook, part, &which).map(|_| ())
    }

    fn rules(&mut self, hook: Hook, part: Part, which: &Which) -> Step<'a, Option<(Translation, Rewrite, At)>> {
        let tracer = &self.simulator.tracer;
        if !tracer.is_asked(self.packet.family, hook, which) {
            return Ok(None);
        }
        let outcome = tracer.hook(&mut self.packet, hook, which);
        self.tracked &= outcome.untracked.is_none();
        self.reroutes |= outcome.reroutes;
        let (verdict, rewritten) = (outcome.verdict.clone(), outcome.rewritten.clone());
        self.stages.push(Stage::Rules { hook, part, outcome, rewritten: None });
        match verdict {
            Verdict::Dropped(at, answer) => Err(End::Dropped(hook, part, at, answer)),
            Verdict::Queued(at) => Err(End::Queued(hook, at)),
            Verdict::Passes => Ok(rewritten),
        }
    }

    fn route(&mut self) -> RouteDecision<'a> {
        let mut guesses = Vec::new();
        let leg = self.simulator.route(&self.packet, self.rewritten, &mut guesses);
        self.add(guesses);
        leg
    }

    /// Ends the packet if the kernel drops it because of its source.
    fn check_source(&mut self, leg: &RouteDecision<'a>) -> Step<'a> {
        let mut guesses = Vec::new();
        let checked = self.simulator.check_source(&self.packet, leg, &mut guesses);
        self.add(guesses);
        checked.map_err(|refusal| self.refused(refusal))
    }

    /// Ends the packet if this host does not forward packets from its ingress interface.
    fn passed_on(&mut self) -> Step<'a> {
        let interface = self.packet.get(Field::Input).and_then(|input| self.simulator.interfaces.get(&input));
        let [four, six] = interface.map(|interface| interface.forwards).unwrap_or_default();
        match if self.packet.family == Family::Ipv4 { four } else { six } {
            Some(false) => Err(self.refused(Refusal::NotForwarding)),
            Some(true) => Ok(()),
            None if self.simulator.host.facts.is_none() => Ok(()),
            None => {
                let name = self.packet.get(Field::Input).map(name_of);
                self.guess(Guess::Interface(name.unwrap_or_default()));
                Ok(())
            }
        }
    }

    fn leave_by(&mut self, leg: RouteDecision<'a>) {
        self.gateway = match leg {
            RouteDecision::Out(_, gateway) => gateway,
            _ => None,
        };
        let output = match leg {
            RouteDecision::Out(link, _) => Some(number_of_name(link.name.as_bytes(), 0)),
            RouteDecision::Here => {
                let interfaces = self.simulator.interfaces.iter();
                let lo = interfaces.filter(|(_, interface)| interface.link.loopback).map(|(number, _)| *number).min();
                Some(lo.unwrap_or_else(|| number_of_name(b"lo", 0)))
            }
            _ => None,
        };
        self.packet.set(Field::Output, output);
        let via_input = self.is_via_input(leg);
        self.packet.set(Field::RouteViaInput, via_input.map(u128::from));
    }

    /// Returns true if the best route to the destination leaves by the input interface. Returns `None` if that is unknown:
    /// the lookup of `fib daddr . iif` (`nft_fib4_eval` in net/ipv4/netfilter/nft_fib_ipv4.c) ignores marks and the input
    /// interface, which routing rules can test.
    fn is_via_input(&self, route: RouteDecision<'a>) -> Option<bool> {
        self.simulator.host.facts.as_ref().filter(|facts| !facts.policy_routing)?;
        let input = self.packet.get(Field::Input)?;
        match route {
            RouteDecision::Out(link, _) => Some(number_of_name(link.name.as_bytes(), 0) == input),
            RouteDecision::Here => Some(false),
            _ => None,
        }
    }

    fn refused(&mut self, refusal: Refusal) -> End<'a> {
        self.ended(RouteDecision::Refused(refusal))
    }

    fn ended(&mut self, leg: RouteDecision<'a>) -> End<'a> {
        self.stages.push(Stage::Route(leg));
        match leg {
            RouteDecision::Refused(refusal) => End::Refused(refusal),
            _ => End::Unknown,
        }
    }

    /// Adds a guess for each part outside of the IP hooks that may act on the packet at an interface.
    fn seen_at(&mut self, interface: u128, side: Side) {
        let mut guesses = Vec::new();
        self.simulator.add_interface_guesses(&self.packet, interface, side, &mut guesses);
        self.add(guesses);
    }

    fn add(&mut self, guesses: Vec<Guess>) {
        guesses.into_iter().for_each(|guess| self.guess(guess));
    }

    fn guess(&mut self, guess: Guess) {
        if !self.guesses.contains(&guess) {
            self.guesses.push(guess);
        }
    }
}
