//! 1:1 translations of networks, in both directions.
//!
//! ```text
//! chain nat-prerouting  { ip daddr 192.0.2.0/24 ct label set 121 dnat ip prefix to 10.0.0.0/24 comment "web: netmap" }
//! chain nat-output      { the same }
//! chain nat-postrouting { ip saddr 10.0.0.0/24 snat ip prefix to 192.0.2.0/24 comment "web: netmap" }
//! ```
//! Longer prefixes come first, and all of them behind every forward, so a forward for one port of one address wins.
//! The label lets the connection into isolated networks, and has neighbours of a target masqueraded like those of a
//! forward's: not all of them need be in the network that is translated.

use std::cmp::Reverse;

use ipnetwork::IpNetwork;

use super::expressions::{End, FIRST, address_in, octets, set_label};
use crate::model::label::FORWARDED;
use crate::model::rule_comment::{NETMAP, format_comment};
use crate::model::{Asked, Family, Netmap, Owned};
use crate::nft::expr::{Choice, Ends, Expr, Immediate, Nat};
use crate::nft::program::Rule;

/// The rules about what is sent to the networks that are seen outside.
pub(super) fn inward(asked: &Asked) -> Vec<Rule> {
    let rule = |owned: &Owned<Netmap>| {
        let Netmap { listen, to } = owned.rule;
        let mut exprs = address_in(listen, End::Destination);
        exprs.extend(set_label(&[FORWARDED], FIRST));
        exprs.extend(prefix(false, to));
        rule(owned, exprs)
    };
    sorted(asked, |netmap| netmap.listen).into_iter().map(rule).collect()
}

/// The rules about what the networks that are really there send.
pub(super) fn outward(asked: &Asked) -> Vec<Rule> {
    let rule = |owned: &Owned<Netmap>| {
        let Netmap { listen, to } = owned.rule;
        let mut exprs = address_in(to, End::Source);
        exprs.extend(prefix(true, listen));
        rule(owned, exprs)
    };
    sorted(asked, |netmap| netmap.to).into_iter().map(rule).collect()
}

fn sorted(asked: &Asked, side: impl Fn(&Netmap) -> IpNetwork) -> Vec<&Owned<Netmap>> {
    let mut all: Vec<&Owned<Netmap>> = asked.netmaps.iter().collect();
    all.sort_by_key(|owned| Reverse(side(&owned.rule).prefix()));
    all
}

fn rule(owned: &Owned<Netmap>, exprs: Vec<Expr>) -> Rule {
    Rule { exprs, comment: Some(format_comment(&owned.set, Some(NETMAP))) }
}

/// `dnat ip prefix to 10.0.0.0/24`: what the network's first and last address have in common is what is rewritten.
fn prefix(source: bool, network: IpNetwork) -> Vec<Expr> {
    let family = Family::of_network(network);
    let last = FIRST.after(if family == Family::Ipv4 { 1 } else { 4 });
    let address = Ends { first: FIRST, last: Some(last) };
    vec![
        Expr::Immediate(Immediate { to: FIRST, data: octets(network.network()) }),
        Expr::Immediate(Immediate { to: last, data: octets(network.broadcast()) }),
        Expr::Nat(Nat { source, family, address, port: None, choice: Choice::Prefix }),
    ]
}
