//! Reads the structure that the kernel stores for a match, in the byte order of this host. iptables-nft puts it into rules
//! of nf_tables.
//!
//! Source: include/uapi/linux/netfilter/xt_*.h. net/netfilter/xt_*.c gives the meaning.

use super::{MAX_LABEL, MaskedAddress, Match, Side, States};
use crate::iptables::structure::Structure;
use crate::model::Family;

impl Match {
    /// Reads a match. An extension that is not understood becomes [`Match::Unknown`]. `ipset` returns the names of sets of
    /// ipset(8).
    pub fn decode(
        name: &str,
        revision: u32,
        info: &[u8],
        family: Option<Family>,
        ipset: impl FnOnce(u16) -> Option<String>,
    ) -> Vec<Self> {
        let info = Structure(info);
        let unknown = |text: String| vec![Self::Unknown(text.into())];
        match (name, revision) {
            ("set", 1..=4) => unknown(set(info, ipset).unwrap_or_else(|| "-m set".into())),
            _ => decode(name, revision, info, family).unwrap_or_else(|| unknown(format!("-m {name}"))),
        }
    }
}

fn decode(name: &str, revision: u32, info: Structure<'_>, family: Option<Family>) -> Option<Vec<Match>> {
    Some(match (name, revision) {
        ("tcp", 0) => tcp(info)?,
        ("udp", 0) => sides(17, info, info.byte(8)?, [0, 4])?,
        ("udplite", 0) => sides(136, info, info.byte(8)?, [0, 4])?,
        ("sctp", 0) => flagged(132, "-m sctp, chunk types", info, info.long(284)?, info.long(288)?)?,
        ("dccp", 0) => flagged(33, "-m dccp, types or options", info, info.short(8)?.into(), info.short(10)?.into())?,
        ("multiport", 1) => vec![multiport(info)?],
        ("addrtype", 0 | 1) => addrtype(revision, info)?,
        ("conntrack", 1..=3) => conntrack(revision, info, family)?,
        ("state", 0) => {
            // `XT_STATE_UNTRACKED` is the bit of `XT_CONNTRACK_STATE_SNAT`.
            let mask = u16::try_from(info.long(0)?).ok()?;
            let untracked = if mask & States::SNAT > 0 { States::UNTRACKED } else { 0 };
            vec![Match::State { not: false, states: States(mask & 0b1111 | untracked) }]
        }
        ("mark" | "connmark", 1) => {
            let connection = name == "connmark";
            vec![Match::Mark { connection, not: info.byte(8)? != 0, value: info.long(0)?, mask: info.long(4)? }]
        }
        ("iprange", 1) => iprange(info, family?)?,
        ("connlabel", 0) => vec![label(info.short(0)?, info.short(2)?)?],
        ("comment", _) => vec![Match::Comment(info.text()?.into())],
        _ => return None,
    })
}

/// Reads `struct xt_set_info` as the text of iptables-save(8).
fn set(info: Structure<'_>, ipset: impl FnOnce(u16) -> Option<String>) -> Option<String> {
    /// `IPSET_INV_MATCH` in include/uapi/linux/netfilter/ipset/ip_set.h.
    const INVERTED: u8 = 1;
    /// `IPSET_DIM_MAX` in the same file.
    const MOST: u8 = 6;
    let (number, dimensions, flags) = (info.short(0)?, info.byte(2)?, info.byte(3)?);
    let not = if flags & INVERTED > 0 { "! " } else { "" };
    let sides: Vec<&str> =
        (1..=dimensions.min(MOST)).map(|at| if flags >> at & 1 > 0 { "src" } else { "dst" }).collect();
    let set = ipset(number).unwrap_or_else(|| format!("number {number}"));
    Some(format!("-m set {not}--match-set {set} {}", sides.join(",")))
}

/// Reads the source ports and the destination ports, at two places. The bits 1 and 2 of `not` negate them.
fn sides(protocol: u8, info: Structure<'_>, not: u8, places: [usize; 2]) -> Option<Vec<Match>> {
    let mut found = Vec::new();
    for (bit, source, at) in [(1, true, places[0]), (2, false, places[1])] {
        let (not, ports) = (not & bit > 0, (info.short(at)?, info.short(at + 2)?));
        if not || ports != (0, u16::MAX) {
            found.push(Match::Port { protocol, source, not, ports });
        }
    }
    Some(found)
}

/// Reads the ports, flags and option of `struct xt_tcp`.
fn tcp(info: Structure<'_>) -> Option<Vec<Match>> {
    const NOT_FLAGS: u8 = 4;
    const NOT_OPTION: u8 = 8;
    let (option, mask, set, not) = (info.byte(8)?, info.byte(9)?, info.byte(10)?, info.byte(11)?);
    let mut found = sides(6, info, not, [0, 4])?;
    if mask != 0 || set != 0 || not & NOT_FLAGS > 0 {
        found.push(Match::TcpFlags { not: not & NOT_FLAGS > 0, mask, set });
    }
    if option != 0 {
        let sign = if not & NOT_OPTION > 0 { "! " } else { "" };
        found.push(Match::Unknown(format!("-m tcp {sign}--tcp-option {option}").into()));
    }
    Some(found)
}

/// Reads `struct xt_sctp_info` or `struct xt_dccp_info`. The destination ports come first. The bits 1 and 2 of `flags`
/// are source and destination ports, and `rest` names the matches of the other bits.
fn flagged(protocol: u8, rest: &str, info: Structure<'_>, flags: u32, not: u32) -> Option<Vec<Match>> {
    let mut found = Vec::new();
    for (bit, source, at) in [(1, true, 4), (2, false, 0)] {
        if flags & bit > 0 {
            let ports = (info.short(at)?, info.short(at + 2)?);
            found.push(Match::Port { protocol, source, not: not & bit > 0, ports });
        }
    }
    if flags & !3 > 0 {
        found.push(Match::Unknown(rest.into()));
    }
    Some(found)
}

/// Reads the ports of `struct xt_multiport_v1`.
fn multiport(info: Structure<'_>) -> Option<Match> {
    const MOST: usize = 15;
    let count = usize::from(info.byte(1)?).min(MOST);
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < count {
        let port = |at: usize| info.short(2 + 2 * at);
        // A flag marks a port as the first of a range, and the next entry is the last.
        let last = if info.byte(32 + at)? != 0 { at + 1 } else { at };
        ranges.push((port(at)?, port(last)?));
        at = last + 1;
    }
    let side = [Side::Source, Side::Destination, Side::Either].get(usize::from(info.byte(0)?)).copied()?;
    Some(Match::Multiport { side, not: info.byte(47)? != 0, ranges: ranges.into() })
}

/// Reads `struct xt_addrtype_info` or `struct xt_addrtype_info_v1`.
fn addrtype(revision: u32, info: Structure<'_>) -> Option<Vec<Match>> {
    const ONE_INTERFACE: u32 = 4 | 8;
    let flags = info.long(4)?;
    let (not_source, not_destination) = match revision {
        0 => (flags != 0, info.long(8)? != 0),
        _ => (flags & 1 > 0, flags & 2 > 0),
    };
    if revision > 0 && flags & ONE_INTERFACE > 0 {
        return Some(vec![Match::Unknown("-m addrtype, of one interface".into())]);
    }
    let sides = [(true, info.short(0)?, not_source), (false, info.short(2)?, not_destination)];
    let asked = sides.into_iter().filter(|(_, kinds, _)| *kinds != 0);
    Some(asked.map(|(source, kinds, not)| Match::AddressType { source, not, kinds }).collect())
}

/// Reads `struct xt_conntrack_mtinfo1`, `2` or `3`.
fn conntrack(revision: u32, info: Structure<'_>, family: Option<Family>) -> Option<Vec<Match>> {
    const STATE: u16 = 1;
    const DESTINATION: u16 = 1 << 3;
    const STATUS: u16 = 1 << 6;
    const PORT: u16 = 1 << 9;
    const DIRECTION: u16 = 1 << 12;
    const ALIAS: u16 = 1 << 13;
    let (flags, not) = (info.short(146)?, info.short(148)?);
    let (has, not) = (|flag| flags & flag > 0, |flag| not & flag > 0);
    let (states, bits) = match revision {
        1 => (info.byte(150)?.into(), info.byte(151)?.into()),
        _ => (info.short(150)?, info.short(152)?),
    };
    let mut found = Vec::new();
    if has(STATE) {
        found.push(Match::State { not: not(STATE), states: States(states) });
    }
    if has(DESTINATION) {
        let network = MaskedAddress { address: info.address(32, family?)?, mask: info.address(48, family?)? };
        found.push(Match::OriginalDestination { not: not(DESTINATION), network });
    }
    if has(PORT) {
        // Revisions without ranges have the port in network byte order.
        let ports = match revision {
            3 => (info.short(140)?, info.short(156)?),
            _ => (info.network_short(140)?, info.network_short(140)?),
        };
        found.push(Match::OriginalPort { not: not(PORT), ports });
    }
    if has(STATUS) {
        found.push(Match::Status { not: not(STATUS), bits });
    }
    if has(DIRECTION) {
        found.push(Match::Direction { reply: not(DIRECTION) });
    }
    if flags & !(STATE | DESTINATION | STATUS | PORT | DIRECTION | ALIAS) != 0 {
        found.push(Match::Unknown("-m conntrack".into()));
    }
    Some(found)
}

/// Reads the ranges of `struct xt_iprange_mtinfo`.
fn iprange(info: Structure<'_>, family: Family) -> Option<Vec<Match>> {
    let flags = info.byte(64)?;
    let mut found = Vec::new();
    for (source, at, bit) in [(true, 0, 1), (false, 32, 1 << 1)] {
        if flags & bit > 0 {
            let (first, last) = (info.address(at, family)?, info.address(at + 16, family)?);
            found.push(Match::Range { source, not: flags & bit << 4 > 0, first, last });
        }
    }
    Some(found)
}

/// Reads the options of `struct xt_connlabel_mtinfo`.
fn label(bit: u16, options: u16) -> Option<Match> {
    const NOT: u16 = 1;
    const SET: u16 = 2;
    let bit = u8::try_from(bit).ok().filter(|bit| *bit <= MAX_LABEL)?;
    match (options & NOT > 0, options & SET > 0) {
        (false, true) => Some(Match::SetLabel(bit)),
        (true, true) => None,
        (not, false) => Some(Match::Label { bit, not }),
    }
}
