//! The findings: faults of NAT on a host. Each file contains one family of findings. Each finding has a [`Kind`], a function that
//! searches a host, and tests with a faulty host and with a similar host without the fault.

pub(super) mod addresses;
mod boot;
mod bypass;
mod coexist;
mod connections;
mod container;
mod context;
mod filter;
#[cfg(test)]
pub(in crate::audit) mod hosts;
#[cfg(test)]
mod layouts;
mod order;
mod reading;
mod routes;
mod settings;
mod shape;
mod sockets;
#[cfg(test)]
mod speed;
mod target;
#[cfg(test)]
mod twice;
mod wording;

use self::context::Context;
use super::finding::{Finding, Kind};
use crate::ruleset::host::Host;

/// A kind of finding, and the function that searches for it.
pub struct Check {
    /// The kind.
    pub kind: Kind,
    /// Returns all findings of this kind on a host.
    find: fn(&Context<'_>, &'static Kind) -> Vec<Finding>,
}

/// Returns all checks, grouped by family.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    let families: [&'static [Check]; 13] = [
        order::CHECKS,
        shape::CHECKS,
        filter::CHECKS,
        target::CHECKS,
        settings::CHECKS,
        routes::CHECKS,
        sockets::CHECKS,
        connections::CHECKS,
        coexist::CHECKS,
        bypass::CHECKS,
        boot::CHECKS,
        container::CHECKS,
        reading::CHECKS,
    ];
    families.into_iter().flatten()
}

/// Returns true if a finding of this kind is unknown because of rules that are not understood, and not because of unknown
/// routes, sysctls, sockets or connections.
pub fn depends_on_rules(kind: &Kind) -> bool {
    let families = [order::CHECKS, shape::CHECKS, filter::CHECKS, coexist::CHECKS, reading::CHECKS];
    families.into_iter().flatten().any(|check| check.kind.id == kind.id)
}

/// Returns the findings of the wanted kinds, sorted by severity and confidence.
pub fn all(host: &Host, wanted: impl Fn(&Kind) -> bool) -> Vec<Finding> {
    let context = Context::new(host);
    let wanted = checks().filter(|check| wanted(&check.kind));
    let mut found: Vec<Finding> = wanted.flat_map(|check| (check.find)(&context, &check.kind)).collect();
    found.sort_by_key(|finding| {
        (std::cmp::Reverse(finding.severity), std::cmp::Reverse(finding.confidence), finding.kind.id)
    });
    found
}

/// Returns the page about all findings in Markdown: condition, effect and fix.
pub fn page() -> String {
    let mut kinds: Vec<&Kind> = checks().map(|check| &check.kind).collect();
    kinds.sort_by_key(|kind| kind.id);
    let mut page = String::from(PAGE_HEAD);
    for kind in kinds {
        let Kind { id, title, what, why, fix, .. } = kind;
        page += &format!("\n## {id}: {title}\n\nSeverity: {}.\n\n", kind.severity.name());
        page += &format!("{what}\n\n**Effect.** {why}\n\n**Fix.** {fix}\n");
    }
    page
}

/// The start of the page.
const PAGE_HEAD: &str = "\
# Findings of `portfwd audit`

A test generates this page from the code in `src/audit/findings/`. `portfwd audit --only ID` searches for one finding,
`--ignore ID` hides one. The page gives the usual severity of each finding. A milder case has a lower severity in the report.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_has_an_id_of_its_own_and_is_described() {
        let mut ids: Vec<&str> = checks().map(|check| check.kind.id).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
        for Kind { id, title, what, why, fix, .. } in checks().map(|check| &check.kind) {
            assert!(id.len() == 3 && id.starts_with('F'), "{id}");
            assert!(!title.ends_with('.') && title.len() < 80, "{id}");
            assert!([what, why].iter().all(|text| text.ends_with('.') && text.len() >= 20), "{id}: {what} {why}");
            assert!(fix.len() > 10, "{id}: {fix}");
        }
    }
}
