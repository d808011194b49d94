//! What can be wrong with NAT on a host. One file a family of findings; each finding is a [`Kind`], which its page is made of,
//! and one function over a host, with the tests of a host that has it and of one that nearly has.

use super::finding::{Finding, Kind};
use super::host::Host;

/// A finding: what is said of it, and what looks for it.
pub struct Check {
    /// What it is.
    pub kind: Kind,
    /// Looks for it.
    pub find: fn(&Host, &'static Kind) -> Vec<Finding>,
}

/// All of them, family by family.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    let families: [&'static [Check]; 0] = [];
    families.into_iter().flatten()
}

/// Looks for all of them that `wanted` names; the worst and surest first.
pub fn all(host: &Host, wanted: impl Fn(&Kind) -> bool) -> Vec<Finding> {
    let wanted = checks().filter(|check| wanted(&check.kind));
    let mut found: Vec<Finding> = wanted.flat_map(|check| (check.find)(host, &check.kind)).collect();
    found.sort_by_key(|finding| {
        (std::cmp::Reverse(finding.severity), std::cmp::Reverse(finding.confidence), finding.kind.id)
    });
    found
}
