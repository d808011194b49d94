//! What filters do to forwards: drop them, let them past the firewall of the host, or leave the way beside them open.
//!
//! Each finding leads representative packets through the host ([`crate::ruleset::simulate`]): those of a client outside by every
//! interface that it may plausibly come by. One finding is given for all forwards that have the same fault for the same reason.
//!
//! Be aware: one packet stands for all of a forward, from the least of its ports. Of a dump without facts no interface is
//! known, so nothing is said where one decides.

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
