//! Searches for findings on the hosts of the unit tests.

use super::all;
use crate::audit::finding::Finding;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::Facts;
use crate::ruleset::host::Host;
pub use crate::ruleset::hosts::*;

/// Returns the findings of one kind.
pub fn find(host: &Host, id: &str) -> Vec<Finding> {
    all(host, |kind| kind.id == id)
}

/// Returns the confidences of the findings of one kind.
pub fn confidences(host: &Host, id: &str) -> Vec<Confidence> {
    find(host, id).iter().map(|finding| finding.confidence).collect()
}

/// Returns the IDs of the findings F01 to F05.
pub fn of_order(host: &Host) -> Vec<&'static str> {
    let all = all(host, |kind| ("F01"..="F05").contains(&kind.id));
    all.iter().map(|finding| finding.kind.id).collect()
}

/// Returns the only finding of a kind. Panics if there is not exactly one.
pub fn one(id: &str, text: &str, facts: Facts) -> Finding {
    let mut found = find(&host(text, facts), id);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

/// Panics if there is a finding of a kind.
pub fn none(id: &str, text: &str, facts: Facts) {
    let found = find(&host(text, facts), id);
    assert!(found.is_empty(), "{found:#?}");
}
