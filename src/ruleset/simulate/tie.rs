//! Base chains of one priority, whose order the kernel does not report.

use super::outcome::{Outcome, Verdict};
use crate::ruleset::order::Placed;
use crate::ruleset::region::Packet;

/// The maximum number of base chains of one priority that are evaluated in every order.
const ORDERS: usize = 4;

/// Returns true if another order of chains with the same priority gives another result.
///
/// `before` is the packet before the chains, `after` the packet and the outcome after them, and `evaluate` evaluates the
/// chains in a given order.
pub(super) fn is_tied(
    group: &[Placed<'_>],
    before: &Packet,
    after: (&Packet, &Outcome),
    evaluate: &dyn Fn(&[&Placed<'_>], &mut Packet) -> Outcome,
) -> bool {
    let has_effect = |placed: &&Placed<'_>| {
        let mut packet = before.clone();
        let alone = evaluate(&[placed], &mut packet);
        alone.verdict != Verdict::Passes || alone.rewritten.is_some() || !alone.doubts.is_empty() || packet != *before
    };
    let effective = group.iter().filter(has_effect).count();
    if effective == 0 {
        return false;
    }
    if group.len() > ORDERS {
        return effective > 1;
    }
    let mut order: Vec<&Placed<'_>> = group.iter().collect();
    let mut is_same = |order: &[&Placed<'_>]| {
        let mut packet = before.clone();
        let other = evaluate(order, &mut packet);
        let dropped = other.dropped_by().is_some() && after.1.dropped_by().is_some();
        other.is_like(after.1)
            && other.doubts.is_empty() == after.1.doubts.is_empty()
            && (dropped || packet == *after.0)
    };
    !all_orders(&mut order, 0, &mut is_same)
}

/// Returns true if `is_same` is true for every order of `list`.
fn all_orders<T>(list: &mut [T], first: usize, is_same: &mut impl FnMut(&[T]) -> bool) -> bool {
    if first + 1 >= list.len() {
        return is_same(list);
    }
    (first..list.len()).all(|next| {
        list.swap(first, next);
        let same = all_orders(list, first + 1, is_same);
        list.swap(first, next);
        same
    })
}
