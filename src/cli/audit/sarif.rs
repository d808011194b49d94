//! Findings as SARIF 2.1.0, which code scanners and editors read.
//!
//! Source: OASIS, Static Analysis Results Interchange Format 2.1.0.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::{Value, json};

use super::report::Report;
use crate::audit::finding::{Finding, Severity};
use crate::audit::findings;

/// Returns a SARIF log with one run.
pub(super) fn log(report: &Report<'_>) -> Value {
    let rules: Vec<Value> = findings::checks()
        .map(|check| {
            let kind = &check.kind;
            json!({
                "id": kind.id,
                "shortDescription": { "text": kind.title },
                "fullDescription": { "text": format!("{} {}", kind.what, kind.why) },
                "help": { "text": kind.fix },
                "defaultConfiguration": { "level": level(kind.severity) },
            })
        })
        .collect();
    let notes: Vec<Value> = (report.unread_rules.iter().chain(&report.unknown_facts))
        .map(|gap| json!({ "level": "note", "message": { "text": format!("not known: {}: {}", gap.what, gap.why) } }))
        .collect();
    json!({
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "portfwd", "version": env!("CARGO_PKG_VERSION"), "rules": rules } },
            "invocations": [{ "executionSuccessful": true, "toolExecutionNotifications": notes }],
            "results": report.findings.iter().map(|finding| result(report, finding)).collect::<Vec<_>>(),
        }],
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// Returns a path as a URI reference with percent-encoding (RFC 3986, section 2), as section 3.4.3 of SARIF requires.
fn uri(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(*byte)),
            other => text += &format!("%{other:02X}"),
        }
    }
    text
}

fn result(report: &Report<'_>, finding: &Finding) -> Value {
    let places = finding.places.iter().map(|place| {
        let mut location = json!({ "logicalLocations": [{ "fullyQualifiedName": place.rule, "kind": "rule" }] });
        // With several dumps, portfwd does not know which file contains the line.
        if let ([file], Some((_, line))) = (report.files, place.rule.rsplit_once(" line "))
            && let Ok(line) = line.parse::<usize>()
        {
            location["physicalLocation"] = json!({
                "artifactLocation": { "uri": uri(file) },
                "region": { "startLine": line },
            });
        }
        location
    });
    json!({
        "ruleId": finding.kind.id,
        "level": level(finding.severity),
        "message": { "text": format!("{}. {}", finding.message, finding.fix) },
        "locations": places.collect::<Vec<_>>(),
        "properties": { "confidence": finding.confidence.name(), "evidence": finding.evidence },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_percent_encoded() {
        assert_eq!(uri(Path::new("/tmp/save-v4.txt")), "/tmp/save-v4.txt");
        assert_eq!(uri(Path::new("a b:#%\u{e9}")), "a%20b%3A%23%25%C3%A9");
    }
}
