//! A packet and its answer, with one verdict.

use std::fmt;

use super::answer::{Answer, AnswerEnd, Listening};
use super::simulator::Simulator;
use super::trace::{End, PacketTrace};
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::describe;
use crate::ruleset::host::Host;
use crate::ruleset::region::{Field, Packet};
use crate::ruleset::set::{address_of, name_of};
use crate::ruleset::table::{Action, Rewrite};

/// The traces of a packet and of its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journey<'a> {
    /// The packet.
    pub trace: PacketTrace<'a>,
    /// The answer. `None` if the packet is not delivered.
    pub answer: Option<Answer<'a>>,
    /// What a socket must do to accept the packet. `None` if one accepts it, or if that is unknown.
    pub unheard: Option<String>,
}

impl<'a> Simulator<'a> {
    /// Simulates a packet and its answer.
    pub fn journey(&self, packet: Packet) -> Journey<'a> {
        let trace = self.simulate(packet);
        let answer = self.answer(&trace);
        let listening = match trace.end {
            End::Arrives if proxy(&trace).is_none() => trace.listening(self.host.facts.as_ref()),
            _ => Listening::Unknown,
        };
        let number = |field| trace.packet.get(field);
        let address = number(Field::Destination).and_then(|address| address_of(address, trace.packet.family));
        let port = number(Field::Port).and_then(|port| u16::try_from(port).ok());
        let unheard = address.zip(port).and_then(|(address, port)| listening.advice(address, port));
        Journey { trace, answer, unheard }
    }
}

impl Journey<'_> {
    /// Returns the confidence of the verdict: the lower of those of the packet and the answer.
    pub fn confidence(&self) -> Confidence {
        let answer = self.answer.as_ref().filter(|_| self.unheard.is_none());
        self.trace.confidence().min(answer.map_or(Confidence::Proved, Answer::confidence))
    }

    /// Returns true if the sender gets an answer.
    pub fn is_answered(&self) -> bool {
        let arrives = |answer: &Answer<'_>| matches!(answer.end, AnswerEnd::Arrives | AnswerEnd::Direct(true));
        self.unheard.is_none() && self.answer.as_ref().is_some_and(arrives)
    }

    /// Returns the verdict in one line: whether the packet is delivered and the answer arrives, and how certain that is.
    pub fn verdict(&self, host: &Host) -> String {
        let fate = self.fate(host);
        match self.confidence() {
            Confidence::Proved => fate,
            Confidence::Likely => format!("probably: {fate}"),
            Confidence::Unknown => format!("unknown: {}; otherwise {fate}", self.reason(host)),
        }
    }

    fn fate(&self, host: &Host) -> String {
        if let (Some(to), true) = (proxy(&self.trace), self.trace.end.is_delivery()) {
            return format!("a transparent proxy gets the packet ({})", describe::action(&Action::Proxy(to.clone())));
        }
        match (&self.trace.end, &self.unheard, &self.answer) {
            (End::Dropped(_, _, _, Some(answer)), ..) => format!("the packet is rejected with {answer}"),
            (End::Dropped(..), ..) => "the packet is dropped".into(),
            (End::Refused(refusal), ..) => format!("the packet is lost: {refusal}"),
            (End::Queued(..), ..) => "a program decides about the packet".into(),
            (End::Unknown, ..) => "the end of the packet is unknown".into(),
            (_, Some(advice), _) => advice.clone(),
            (_, None, None) => "the packet is delivered".into(),
            (_, None, Some(answer)) => {
                let condition = answer.routed_by.filter(|_| answer.end == AnswerEnd::Arrives);
                let condition = condition.map(|by| format!(", if {by} sends it through this host"));
                format!("the packet is delivered{}{}", self.answered(answer, host), condition.unwrap_or_default())
            }
        }
    }

    fn answered(&self, answer: &Answer<'_>, host: &Host) -> String {
        match answer.end {
            AnswerEnd::Arrives => " and the answer arrives".into(),
            AnswerEnd::Direct(true) => " and the receiver answers directly".into(),
            AnswerEnd::Direct(false) => {
                ", but the receiver answers directly, and the sender does not accept that answer".into()
            }
            AnswerEnd::Elsewhere(link) => {
                let input = self.trace.start.get(Field::Input).map(name_of).unwrap_or_default();
                format!(", but the answer leaves by {} and not by {}", printable(&link.name), printable(&input))
            }
            AnswerEnd::Lost => {
                let end = answer.trace.as_ref().map(|trace| trace.end.render(host)).unwrap_or_default();
                format!(", but the answer is lost: {end}")
            }
            AnswerEnd::Unknown => ", and the fate of the answer is unknown".into(),
        }
    }

    /// Returns the first reason for which the verdict is unknown.
    fn reason(&self, host: &Host) -> String {
        let answer = self.answer.as_ref().and_then(|answer| answer.trace.as_ref());
        let traces = || [Some(&self.trace), answer].into_iter().flatten();
        if let Some(at) = traces().flat_map(PacketTrace::doubts).next() {
            return format!("it is not known what {} does", host.place(at));
        }
        if traces().flat_map(PacketTrace::outcomes).any(|(_, _, outcome)| outcome.tied) {
            return "the order of two chains of the same priority is not known".into();
        }
        let guess = traces().flat_map(|trace| &trace.guesses).find(|guess| !guess.is_likely());
        guess.map_or_else(|| "the way of the packet or of its answer is not known".to_owned(), ToString::to_string)
    }

    /// Returns the journey as text: the stages of the packet, those of the answer, and the verdict.
    pub fn render<'b>(&'b self, host: &'b Host) -> RenderedJourney<'b> {
        RenderedJourney { journey: self, host }
    }
}

/// Returns the address of the proxy that a rule assigns the packet to.
fn proxy<'t>(trace: &'t PacketTrace<'_>) -> Option<&'t Rewrite> {
    trace.outcomes().find_map(|(_, _, outcome)| outcome.proxied.as_ref().map(|(to, _)| to))
}

/// A journey that writes itself out.
#[derive(Debug, Clone, Copy)]
pub struct RenderedJourney<'b> {
    journey: &'b Journey<'b>,
    host: &'b Host,
}

impl fmt::Display for RenderedJourney<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { journey, host } = self;
        write!(f, "{}", journey.trace.render(host))?;
        let answer = journey.answer.as_ref().filter(|_| journey.unheard.is_none());
        if let Some(trace) = answer.and_then(|answer| answer.trace.as_ref()) {
            write!(f, "answer {}", trace.render(host))?;
        }
        // The end of a packet that is certainly lost is the verdict.
        if journey.answer.is_none() && journey.confidence() == Confidence::Proved {
            return Ok(());
        }
        writeln!(f, "{}", journey.verdict(host))
    }
}
