//! The JSON output of `audit`.

use serde::{Serialize, Serializer};

use super::report::Report;
use crate::audit::finding::Finding;
use crate::audit::listing::Row;
use crate::cli::json::VERSION;
use crate::model::Family;
use crate::ruleset::table::Gap;

/// The JSON output of `audit`.
#[derive(Debug, Serialize)]
pub(super) struct Audit<'a> {
    /// The version of the JSON format, [`VERSION`].
    version: u32,
    /// The dumps that portfwd read; empty if it read the kernel.
    files: Vec<String>,
    /// All forwards in order of precedence: at each hook, the first match wins.
    forwards: Rows<'a>,
    /// All rules that rewrite sources, in order of precedence.
    sources: Rows<'a>,
    /// The findings, the worst first.
    findings: Vec<Found<'a>>,
    /// Rules and facts that could not be read or understood.
    unknown: Vec<Unknown<'a>>,
}

/// A list of rules. A rule becomes JSON only when it is printed, which saves memory.
#[derive(Debug)]
struct Rows<'a> {
    report: &'a Report<'a>,
    rows: &'a [Row],
}

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.rows.iter().enumerate().map(|(order, row)| Nat::new(self.report, order, row)))
    }
}

/// A rule that rewrites an address, or one element of such a rule's map.
#[derive(Debug, Serialize)]
struct Nat<'a> {
    /// The index of the rule in the order of precedence.
    order: usize,
    /// The address family; null means both.
    family: Option<Family>,
    /// The kind of rewrite: `dnat`, `redirect`, `snat` or `masquerade`.
    action: &'static str,
    /// Protocols, such as `tcp` or `{ tcp, udp }`; null matches all.
    protocol: Option<&'a str>,
    /// Destination addresses, `local` for every address of the host; null matches all.
    address: Option<&'a str>,
    /// Destination ports, such as `80` or `{ 80, 8000-8010 }`; null matches all.
    ports: Option<&'a str>,
    /// The ingress interface; null matches all.
    interface: Option<&'a str>,
    /// The egress interface; null matches all.
    output: Option<&'a str>,
    /// Source addresses; null matches all.
    from: Option<&'a str>,
    /// All other conditions. Conditions that portfwd cannot interpret are in brackets.
    conditions: &'a [String],
    /// Packets that never reach the rule, because an earlier rule decides about them.
    except: &'a [String],
    /// The new address, such as `172.17.0.3:80`.
    to: &'a str,
    /// The hooks that evaluate the rule, each with the index of the rule at that hook.
    hooks: Vec<HookOrder>,
    /// False if the conditions or the order of the rule are uncertain.
    sure: bool,
    /// The program that made the rule, inferred from names.
    owner: &'a str,
    /// The table, such as `ip nat` or `iptables-legacy nat`.
    table: String,
    chain: &'a str,
    /// The handle of the rule in nf_tables; null if there is none.
    handle: Option<u64>,
    /// The line number of the rule in the dump.
    line: Option<usize>,
    comment: Option<&'a str>,
    /// The packet counter of the rule.
    packets: Option<u64>,
    /// The byte counter of the rule.
    bytes: Option<u64>,
}

/// A hook that evaluates a rule, and the index of the rule at that hook.
#[derive(Debug, Serialize)]
struct HookOrder {
    hook: &'static str,
    order: usize,
}

#[derive(Debug, Serialize)]
struct Found<'a> {
    id: &'static str,
    title: &'static str,
    severity: &'static str,
    confidence: &'static str,
    message: &'a str,
    places: Vec<Place<'a>>,
    evidence: &'a [String],
    fix: &'a str,
}

/// A rule that a finding names.
#[derive(Debug, Serialize)]
struct Place<'a> {
    owner: &'a str,
    rule: &'a str,
}

/// A rule or fact that could not be read or understood, and the reason.
#[derive(Debug, Serialize)]
struct Unknown<'a> {
    /// `rules` if `--fail-on` counts it, otherwise `facts`.
    kind: &'static str,
    what: &'a str,
    why: &'a str,
}

impl<'a> Audit<'a> {
    pub(super) fn new(report: &'a Report<'a>) -> Self {
        let rows = |rows| Rows { report, rows };
        let unknown = |kind, gaps: &'a [Gap]| gaps.iter().map(move |Gap { what, why }| Unknown { kind, what, why });
        let unknown = unknown("rules", &report.unread_rules).chain(unknown("facts", &report.unknown_facts));
        Self {
            version: VERSION,
            files: report.files.iter().map(|path| path.display().to_string()).collect(),
            forwards: rows(&report.forwards),
            sources: rows(&report.sources),
            findings: report.findings.iter().map(Found::new).collect(),
            unknown: unknown.collect(),
        }
    }
}

impl<'a> Nat<'a> {
    fn new(report: &'a Report<'_>, order: usize, row: &'a Row) -> Self {
        let place = report.host.rules.at(row.at);
        let rule = place.map(|(_, _, rule)| rule);
        Self {
            order,
            family: row.family,
            action: row.translation.name(),
            protocol: row.protocol.as_deref(),
            address: row.address.as_deref(),
            ports: row.ports.as_deref(),
            interface: row.input.as_deref(),
            output: row.output.as_deref(),
            from: row.from.as_deref(),
            conditions: &row.conditions,
            except: &row.except,
            to: &row.to,
            hooks: row.hooks.iter().map(|(hook, order)| HookOrder { hook: hook.name(), order: *order }).collect(),
            sure: row.sure,
            owner: &row.owner,
            table: place.map(|(table, _, _)| table.to_string()).unwrap_or_default(),
            chain: place.map_or("", |(_, chain, _)| &chain.name),
            handle: rule.and_then(|rule| rule.handle),
            line: rule.and_then(|rule| rule.line),
            comment: row.comment.as_deref(),
            packets: row.counter.map(|counter| counter.packets),
            bytes: row.counter.map(|counter| counter.bytes),
        }
    }
}

impl<'a> Found<'a> {
    fn new(finding: &'a Finding) -> Self {
        Self {
            id: finding.kind.id,
            title: finding.kind.title,
            severity: finding.severity.name(),
            confidence: finding.confidence.name(),
            message: &finding.message,
            places: finding.places.iter().map(|place| Place { owner: &place.owner, rule: &place.rule }).collect(),
            evidence: &finding.evidence,
            fix: &finding.fix,
        }
    }
}
