//! The shape of `audit --json`.

use serde::{Serialize, Serializer};

use super::report::Report;
use crate::audit::finding::Finding;
use crate::audit::listing::Row;
use crate::cli::json::VERSION;
use crate::model::Family;

/// What `audit` prints.
#[derive(Debug, Serialize)]
pub(super) struct Audit<'a> {
    /// [`VERSION`].
    version: u32,
    /// The dumps that were read; empty of the host itself.
    files: Vec<String>,
    /// All forwards, in the order in which they win: of those at one hook the first that a packet is in.
    forwards: Rows<'a>,
    /// All rules that rewrite sources, in the order in which they win.
    sources: Rows<'a>,
    /// What is wrong, the worst first.
    findings: Vec<Found<'a>>,
    /// What could not be read, and so is not known.
    unknown: Vec<Unknown<'a>>,
}

/// Rows, each of which is brought into its shape when its turn comes to be printed.
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

/// A rule that rewrites an address, or one element of a map that it asks.
#[derive(Debug, Serialize)]
struct Nat<'a> {
    /// Its place in the order.
    order: usize,
    /// The family of its packets.
    family: Family,
    /// `dnat`, `redirect`, `snat` or `masquerade`.
    action: &'static str,
    /// Protocols, `tcp` or `{ tcp, udp }`; null: all.
    protocol: Option<&'a str>,
    /// Destinations, `local` for every address of the host; null: all.
    address: Option<&'a str>,
    /// Destination ports, `80` or `{ 80, 8000-8010 }`; null: all.
    ports: Option<&'a str>,
    /// The interface that packets arrive by.
    interface: Option<&'a str>,
    /// The interface that packets leave by.
    output: Option<&'a str>,
    /// Sources.
    from: Option<&'a str>,
    /// What else is asked for; what is not understood is in brackets.
    conditions: &'a [String],
    /// What is decided before this for some of these packets.
    except: &'a [String],
    /// What the address becomes, `172.17.0.3:80`.
    to: &'a str,
    /// At which hooks it is asked, and its place in the order there.
    hooks: Vec<At>,
    /// Whether all of that is sure.
    sure: bool,
    /// Who made it, as far as names tell.
    owner: &'a str,
    /// Its table, `ip nat`; one of iptables-legacy is `iptables-legacy nat`.
    table: String,
    /// Its chain.
    chain: &'a str,
    /// Its number in the kernel.
    handle: Option<u64>,
    /// Its line in the dump.
    line: Option<usize>,
    /// Its comment.
    comment: Option<&'a str>,
    /// What the rule counted.
    packets: Option<u64>,
    /// The same in bytes.
    bytes: Option<u64>,
}

/// A place in the order of a hook.
#[derive(Debug, Serialize)]
struct At {
    hook: &'static str,
    order: usize,
}

/// A finding.
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

/// The place of a rule.
#[derive(Debug, Serialize)]
struct Place<'a> {
    owner: &'a str,
    rule: &'a str,
}

/// What is not known.
#[derive(Debug, Serialize)]
struct Unknown<'a> {
    what: &'a str,
    why: &'a str,
}

impl<'a> Audit<'a> {
    /// Describes a report.
    pub(super) fn new(report: &'a Report<'a>) -> Self {
        let rows = |rows| Rows { report, rows };
        let unknown = report.gaps.iter().map(|gap| Unknown { what: &gap.what, why: &gap.why });
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
            hooks: row.hooks.iter().map(|(hook, order)| At { hook: hook.name(), order: *order }).collect(),
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
