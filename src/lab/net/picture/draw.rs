//! Draws a picture as SVG: a card for each namespace, and a wire for each veth pair.
//!
//! The SVG is one file without scripts or external references. It is valid XML for any link name: the `svg` crate
//! escapes markup, and characters that XML 1.0 forbids (section 2.2) are made printable first.

use svg::Document;
use svg::node::element::{Circle, Description, Group, Path, Rectangle, Style as Sheet, Text, Title};

use super::Picture;
use super::card::Style;
use super::place::{PlacedCard, Wire, layout};
use crate::model::error::printable;

const SHEET: &str = "
text { font: 13px monospace; fill: #1f2328 }
.title { font: bold 13px monospace }
.name { font-weight: bold; fill: #0550ae }
.note { fill: #59636e }
.missing { fill: #cf222e }
.card { fill: #f6f8fa; stroke: #59636e }
.gone { fill: #fff; stroke: #cf222e; stroke-dasharray: 6 4 }
.frame { fill: #ddf4ff; stroke: #0550ae }
.wire { fill: none; stroke: #0550ae; stroke-width: 2 }
.idle { stroke: #59636e; stroke-dasharray: 4 4 }
.plug { fill: #0550ae }
";

/// Returns the picture of a lab as SVG.
pub fn svg(picture: &Picture) -> String {
    let drawing = layout(picture);
    let about = "Boxes are network namespaces, boxes in them bridges with their ports; a line is a pair of links.";
    let background = Rectangle::new().set("width", "100%").set("height", "100%").set("fill", "#fff");
    let mut document = Document::new()
        .set("width", drawing.width)
        .set("height", drawing.height)
        .set("viewBox", (0, 0, drawing.width, drawing.height))
        .set("role", "img")
        .add(Title::new(format!("lab {}", picture.lab)))
        .add(Description::new().add(svg::node::Text::new(about)))
        .add(Sheet::new(SHEET.trim()))
        .add(background);
    for placed in &drawing.cards {
        document = document.add(card(placed));
    }
    for edge in &drawing.wires {
        document = document.add(wire(edge));
    }
    format!("{document}\n")
}

fn rectangle(class: &str, (x, y): (i32, i32), (width, height): (i32, i32)) -> Rectangle {
    let place = Rectangle::new().set("x", x).set("y", y).set("width", width).set("height", height);
    place.set("rx", 6).set("class", class)
}

fn card(placed: &PlacedCard) -> Group {
    let PlacedCard { x, y, card, here } = placed;
    let class = if *here { "card" } else { "gone" };
    let mut group = Group::new().add(rectangle(class, (*x, *y), (card.width, card.height)));
    for frame in &card.frames {
        group = group.add(rectangle("frame", (x + frame.x, y + frame.y), (frame.width, frame.height)));
    }
    for line in &card.lines {
        let class = match line.style {
            Style::Title => "title",
            Style::Name => "name",
            Style::Plain => "plain",
            Style::Note => "note",
            Style::Missing => "missing",
        };
        let text = Text::new(escape_xml(&line.text)).set("x", x + line.x).set("y", y + line.y);
        group = group.add(text.set("class", class));
    }
    group
}

fn wire(wire: &Wire) -> Group {
    let ((x, y), (to_x, to_y)) = (wire.from, wire.to);
    let path = match wire.lane {
        Some(lane) => format!("M{x},{y} H{lane} V{to_y} H{to_x}"),
        None => {
            let middle = (x + to_x) / 2;
            format!("M{x},{y} C{middle},{y} {middle},{to_y} {to_x},{to_y}")
        }
    };
    let class = if wire.up { "wire" } else { "wire idle" };
    let mut group = Group::new().add(Path::new().set("class", class).set("d", path));
    for (x, y) in [wire.from, wire.to] {
        group = group.add(Circle::new().set("class", "plug").set("cx", x).set("cy", y).set("r", 4));
    }
    group
}

/// Escapes control characters, and the characters that XML 1.0 forbids even as character references.
fn escape_xml(text: &str) -> String {
    printable(text).replace('\u{fffe}', "\\u{fffe}").replace('\u{ffff}', "\\u{ffff}")
}
