//! Isolated networks: from outside, only what a forward or a 1:1 translation publishes gets in.
//!
//! ```text
//! chain filter-forward  { ip daddr 172.17.0.0/16 oifname "docker0" iifname != "docker0"
//!                         ct state new,invalid,untracked ct label ! 121 drop comment "web: isolate docker0 DOCKER" }
//! ```

use super::{End, FIRST, address_in, has_not_label, interface};
use crate::model::{Asked, Network, Owned};
use crate::netfilter::comment::{ISOLATE, comment, of_network};
use crate::netfilter::label::OURS;
use crate::nft::expr::{Bitwise, Cmp, Ct, CtKey, Expr, MetaKey, Verdict};
use crate::nft::program::Rule;

/// New, invalid and untracked: what does not belong to a connection that was let through before.
/// Source: `NF_CT_STATE_BIT`, `NF_CT_STATE_INVALID_BIT`, `NF_CT_STATE_UNTRACKED_BIT` in
/// include/uapi/linux/netfilter/nf_conntrack_common.h.
const STATE_UNKNOWN: u32 = 8 | 1 | 64;

/// One rule for each subnet of a network that is isolated.
pub(super) fn rules(asked: &Asked) -> Vec<Rule> {
    let networks = asked.networks.iter().filter(|owned| owned.rule.isolate);
    networks.flat_map(|owned| owned.rule.subnets.iter().map(|subnet| isolate(owned, *subnet))).collect()
}

fn isolate(owned: &Owned<Network>, subnet: ipnetwork::IpNetwork) -> Rule {
    let mut exprs = address_in(subnet, End::Destination);
    exprs.extend(interface(MetaKey::OifName, true, &owned.rule.name));
    exprs.extend(interface(MetaKey::IifName, false, &owned.rule.name));
    exprs.push(Expr::Ct(Ct { key: CtKey::State, to: FIRST }));
    exprs.push(Expr::Bitwise(Bitwise { register: FIRST, mask: STATE_UNKNOWN.to_ne_bytes().to_vec() }));
    exprs.push(Expr::Cmp(Cmp { register: FIRST, equal: false, data: vec![0; 4] }));
    exprs.extend(has_not_label(OURS));
    exprs.push(Expr::Verdict(Verdict::Drop));
    Rule { exprs, comment: Some(comment(&owned.set, Some(&of_network(ISOLATE, &owned.rule)))) }
}
