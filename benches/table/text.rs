//! The result tables as text, for a terminal and for Markdown.

use tabled::builder::Builder;
use tabled::settings::Style;

use super::{Report, Row, Target};

const HEADS: [&str; 8] = ["what", "N", "portfwd", "compared with", "time ratio", "memory ratio", "limit", "reached"];
const COUNT_HEADS: [&str; 5] = ["what", "N", "count", "limit", "reached"];

/// Returns the tables of results and counts for a terminal.
pub fn plain(report: &Report) -> String {
    format!("{}\n\n{}", rows(report).with(Style::psql()), counts(report).with(Style::psql()))
}

/// Returns the tables of results and counts as Markdown.
pub fn markdown(report: &Report) -> String {
    format!("{}\n\n{}", rows(report).with(Style::markdown()), counts(report).with(Style::markdown()))
}

fn rows(report: &Report) -> tabled::Table {
    let mut builder = Builder::new();
    builder.push_record(HEADS);
    for row in &report.rows {
        builder.push_record(cells(row));
    }
    builder.build()
}

fn counts(report: &Report) -> tabled::Table {
    let mut builder = Builder::new();
    builder.push_record(COUNT_HEADS);
    for (what, forwards, count, limit) in &report.counts {
        let reached = if count <= limit { "yes" } else { "no" };
        let numbers = [forwards.to_string(), count.to_string(), format!("≤ {limit}")];
        builder.push_record([what.clone()].into_iter().chain(numbers).chain([reached.to_owned()]));
    }
    builder.build()
}

fn cells(row: &Row) -> [String; 8] {
    let reached = match row.missed() {
        None => "-".to_owned(),
        Some(missed) if missed.is_empty() => "yes".to_owned(),
        Some(missed) => format!("no: {}", missed.join(", ")),
    };
    [
        row.what.clone(),
        row.count.to_string(),
        time(row.seconds),
        row.peer.clone(),
        format!("{} ({} to {})", short(row.time.middle), short(row.time.low), short(row.time.high)),
        row.memory.map_or_else(|| "-".to_owned(), short),
        words(row.target),
        reached,
    ]
}

/// Returns the limits of a row as text.
fn words(target: Target) -> String {
    let parts = [target.time.map(|limit| format!("≤ {limit}")), target.memory.map(|limit| format!("memory ≤ {limit}"))];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

/// Returns a ratio with two or three significant digits.
fn short(ratio: f64) -> String {
    match ratio {
        small if small < 0.01 => format!("{small:.4}"),
        small if small < 0.1 => format!("{small:.3}"),
        middle if middle < 10.0 => format!("{middle:.2}"),
        large => format!("{large:.0}"),
    }
}

/// Returns a time with its unit.
fn time(seconds: f64) -> String {
    match seconds {
        long if long >= 1.0 => format!("{long:.2} s"),
        middle if middle >= 1e-3 => format!("{:.1} ms", middle * 1e3),
        short => format!("{:.1} µs", short * 1e6),
    }
}
