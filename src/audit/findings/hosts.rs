//! Looks for findings on the hosts of the unit tests.

use super::all;
use crate::audit::finding::Finding;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::facts::Facts;
use crate::ruleset::host::Host;
pub use crate::ruleset::hosts::*;

/// What is found of one kind.
pub fn find(host: &Host, id: &str) -> Vec<Finding> {
    all(host, |kind| kind.id == id)
}

/// How sure is what is found of one kind.
pub fn confidences(host: &Host, id: &str) -> Vec<Confidence> {
    find(host, id).iter().map(|finding| finding.confidence).collect()
}

/// The kinds of those of F01 to F05 that are found.
pub fn of_order(host: &Host) -> Vec<&'static str> {
    let all = all(host, |kind| ("F01"..="F05").contains(&kind.id));
    all.iter().map(|finding| finding.kind.id).collect()
}

/// The one finding of this kind that there is.
pub fn one(id: &str, text: &str, facts: Facts) -> Finding {
    let mut found = find(&host(text, facts), id);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

/// There is no finding of this kind.
pub fn none(id: &str, text: &str, facts: Facts) {
    let found = find(&host(text, facts), id);
    assert!(found.is_empty(), "{found:#?}");
}
