//! Networks and masquerades.
//!
//! ```text
//! chain filter-forward  { ip daddr 172.17.0.0/16 oifname "docker0" iifname != "docker0"
//!                         ct state new,invalid,untracked ct label ! 121 drop comment "web: isolate docker0 DOCKER" }
//! chain nat-postrouting { ip saddr 172.17.0.0/16 oifname != "docker0" masquerade comment "web: network docker0 DOCKER" }
//! chain nat-postrouting { ip saddr 10.0.0.0/24 oifname "eth0" masquerade comment "web" }
//! ```
//! The comment says what the rule alone does not: whose it is, and the network's chain. A network that neither
//! masquerades nor isolates leaves no rule.

use super::{End, FIRST, LABEL_OURS, address_in, has_not_label, interface};
use crate::model::{Asked, Masquerade, Network, Owned};
use crate::nft::expr::{self, Bitwise, Cmp, Ct, CtKey, Expr, MetaKey, Verdict};
use crate::nft::map;
use crate::nft::program::Rule;

/// New, invalid and untracked: what does not belong to a connection that was let through before.
/// Source: `NF_CT_STATE_BIT`, `NF_CT_STATE_INVALID_BIT`, `NF_CT_STATE_UNTRACKED_BIT` in
/// include/uapi/linux/netfilter/nf_conntrack_common.h.
const STATE_UNKNOWN: u32 = 8 | 1 | 64;

/// The word in a comment that says that a rule stands for a network.
pub(in crate::nft) const NETWORK: &str = "network";
/// The word in a comment that says that a rule keeps the outside out of a network.
pub(in crate::nft) const ISOLATE: &str = "isolate";

/// One rule for each subnet of a network that masquerades, one for each masquerade.
pub(super) fn masquerades(asked: &Asked) -> Vec<Rule> {
    let networks = asked.networks.iter().filter(|owned| owned.rule.masquerade);
    let networks = networks.flat_map(|owned| owned.rule.subnets.iter().map(|subnet| of_network(owned, *subnet)));
    networks.chain(asked.masquerades.iter().map(of_masquerade)).collect()
}

fn of_network(owned: &Owned<Network>, subnet: ipnetwork::IpNetwork) -> Rule {
    let mut exprs = address_in(subnet, End::Source);
    exprs.extend(interface(MetaKey::OifName, false, &owned.rule.name));
    exprs.push(Expr::Masquerade(expr::Masquerade));
    let remark = format!("{NETWORK} {} {}", owned.rule.name, owned.rule.chain);
    Rule { exprs, comment: Some(map::comment(&owned.set, Some(&remark))) }
}

fn of_masquerade(owned: &Owned<Masquerade>) -> Rule {
    let mut exprs = owned.rule.from.map(|from| address_in(from, End::Source)).unwrap_or_default();
    if let Some(out) = &owned.rule.out {
        exprs.extend(interface(MetaKey::OifName, true, out));
    }
    exprs.push(Expr::Masquerade(expr::Masquerade));
    Rule { exprs, comment: Some(map::comment(&owned.set, None)) }
}

/// One rule for each subnet of a network that is isolated.
pub(super) fn isolation(asked: &Asked) -> Vec<Rule> {
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
    exprs.extend(has_not_label(LABEL_OURS));
    exprs.push(Expr::Verdict(Verdict::Drop));
    let remark = format!("{ISOLATE} {} {}", owned.rule.name, owned.rule.chain);
    Rule { exprs, comment: Some(map::comment(&owned.set, Some(&remark))) }
}
