//! Compiles 1:1 translations of networks, in both directions.
//!
//! ```text
//! chain nat-prerouting  { ip daddr 192.0.2.0/24 ct label set 121 dnat ip prefix to 10.0.0.0/24 comment "web: netmap" }
//! chain nat-output      { the same }
//! chain nat-postrouting { ip saddr 10.0.0.0/24 snat ip prefix to 192.0.2.0/24 comment "web: netmap" }
//! ```
//! Rules for longer prefixes come first. All 1:1 translations come after the forwards, so a forward of one port has
//! precedence over a translation.
//!
//! Label 121 allows the connection into isolated networks and enables hairpin NAT. Hairpin NAT is needed because a
//! client in the target's network is not always in the translated network.

use std::cmp::Reverse;

use ipnetwork::IpNetwork;

use super::expressions::{AddressField, FIRST, address_in, octets, set_label};
use crate::model::label::FORWARDED;
use crate::model::rule_comment::{NETMAP, format_comment};
use crate::model::{DesiredState, Family, Netmap, SetRule};
use crate::nft::expr::{Expr, Immediate, Nat, NatFlag, RegisterRange};
use crate::nft::program::Rule;

/// Returns the destination NAT rules of 1:1 translations, from the published network to the real network.
pub(super) fn inward(desired: &DesiredState) -> Vec<Rule> {
    let rule = |owned: &SetRule<Netmap>| {
        let Netmap { listen, to } = owned.rule;
        let mut exprs = address_in(listen, AddressField::Destination);
        exprs.extend(set_label(&[FORWARDED], FIRST));
        exprs.extend(prefix(false, to));
        rule(owned, exprs)
    };
    sorted(desired, |netmap| netmap.listen).into_iter().map(rule).collect()
}

/// Returns the source NAT rules of 1:1 translations, from the real network to the published network.
pub(super) fn outward(desired: &DesiredState) -> Vec<Rule> {
    let rule = |owned: &SetRule<Netmap>| {
        let Netmap { listen, to } = owned.rule;
        let mut exprs = address_in(to, AddressField::Source);
        exprs.extend(prefix(true, listen));
        rule(owned, exprs)
    };
    sorted(desired, |netmap| netmap.to).into_iter().map(rule).collect()
}

fn sorted(desired: &DesiredState, side: impl Fn(&Netmap) -> IpNetwork) -> Vec<&SetRule<Netmap>> {
    let mut all: Vec<&SetRule<Netmap>> = desired.netmaps.iter().collect();
    all.sort_by_key(|owned| Reverse(side(&owned.rule).prefix()));
    all
}

fn rule(owned: &SetRule<Netmap>, exprs: Vec<Expr>) -> Rule {
    Rule { exprs, comment: Some(format_comment(&owned.set, Some(NETMAP))) }
}

/// Translates a network: `dnat ip prefix to 10.0.0.0/24`. The kernel rewrites only the bits that the first and the last
/// address of the network have in common.
fn prefix(source: bool, network: IpNetwork) -> Vec<Expr> {
    let family = Family::of_network(network);
    let last = FIRST.after(if family == Family::Ipv4 { 1 } else { 4 });
    let address = RegisterRange { first: FIRST, last: Some(last) };
    vec![
        Expr::Immediate(Immediate { to: FIRST, data: octets(network.network()) }),
        Expr::Immediate(Immediate { to: last, data: octets(network.broadcast()) }),
        Expr::Nat(Nat { source, family, address, port: None, flag: NatFlag::Prefix }),
    ]
}
