//! The card of a namespace in a drawing: its lines of text, from top to bottom, and the plugs of its links.
//!
//! Widths are those of a common monospaced font, rounded up, so a drawing needs no particular font. Cards omit
//! link-local addresses, hardware addresses, connected routes, and `lo` if there are other links. So a drawing shows
//! the user's choices, and the same lab always gives the same drawing.

use super::{Link, NamespaceView, Peer, State};
use crate::model::error::printable;

/// The height of a line. All lengths here are in pixels.
const LINE: i32 = 18;
/// The width of a character. Common monospaced fonts need at most 0.62 of the font size, which is 13 pixels.
const CHARACTER: i32 = 8;
/// The space between the edge of a card or frame and its content.
pub(super) const PAD: i32 = 12;

/// The class of a line in the style sheet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Title,
    Name,
    Plain,
    Note,
    Missing,
}

/// A line of text. `x` and `y` count from the card's upper left corner, and `y` is the baseline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub x: i32,
    pub y: i32,
    pub text: String,
    pub style: Style,
}

/// A box in a card: a bridge with its ports, or a container on the host's network. `x` and `y` count from the card's
/// upper left corner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub x: i32,
    pub y: i32,
    pub width: i32,
    pub height: i32,
}

/// A card without a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Card {
    pub width: i32,
    pub height: i32,
    pub lines: Vec<Line>,
    pub frames: Vec<Frame>,
    /// The links with a plug, each with the vertical middle of its name.
    pub plugs: Vec<(String, i32)>,
}

impl Card {
    /// Creates the card of a namespace.
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

    /// Adds a frame around the lines that `lines` adds.
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

/// Returns the right edge of a line.
fn end(line: &Line) -> i32 {
    line.x + i32::try_from(line.text.chars().count()).unwrap_or(0) * CHARACTER
}

fn state_of(link: &Link) -> String {
    if link.state == State::Up { String::new() } else { format!(" ({})", link.state) }
}
