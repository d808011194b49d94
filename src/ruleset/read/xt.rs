//! Matches and targets of x_tables, as the kernel keeps them: a name, a revision and a structure in the order of this host.
//! iptables(8) of variant nft puts them into rules of nf_tables where it has nothing native.
//!
//! The structures are those of include/uapi/linux/netfilter/xt_*.h; what they mean is what net/netfilter/xt_*.c does.

mod matches;
mod targets;

pub(in crate::ruleset::read) use matches::states_or_status;

use super::super::region::{Condition, Region};
use super::super::table::Action;
use crate::model::Family;

/// The packets that a match is about: those in any of these. What is not understood is [`Condition::Unknown`]. `ipset` gives
/// the names of sets of ipset(8).
pub fn matches(
    name: &str,
    revision: u32,
    info: &[u8],
    family: Option<Family>,
    ipset: impl FnOnce(u16) -> Option<String>,
) -> Vec<Region> {
    matches::read(name, revision, Info(info), family).unwrap_or_else(|| {
        let mut region = Region::all();
        region.add_condition(Condition::Unknown(matches::words(name, revision, Info(info), ipset).into()));
        vec![region]
    })
}

/// What a target does; `None` where it decides nothing.
pub fn target(name: &str, revision: u32, info: &[u8], family: Option<Family>) -> Option<Action> {
    match targets::read(name, revision, Info(info), family) {
        Some(targets::Done::Nothing) => None,
        Some(targets::Done::Action(action)) => Some(action),
        None => Some(Action::Unknown(format!("-j {name}").into())),
    }
}

/// The text of a match `comment`.
pub fn comment(info: &[u8]) -> Option<String> {
    let text = info.split(|byte| *byte == 0).next().filter(|text| !text.is_empty())?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// The bytes of a structure.
#[derive(Debug, Clone, Copy)]
struct Info<'a>(&'a [u8]);

impl Info<'_> {
    fn bytes<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn byte(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    /// A number of 16 bits in the order of this host.
    fn short(self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_ne_bytes)
    }

    /// One in network byte order.
    fn network_short(self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_be_bytes)
    }

    /// A number of 32 bits in the order of this host.
    fn long(self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_ne_bytes)
    }

    /// A `union nf_inet_addr`, as a number.
    fn address(self, at: usize, family: Family) -> Option<u128> {
        match family {
            Family::Ipv4 => self.bytes(at).map(u32::from_be_bytes).map(u128::from),
            Family::Ipv6 => self.bytes(at).map(u128::from_be_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_has_its_name() {
        let words = |name, revision, info: &[u8], set: Option<&str>| {
            let regions = matches(name, revision, info, Some(Family::Ipv4), |_| set.map(str::to_owned));
            let [Condition::Unknown(words)] = regions[0].conditions() else { panic!("{regions:?}") };
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
                        for name in matches_of.iter().chain(&["iprange", "set", "icmp"]) {
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
