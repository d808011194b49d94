//! Matches and targets of x_tables in the structures of the kernel: a name, a revision and bytes. iptables-nft puts a
//! structure into a rule of nf_tables if nf_tables has no expression of its own.
//!
//! Source: include/uapi/linux/netfilter/xt_*.h. net/netfilter/xt_*.c gives the meaning.

pub(super) mod lower;
mod targets;

use super::super::region::Region;
use super::super::table::Action;
use crate::iptables::matching::Match;
use crate::iptables::structure::Structure;
use crate::model::Family;

/// Returns the packets that a match matches, which are those in any region, and what the match itself does. `ipset` returns
/// the names of sets of ipset(8).
pub fn matches(
    name: &str,
    revision: u32,
    info: &[u8],
    family: Option<Family>,
    ipset: impl FnOnce(u16) -> Option<String>,
) -> (Vec<Region>, Vec<Action>) {
    let matches = Match::decode(name, revision, info, family, ipset);
    (lower::regions(&matches, family), lower::actions(&matches))
}

/// Returns what a target does. Returns `None` if it gives no verdict and sets no mark.
pub fn target(name: &str, revision: u32, info: &[u8], family: Option<Family>) -> Option<Action> {
    match targets::read(name, revision, Structure(info), family) {
        Some(targets::Done::Nothing) => None,
        Some(targets::Done::Action(action)) => Some(action),
        None => Some(Action::Unknown(format!("-j {name}").into())),
    }
}

/// Returns the text of a match `comment`.
pub fn comment(info: &[u8]) -> Option<String> {
    Structure(info).text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_has_its_name() {
        let words = |name, revision, info: &[u8], set: Option<&str>| {
            let (regions, _) = matches(name, revision, info, Some(Family::Ipv4), |_| set.map(str::to_owned));
            let [crate::ruleset::region::Condition::Unknown(words)] = regions[0].conditions() else {
                panic!("{regions:?}")
            };
            words.to_string()
        };
        assert_eq!(words("tomorrow", 0, &[], None), "-m tomorrow");
        let [low, high] = 513u16.to_ne_bytes();
        assert_eq!(words("set", 4, &[low, high, 1, 2], Some("blocked")), "-m set --match-set blocked src");
        assert_eq!(words("set", 1, &[low, high, 2, 1 | 4], None), "-m set ! --match-set number 513 dst,src");
        assert_eq!(words("set", 4, &[low, high, 1], Some("cut short")), "-m set");
        assert_eq!(words("set", 0, &[0; 40], Some("older")), "-m set");
        assert_eq!(target("TOMORROW", 0, &[], None), Some(Action::Unknown("-j TOMORROW".into())));
    }

    #[test]
    fn any_bytes_are_something() {
        let matches_of =
            ["tcp", "udp", "sctp", "dccp", "multiport", "addrtype", "conntrack", "state", "mark", "connmark"];
        let targets = ["DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP", "MARK", "CONNMARK", "CT", "SET"];
        for length in 0..200 {
            for byte in [0, 1, 0x7f, 0xff] {
                let info = vec![byte; length];
                for family in [None, Some(Family::Ipv4), Some(Family::Ipv6)] {
                    for revision in 0..5 {
                        for name in matches_of.iter().chain(&["iprange", "set", "icmp", "connlabel", "comment"]) {
                            let _ = matches(name, revision, &info, family, |_| None);
                        }
                        for name in targets {
                            let _ = target(name, revision, &info, family);
                        }
                    }
                }
            }
        }
    }
}
