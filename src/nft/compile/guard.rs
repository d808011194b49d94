//! Keeps loopback addresses off the wire where a forward opens them.
//!
//! ```text
//! chain guard-prerouting { type filter hook prerouting priority -300;
//!     iifname != "lo" ip saddr 127.0.0.0/8 drop
//!     iifname != "lo" ip daddr 127.0.0.0/8 drop
//! }
//! ```
//! A loopback forward to another host needs `route_localnet` on the interface that its answers come by, and with that the
//! kernel accepts 127.0.0.0/8 from that wire, for every service of this host (CVE-2020-8558). Answers pass: on the wire they
//! are sent to this host's own address, and this chain sees them before that is undone. It is for every interface,
//! because RFC 1122, 3.2.1.3, allows these addresses on none.
//!
//! IPv6 needs none: the kernel drops ::1 from a wire by itself (`ip6_rcv_core` in net/ipv6/ip6_input.c).

use super::expressions::{End, address_in, name_is};
use crate::model::{Asked, Family, address};
use crate::nft::expr::{Expr, MetaKey, Verdict};
use crate::nft::program::Rule;

/// The guard, where a forward needs it.
pub(super) fn rules(asked: &Asked) -> Vec<Rule> {
    let opens = |binding: &crate::model::Binding| binding.loopback && binding.to.address.is_some();
    if !asked.bindings.iter().any(|owned| opens(&owned.rule)) {
        return Vec::new();
    }
    let guard = |end| {
        let mut exprs = name_is(MetaKey::IifName, false, *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0").to_vec();
        exprs.extend(address_in(address::loopback(Family::Ipv4), end));
        exprs.push(Expr::Verdict(Verdict::Drop));
        Rule { exprs, comment: None }
    };
    vec![guard(End::Source), guard(End::Destination)]
}
