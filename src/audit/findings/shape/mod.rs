//! x
use super::Check;
#[cfg(test)]
pub(super) mod hosts;
pub(super) const CHECKS: &[Check] = &[];
