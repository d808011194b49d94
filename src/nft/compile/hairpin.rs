//! The way back for neighbours of a target.
//!
//! A client in the target's own network would get its answers straight from the target, from an address it never asked.
//! So its connections take our address:
//! ```text
//! chain filter-forward  { ct state new ct label & (121, 119, 117) == 121 fib daddr . iif oif exists ct label set 120 }
//! chain nat-postrouting { ct label 120 masquerade }
//! ```
//! "The target's own network" is what the target is reached through: the packet came in by the very interface that the
//! way to its target leads out of. So it holds for networks that no rule set names, and for those made later.
//!
//! Label 119 says that nobody is to ask: hairpin is not wanted, or another source is. Label 117 is on connections that began
//! when iptables did our work, and that none of our forwards wanted.
//!
//! It takes two chains because the kernel lets rules ask the routing table about the input only before a packet leaves,
//! and rewrite the source only when it leaves (`nft_fib_validate` in net/netfilter/nft_fib.c).

use super::expressions::{FIRST, label_is, set_label};
use crate::model::label::{FORWARDED, MASQUERADE, SKIP_HAIRPIN, UNMATCHED};
use crate::nft::expr::{Bitwise, Cmp, Ct, CtKey, Expr, Fib, FibResult};
use crate::nft::program::Rule;

/// `NF_CT_STATE_BIT(IP_CT_NEW)` in include/uapi/linux/netfilter/nf_conntrack_common.h.
const STATE_NEW: u32 = 8;

/// What `fib … exists` answers, as a whole word.
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
