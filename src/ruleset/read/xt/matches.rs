//! Matches. The names and numbers are those of include/uapi/linux/netfilter/xt_*.h.

use super::Info;
use crate::model::Family;
use crate::ruleset::region::{Condition, DST_NAT, Field, Region, SRC_NAT, State, states};
use crate::ruleset::set::Set;

/// What a match that is not understood is called.
pub(super) fn words(name: &str, revision: u32, info: Info<'_>, ipset: impl FnOnce(u16) -> Option<String>) -> String {
    match (name, revision) {
        ("set", 1..=4) => of_set(info, ipset).unwrap_or_else(|| "-m set".into()),
        _ => format!("-m {name}"),
    }
}

/// `struct xt_set_info`, in the words of iptables-save(8).
fn of_set(info: Info<'_>, ipset: impl FnOnce(u16) -> Option<String>) -> Option<String> {
    /// `IPSET_INV_MATCH` in include/uapi/linux/netfilter/ipset/ip_set.h.
    const INVERTED: u8 = 1;
    /// `IPSET_DIM_MAX` there.
    const MOST: u8 = 6;
    let (number, dimensions, flags) = (info.short(0)?, info.byte(2)?, info.byte(3)?);
    let not = if flags & INVERTED > 0 { "! " } else { "" };
    let sides: Vec<&str> =
        (1..=dimensions.min(MOST)).map(|at| if flags >> at & 1 > 0 { "src" } else { "dst" }).collect();
    let set = ipset(number).unwrap_or_else(|| format!("number {number}"));
    Some(format!("-m set {not}--match-set {set} {}", sides.join(",")))
}

/// Reads a match; `None` where it is not understood.
pub(super) fn read(name: &str, revision: u32, info: Info<'_>, family: Option<Family>) -> Option<Vec<Region>> {
    let regions = match (name, revision) {
        ("tcp", 0) => vec![tcp(info)?],
        ("udp" | "udplite", 0) => vec![udp(name, info)?],
        ("sctp", 0) => vec![sctp(info)?],
        ("dccp", 0) => vec![dccp(info)?],
        ("icmp", _) => vec![of_protocol(1, true, "-m icmp")],
        ("icmp6", _) => vec![of_protocol(58, true, "-m icmp6")],
        ("multiport", 1) => multiport(info)?,
        ("addrtype", 0 | 1) => vec![addrtype(revision, info)?],
        ("conntrack", 1..=3) => conntrack(revision, info, family)?,
        ("state", 0) => vec![state(info)?],
        ("mark", 1) => vec![mark(Field::Mark, info)?],
        ("connmark", 1) => vec![mark(Field::ConnectionMark, info)?],
        ("iprange", 1) => vec![iprange(info, family?)?],
        ("comment", _) => vec![Region::all()],
        _ => return None,
    };
    Some(regions)
}

fn inverted(set: Set, not: bool) -> Set {
    if not { set.not() } else { set }
}

/// The packets of a protocol, where something more may be asked for than is understood.
fn of_protocol(protocol: u128, more: bool, words: &str) -> Region {
    let mut region = Region::all().with(Field::Protocol, &Set::single(protocol));
    if more {
        region.add_condition(Condition::Unknown(words.into()));
    }
    region
}

/// Ports at two places in a structure.
fn ports(info: Info<'_>, at: usize, not: bool) -> Option<Set> {
    let range = (info.short(at)?, info.short(at + 2)?);
    Some(if range == (0, u16::MAX) && !not {
        Set::ALL
    } else {
        inverted(Set::range(range.0.into(), range.1.into()), not)
    })
}

fn tcp(info: Info<'_>) -> Option<Region> {
    let (option, mask, not) = (info.byte(8)?, info.byte(9)?, info.byte(11)?);
    let region = of_protocol(6, option != 0 || mask != 0 || not & 0b1100 != 0, "-m tcp, flags or options");
    let region = region.with(Field::SourcePort, &ports(info, 0, not & 1 > 0)?);
    Some(region.with(Field::Port, &ports(info, 4, not & 2 > 0)?))
}

fn udp(name: &str, info: Info<'_>) -> Option<Region> {
    let not = info.byte(8)?;
    let region = of_protocol(if name == "udp" { 17 } else { 136 }, false, "");
    let region = region.with(Field::SourcePort, &ports(info, 0, not & 1 > 0)?);
    Some(region.with(Field::Port, &ports(info, 4, not & 2 > 0)?))
}

/// The flags of sctp and dccp: source ports, destination ports, the rest.
fn flagged(mut region: Region, info: Info<'_>, flags: u32, not: u32) -> Option<Region> {
    for (bit, field, at) in [(1, Field::SourcePort, 4), (2, Field::Port, 0)] {
        if flags & bit > 0 {
            region.narrow(field, &ports(info, at, not & bit > 0)?);
        }
    }
    Some(region)
}

/// `struct xt_sctp_info`: the ports, a bitmap of 256 bytes, the flags of chunks, then the flags of the match.
fn sctp(info: Info<'_>) -> Option<Region> {
    let (flags, not) = (info.long(284)?, info.long(288)?);
    flagged(of_protocol(132, flags & !3 > 0, "-m sctp, chunk types"), info, flags, not)
}

fn dccp(info: Info<'_>) -> Option<Region> {
    let (flags, not) = (info.short(8)?.into(), info.short(10)?.into());
    flagged(of_protocol(33, flags & !3u32 > 0, "-m dccp, types or options"), info, flags, not)
}

fn multiport(info: Info<'_>) -> Option<Vec<Region>> {
    const MOST: usize = 15;
    const SOURCE: u8 = 0;
    const DESTINATION: u8 = 1;
    const EITHER: u8 = 2;
    let count = usize::from(info.byte(1)?).min(MOST);
    let not = info.byte(47)? != 0;
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < count {
        let port = |at: usize| info.short(2 + 2 * at).map(u128::from);
        // A flag says that the next one is the end of a range.
        let last = if info.byte(32 + at)? != 0 { at + 1 } else { at };
        ranges.push((port(at)?, port(last)?));
        at = last + 1;
    }
    let ports = Set::from_ranges(ranges);
    let of = |field, set: &Set| Region::all().with(field, set);
    Some(match (info.byte(0)?, not) {
        (SOURCE, _) => vec![of(Field::SourcePort, &inverted(ports, not))],
        (DESTINATION, _) => vec![of(Field::Port, &inverted(ports, not))],
        (EITHER, true) => vec![of(Field::SourcePort, &ports.not()).with(Field::Port, &ports.not())],
        (EITHER, false) => {
            vec![of(Field::Port, &ports), of(Field::SourcePort, &ports).with(Field::Port, &ports.not())]
        }
        _ => return None,
    })
}

fn addrtype(revision: u32, info: Info<'_>) -> Option<Region> {
    const NOT_SOURCE: u32 = 1;
    const NOT_DESTINATION: u32 = 2;
    const LIMITED: u32 = 4 | 8;
    let (source, destination) = (info.short(0)?, info.short(2)?);
    let flags = info.long(4)?;
    let (not_source, not_destination, limited) = match revision {
        0 => (flags != 0, info.long(8)? != 0, false),
        _ => (flags & NOT_SOURCE > 0, flags & NOT_DESTINATION > 0, flags & LIMITED > 0),
    };
    let mut region = Region::all();
    for (field, kinds, not) in
        [(Field::SourceKind, source, not_source), (Field::DestinationKind, destination, not_destination)]
    {
        if kinds != 0 {
            let set = (0..16u128).filter(|kind| kinds >> kind & 1 > 0).map(|kind| (kind, kind));
            region.narrow(field, &inverted(Set::from_ranges(set), not));
        }
    }
    if limited {
        region = Region::all();
        region.add_condition(Condition::Unknown("-m addrtype, of one interface".into()));
    }
    Some(region)
}

/// The states in a mask: `XT_CONNTRACK_STATE_BIT` and `XT_STATE_BIT`; the bit of those that are not followed differs.
fn states_in(mask: u32, untracked: u32) -> Set {
    let bits = [(1, State::Invalid), (2, State::Established), (4, State::Related), (8, State::New)];
    let all = bits.into_iter().chain([(untracked, State::Untracked)]);
    states(all.filter(|(bit, _)| mask & bit > 0).map(|(_, state)| state))
}

/// The set of all states without those, which are the only ones that there are.
fn not_states(set: &Set) -> Set {
    states(State::ALL.into_iter().filter(|state| !set.has(state.number())))
}

fn state(info: Info<'_>) -> Option<Region> {
    Some(Region::all().with(Field::State, &states_in(info.long(0)?, 1 << 6)))
}

fn status(mask: u128, not: bool) -> Condition {
    // That one bit is set is that it is not clear: one form, so that rules can be compared.
    match (mask.is_power_of_two(), not) {
        (true, false) => Condition::Bits { field: Field::Status, mask, value: mask, not: false },
        _ => Condition::Bits { field: Field::Status, mask, value: 0, not: !not },
    }
}

/// `struct xt_conntrack_mtinfo1` to `3`.
fn conntrack(revision: u32, info: Info<'_>, family: Option<Family>) -> Option<Vec<Region>> {
    const STATE: u16 = 1;
    const PROTOCOL: u16 = 1 << 1;
    const DESTINATION: u16 = 1 << 3;
    const STATUS: u16 = 1 << 6;
    const PORT: u16 = 1 << 9;
    const DIRECTION: u16 = 1 << 12;
    const ALIAS: u16 = 1 << 13;
    let (flags, not) = (info.short(146)?, info.short(148)?);
    let (asked, not) = (|flag| flags & flag > 0, |flag| not & flag > 0);
    let (state_mask, status_mask): (u32, u32) = match revision {
        1 => (info.byte(150)?.into(), info.byte(151)?.into()),
        _ => (info.short(150)?.into(), info.short(152)?.into()),
    };
    let mut region = Region::all();
    if asked(PROTOCOL) {
        region.narrow(Field::Protocol, &inverted(Set::single(info.short(136)?.into()), not(PROTOCOL)));
    }
    if asked(DESTINATION) {
        let family = family?;
        let (address, mask) = (info.address(32, family)?, info.address(48, family)?);
        match network(address, mask, family) {
            Some(set) => region.narrow(Field::OriginalDestination, &inverted(set, not(DESTINATION))),
            None => {
                let field = Field::OriginalDestination;
                region.add_condition(Condition::Bits { field, mask, value: address, not: not(DESTINATION) });
            }
        }
    }
    if asked(PORT) {
        // In network byte order until there were ranges.
        let (first, last) = match revision {
            3 => (info.short(140)?, info.short(156)?),
            _ => (info.network_short(140)?, info.network_short(140)?),
        };
        region.narrow(Field::OriginalPort, &inverted(Set::range(first.into(), last.into()), not(PORT)));
    }
    if asked(STATUS) {
        region.add_condition(status(u128::from(status_mask), not(STATUS)));
    }
    if asked(DIRECTION) {
        region.narrow(Field::Direction, &Set::single(u128::from(not(DIRECTION))));
    }
    if flags & !(STATE | PROTOCOL | DESTINATION | STATUS | PORT | DIRECTION | ALIAS) != 0 {
        region.add_condition(Condition::Unknown("-m conntrack".into()));
    }
    Some(if asked(STATE) { with_states(&region, state_mask, not(STATE)) } else { vec![region] })
}

/// States of x_tables, two of which are that an address was rewritten.
fn with_states(region: &Region, mask: u32, not: bool) -> Vec<Region> {
    let bits: [(u32, u128); 2] = [(1 << 6, SRC_NAT), (1 << 7, DST_NAT)];
    let rewritten = bits.into_iter().filter(|(bit, _)| mask & bit > 0).map(|(_, status)| status).sum();
    states_or_status(region, &states_in(mask, 1 << 8), rewritten, not)
}

/// Of a region the packets of connections that are in one of some states, or have one of some bits of status; or with `not`
/// those of all others. The regions are apart from each other.
pub(in crate::ruleset::read) fn states_or_status(region: &Region, set: &Set, bits: u128, not: bool) -> Vec<Region> {
    let others = region.clone().with(Field::State, &not_states(set));
    let with = |mut region: Region, not| {
        if bits > 0 {
            region.add_condition(status(bits, not));
        }
        region
    };
    match (not, bits > 0) {
        (true, _) if set.is_empty() => vec![with(region.clone(), true)],
        (true, _) => vec![with(others, true)],
        (false, false) => vec![region.clone().with(Field::State, set)],
        // Of all states: without any named the region is as wide as it was.
        (false, true) if set.is_empty() => vec![with(region.clone(), false)],
        (false, true) => {
            let of_states = region.clone().with(Field::State, set);
            [of_states, with(others, false)].into_iter().filter(|region| !region.is_empty()).collect()
        }
    }
}

/// The addresses of a network, where the mask is one of a prefix.
fn network(address: u128, mask: u128, family: Family) -> Option<Set> {
    let all = if family == Family::Ipv4 { u128::from(u32::MAX) } else { u128::MAX };
    let behind = all & !mask;
    let prefix = behind.checked_add(1).is_none_or(u128::is_power_of_two);
    prefix.then(|| if behind == all { Set::ALL } else { Set::range(address & mask, address | behind) })
}

/// `struct xt_mark_mtinfo1`, and `xt_connmark_mtinfo1`, which is the same.
fn mark(field: Field, info: Info<'_>) -> Option<Region> {
    let (value, mask, not) = (info.long(0)?, info.long(4)?, info.byte(8)? != 0);
    let mut region = Region::all();
    let (value, mask) = (u128::from(value), u128::from(mask));
    match (not, mask.is_power_of_two() && value & !mask == 0) {
        // Of one bit there is only one other value.
        (true, true) => region.add_condition(Condition::Bits { field, mask, value: value ^ mask, not: false }),
        _ => region.add_condition(Condition::Bits { field, mask, value, not }),
    }
    Some(region)
}

/// `struct xt_iprange_mtinfo`.
fn iprange(info: Info<'_>, family: Family) -> Option<Region> {
    let flags = info.byte(64)?;
    let mut region = Region::all();
    for (field, at, asked, not) in [(Field::Source, 0, 1, 1 << 4), (Field::Destination, 32, 1 << 1, 1 << 5)] {
        if flags & asked > 0 {
            let set = Set::range(info.address(at, family)?, info.address(at + 16, family)?);
            region.narrow(field, &inverted(set, flags & not > 0));
        }
    }
    Some(region)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::region::{Packet, Truth};

    /// A structure of zeros with numbers of 16 bits at places.
    fn info(size: usize, shorts: &[(usize, u16)]) -> Vec<u8> {
        let mut bytes = vec![0; size];
        for (at, number) in shorts {
            bytes[*at..at + 2].copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    fn regions(name: &str, revision: u32, bytes: &[u8]) -> Vec<Region> {
        read(name, revision, Info(bytes), Some(Family::Ipv4)).expect("understood")
    }

    fn any(regions: &[Region], packet: &Packet) -> Truth {
        regions.iter().fold(Truth::No, |truth, region| !((!truth).and(!region.has(packet))))
    }

    #[test]
    fn states_of_rewritten_connections() {
        // --ctstate NEW,DNAT
        let of = |not| regions("conntrack", 3, &info(164, &[(146, 1), (148, not), (150, 8 | 1 << 7)]));
        for (state, status, is) in [
            (State::New, 0, true),
            (State::Established, DST_NAT, true),
            (State::Established, 0, false),
            (State::New, DST_NAT, true),
        ] {
            let packet = Packet::new(Family::Ipv4).with(Field::State, state.number()).with(Field::Status, status);
            assert_eq!(any(&of(0), &packet), is.into(), "{state:?} {status}");
            assert_eq!(any(&of(1), &packet), (!is).into(), "not {state:?} {status}");
        }
    }

    #[test]
    fn many_ports() {
        let mut bytes = info(48, &[(2, 1), (4, 2), (6, 9)]);
        (bytes[0], bytes[1], bytes[33]) = (2, 3, 1);
        let packet = |from, to| Packet::new(Family::Ipv4).with(Field::SourcePort, from).with(Field::Port, to);
        for not in [false, true] {
            bytes[47] = u8::from(not);
            let regions = regions("multiport", 1, &bytes);
            for (from, to, is) in [(1, 99, true), (99, 5, true), (99, 10, false), (2, 9, true)] {
                assert_eq!(any(&regions, &packet(from, to)), (is != not).into(), "{from} {to}");
            }
        }
    }

    #[test]
    fn kinds_of_addresses() {
        let region = &regions("addrtype", 1, &info(8, &[(2, 1 << 2), (4, 2)]))[0];
        assert!(!region.get(Field::DestinationKind).has(2) && region.get(Field::DestinationKind).has(1));
        assert!(!regions("addrtype", 1, &info(8, &[(2, 1 << 2), (4, 4)]))[0].is_known());
    }

    #[test]
    fn flags_of_tcp_are_not_understood() {
        let mut bytes = info(12, &[(2, 0xffff), (4, 80), (6, 80)]);
        let region = &regions("tcp", 0, &bytes)[0];
        assert_eq!((region.get(Field::Port), region.get(Field::SourcePort)), (&Set::single(80), &Set::ALL));
        assert!(region.is_known());
        bytes[9] = 2;
        assert!(!regions("tcp", 0, &bytes)[0].is_known());
    }
}
