//! The card of a namespace in a drawing: its lines, from top to bottom, and where its links have their plugs.
//!
//! Widths are those of a monospaced font of the browser's choice, rounded up, so a drawing needs no particular font.
//! Link-local addresses, hardware addresses, routes to the card's own subnets and `lo` where there is more are left out:
//! a drawing shows what somebody chose, and comes out the same for the same lab.

use super::{Link, NamespaceView, Peer, State};
use crate::model::error::printable;

/// Height of a line, in pixels; so are all lengths.
const LINE: i32 = 18;
/// Width of a character: at most 0.62 of the 13 pixels of the font in the fonts that are common.
const CHARACTER: i32 = 8;
/// Between the edge of a card, or of a frame in it, and what is inside.
pub(super) const PAD: i32 = 12;

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Title,
    Name,
    Plain,
    Note,
    Missing,
}

/// A line, placed from the upper left corner of its card; `y` is where its letters stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub x: i32,
    pub y: i32,
    pub text: String,
    pub style: Style,
}

/// A box in a card, placed in the same way: a bridge with its ports, or a container without a network of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub x: i32,
    pub y: i32,
    pub width: i32,
    pub height: i32,
}

/// A card, not placed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Card {
    pub width: i32,
    pub height: i32,
    pub lines: Vec<Line>,
    pub frames: Vec<Frame>,
    /// The links that it shows, each with the height of the middle of its name.
    pub plugs: Vec<(String, i32)>,
}

impl Card {
    /// Lays out what is told of a namespace.
    pub fn new(space: &NamespaceView) -> Self {
        let mut card = Self { width: 0, height: PAD, lines: Vec::new(), frames: Vec::new(), plugs: Vec::new() };
        card.line(PAD, space.title(), Style::Title);
        let state = if space.here { space.forwards() } else { None };
        state.into_iter().for_each(|state| card.line(PAD, state.into(), Style::Note));
        let is_bridge = |link: &Link| space.links.iter().any(|port| port.bridge.as_ref() == Some(&link.name));
        let is_bridge = |link: &Link| link.kind.as_deref() == Some("bridge") || is_bridge(link);
        let shown = |link: &&Link| link.name != "lo" || space.links.len() == 1;
        for link in space.links.iter().filter(shown).filter(|link| link.bridge.is_none() && !is_bridge(link)) {
            card.link(PAD, link);
        }
        for bridge in space.links.iter().filter(|link| is_bridge(link)) {
            card.framed(|card| {
                card.plugs.push((bridge.name.clone(), card.height + LINE / 2));
                card.line(2 * PAD, format!("bridge {}{}", printable(&bridge.name), state_of(bridge)), Style::Name);
                card.addresses(2 * PAD, bridge);
                let ports = space.links.iter().filter(|port| port.bridge.as_ref() == Some(&bridge.name));
                ports.for_each(|port| card.link(2 * PAD, port));
            });
        }
        for container in &space.containers {
            card.framed(|card| card.line(2 * PAD, format!("container {container} (network host)"), Style::Name));
        }
        for route in space.shown_routes().filter(|route| route.via.is_some() || route.kind != "unicast") {
            let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
            let kind = if route.kind == "unicast" { String::new() } else { format!("{} ", route.kind) };
            card.line(PAD, format!("{kind}{}{via}", route.destination()), Style::Note);
        }
        for step in &space.missing {
            card.line(PAD, printable(&format!("missing: {step}")), Style::Missing);
        }
        let inner = card.frames.iter().map(|frame| frame.x + frame.width).max().unwrap_or(0);
        card.width = card.lines.iter().map(end).chain([inner]).max().unwrap_or(0) + PAD;
        let width = card.width - 2 * PAD;
        card.frames.iter_mut().for_each(|frame| frame.width = width);
        card.height += PAD;
        card
    }

    fn line(&mut self, x: i32, text: String, style: Style) {
        self.height += LINE;
        self.lines.push(Line { x, y: self.height - 4, text, style });
    }

    fn addresses(&mut self, x: i32, link: &Link) {
        link.given_addresses().for_each(|address| self.line(x, address.to_string(), Style::Plain));
    }

    fn link(&mut self, x: i32, link: &Link) {
        let elsewhere = if link.peer == Some(Peer::Elsewhere) { ", to outside the lab" } else { "" };
        self.plugs.push((link.name.clone(), self.height + LINE / 2));
        self.line(x, format!("{}{}{elsewhere}", printable(&link.name), state_of(link)), Style::Name);
        self.addresses(x, link);
    }

    /// Puts a frame around some lines.
    fn framed(&mut self, lines: impl FnOnce(&mut Self)) {
        self.height += PAD / 2;
        let (y, first) = (self.height, self.lines.len());
        self.height += PAD / 2;
        lines(self);
        self.height += PAD / 2;
        let width = self.lines.iter().skip(first).map(end).max().unwrap_or(0);
        self.frames.push(Frame { x: PAD, y, width, height: self.height - y });
        self.height += PAD / 2;
    }
}

/// Where a line ends.
fn end(line: &Line) -> i32 {
    line.x + i32::try_from(line.text.chars().count()).unwrap_or(0) * CHARACTER
}

fn state_of(link: &Link) -> String {
    if link.state == State::Up { String::new() } else { format!(" ({})", link.state) }
}
