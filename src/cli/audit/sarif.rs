//! Findings as SARIF 2.1.0, which code scanners and editors read.
//!
//! Source: OASIS, Static Analysis Results Interchange Format 2.1.0.

use serde_json::{Value, json};

use super::Report;
use crate::audit::finding::{Finding, Severity};
use crate::audit::findings;

/// The log of one run.
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
    let notes: Vec<Value> = (report.gaps.iter())
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

fn result(report: &Report<'_>, finding: &Finding) -> Value {
    let places = finding.places.iter().map(|place| {
        let mut location = json!({ "logicalLocations": [{ "fullyQualifiedName": place.rule, "kind": "rule" }] });
        // A line is of the one dump that there is; of several it is not known which.
        if let ([file], Some((_, line))) = (report.files, place.rule.rsplit_once(" line "))
            && let Ok(line) = line.parse::<usize>()
        {
            location["physicalLocation"] = json!({
                "artifactLocation": { "uri": file.to_string_lossy() },
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
