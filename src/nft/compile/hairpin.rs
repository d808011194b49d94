//! Hairpin NAT: masquerades clients in the target's own network.
//!
//! Without masquerading, the target would reply to such a client directly, and the client would reject the reply because
//! of its source address. Two rules masquerade the connections of these clients:
//! ```text
//! chain filter-forward  { ct state new ct label & (121, 119, 117) == 121 fib daddr . iif oif exists ct label set 120 }
//! chain nat-postrouting { ct label 120 masquerade }
//! ```
//! A client is in the target's network if the packet's ingress interface is also the egress interface of the route to the
//! target. So the rules also work for networks that no rule set contains, and for networks that are created later.
//!
//! Label 119 disables hairpin NAT for a connection: the forward has `hairpin = false`, or another source. Label 117 is on
//! connections that started under the iptables backend and that no forward matched.
//!
//! Two chains are needed: a `fib` expression with the ingress interface is allowed up to the forward hook, but source NAT
//! only at postrouting (`nft_fib_validate` in net/netfilter/nft_fib.c).

use super::expressions::{FIRST, label_is, set_label};
use crate::model::label::{FORWARDED, MASQUERADE, SKIP_HAIRPIN, UNMATCHED};
use crate::nft::expr::{Bitwise, Cmp, Ct, CtKey, Expr, Fib, FibResult};
use crate::nft::program::Rule;

/// `NF_CT_STATE_BIT(IP_CT_NEW)` in include/uapi/linux/netfilter/nf_conntrack_common.h.
const STATE_NEW: u32 = 8;

/// The result of `fib … exists` for an existing route, as a 32-bit word.
const PRESENT: u32 = 1;

/// `ct state new ct label & (121, 119, 117) == 121 fib daddr . iif oif exists ct label set 120`.
pub(super) fn mark() -> Rule {
    let mut exprs = vec![
        Expr::Ct(Ct { key: CtKey::State, to: FIRST }),
        Expr::Bitwise(Bitwise { register: FIRST, mask: STATE_NEW.to_ne_bytes().to_vec() }),
        Expr::Cmp(Cmp { register: FIRST, equal: false, data: vec![0; 4] }),
    ];
    exprs.extend(label_is(&[FORWARDED, SKIP_HAIRPIN, UNMATCHED], &[FORWARDED]));
    exprs.push(Expr::Fib(Fib { result: FibResult::DestinationBehindInput, to: FIRST }));
    exprs.push(Expr::Cmp(Cmp { register: FIRST, equal: true, data: PRESENT.to_ne_bytes().to_vec() }));
    exprs.extend(set_label(&[MASQUERADE], FIRST));
    Rule { exprs, comment: None }
}
