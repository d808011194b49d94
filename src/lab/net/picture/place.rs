//! The layout of a drawing: the positions of cards and wires. The same picture always has the same layout.
//!
//! ```text
//!   column 0     gutter     column 1     gutter     column 2
//!  ┌────────┐              ┌────────┐
//!  │  host  ├──────────────┤  red   ├┐
//!  │        ├──────╮       └────────┘│ both ends in one column: a lane in the gutter
//!  └────────┘      │       ┌────────┐│
//!                  ╰───────┤  blue  ├┘
//!                          └────────┘
//!  ┌────────┐  ┌────────┐
//!  │ alone  │  │ none   │   cards without wires, below
//!  └────────┘  └────────┘
//! ```
//! A card's column is its distance from the first card, counted in wires. So each wire joins neighbouring columns or
//! stays in one column, and never crosses a card.

use std::collections::VecDeque;

use super::card::Card;
use super::{Peer, Picture, State};

/// The space around the drawing.
const MARGIN: i32 = 24;
/// The vertical space between two cards.
const GAP: i32 = 20;
/// The space between two columns, without the lanes.
const GUTTER: i32 = 90;
/// The space between two lanes.
const LANE: i32 = 14;
/// The number of unconnected cards in a row.
const CARDS_PER_ROW: usize = 4;

/// A card with the position of its upper left corner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlacedCard {
    pub x: i32,
    pub y: i32,
    pub card: Card,
    /// True if the namespace exists.
    pub here: bool,
}

/// The wire of a veth pair, from plug to plug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wire {
    pub from: (i32, i32),
    pub to: (i32, i32),
    /// The horizontal position of the vertical part, if both ends are in one column.
    pub lane: Option<i32>,
    /// True if both ends are up.
    pub up: bool,
}

/// All cards and wires with their positions, and the size of the drawing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drawing {
    pub width: i32,
    pub height: i32,
    pub cards: Vec<PlacedCard>,
    pub wires: Vec<Wire>,
}

/// A veth pair: the indexes of namespace and link for each end, and true if both ends are up.
type Pair = ([(usize, usize); 2], bool);

/// Returns the layout of a picture.
pub(super) fn layout(picture: &Picture) -> Drawing {
    let pairs = pairs(picture);
    let unplaced =
        |space: &super::NamespaceView| PlacedCard { x: MARGIN, y: MARGIN, card: Card::new(space), here: space.here };
    let mut drawing =
        Drawing { width: 0, height: MARGIN, cards: picture.spaces.iter().map(unplaced).collect(), wires: Vec::new() };
    let (mut alone, mut seen) = (Vec::new(), vec![false; picture.spaces.len()]);
    for first in 0..picture.spaces.len() {
        if seen.get(first) != Some(&false) {
            continue;
        }
        let columns = columns(first, &pairs, &mut seen, |space, link| drawing.plug(space, link, picture));
        if columns.len() == 1 && !pairs.iter().any(|(ends, _)| ends.iter().all(|(space, _)| *space == first)) {
            alone.push(first);
        } else {
            drawing.place_connected(&columns, &pairs, picture);
        }
    }
    alone.chunks(CARDS_PER_ROW).for_each(|row| drawing.place_row(row));
    drawing.width += MARGIN;
    drawing.height += MARGIN - GAP;
    drawing
}

/// Returns each veth pair once, in the order of its first end.
fn pairs(picture: &Picture) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    for (space, told) in picture.spaces.iter().enumerate() {
        for (link, end) in told.links.iter().enumerate() {
            let Some(Peer::Link { namespace, name }) = &end.peer else { continue };
            let Some(there) = picture.spaces.iter().position(|space| space.location == *namespace) else { continue };
            let links = picture.spaces.get(there).map(|space| &space.links);
            let Some((other, peer)) =
                links.and_then(|links| links.iter().enumerate().find(|(_, link)| link.name == *name))
            else {
                continue;
            };
            let ends = [(space, link), (there, other)];
            if !pairs.iter().any(|(known, _)| known.iter().all(|known| ends.contains(known))) {
                pairs.push((ends, end.state == State::Up && peer.state == State::Up));
            }
        }
    }
    pairs
}

/// Returns the namespaces connected to `first`, by distance in wires. Within a column, those with the higher wires come
/// first, so that few wires cross.
fn columns(
    first: usize,
    pairs: &[Pair],
    seen: &mut [bool],
    height: impl Fn(usize, usize) -> Option<i32>,
) -> Vec<Vec<usize>> {
    let mut columns: Vec<Vec<usize>> = Vec::new();
    let mut queue = VecDeque::from([(first, 0)]);
    let mut identity = |space: usize| seen.get_mut(space).is_some_and(|seen| !std::mem::replace(seen, true));
    identity(first);
    while let Some((space, column)) = queue.pop_front() {
        match columns.get_mut(column) {
            Some(column) => column.push(space),
            None => columns.push(vec![space]),
        }
        let mut ends: Vec<(Option<i32>, usize)> = Vec::new();
        for ([one, other], _) in pairs {
            ends.extend((one.0 == space).then(|| (height(one.0, one.1), other.0)));
            ends.extend((other.0 == space).then(|| (height(other.0, other.1), one.0)));
        }
        ends.sort_unstable();
        queue.extend(ends.into_iter().filter(|(_, there)| identity(*there)).map(|(_, there)| (there, column + 1)));
    }
    columns
}

impl Drawing {
    /// Places connected namespaces below the cards placed so far. Each column is centred vertically on the tallest one.
    fn place_connected(&mut self, columns: &[Vec<usize>], pairs: &[Pair], picture: &Picture) {
        let tall = |column: &[usize]| self.height_of(column);
        let highest = columns.iter().map(|column| tall(column)).max().unwrap_or(0);
        let mut x = MARGIN;
        for column in columns {
            let mut y = self.height + (highest - self.height_of(column)) / 2;
            let mut width = 0;
            for index in column {
                let Some(placed) = self.cards.get_mut(*index) else { continue };
                (placed.x, placed.y) = (x, y);
                y += placed.card.height + GAP;
                width = width.max(placed.card.width);
            }
            // Cards of a column get the same width, so a wire in a lane does not cross a wider card.
            column.iter().for_each(|index| self.cards.get_mut(*index).into_iter().for_each(|card| card.widen(width)));
            let mut lanes = 0;
            for (ends, up) in pairs.iter().filter(|(ends, _)| ends.iter().all(|(space, _)| column.contains(space))) {
                lanes += 1;
                let lane = x + width + lanes * LANE;
                self.wire(ends.map(|end| (end, true)), Some(lane), *up, picture);
            }
            self.width = self.width.max(x + width + lanes * LANE);
            x += width + lanes * LANE + GUTTER;
        }
        for pair in columns.windows(2) {
            let [left, right] = pair else { continue };
            for ([one, other], up) in pairs {
                if left.contains(&one.0) && right.contains(&other.0) {
                    self.wire([(*one, true), (*other, false)], None, *up, picture);
                } else if left.contains(&other.0) && right.contains(&one.0) {
                    self.wire([(*other, true), (*one, false)], None, *up, picture);
                }
            }
        }
        self.height += highest + GAP;
    }

    /// Places namespaces without wires in a row.
    fn place_row(&mut self, row: &[usize]) {
        let (mut x, mut tall) = (MARGIN, 0);
        for index in row {
            let Some(placed) = self.cards.get_mut(*index) else { continue };
            (placed.x, placed.y) = (x, self.height);
            x += placed.card.width + GAP;
            tall = tall.max(placed.card.height);
        }
        self.width = self.width.max(x - GAP);
        self.height += tall + GAP;
    }

    fn height_of(&self, column: &[usize]) -> i32 {
        let heights = column.iter().filter_map(|index| self.cards.get(*index)).map(|placed| placed.card.height + GAP);
        heights.sum::<i32>() - GAP
    }

    /// Returns the distance of a link's plug from the upper edge of its card.
    fn plug(&self, space: usize, link: usize, picture: &Picture) -> Option<i32> {
        let name = &picture.spaces.get(space)?.links.get(link)?.name;
        self.cards.get(space)?.card.plugs.iter().find(|(plug, _)| plug == name).map(|(_, y)| *y)
    }

    /// Adds a wire. `true` in an end means the right edge of its card, `false` the left one.
    fn wire(&mut self, ends: [((usize, usize), bool); 2], lane: Option<i32>, up: bool, picture: &Picture) {
        let place = |((space, link), right): ((usize, usize), bool)| {
            let placed = self.cards.get(space)?;
            let x = if right { placed.x + placed.card.width } else { placed.x };
            Some((x, placed.y + self.plug(space, link, picture)?))
        };
        let [from, to] = ends.map(place);
        self.wires.extend(from.zip(to).map(|(from, to)| Wire { from, to, lane, up }));
    }
}

impl PlacedCard {
    fn widen(&mut self, width: i32) {
        let more = width - self.card.width;
        self.card.width = width;
        self.card.frames.iter_mut().for_each(|frame| frame.width += more);
    }
}
