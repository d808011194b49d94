//! A chart of cost against number, both logarithmic, as SVG.

use std::fmt::Write as _;

use crate::floor;

/// A panel: a few curves over the same axes.
#[derive(Debug, Clone)]
pub struct Panel {
    /// What was done.
    pub title: String,
    /// A name and points each: a number, and seconds.
    pub curves: Vec<(String, Vec<(u32, f64)>)>,
}

impl Panel {
    /// A panel without curves.
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), curves: Vec::new() }
    }

    /// Adds a point to a curve.
    pub fn point(&mut self, name: &str, count: u32, seconds: f64) {
        match self.curves.iter_mut().find(|(known, _)| known == name) {
            Some((_, points)) => points.push((count, seconds)),
            None => self.curves.push((name.to_owned(), vec![(count, seconds)])),
        }
    }
}

/// Colours that people who see few colours can tell apart (Okabe and Ito, 2008); ours is the first.
const COLOURS: [&str; 7] = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#999933"];
/// How the floor is drawn, which is nobody's.
const DASHED: &str = "\"#555\" stroke-dasharray=\"6 4\"";

/// The sizes of a panel, in pixels.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
/// The room for one line of the legend.
const LINE: f64 = 18.0;

/// All panels beside each other.
pub fn svg(panels: &[Panel]) -> String {
    let mut x = 0.0;
    let mut inside = String::new();
    let mut most = 0.0_f64;
    for panel in panels {
        let height = draw(&mut inside, panel, x);
        most = most.max(height);
        x += LEFT + WIDTH + 30.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{x:.0}\" height=\"{most:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{inside}</svg>\n"
    )
}

/// Draws one panel at `x` and gives its height.
fn draw(text: &mut String, panel: &Panel, x: f64) -> f64 {
    let points = || panel.curves.iter().flat_map(|(_, points)| points);
    let counts = Axis::around(points().map(|(count, _)| f64::from(*count)), LEFT + x, LEFT + x + WIDTH);
    let times = Axis::around(points().map(|(_, seconds)| *seconds), TOP + HEIGHT, TOP);
    grid(text, &panel.title, &counts, &times);
    let mut below = TOP + HEIGHT + 2.0 * LINE + 24.0;
    let mut colours = COLOURS.iter().cycle().map(|colour| format!("\"{colour}\""));
    for (name, points) in &panel.curves {
        let stroke = if name == floor::NAME { DASHED.to_owned() } else { colours.next().unwrap_or_default() };
        let places = points.iter().map(|(count, seconds)| (counts.at(f64::from(*count)), times.at(*seconds)));
        let mut path = String::new();
        for (x, y) in places {
            let written = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
            written.expect("text grows");
        }
        line(text, &format!("<path d=\"{path}\" fill=\"none\" stroke={stroke} stroke-width=\"2\"/>"));
        line(text, &format!("<path d=\"M{:.1} {below:.1}h24\" stroke={stroke} stroke-width=\"2\"/>", counts.from));
        words(text, counts.from + 32.0, below + 4.0, "start", name);
        below += LINE;
    }
    below
}

/// Draws the decades of both axes, and says what they are.
fn grid(text: &mut String, title: &str, counts: &Axis, times: &Axis) {
    words(text, counts.from, 22.0, "start", title);
    for (decade, at) in counts.decades() {
        line(text, &format!("<path d=\"M{at:.1} {TOP}V{:.1}\" stroke=\"#ddd\"/>", TOP + HEIGHT));
        words(text, at, TOP + HEIGHT + LINE, "middle", &decade.to_string());
    }
    words(text, (counts.from + counts.to) / 2.0, TOP + HEIGHT + 2.0 * LINE, "middle", "N, the number of forwards");
    for (decade, at) in times.decades() {
        line(text, &format!("<path d=\"M{:.1} {at:.1}h{WIDTH}\" stroke=\"#ddd\"/>", counts.from));
        words(text, counts.from - 6.0, at + 4.0, "end", &seconds(decade));
    }
}

fn line(text: &mut String, element: &str) {
    text.push_str(element);
    text.push('\n');
}

/// Writes words that begin, end, or have their middle at a place.
fn words(text: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    line(text, &format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"));
}

/// A logarithmic axis over whole decades.
struct Axis {
    /// The exponents of its ends.
    low: i32,
    high: i32,
    /// Where those are, in pixels.
    from: f64,
    to: f64,
}

impl Axis {
    fn around(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let logs: Vec<f64> = values.map(f64::log10).collect();
        let low = logs.iter().copied().fold(f64::INFINITY, f64::min);
        let high = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        #[expect(clippy::cast_possible_truncation, reason = "exponents of what a clock or a port can say")]
        let whole = |log: f64| if log.is_finite() { log as i32 } else { 0 };
        let low = whole(low.floor());
        Self { low, high: whole(high.ceil()).max(low + 1), from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        self.from + share * (self.to - self.from)
    }

    /// The decades and where they are.
    fn decades(&self) -> impl Iterator<Item = (f64, f64)> {
        (self.low..=self.high).map(|exponent| 10_f64.powi(exponent)).map(|decade| (decade, self.at(decade)))
    }
}

/// A decade of seconds in words.
fn seconds(decade: f64) -> String {
    match decade {
        long if long > 0.5 => format!("{long:.0} s"),
        middle if middle > 0.5e-3 => format!("{:.0} ms", middle * 1e3),
        short => format!("{:.0} µs", short * 1e6),
    }
}
