//! Isolated networks: from outside, only what a forward or a 1:1 translation publishes gets in.
//!
//! ```text
//! chain filter-forward  { ip daddr 172.17.0.0/16 oifname "docker0" iifname != "docker0"
//!                         ct state invalid,untracked drop comment "web: isolate docker0 DOCKER"
//!                         ip daddr 172.17.0.0/16 oifname "docker0" iifname != "docker0"
//!                         ct state new ct label & (121, 117) != 121 drop comment "web: isolate docker0 DOCKER" }
//! ```
//! They are two because a rule ends at a label that is not there (`nft_ct_get_eval` in net/netfilter/nft_ct.c), and what
//! belongs to no connection has none. Label 117 is on connections that began when iptables did our work, and that none of our
//! forwards wanted.
//!
//! The states are `NF_CT_STATE_BIT`, `NF_CT_STATE_INVALID_BIT` and `NF_CT_STATE_UNTRACKED_BIT` in
//! include/uapi/linux/netfilter/nf_conntrack_common.h.

use super::expressions::{End, FIRST, address_in, interface, label_is_not};
use crate::model::label::{FORWARDED, UNMATCHED};
use crate::model::rule_comment::{ISOLATE, format_comment, format_network};
use crate::model::{Asked, Network, Owned};
use crate::nft::expr::{Bitwise, Cmp, Ct, CtKey, Expr, MetaKey, Verdict};
use crate::nft::program::Rule;

/// The first packet of a connection, and those before an answer.
const NEW: u32 = 8;
/// Invalid and untracked: what belongs to no connection at all. It has no label that could be asked for.
const STRAY: u32 = 1 | 64;

/// Two rules for each subnet of a network that is isolated.
pub(super) fn rules(asked: &Asked) -> Vec<Rule> {
    let networks = asked.networks.iter().filter(|owned| owned.rule.isolate);
    networks.flat_map(|owned| owned.rule.subnets.iter().flat_map(|subnet| isolate(owned, *subnet))).collect()
}

fn isolate(owned: &Owned<Network>, subnet: ipnetwork::IpNetwork) -> [Rule; 2] {
    let comment = format_comment(&owned.set, Some(&format_network(ISOLATE, &owned.rule)));
    [(STRAY, None), (NEW, Some(label_is_not(&[FORWARDED, UNMATCHED], &[FORWARDED])))].map(|(states, label)| {
        let mut exprs = address_in(subnet, End::Destination);
        exprs.extend(interface(MetaKey::OifName, true, &owned.rule.name));
        exprs.extend(interface(MetaKey::IifName, false, &owned.rule.name));
        exprs.push(Expr::Ct(Ct { key: CtKey::State, to: FIRST }));
        exprs.push(Expr::Bitwise(Bitwise { register: FIRST, mask: states.to_ne_bytes().to_vec() }));
        exprs.push(Expr::Cmp(Cmp { register: FIRST, equal: false, data: vec![0; 4] }));
        exprs.extend(label.into_iter().flatten());
        exprs.push(Expr::Verdict(Verdict::Drop));
        Rule { exprs, comment: Some(comment.clone()) }
    })
}
