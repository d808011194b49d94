//! The table as text, for a terminal and for a document.

use tabled::builder::Builder;
use tabled::settings::Style;

use super::row::{Row, Target};

const HEADS: [&str; 9] = ["what", "N", "portfwd", "peer", "time ratio", "memory ratio", "× floor", "target", "reached"];

/// For a terminal.
pub fn plain(rows: &[Row]) -> String {
    build(rows).with(Style::psql()).to_string()
}

/// For a document.
pub fn markdown(rows: &[Row]) -> String {
    build(rows).with(Style::markdown()).to_string()
}

fn build(rows: &[Row]) -> tabled::Table {
    let mut builder = Builder::new();
    builder.push_record(HEADS);
    for row in rows {
        builder.push_record(cells(row));
    }
    builder.build()
}

fn cells(row: &Row) -> [String; 9] {
    let or_none = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), short);
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
        or_none(row.memory),
        or_none(row.floor),
        words(row.target),
        reached,
    ]
}

/// What must be reached, in words.
fn words(target: Target) -> String {
    let Target { time, memory, seconds, towards } = target;
    let parts = [
        time.map(|most| format!("≤ {most}")),
        memory.map(|most| format!("memory ≤ {most}")),
        seconds.map(|most| format!("≤ {most} s")),
        towards.map(|near| format!("towards {near} × floor")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

/// A ratio with three digits that say something.
fn short(ratio: f64) -> String {
    match ratio {
        small if small < 0.01 => format!("{small:.4}"),
        small if small < 0.1 => format!("{small:.3}"),
        middle if middle < 10.0 => format!("{middle:.2}"),
        large => format!("{large:.0}"),
    }
}

/// A time with its unit.
fn time(seconds: f64) -> String {
    match seconds {
        long if long >= 1.0 => format!("{long:.2} s"),
        middle if middle >= 1e-3 => format!("{:.1} ms", middle * 1e3),
        short => format!("{:.1} µs", short * 1e6),
    }
}
