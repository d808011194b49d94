//! A trace as text, one line for each stage.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::trace::{End, Guess, PacketTrace, Part, Refusal, RouteDecision, Stage};
use crate::model::error::printable;
use crate::ruleset::describe;
use crate::ruleset::host::Host;
use crate::ruleset::region::{Field, Packet};
use crate::ruleset::set::{address_of, name_of};
use crate::ruleset::simulate::chains::{Outcome, Verdict};
use crate::ruleset::table::{Action, Hook};

impl PacketTrace<'_> {
    /// Returns the trace as text: the packet, the effect of each hook with its rule, and the end.
    ///
    /// ```text
    /// 203.0.113.9:50000 -> 192.0.2.1:8080/tcp arrives by eth0
    ///   prerouting, nat: dnat to 172.17.0.2:80 by ip nat DOCKER line 19 (docker)
    ///   routed out by docker0
    ///   forward, filter: accepted by ip filter DOCKER line 7 (docker)
    /// leaves by docker0
    /// ```
    pub fn render<'b>(&'b self, host: &'b Host) -> Rendered<'b> {
        Rendered { trace: self, host }
    }
}

/// A trace that writes itself out.
#[derive(Debug, Clone, Copy)]
pub struct Rendered<'b> {
    trace: &'b PacketTrace<'b>,
    host: &'b Host,
}

impl fmt::Display for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, host } = self;
        let way = match trace.start.get(Field::Input) {
            Some(0) => "is sent".to_owned(),
            Some(input) => format!("arrives by {}", printable(&name_of(input))),
            None => "arrives".to_owned(),
        };
        writeln!(f, "{} {way}", packet(&trace.start))?;
        for stage in &trace.stages {
            writeln!(f, "  {}", stage.render(host))?;
        }
        writeln!(f, "{}", trace.end.render(host))?;
        for at in trace.doubts() {
            writeln!(f, "  not sure what it does: {}", host.place(at))?;
        }
        if trace.outcomes().any(|(_, _, outcome)| outcome.tied) {
            writeln!(f, "  two chains of the same priority: which is asked first is not known")?;
        }
        trace.guesses.iter().try_for_each(|guess| writeln!(f, "  {guess}"))
    }
}

impl Stage<'_> {
    /// Returns the stage as text.
    pub fn render(&self, host: &Host) -> String {
        match self {
            Self::Rules { hook, part, outcome, rewritten } => {
                format!("{}, {}: {}", hook.name(), part.name(), done(outcome, *rewritten, host))
            }
            Self::Route(RouteDecision::Here) => "routed to this host".into(),
            Self::Route(RouteDecision::Out(link, None)) => format!("routed out by {}", printable(&link.name)),
            Self::Route(RouteDecision::Out(link, Some(gateway))) => {
                format!("routed out by {} to {gateway}", printable(&link.name))
            }
            Self::Route(RouteDecision::Refused(refusal)) => format!("not routed: {refusal}"),
            Self::Route(RouteDecision::Switched(link)) => format!("switched by {}", printable(&link.name)),
            Self::Back { hook, to } => {
                let side = if matches!(hook, Hook::Prerouting | Hook::Output) { "destination" } else { "source" };
                format!("{}, nat: {side} back to {}", hook.name(), address(*to))
            }
            Self::Route(RouteDecision::Somewhere) => "routed to another host".into(),
            Self::Route(RouteDecision::Unknown) => "routed to where is not known".into(),
        }
    }
}

/// Returns the effect of the chains of a hook as text.
fn done(outcome: &Outcome, rewritten: Option<(Option<IpAddr>, Option<u16>)>, host: &Host) -> String {
    let mut words = Vec::new();
    if let Some(at) = outcome.untracked {
        words.push(format!("not followed by {}", host.place(at)));
    }
    if let Some((to, at)) = &outcome.proxied {
        words.push(format!("{} by {}", describe::action(&Action::Proxy(to.clone())), host.place(*at)));
    }
    words.extend(outcome.accepted.iter().map(|at| format!("accepted by {}", host.place(*at))));
    if let Some((what, _, at)) = &outcome.rewritten {
        let to = address(rewritten.unwrap_or_default());
        words.push(format!("{} to {to} by {}", what.name(), host.place(*at)));
    }
    match &outcome.verdict {
        Verdict::Passes if words.is_empty() => words.push("passes".into()),
        Verdict::Passes => {}
        Verdict::Dropped(at, None) => words.push(format!("dropped by {}", host.place(*at))),
        Verdict::Dropped(at, Some(answer)) => words.push(format!("rejected with {answer} by {}", host.place(*at))),
        Verdict::Queued(at) => words.push(format!("given to a program by {}", host.place(*at))),
    }
    words.join(", ")
}

fn address(to: (Option<IpAddr>, Option<u16>)) -> String {
    match to {
        (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
        (Some(address), None) => address.to_string(),
        (None, _) => "what the kernel chooses".into(),
    }
}

impl End<'_> {
    /// Returns true if this host or another one receives the packet.
    pub fn is_delivery(&self) -> bool {
        matches!(self, Self::Arrives | Self::Leaves(..))
    }

    /// Returns the end as text.
    pub fn render(&self, host: &Host) -> String {
        match self {
            Self::Arrives => "arrives at this host".into(),
            Self::Leaves(Some(link), Some(gateway)) => format!("leaves by {} to {gateway}", printable(&link.name)),
            Self::Leaves(Some(link), None) => format!("leaves by {}", printable(&link.name)),
            Self::Leaves(None, _) => "leaves".into(),
            Self::Dropped(hook, _, at, None) => format!("dropped at {} by {}", hook.name(), host.place(*at)),
            Self::Dropped(hook, _, at, Some(answer)) => {
                format!("rejected with {answer} at {} by {}", hook.name(), host.place(*at))
            }
            Self::Queued(hook, at) => format!("given to a program at {} by {}", hook.name(), host.place(*at)),
            Self::Refused(refusal) => format!("goes nowhere: {refusal}"),
            Self::Unknown => "ends where is not known".into(),
        }
    }
}

/// Returns a packet as text, `203.0.113.9:50000 -> 192.0.2.1:8080/tcp`.
pub fn packet(packet: &Packet) -> String {
    let side = |address, port| {
        let address = packet.get(address).and_then(|number| address_of(number, packet.family));
        let port = packet.get(port).and_then(|port| u16::try_from(port).ok());
        match (address, port) {
            (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
            (Some(address), None) => address.to_string(),
            (None, Some(port)) => format!("*:{port}"),
            (None, None) => "*".into(),
        }
    };
    let (from, to) = (side(Field::Source, Field::SourcePort), side(Field::Destination, Field::Port));
    match packet.get(Field::Protocol) {
        Some(protocol) => format!("{from} -> {to}/{}", describe::protocol(protocol)),
        None => format!("{from} -> {to}"),
    }
}

impl Part {
    /// Returns the name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::BeforeNat => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoute => "no route leads there",
            Self::Loopback => "a loopback address is only for what this host sends (route_localnet is off)",
            Self::NotForwarding => "this host does not pass packets on (forwarding is off)",
            Self::ReversePath => "packets to its source leave by another interface (rp_filter)",
            Self::SamePort => "it would leave the bridge by the port it came by, which is not in hairpin mode",
            Self::Martian => "its source is an address of this host, or of no host",
        })
    }
}

impl fmt::Display for Guess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFacts => f.write_str("interfaces, addresses and routes are not known"),
            Self::PolicyRouting => f.write_str("policy routing was not followed completely"),
            Self::OneOfSeveral => {
                f.write_str("the kernel chooses one of several addresses or routes; the first was taken")
            }
            Self::Interface(name) => write!(f, "addresses or settings of `{}` are not known", printable(name)),
            Self::SeenBefore(name) => {
                write!(
                    f,
                    "a program, a queue or a netdev chain of `{}` sees packets outside of the other rules",
                    printable(name)
                )
            }
            Self::Bridge(name) => write!(f, "a chain of family bridge sees the packets of `{}`", printable(name)),
            Self::Port(name) => write!(f, "both hosts may be behind the same port of `{}`", printable(name)),
            Self::Ipsec => f.write_str("IPsec policies were not applied"),
            Self::Ipvs => f.write_str("virtual services (IPVS) were not applied"),
            Self::Unread(what) => write!(f, "could not be read: {}", printable(what)),
        }
    }
}
