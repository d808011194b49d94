//! Compiles isolated networks. The rules drop packets from outside, except packets of forwards and 1:1 translations.
//!
//! ```text
//! chain filter-forward  { ip daddr 172.17.0.0/16 oifname "docker0" iifname != "docker0"
//!                         ct state invalid,untracked drop comment "web: isolate docker0 DOCKER"
//!                         ip daddr 172.17.0.0/16 oifname "docker0" iifname != "docker0"
//!                         ct state new ct label & (121, 117) != 121 drop comment "web: isolate docker0 DOCKER" }
//! ```
//! Each subnet needs two rules, because packets without a connection have no labels. If a rule loads a missing label,
//! the kernel stops the evaluation of the rule (`nft_ct_get_eval` in net/netfilter/nft_ct.c). Label 117 marks
//! connections that started under the iptables backend and that no forward matched.
//!
//! Source of the conntrack states: `NF_CT_STATE_BIT`, `NF_CT_STATE_INVALID_BIT` and `NF_CT_STATE_UNTRACKED_BIT` in
//! include/uapi/linux/netfilter/nf_conntrack_common.h.

use super::expressions::{AddressField, FIRST, address_in, interface_is, label_is_not};
use crate::model::label::{FORWARDED, UNMATCHED};
use crate::model::rule_comment::{ISOLATE, format_comment, format_network};
use crate::model::{DesiredState, Network, SetRule};
use crate::nft::expr::{Bitwise, Cmp, Ct, CtKey, Expr, MetaKey, Verdict};
use crate::nft::program::Rule;

/// The bit of the conntrack state `new`: conntrack has not seen a reply.
const NEW: u32 = 8;
/// The bits of the conntrack states `invalid` and `untracked`. Packets in these states belong to no connection, so they
/// have no labels.
const NO_CONNECTION: u32 = 1 | 64;

/// Returns two rules for each subnet of an isolated network.
pub(super) fn rules(desired: &DesiredState) -> Vec<Rule> {
    let networks = desired.networks.iter().filter(|owned| owned.rule.isolate);
    networks.flat_map(|owned| owned.rule.subnets.iter().flat_map(|subnet| isolate(owned, *subnet))).collect()
}

fn isolate(owned: &SetRule<Network>, subnet: ipnetwork::IpNetwork) -> [Rule; 2] {
    let comment = format_comment(&owned.set, Some(&format_network(ISOLATE, &owned.rule)));
    [(NO_CONNECTION, None), (NEW, Some(label_is_not(&[FORWARDED, UNMATCHED], &[FORWARDED])))].map(|(states, label)| {
        let mut exprs = address_in(subnet, AddressField::Destination);
        exprs.extend(interface_is(MetaKey::OifName, true, &owned.rule.name));
        exprs.extend(interface_is(MetaKey::IifName, false, &owned.rule.name));
        exprs.push(Expr::Ct(Ct { key: CtKey::State, to: FIRST }));
        exprs.push(Expr::Bitwise(Bitwise { register: FIRST, mask: states.to_ne_bytes().to_vec() }));
        exprs.push(Expr::Cmp(Cmp { register: FIRST, equal: false, data: vec![0; 4] }));
        exprs.extend(label.into_iter().flatten());
        exprs.push(Expr::Verdict(Verdict::Drop));
        Rule { exprs, comment: Some(comment.clone()) }
    })
}
