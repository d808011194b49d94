//! What can be wrong with NAT on a host. One file a family of findings; each finding is a [`Kind`], which its page is made of,
//! and one function over a host, with the tests of a host that has it and of one that nearly has.

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

/// A finding: what is said of it, and what looks for it.
pub struct Check {
    /// What it is.
    pub kind: Kind,
    /// Looks for it.
    find: fn(&Context<'_>, &'static Kind) -> Vec<Finding>,
}

/// All of them, family by family.
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

/// Looks for all of them that `wanted` names; the worst and surest first.
pub fn all(host: &Host, wanted: impl Fn(&Kind) -> bool) -> Vec<Finding> {
    let context = Context::new(host);
    let wanted = checks().filter(|check| wanted(&check.kind));
    let mut found: Vec<Finding> = wanted.flat_map(|check| (check.find)(&context, &check.kind)).collect();
    found.sort_by_key(|finding| {
        (std::cmp::Reverse(finding.severity), std::cmp::Reverse(finding.confidence), finding.kind.id)
    });
    found
}

/// The page about all findings, in Markdown: what each is, why it hurts, how to mend it.
pub fn page() -> String {
    let mut kinds: Vec<&Kind> = checks().map(|check| &check.kind).collect();
    kinds.sort_by_key(|kind| kind.id);
    let mut page = String::from(PAGE_HEAD);
    for kind in kinds {
        let Kind { id, title, what, why, fix, .. } = kind;
        page += &format!("\n## {id}: {title}\n\nSeverity: {}.\n\n", kind.severity.name());
        page += &format!("{what}\n\n**Why it hurts.** {why}\n\n**What mends it.** {fix}\n");
    }
    page
}

/// What the page begins with.
const PAGE_HEAD: &str = "\
# Findings of `portfwd audit`

This page is made of the code (`src/audit/findings/`); a test keeps it so. `portfwd audit --only ID` looks for one of them,
`--ignore ID` leaves one out. A severity is the usual one; a case that is milder says so.
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
            // A command, or what to do.
            assert!(fix.len() > 10, "{id}: {fix}");
        }
    }
}
