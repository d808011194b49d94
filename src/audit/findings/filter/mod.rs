//! Faults of filters: forwards that a filter drops, forwards that bypass the host's firewall, and open paths that bypass a
//! forward.
//!
//! Each finding simulates representative packets ([`crate::ruleset::simulate`]) of an outside client on every interface that
//! clients can use. Forwards with the same fault for the same reason share one finding.
//!
//! Limit: one packet, to the lowest port, represents a forward. A dump has no interfaces, so a finding that depends on
//! interfaces is not reported for a dump.

mod accepted;
mod clients;
mod drop_analysis;
mod dropped;
mod exposed;
mod hairpin;
#[cfg(test)]
mod scale;
mod suggest_accept;

pub(super) use self::drop_analysis::DropAnalyses;

use super::Check;

/// All of this family.
pub(super) static CHECKS: &[Check] = &[
    Check { kind: dropped::FORWARD_DROPS, find: dropped::behind_nat },
    Check { kind: accepted::BLANKET, find: accepted::blanket },
    Check { kind: exposed::LOOPBACK, find: exposed::loopback },
    Check { kind: exposed::DIRECT, find: exposed::direct },
    Check { kind: accepted::BYPASS, find: accepted::bypass },
    Check { kind: hairpin::MISSING, find: hairpin::missing },
    Check { kind: hairpin::ALLOW_LIST, find: hairpin::allow_list },
    Check { kind: dropped::BEFORE_NAT, find: dropped::before_nat },
];
