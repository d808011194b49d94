//! Compiles hairpin NAT, which masquerades clients in the same network as the target.
//!
//! Without masquerading, the target would reply directly to such a client. The client would reject the reply, because
//! the reply has the target's source address. Two rules masquerade the connections of these clients:
//! ```text
//! chain filter-forward  { ct state new ct label & (121, 119, 117) == 121 fib daddr . iif oif exists ct label set 120 }
//! chain nat-postrouting { ct label 120 masquerade }
//! ```
//! A client is in the target's network if the packet enters by the egress interface of the route to the target. The
//! rules therefore also cover networks that no rule set contains, and networks that are created later.
//!
//! Label 119 disables hairpin NAT for a connection, because the forward has `hairpin = false` or another source. Label
//! 117 marks connections that started under the iptables backend and that no forward matched.
//!
//! Hairpin NAT needs two chains. A `fib` expression with the ingress interface is allowed only up to the forward hook
//! (`nft_fib_validate` in net/netfilter/nft_fib.c). Source NAT is allowed only at postrouting.

use super::expressions::{FIRST, label_is, set_label};
use crate::model::label::{FORWARDED, MASQUERADE, SKIP_HAIRPIN, UNMATCHED};
use crate::nft::expr::{Bitwise, Cmp, Ct, CtKey, Expr, Fib, FibResult};
use crate::nft::program::Rule;

/// The bit of the conntrack state `new`. Source: `NF_CT_STATE_BIT(IP_CT_NEW)` in
/// include/uapi/linux/netfilter/nf_conntrack_common.h.
const STATE_NEW: u32 = 8;

/// The result of `fib … exists` if the route exists, as a 32-bit word.
const PRESENT: u32 = 1;

/// Returns the rule that labels hairpin connections: `ct state new ct label & (121, 119, 117) == 121 fib daddr . iif
/// oif exists ct label set 120`.
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
