//! Compiles the guard, which drops packets from other hosts with loopback addresses. The guard exists only if a forward
//! makes the kernel accept such packets.
//!
//! ```text
//! chain guard-prerouting { type filter hook prerouting priority -300;
//!     iifname != "lo" ip saddr 127.0.0.0/8 drop
//!     iifname != "lo" ip daddr 127.0.0.0/8 drop
//! }
//! ```
//! If a loopback forward has another host as its target, the interface that receives the replies needs
//! `route_localnet`. With this sysctl, the kernel accepts 127.0.0.0/8 from the interface's network, for every service
//! of this host (CVE-2020-8558).
//!
//! The guard does not drop the replies. Replies are sent to this host's own address, and conntrack restores the
//! loopback address only after the guard. The guard covers every interface, because RFC 1122, 3.2.1.3, forbids loopback
//! addresses on every network.
//!
//! IPv6 needs no guard, because the kernel drops packets with ::1 from a network (`ip6_rcv_core` in
//! net/ipv6/ip6_input.c).

use super::expressions::{AddressField, address_in, name_is};
use crate::model::{DesiredState, Family, address};
use crate::nft::expr::{Expr, MetaKey, Verdict};
use crate::nft::program::Rule;

/// Returns the rules of the guard. Returns no rules if no forward needs the guard.
pub(super) fn rules(desired: &DesiredState) -> Vec<Rule> {
    let opens = |binding: &crate::model::Binding| binding.loopback && binding.to.address.is_some();
    if !desired.bindings.iter().any(|owned| opens(&owned.rule)) {
        return Vec::new();
    }
    let guard = |field| {
        let mut exprs = name_is(MetaKey::IifName, false, *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0").to_vec();
        exprs.extend(address_in(address::loopback(Family::Ipv4), field));
        exprs.push(Expr::Verdict(Verdict::Drop));
        Rule { exprs, comment: None }
    };
    vec![guard(AddressField::Source), guard(AddressField::Destination)]
}
