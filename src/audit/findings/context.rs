//! The context of all findings: values about a host that several findings need, computed once. Examples are the forwards,
//! their order faults, the host's addresses, ingress interfaces, and example packets.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use super::addresses::{far, loopback};
use super::filter::DropAnalyses;
use super::order::OrderFault;
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::{Facts, Link, NextHop};
use crate::ruleset::host::Host;
use crate::ruleset::region::{self, Field, LOCAL, Packet, Region, Truth};
use crate::ruleset::set::{Set, address_of, number_of, number_of_name};
use crate::ruleset::simulate::chains::{self, Outcome, Which};
use crate::ruleset::simulate::{MULTICAST, Simulator, UNICAST};
use crate::ruleset::table::{Action, At, Hook};

/// A host and the values computed from it.
pub struct Context<'a> {
    /// The host.
    pub(super) host: &'a Host,
    /// Leads packets through it.
    pub(super) simulator: Simulator<'a>,
    rules: OnceCell<Vec<Forward<'a>>>,
    ways: OnceCell<Option<Vec<Forward<'a>>>>,
    judged: OnceCell<Vec<OrderFault<'a>>>,
    surveys: OnceCell<DropAnalyses>,
    targets: RefCell<HashMap<IpAddr, Option<NextHop<'a>>>>,
    ingress: RefCell<HashMap<Set, Rc<Vec<&'a Link>>>>,
}

impl<'a> Context<'a> {
    pub(super) fn new(host: &'a Host) -> Self {
        Self {
            host,
            simulator: Simulator::new(host),
            rules: OnceCell::new(),
            ways: OnceCell::new(),
            judged: OnceCell::new(),
            surveys: OnceCell::new(),
            targets: RefCell::default(),
            ingress: RefCell::default(),
        }
    }

    pub(super) fn facts(&self) -> Option<&'a Facts> {
        self.host.facts.as_ref()
    }

    /// Returns all forwards in order of precedence, each with all paths to it.
    pub(super) fn rules(&self) -> &[Forward<'a>] {
        self.rules.get_or_init(|| Forward::all(&self.host.view))
    }

    /// Returns all forwards in order of precedence. A rule that several jumps reach occurs once for each path.
    pub(super) fn forwards(&self) -> &[Forward<'a>] {
        self.ways.get_or_init(|| Forward::one_way_each(self.rules())).as_deref().unwrap_or(self.rules())
    }

    /// Returns the forwards with these indexes.
    pub(super) fn numbered(&self, numbers: &[usize]) -> Vec<&Forward<'a>> {
        numbers.iter().filter_map(|number| self.forwards().get(*number)).collect()
    }

    /// Returns the forwards that receive fewer packets than they match.
    pub(super) fn judged(&self) -> &[OrderFault<'a>] {
        self.judged.get_or_init(|| super::order::judged(self))
    }

    /// Returns the results of each forward's clients.
    pub(super) fn surveys(&self) -> &DropAnalyses {
        self.surveys.get_or_init(|| DropAnalyses::new(self))
    }

    /// Returns the addresses of this host, if they are known.
    pub(super) fn local(&self, family: Family) -> Option<&Set> {
        Some(self.simulator.local(family)).filter(|local| !local.is_empty())
    }

    /// Returns true if an address belongs to this host or its loopback. Returns `None` if the routes are unknown.
    pub(super) fn is_local(&self, address: IpAddr) -> Option<bool> {
        if address.is_loopback() {
            return Some(true);
        }
        self.next_hop(address).map(|way| way == NextHop::Local)
    }

    /// Returns the next hop to an address. Returns `None` if no routes are known.
    pub(super) fn next_hop(&self, address: IpAddr) -> Option<NextHop<'a>> {
        let facts = self.facts().filter(|facts| !facts.routes.is_empty())?;
        *self.targets.borrow_mut().entry(address).or_insert_with(|| Some(facts.next_hop(address)))
    }

    /// Returns the interfaces on which packets of a region can arrive from other hosts: up, and no ports of a bridge.
    pub(super) fn ingress(&self, region: &Region) -> Rc<Vec<&'a Link>> {
        let asked = region.get(Field::Input);
        if let Some(known) = self.ingress.borrow().get(asked) {
            return Rc::clone(known);
        }
        let links = self.facts().map(|facts| facts.links.as_slice()).unwrap_or_default();
        let serves = |link: &&Link| {
            let is_port = link.master.and_then(|master| self.facts()?.link(master));
            let is_port = is_port.is_some_and(|master| master.kind.as_deref() == Some("bridge"));
            link.up && !link.loopback && !is_port && asked.has(number_of_name(link.name.as_bytes(), 0))
        };
        let found = Rc::new(links.iter().filter(serves).collect());
        self.ingress.borrow_mut().insert(asked.clone(), Rc::clone(&found));
        found
    }

    /// Returns the ingress interface of remote packets of a region: the only one that the rule allows, or the one with the
    /// destination address.
    pub(super) fn entrance(&self, family: Family, region: &Region) -> Option<&'a Link> {
        if let [only] = self.ingress(region).as_slice() {
            return Some(only);
        }
        let address = address_of(region.get(Field::Destination).only()?, family)?;
        let facts = self.facts()?;
        let (link, _) = facts.addresses.iter().find(|(_, network)| network.ip() == address)?;
        facts.link(*link).filter(|link| !link.loopback)
    }

    /// Returns a likely packet of a region: the first of a connection, from a remote client, to an address of this host if
    /// the region allows it. Returns `None` if no packet is certainly inside.
    pub(super) fn packet(&self, family: Family, region: &Region, hook: Hook) -> Option<Packet> {
        let mut packet = region::packet(family, None);
        let here = hook == Hook::Output;
        if !here {
            let (links, lo) = (self.ingress(region), number_of_name(b"lo", 0));
            let outside = self.next_hop(far(family)).and_then(|way| match way {
                NextHop::Via(link, _) => Some(link),
                _ => None,
            });
            let link = links.iter().find(|link| Some(**link) == outside).or(links.first());
            let input = match link {
                Some(link) => Some(number_of_name(link.name.as_bytes(), 0)),
                // A packet without an ingress interface does not arrive. Loopback packets are simulated at output.
                None if self.facts().is_some_and(|facts| !facts.links.is_empty()) => None,
                None => region.get(Field::Input).minus(&Set::from_ranges([(0, 0), (lo, lo)])).first(),
            };
            packet.put(Field::Input, input?);
            packet.put(Field::Output, 0);
        }
        let wanted = region.get(Field::Destination);
        let to_local = region.get(Field::DestinationKind).has(LOCAL);
        let loopback = loopback(family);
        let local = self.local(family).filter(|_| to_local).map(|local| wanted.and(local));
        let outer = local.as_ref().map(|local| local.minus(&loopback)).filter(|outer| !outer.is_empty());
        let destination = match outer.or(local.filter(|local| !local.is_empty())) {
            Some(local) => local.first()?,
            None if wanted.is_all() => number_of(listening(family)),
            None => wanted.first()?,
        };
        packet.put(Field::Destination, destination);
        packet.put(Field::OriginalDestination, destination);
        let kind = match self.local(family) {
            Some(local) if local.has(destination) => LOCAL,
            Some(_) => address_of(destination, family).map_or(UNICAST, kind),
            // The addresses of a dump are unknown, so a condition on local addresses counts as fulfilled.
            None if to_local => LOCAL,
            None => UNICAST,
        };
        packet.put(Field::DestinationKind, kind);
        let sources = region.get(Field::Source);
        let far = number_of(far(family));
        let source = if sources.has(far) { far } else { sources.first()? };
        packet.put(Field::Source, source);
        let is_own = self.local(family).is_some_and(|local| local.has(source));
        packet.put(Field::SourceKind, if is_own { LOCAL } else { UNICAST });
        let protocols = region.get(Field::Protocol);
        packet.put(Field::Protocol, if protocols.has(6) { 6 } else { protocols.first()? });
        let (ports, from) = (region.get(Field::Port), region.get(Field::SourcePort));
        let port = if ports.is_all() { 80 } else { ports.first()? };
        packet.put(Field::Port, port);
        packet.put(Field::OriginalPort, port);
        packet.put(Field::SourcePort, if from.has(40_000) { 40_000 } else { from.first()? });
        for field in [Field::Mark, Field::ConnectionMark] {
            let marks = region.get(field);
            packet.put(field, if marks.has(0) { 0 } else { marks.first()? });
        }
        (region.has(&packet) != Truth::No).then_some(packet)
    }

    /// Returns the result of a first packet in the NAT chains of a hook, after earlier chains set marks. A possible drop in
    /// an earlier chain does not make the translation uncertain.
    pub(super) fn translated(&self, packet: &Packet, hook: Hook) -> Outcome {
        let mut packet = packet.clone();
        let tracer = &self.simulator.tracer;
        let before = tracer.hook(&mut packet, hook, &Which::Filter(chains::BEFORE_DNAT));
        let mut outcome = tracer.hook(&mut packet, hook, &Which::Nat);
        if before.untracked.is_some() || before.verdict != chains::Verdict::Passes {
            outcome.rewritten = None;
        }
        outcome.doubts.extend(before.doubts.into_iter().filter(|at| !self.only_drops(*at)));
        outcome
    }

    /// Returns true if all actions of a rule drop the packet.
    fn only_drops(&self, at: At) -> bool {
        let case = self.host.rules.at(at).and_then(|(_, _, rule)| rule.cases.get(at.case));
        case.is_some_and(|case| case.actions.iter().all(|action| matches!(action, Action::Drop | Action::Reject(_))))
    }

    /// Returns true if a packet certainly reaches a forward: all rules on the path are understood.
    pub(super) fn is_sure(&self, forward: &Forward<'_>) -> bool {
        let Some((hook, _, step)) = forward.steps.first() else { return false };
        let Some(packet) = self.packet(forward.family, &step.region, *hook) else { return false };
        let outcome = self.translated(&packet, *hook);
        outcome.is_sure() && outcome.rewritten.is_some_and(|(_, _, at)| at == forward.at)
    }

    /// Returns the confidence that the first of some forwards receive packets.
    pub(super) fn confidence(&self, forwards: &[&Forward<'_>]) -> Confidence {
        let sure =
            self.facts().is_some() && forwards.iter().take(super::wording::APART).all(|forward| self.is_sure(forward));
        if sure { Confidence::Proved } else { Confidence::Likely }
    }
}

/// Returns an example address of this host.
fn listening(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7)),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xfffe, 0, 0, 0, 0, 7)),
    }
}

/// Returns the address type of a remote address.
fn kind(address: IpAddr) -> u128 {
    if address.is_multicast() { MULTICAST } else { UNICAST }
}

/// Returns the first and last target address of a forward; one address if they are equal. For a prefix, returns the first
/// address of a host.
pub(super) fn targets(forward: &Forward<'_>) -> impl Iterator<Item = IpAddr> {
    let first_host = |address: IpAddr| address_of(number_of(address).checked_add(1)?, Family::of_address(address));
    let ends = forward.to.addresses.map(|(first, last)| match forward.to.prefix {
        Some(_) if first != last => (first_host(first).unwrap_or(first), last),
        _ => (first, last),
    });
    let last = ends.filter(|(first, last)| first != last && forward.to.prefix.is_none()).map(|(_, last)| last);
    ends.map(|(first, _)| first).into_iter().chain(last)
}

/// Returns the forwards of arriving packets to other hosts.
pub(super) fn passing<'o, 'a>(context: &'o Context<'a>) -> Vec<&'o Forward<'a>> {
    let elsewhere = |forward: &&Forward<'_>| {
        let mut targets = targets(forward);
        forward.arriving().next().is_some() && targets.any(|target| context.is_local(target) == Some(false))
    };
    context.forwards().iter().filter(elsewhere).collect()
}

/// Returns the region of arriving packets that a forward matches first.
pub(super) fn arriving<'a>(forward: &Forward<'a>) -> Option<&'a Region> {
    forward.arriving().next().map(|(_, step)| &step.region)
}
