//! F43: forwards without packets.

use std::collections::HashSet;

use super::Context;
use super::wording;
use crate::audit::finding::{Finding, Kind};
use crate::audit::forwards::Forward;
use crate::model::Counter;
use crate::ruleset::host::Host;

/// Finds F43: forwards whose rules count 0 while other rules count more. Rules without a counter are ignored. A rule with a
/// map counts for all of its elements.
pub(super) fn never(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let (mut unused, mut used, mut rules) = (Vec::new(), 0usize, HashSet::new());
    for forward in super::forwards(context) {
        let rule = (forward.at.table, forward.at.chain, forward.at.rule);
        match count(host, forward) {
            Some(_) if !rules.insert(rule) => {}
            Some(0) => unused.push(forward),
            Some(_) => used += 1,
            None => {}
        }
    }
    if unused.is_empty() || used == 0 {
        return Vec::new();
    }
    let all = used + unused.len();
    let names = wording::list(unused.iter().map(|forward| wording::name(forward)));
    let message = format!("{} of {all} forwards were never used: {names}", unused.len());
    let finding = wording::at_all(kind.found(wording::sure(host), message), host, &unused);
    vec![finding.seen(format!("counter packets 0, and of {used} others more"))]
}

fn count(host: &Host, forward: &Forward<'_>) -> Option<u64> {
    let (_, _, rule) = host.rules.at(forward.at)?;
    rule.counter.map(|Counter { packets, .. }| packets)
}

#[cfg(test)]
mod tests {
    use super::super::super::hosts::{confidences, dump, find, nat, with_nat};
    use crate::ruleset::confidence::Confidence;

    fn rules(counts: [&str; 3]) -> String {
        let rule = |(number, count): (usize, &str)| {
            format!("{count} -A PREROUTING -p tcp -m tcp --dport {number} -j DNAT --to-destination 172.17.0.2\n")
        };
        counts.into_iter().enumerate().map(rule).collect::<String>().replace("\n -A", "\n-A").trim().to_owned()
    }

    #[test]
    fn f43_one_that_counts_nothing_beside_others() {
        let host = with_nat(&rules(["[7:420]", "[0:0]", ""]));
        let all = find(&host, "F43");
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].message, "1 of 2 forwards were never used: `1/tcp -> 172.17.0.2`");
        assert_eq!(confidences(&dump(&nat(&rules(["[7:420]", "[0:0]", ""]))), "F43"), [Confidence::Likely]);
    }

    #[test]
    fn f43_where_nothing_was_counted_yet_nothing_is_said() {
        for counts in [["[0:0]", "[0:0]", "[0:0]"], ["[1:60]", "[1:60]", ""], ["", "", ""]] {
            assert!(find(&with_nat(&rules(counts)), "F43").is_empty(), "{counts:?}");
        }
    }
}
