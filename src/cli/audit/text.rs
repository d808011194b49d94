//! The text output of `audit`.

use std::io;

use super::report::Report;
use crate::audit::finding::{Finding, Severity};
use crate::audit::listing::Row;
use crate::cli::Output;
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;

/// The most rows of a table. `--json` prints all rows.
const MAX_ROWS: usize = 1000;

/// Prints the tables, the findings, and a last line with the counts.
pub(super) fn print(report: &Report<'_>, output: &mut Output<'_>) -> io::Result<()> {
    table(&["#", "FORWARD", "TO", "HOOKS", "OWNER", "RULE"], &report.forwards, forward, output)?;
    if !report.sources.is_empty() {
        writeln!(output.stdout)?;
        table(&["#", "SOURCE", "BECOMES", "HOOKS", "OWNER", "RULE"], &report.sources, source, output)?;
    }
    for finding in &report.findings {
        writeln!(output.stdout)?;
        print_finding(finding, output)?;
    }
    for gap in &report.unread_rules {
        writeln!(output.stderr, "note: not known: {gap}")?;
    }
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let mut counts = vec![
        counted(report.forwards.len(), "forward"),
        counted(report.sources.len(), "source rule"),
        counted(count(Severity::Error), "error"),
        counted(count(Severity::Warning), "warning"),
        counted(count(Severity::Info), "remark"),
    ];
    let unknown = report.unknown();
    counts.extend((unknown > 0).then(|| format!("{unknown} unknown")));
    writeln!(output.stdout, "\n{}", counts.join(", "))?;
    let facts: Vec<String> = report.unknown_facts.iter().map(ToString::to_string).collect();
    if !facts.is_empty() {
        writeln!(output.stdout, "not known: {}", facts.join("; "))?;
    }
    Ok(())
}

/// Returns a number with its noun: `1 error`, `2 errors`.
fn counted(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

fn print_finding(finding: &Finding, output: &mut Output<'_>) -> io::Result<()> {
    let confidence = match finding.confidence {
        Confidence::Proved => String::new(),
        other => format!(", {}", other.name()),
    };
    let severity = finding.severity.name();
    writeln!(output.stdout, "{severity}[{}{confidence}]: {}", finding.kind.id, printable(&finding.message))?;
    for place in &finding.places {
        writeln!(output.stdout, "  --> {}", printable(&place.to_string()))?;
    }
    for line in &finding.evidence {
        writeln!(output.stdout, "   |  {}", printable(line))?;
    }
    writeln!(output.stdout, "  help: {}", printable(&finding.fix))
}

fn table(
    heads: &[&str],
    rows: &[Row],
    record: impl Fn(usize, &Row) -> Vec<String>,
    output: &mut Output<'_>,
) -> io::Result<()> {
    use tabled::builder::Builder;
    use tabled::settings::Style;
    let mut table = Builder::with_capacity(rows.len().min(MAX_ROWS) + 1, heads.len());
    table.push_record(heads.iter().copied());
    for (number, row) in rows.iter().take(MAX_ROWS).enumerate() {
        table.push_record(record(number + 1, row));
    }
    for line in table.build().with(Style::blank()).to_string().lines() {
        writeln!(output.stdout, "{}", line.trim_end())?;
    }
    if rows.len() > MAX_ROWS {
        writeln!(output.stdout, "… and {} more; `--json` prints all of them", rows.len() - MAX_ROWS)?;
    }
    Ok(())
}

fn forward(number: usize, row: &Row) -> Vec<String> {
    let mut to = format!("{}{}", if row.translation.name() == "redirect" { "this host" } else { "" }, row.to);
    if to.is_empty() {
        to = row.translation.name().into();
    }
    vec![number.to_string(), listen(row), to, hooks(row), row.owner.clone(), printable(&row.rule)]
}

fn source(number: usize, row: &Row) -> Vec<String> {
    let becomes = match row.to.as_str() {
        "" => row.translation.name().to_owned(),
        to => format!("{} {to}", row.translation.name()),
    };
    let mut words = vec![listen(row)];
    words.extend(row.output.iter().map(|output| format!("out {output}")));
    vec![number.to_string(), words.join(" "), becomes, hooks(row), row.owner.clone(), printable(&row.rule)]
}

/// Returns the match of a rule, such as `192.0.2.1 8080/tcp on eth0 from 10.0.0.0/8`.
fn listen(row: &Row) -> String {
    let address = match row.address.as_deref() {
        Some("local") => String::new(),
        Some(address) => format!("{address} "),
        None => "any ".into(),
    };
    let protocol = row.protocol.as_deref().unwrap_or("all");
    let mut words = vec![match &row.ports {
        Some(ports) => format!("{address}{ports}/{protocol}"),
        None => format!("{address}all ports/{protocol}"),
    }];
    words.extend(row.input.iter().map(|input| format!("on {input}")));
    words.extend(row.from.iter().map(|from| format!("from {from}")));
    // In a table of family inet, the address alone shows the family.
    let has_address = row.from.is_some() || row.address.as_deref().is_some_and(|address| address != "local");
    let target_has_address = !row.to.is_empty() && !row.to.starts_with(':');
    let needs_family = row.rule.starts_with("inet ") && !has_address && !target_has_address;
    words.extend(row.family.filter(|_| needs_family).map(|family| format!("({family})")));
    words.extend(row.conditions.iter().cloned());
    words.extend(row.except.iter().map(|except| format!("(but {except})")));
    if !row.sure {
        words.push("?".into());
    }
    printable(&words.join(" "))
}

fn hooks(row: &Row) -> String {
    row.hooks.iter().map(|(hook, _)| hook.name()).collect::<Vec<_>>().join(",")
}
