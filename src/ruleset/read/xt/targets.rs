//! Reads the targets of x_tables from the structures of the kernel.
//!
//! Source: include/uapi/linux/netfilter/xt_*.h and nf_nat.h.

use crate::iptables::structure::Structure;
use crate::model::Family;
use crate::ruleset::read::nft::with_prefix;
use crate::ruleset::region::Field;
use crate::ruleset::reject::Rejection;
use crate::ruleset::table::{Action, Rewrite};

/// The effect of a target.
pub(super) enum Done {
    /// An action.
    Action(Action),
    /// No verdict and no mark, for example a log.
    Nothing,
}

/// Reads a target. Returns `None` if the target is not understood.
pub(super) fn read(name: &str, revision: u32, info: Structure<'_>, family: Option<Family>) -> Option<Done> {
    let action = match (name, revision) {
        ("DNAT", 0..=2) => Action::Dnat(rewrite(revision, info, family?)?),
        ("SNAT", 0..=2) => Action::Snat(rewrite(revision, info, family?)?),
        ("MASQUERADE", 0) => Action::Masquerade(rewrite(of_family(family?), info, family?)?),
        ("REDIRECT", 0) => Action::Redirect(rewrite(of_family(family?), info, family?)?),
        ("NETMAP", 0) => {
            // The hook decides between source and destination.
            Action::Netmap(with_prefix(rewrite(of_family(family?), info, family?)?, true)?)
        }
        ("MARK", 2) => {
            let (value, mask) = (info.long(0)?, info.long(4)?);
            mark(Field::Mark, mask, value)
        }
        ("CONNMARK", 1 | 2) => connmark(revision, info)?,
        ("CT", 0..=2) => {
            const NOTRACK: u16 = 1;
            const ZONE: u16 = 4 | 8 | 16;
            match (info.short(0)?, info.short(2)?) {
                (flags, _) if flags & NOTRACK > 0 => Action::Untracked,
                // Connections of another zone are not those of the simulation.
                (flags, zone) if flags & ZONE > 0 || zone > 0 => return None,
                _ => return Some(Done::Nothing),
            }
        }
        ("NOTRACK", _) => Action::Untracked,
        ("TPROXY", _) => Action::Proxy(proxy(revision, info, family).unwrap_or_default()),
        ("REJECT", _) => Action::Reject(Rejection::of_iptables(info.long(0), family)),
        ("NFQUEUE" | "QUEUE", _) => Action::Queue,
        ("HMARK", _) => Action::MarkUnknown { field: Field::Mark },
        // `map_set` is the third set. Without one its number is `IPSET_INVALID_ID`. The entry can contain a mark.
        ("SET", 3..) if info.short(8)? != u16::MAX => Action::MarkUnknown { field: Field::Mark },
        (
            "LOG" | "NFLOG" | "ULOG" | "TRACE" | "TEE" | "CLASSIFY" | "DSCP" | "TOS" | "TTL" | "HL" | "ECN" | "TCPMSS"
            | "TCPOPTSTRIP" | "AUDIT" | "CHECKSUM" | "SECMARK" | "CONNSECMARK" | "SET" | "IDLETIMER" | "LED"
            | "RATEEST",
            _,
        ) => return Some(Done::Nothing),
        _ => return None,
    };
    Some(Done::Action(action))
}

/// Reads `struct xt_tproxy_target_info` and `xt_tproxy_target_info_v1`. An unspecified address is that of the packet.
fn proxy(revision: u32, info: Structure<'_>, family: Option<Family>) -> Option<Rewrite> {
    let family = if revision == 0 { Family::Ipv4 } else { family? };
    let address = info.address(8, family)?;
    let port = info.network_short(if revision == 0 { 12 } else { 24 })?;
    let addresses = Some((address, address)).filter(|_| !address.is_unspecified());
    Some(Rewrite { addresses, ports: Some((port, port)).filter(|_| port > 0), ..Rewrite::default() })
}

/// The revision of `SNAT` with the same structure as a target of NAT that is its own for each family.
fn of_family(family: Family) -> u32 {
    if family == Family::Ipv4 { 0 } else { 1 }
}

/// Reads `struct nf_nat_ipv4_multi_range_compat`, `nf_nat_range` or `nf_nat_range2`.
fn rewrite(revision: u32, info: Structure<'_>, family: Family) -> Option<Rewrite> {
    const ADDRESSES: u32 = 1;
    const PORTS: u32 = 1 << 1;
    const OFFSET: u32 = 1 << 5;
    let (flags, addresses, ports) = match (revision, family) {
        // The number of ranges comes first, and is 1.
        (0, Family::Ipv4) => (info.long(4)?, (8, 12), (16, 18)),
        (0, Family::Ipv6) => return None,
        _ => (info.long(0)?, (4, 20), (36, 38)),
    };
    let mut rewrite = Rewrite::default();
    if flags & ADDRESSES > 0 {
        let address = |at| info.address(at, family);
        rewrite.addresses = Some((address(addresses.0)?, address(addresses.1)?));
    }
    if flags & PORTS > 0 {
        rewrite.ports = Some((info.network_short(ports.0)?, info.network_short(ports.1)?));
    }
    if flags & OFFSET > 0 && revision == 2 {
        rewrite.base = Some(info.network_short(40)?);
    }
    Some(rewrite)
}

/// Returns the action that sets `(mark & !mask) ^ value`.
fn mark(field: Field, mask: u32, value: u32) -> Action {
    Action::Mark { field, mask: mask.into(), value: value.into() }
}

/// Reads `struct xt_connmark_tginfo1` or `2`.
fn connmark(revision: u32, info: Structure<'_>) -> Option<Action> {
    const SET: u8 = 0;
    const SAVE: u8 = 1;
    const RESTORE: u8 = 2;
    let (value, mask, of_packet) = (info.long(0)?, info.long(4)?, info.long(8)?);
    let (shifted, mode) = match revision {
        1 => (false, info.byte(12)?),
        _ => (info.byte(13)? != 0, info.byte(14)?),
    };
    let whole = (mask, of_packet) == (u32::MAX, u32::MAX) && !shifted;
    let copy = |to| if whole { Action::CopyMark { to } } else { Action::MarkUnknown { field: to } };
    match mode {
        SET if !shifted => Some(mark(Field::ConnectionMark, mask, value)),
        SET => Some(Action::MarkUnknown { field: Field::ConnectionMark }),
        SAVE => Some(copy(Field::ConnectionMark)),
        RESTORE => Some(copy(Field::Mark)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::target;
    use super::*;

    #[test]
    fn ports_that_are_moved_keep_their_order() {
        let mut bytes = vec![0; 44];
        bytes[..4].copy_from_slice(&0b10_0011u32.to_ne_bytes());
        bytes[4..8].copy_from_slice(&[172, 17, 0, 2]);
        bytes[20..24].copy_from_slice(&[172, 17, 0, 2]);
        bytes[36..42].copy_from_slice(&[0, 80, 0, 90, 0x1f, 0x90]);
        let to = "172.17.0.2".parse().expect("address");
        let rewrite = Rewrite { addresses: Some((to, to)), ports: Some((80, 90)), base: Some(8080), prefix: None };
        assert_eq!(target("DNAT", 2, &bytes, Some(Family::Ipv4)), Some(Action::Dnat(rewrite)));
        assert_eq!(target("DNAT", 2, &bytes, None), Some(Action::Unknown("-j DNAT".into())));
    }

    #[test]
    fn marks() {
        let info = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<u8>>();
        let of = |name, revision, bytes: &[u8]| target(name, revision, bytes, Some(Family::Ipv4));
        let set = Action::Mark { field: Field::Mark, mask: 0xff, value: 2 };
        assert_eq!(of("MARK", 2, &info(&[2, 0xff])), Some(set));
        let turned = Action::Mark { field: Field::Mark, mask: 0, value: 2 };
        assert_eq!(of("MARK", 2, &info(&[2, 0])), Some(turned));
        let unknown = Action::MarkUnknown { field: Field::Mark };
        let mut restore = info(&[0, u32::MAX, u32::MAX, 0]);
        restore[14] = 2;
        assert_eq!(of("CONNMARK", 2, &restore), Some(Action::CopyMark { to: Field::Mark }));
        restore[4] = 0;
        assert_eq!(of("CONNMARK", 2, &restore), Some(unknown));
    }
}
