//! Tests of pictures as text, JSON and SVG. They need no kernel.

use expect_test::expect;
use proptest::prelude::*;

use super::place::{Drawing, PlacedCard, Wire, layout};
use super::samples::{docker, joined, link, picture, red_blue, ring, space, to};
use super::*;

#[test]
fn a_picture_as_text() {
    expect![[r#"
        namespace red
          LINK      KIND  STATE  MAC                BRIDGE  OTHER END          ADDRESS
          lo        -     UP     -                  -       -                  127.0.0.1/8
          veth-red  veth  UP     02:00:00:00:00:02  -       veth-blue in blue  192.168.15.1/24
                                                                               fe80::1/64

          ROUTE            VIA  DEV
          192.168.15.0/24  -    veth-red

          NEIGHBOUR     MAC                DEV       STATE
          192.168.15.2  02:00:00:00:00:03  veth-red  REACHABLE

        namespace blue
          LINK       KIND  STATE  MAC                BRIDGE  OTHER END        ADDRESS
          veth-blue  veth  UP     02:00:00:00:00:03  -       veth-red in red  192.168.15.2/24
    "#]]
    .assert_eq(&red_blue().to_string());
}

#[test]
fn foreign_names_are_escaped_and_missing_steps_are_shown() {
    expect![[r#"
        host: forwards IPv4
          container same (network host)
          LINK         KIND    STATE       MAC                BRIDGE   OTHER END        ADDRESS
          eth0         -       UP          02:00:00:00:00:02  -        -                203.0.113.5/24
          docker0      bridge  UP          02:00:00:00:00:03  -        -                172.17.0.1/16
          veth-web     veth    UP          02:00:00:00:00:04  docker0  eth0 in web      -
          a<&"\u{1b}'  veth    NO-CARRIER  02:00:00:00:00:05  docker0  outside the lab  -

          ROUTE          VIA          DEV
          default        203.0.113.1  eth0
          172.17.0.0/16  -            docker0

        container web (network bridge, publish 8080:80)
          LINK  KIND  STATE  MAC                BRIDGE  OTHER END             ADDRESS
          eth0  veth  UP     02:00:00:00:00:02  -       veth-web in the host  172.17.0.2/16

          ROUTE                VIA         DEV
          default              172.17.0.1  eth0
          blackhole 192.0.2.7  -           -

          NEIGHBOUR  MAC  DEV   STATE
          fd00::9    -    eth0  FAILED

          PROCESS  INSIDE  NAME
          4711     1       httpd\u{7}

        container alone (network none)
          LINK  KIND  STATE  MAC  BRIDGE  OTHER END  ADDRESS
          lo    -     UP     -    -       -          127.0.0.1/8

        namespace gone: missing
          missing: namespace `gone`
    "#]]
    .assert_eq(&docker().to_string());
}

#[test]
fn json_has_details_that_text_omits() {
    let json = serde_json::to_value(red_blue()).expect("JSON");
    assert_eq!(json["spaces"][0]["routes"][1]["to"], "fe80::/64");
    assert_eq!(
        json["spaces"][0]["links"][1]["peer"]["link"],
        serde_json::json!({"namespace": "blue", "name": "veth-blue"})
    );
    let json = serde_json::to_value(docker()).expect("JSON");
    assert_eq!(json["spaces"][0]["links"][3]["peer"], "elsewhere");
    assert_eq!(json["spaces"][0]["links"][3]["state"], "no-carrier");
    assert_eq!(json["spaces"][0]["routes"][0]["to"], "default");
    assert_eq!(json["spaces"][3]["missing"][0], "namespace `gone`");
}

#[test]
fn a_picture_as_svg() {
    expect![[r##"
        <svg height="126" role="img" viewBox="0 0 426 126" width="426" xmlns="http://www.w3.org/2000/svg">
        <title>lab sample</title>
        <desc>Boxes are network namespaces, boxes in them bridges with their ports; a line is a pair of links.</desc>
        <style>
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
        </style>
        <rect fill="#fff" height="100%" width="100%"/>
        <g>
        <rect class="card" height="78" rx="6" width="144" x="24" y="24"/>
        <text class="title" x="36" y="50">
        namespace red
        </text>
        <text class="name" x="36" y="68">
        veth-red
        </text>
        <text class="plain" x="36" y="86">
        192.168.15.1/24
        </text>
        </g>
        <g>
        <rect class="card" height="78" rx="6" width="144" x="258" y="24"/>
        <text class="title" x="270" y="50">
        namespace blue
        </text>
        <text class="name" x="270" y="68">
        veth-blue
        </text>
        <text class="plain" x="270" y="86">
        192.168.15.2/24
        </text>
        </g>
        <g>
        <path class="wire" d="M168,63 C213,63 213,63 258,63"/>
        <circle class="plug" cx="168" cy="63" r="4"/>
        <circle class="plug" cx="258" cy="63" r="4"/>
        </g>
        </svg>
    "##]]
    .assert_eq(&svg(&red_blue()));
}

/// The area of a box: left, top, right, bottom.
type Covered = (i32, i32, i32, i32);

fn cover(placed: &PlacedCard) -> Covered {
    (placed.x, placed.y, placed.x + placed.card.width, placed.y + placed.card.height)
}

fn overlap(a: Covered, b: Covered) -> bool {
    a.0 < b.2 && b.0 < a.2 && a.1 < b.3 && b.1 < a.3
}

fn within(inner: Covered, outer: Covered) -> bool {
    inner.0 >= outer.0 && inner.1 >= outer.1 && inner.2 <= outer.2 && inner.3 <= outer.3
}

/// Returns points along a wire, close together.
fn points(wire: &Wire) -> Vec<(i32, i32)> {
    let ((x, y), (to_x, to_y)) = (wire.from, wire.to);
    let between = |(x, y): (i32, i32), (to_x, to_y): (i32, i32)| {
        (0..=40).map(move |n| (x + (to_x - x) * n / 40, y + (to_y - y) * n / 40))
    };
    match wire.lane {
        Some(lane) => {
            let corners = [(x, y), (lane, y), (lane, to_y), (to_x, to_y)];
            corners.windows(2).flat_map(|pair| between(pair[0], pair[1]).collect::<Vec<_>>()).collect()
        }
        None => {
            let bezier = |a: i32, b: i32, c: i32, d: i32, t: f64| {
                let u = 1.0 - t;
                let [a, b, c, d] = [a, b, c, d].map(f64::from);
                u * u * u * a + 3.0 * u * u * t * b + 3.0 * u * t * t * c + t * t * t * d
            };
            let middle = (x + to_x) / 2;
            let at = |n: i32| {
                let t = f64::from(n) / 40.0;
                let (x, y) = (bezier(x, middle, middle, to_x, t), bezier(y, y, to_y, to_y, t));
                #[expect(clippy::cast_possible_truncation, reason = "a drawing is small")]
                let point = (x.round() as i32, y.round() as i32);
                point
            };
            (0..=40).map(at).collect()
        }
    }
}

/// Checks a drawing: nothing overlaps or leaves the drawing, each line of text is in the SVG, and the SVG is valid XML.
fn check_drawing(picture: &Picture) -> Drawing {
    let drawing = layout(picture);
    let whole = (0, 0, drawing.width, drawing.height);
    for (index, placed) in drawing.cards.iter().enumerate() {
        let card = cover(placed);
        assert!(within(card, whole), "{placed:?} in {whole:?}");
        for other in drawing.cards.iter().skip(index + 1) {
            assert!(!overlap(card, cover(other)), "{placed:?}\n{other:?}");
        }
        let inside = (0, 0, placed.card.width, placed.card.height);
        let frames: Vec<Covered> = placed
            .card
            .frames
            .iter()
            .map(|frame| (frame.x, frame.y, frame.x + frame.width, frame.y + frame.height))
            .collect();
        let lines = placed.card.lines.iter().map(|line| {
            let width = i32::try_from(line.text.chars().count()).expect("short") * 8;
            (line.x, line.y - 13, line.x + width, line.y + 4)
        });
        let lines: Vec<Covered> = lines.collect();
        for boxes in [&frames, &lines] {
            for (index, one) in boxes.iter().enumerate() {
                assert!(within(*one, inside), "{one:?} in {placed:?}");
                assert!(boxes.iter().skip(index + 1).all(|other| !overlap(*one, *other)), "{placed:?}");
            }
        }
        assert!(lines.iter().all(|line| frames.iter().all(|frame| !overlap(*line, *frame) || within(*line, *frame))));
    }
    for wire in &drawing.wires {
        for (x, y) in points(wire) {
            assert!(within((x, y, x, y), whole), "{wire:?} leaves the drawing");
            for placed in &drawing.cards {
                let (left, top, right, bottom) = cover(placed);
                assert!(!(left < x && x < right && top < y && y < bottom), "{wire:?} crosses {placed:?} at {x},{y}");
            }
        }
    }
    let text = svg(picture);
    let document = roxmltree::Document::parse(&text).expect("XML");
    let said: Vec<&str> =
        document.descendants().filter(|node| node.has_tag_name("text")).filter_map(|node| node.text()).collect();
    let lines: usize = drawing.cards.iter().map(|placed| placed.card.lines.len()).sum();
    assert_eq!(said.len(), lines);
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text}");
    assert_eq!(text, svg(picture), "the same every time");
    drawing
}

#[test]
fn drawings_have_no_overlap() {
    assert_eq!(check_drawing(&red_blue()).wires.len(), 1);
    assert_eq!(check_drawing(&docker()).wires.len(), 1);
    let drawing = check_drawing(&ring());
    assert_eq!(drawing.wires.len(), 4);
    assert_eq!(drawing.wires.iter().filter(|wire| wire.lane.is_some()).count(), 2);
    check_drawing(&picture(Vec::new()));
}

#[test]
fn markup_characters_are_escaped() {
    let odd = "<b>&\"'\u{0}\u{fffe}\u{ffff}\u{202e}]]>";
    let picture = picture(vec![space("a", vec![link(1, odd, "", &[])])]);
    check_drawing(&picture);
    let text = svg(&picture);
    let document = roxmltree::Document::parse(&text).expect("XML");
    let name = document.descendants().find(|node| node.attribute("class") == Some("name")).and_then(|node| node.text());
    assert_eq!(name.map(str::trim), Some("<b>&\"'\\u{0}\\u{fffe}\\u{ffff}\\u{202e}]]>"));
}

proptest! {
    /// Namespaces joined at random: through bridges, twice, or not at all.
    #[test]
    fn random_drawings_have_no_overlap(
        count in 1_usize..9,
        pairs in prop::collection::vec((0_usize..9, 0_usize..9, any::<bool>(), any::<bool>()), 0..14),
    ) {
        let name = |index: usize| if index == 0 { "host".to_owned() } else { format!("n{index}") };
        let mut spaces: Vec<NamespaceView> = (0..count).map(|index| space(&name(index), Vec::new())).collect();
        for (number, (one, other, bridged, up)) in pairs.into_iter().enumerate() {
            let (one, other) = (one % count, other % count);
            let (here, there) = (format!("l{number}"), format!("r{number}"));
            let mut near = to(link(1, &here, "veth", &["10.0.0.1/24"]), &name(other), &there);
            let far = to(link(2, &there, "veth", &[]), &name(one), &here);
            if !up {
                near.state = State::Down;
            }
            if bridged {
                spaces[one].links.push(link(9, &format!("b{number}"), "bridge", &["10.0.0.254/24"]));
                near = joined(near, &format!("b{number}"));
            }
            spaces[one].links.push(near);
            spaces[other].links.push(far);
        }
        let pairs: usize = spaces.iter().map(|space| space.links.iter().filter(|link| link.peer.is_some()).count()).sum();
        let drawing = check_drawing(&picture(spaces));
        prop_assert_eq!(drawing.wires.len() * 2, pairs);
    }
}
