//! Turns the matches of a rule of iptables into regions of packets.

use crate::iptables::matching::{MaskedAddress, Match, Side, States};
use crate::model::Family;
use crate::ruleset::region::{Condition, DST_NAT, Field, Region, SRC_NAT, State, states};
use crate::ruleset::set::{Set, number_of};
use crate::ruleset::table::Action;

/// Returns the packets that all matches match: those in any of the regions. The regions do not overlap.
pub(in crate::ruleset::read) fn regions(matches: &[Match], family: Option<Family>) -> Vec<Region> {
    let mut regions = vec![Region::all()];
    for found in matches {
        regions = regions.into_iter().flat_map(|region| narrow(region, found, family)).collect();
    }
    // xt_conntrack compares only the state of a packet without a connection, and skips its other options.
    let without_connection = |found: &Match| match found {
        Match::State { not, states } => (states.0 & (States::INVALID | States::UNTRACKED) != 0) != *not,
        _ => false,
    };
    let of_connection = |found: &Match| {
        matches!(
            found,
            Match::OriginalDestination { .. }
                | Match::OriginalPort { .. }
                | Match::Status { .. }
                | Match::Direction { .. }
        )
    };
    if matches.iter().any(without_connection) && matches.iter().any(of_connection) {
        let words = "-m conntrack, of a packet without a connection";
        regions.iter_mut().for_each(|region| region.add_condition(Condition::Unknown(words.into())));
    }
    regions
}

/// Returns what a rule does before its target: it sets labels.
pub(in crate::ruleset::read) fn actions(matches: &[Match]) -> Vec<Action> {
    let label = |found: &Match| match found {
        Match::SetLabel(bit) => Some(Action::Mark { field: Field::Label, mask: label(*bit), value: label(*bit) }),
        _ => None,
    };
    matches.iter().filter_map(label).collect()
}

/// The bit of a label in [`Field::Label`].
fn label(bit: u8) -> u128 {
    let (byte, bit) = (u32::from(bit / 8), u32::from(bit % 8));
    1u128.checked_shl(120u32.saturating_sub(byte * 8) + bit).unwrap_or(0)
}

fn inverted(set: Set, not: bool) -> Set {
    if not { set.not() } else { set }
}

/// Returns the packets of a region that a match matches, in regions that do not overlap.
fn narrow(mut region: Region, found: &Match, family: Option<Family>) -> Vec<Region> {
    let side = |source: bool| if source { Field::Source } else { Field::Destination };
    match found {
        Match::Address { source, not, networks } => addresses(&mut region, side(*source), networks, *not),
        Match::OriginalDestination { not, network } => {
            addresses(&mut region, Field::OriginalDestination, std::slice::from_ref(network), *not);
        }
        Match::Interface { input, not, name } => {
            let field = if *input { Field::Input } else { Field::Output };
            region.narrow(field, &inverted(Set::interface(name, '+'), *not));
        }
        Match::Protocol { not, number } => {
            region.narrow(Field::Protocol, &inverted(Set::single((*number).into()), *not));
        }
        Match::Port { protocol, source, not, ports } => {
            region.narrow(Field::Protocol, &Set::single((*protocol).into()));
            region.narrow(if *source { Field::SourcePort } else { Field::Port }, &inverted(port_set(&[*ports]), *not));
        }
        Match::Multiport { side, not, ranges } => return multiport(&region, *side, &port_set(ranges), *not),
        Match::TcpFlags { not, mask, set } => {
            region.narrow(Field::Protocol, &Set::single(6));
            let (mask, value) = ((*mask).into(), (*set).into());
            region.add_condition(Condition::Bits { field: Field::TcpFlags, mask, value, not: *not });
        }
        Match::AddressType { source, not, kinds } => address_type(&mut region, *source, *kinds, *not, family),
        Match::State { not, states } => return with_states(&region, *states, *not),
        Match::OriginalPort { not, ports } => {
            region.narrow(Field::OriginalPort, &inverted(port_set(&[*ports]), *not));
        }
        Match::Status { not, bits } => region.add_condition(status((*bits).into(), *not)),
        Match::Direction { reply } => region.narrow(Field::Direction, &Set::single((*reply).into())),
        Match::Mark { connection, not, value, mask } => {
            let field = if *connection { Field::ConnectionMark } else { Field::Mark };
            let (value, mask) = ((*value).into(), (*mask).into());
            region.add_condition(Condition::Bits { field, mask, value, not: *not });
        }
        Match::Range { source, not, first, last } => {
            region.narrow(side(*source), &inverted(Set::range(number_of(*first), number_of(*last)), *not));
        }
        Match::Label { bit, not } => {
            let value = if *not { 0 } else { label(*bit) };
            region.add_condition(Condition::Bits { field: Field::Label, mask: label(*bit), value, not: false });
        }
        Match::SetLabel(_) | Match::Comment(_) => {}
        Match::Unknown(words) => region.add_condition(Condition::Unknown(words.clone())),
    }
    vec![region]
}

fn port_set(ranges: &[(u16, u16)]) -> Set {
    match ranges {
        // Every packet of a protocol with ports has one.
        [(0, u16::MAX)] => Set::ALL,
        ranges => Set::from_ranges(ranges.iter().map(|(first, last)| (u128::from(*first), u128::from(*last)))),
    }
}

fn addresses(region: &mut Region, field: Field, networks: &[MaskedAddress], not: bool) {
    let sets: Option<Vec<Set>> = networks.iter().map(|network| set_of(*network)).collect();
    match (sets, networks) {
        (Some(sets), _) => region.narrow(field, &inverted(sets.iter().fold(Set::none(), |all, set| all.or(set)), not)),
        (None, [MaskedAddress { address, mask }]) => {
            let mask = number_of(*mask);
            region.add_condition(Condition::Bits { field, mask, value: number_of(*address) & mask, not });
        }
        (None, _) => region.add_condition(Condition::Unknown("addresses with masks".into())),
    }
}

/// Returns the addresses of a network. Returns `None` if the mask is not a prefix.
fn set_of(network: MaskedAddress) -> Option<Set> {
    let all = if network.address.is_ipv4() { u128::from(u32::MAX) } else { u128::MAX };
    let (address, mask) = (number_of(network.address), number_of(network.mask));
    let host = all & !mask;
    let prefix = host.checked_add(1).is_none_or(u128::is_power_of_two);
    prefix.then(|| if host == all { Set::ALL } else { Set::range(address & mask, address | host) })
}

fn multiport(region: &Region, side: Side, ports: &Set, not: bool) -> Vec<Region> {
    let of = |region: &Region, field, set: &Set| region.clone().with(field, set);
    match (side, not) {
        (Side::Source, _) => vec![of(region, Field::SourcePort, &inverted(ports.clone(), not))],
        (Side::Destination, _) => vec![of(region, Field::Port, &inverted(ports.clone(), not))],
        (Side::Either, true) => vec![of(&of(region, Field::SourcePort, &ports.not()), Field::Port, &ports.not())],
        (Side::Either, false) => {
            let source = of(region, Field::SourcePort, ports);
            vec![of(region, Field::Port, ports), of(&source, Field::Port, &ports.not())]
        }
    }
}

fn address_type(region: &mut Region, source: bool, kinds: u16, not: bool, family: Option<Family>) {
    /// The bits of `UNSPEC`, `UNICAST` and `MULTICAST`.
    const OF_ADDRESS: u16 = 0b10_0011;
    let field = if source { Field::SourceKind } else { Field::DestinationKind };
    // ip6tables compares these types with the address itself, so an address of this host is unicast too, and then a packet
    // must be of every type (`match_type6` in net/netfilter/xt_addrtype.c).
    if family != Some(Family::Ipv4) && kinds & OF_ADDRESS != 0 {
        region.add_condition(Condition::Unknown("-m addrtype, of IPv6".into()));
        return;
    }
    let set = (0..16u128).filter(|kind| kinds >> kind & 1 > 0).map(|kind| (kind, kind));
    region.narrow(field, &inverted(Set::from_ranges(set), not));
}

/// Returns the packets of a region in some states of conntrack. Two of these states are bits of the connection's status.
fn with_states(region: &Region, mask: States, not: bool) -> Vec<Region> {
    let named = |bit: u16, state| (mask.0 & bit > 0).then_some(state);
    let named = [
        named(States::INVALID, State::Invalid),
        named(1 << 1, State::Established),
        named(1 << 2, State::Related),
        named(1 << 3, State::New),
        named(States::UNTRACKED, State::Untracked),
    ];
    let set = states(named.into_iter().flatten());
    let bit = |bit: u16, status| if mask.0 & bit > 0 { status } else { 0 };
    let bits: u128 = bit(States::SNAT, SRC_NAT) | bit(States::DNAT, DST_NAT);
    let others = states(State::ALL.into_iter().filter(|state| !set.has(state.number())));
    let others = region.clone().with(Field::State, &others);
    let with = |mut region: Region, not| {
        if bits > 0 {
            region.add_condition(status(bits, not));
        }
        region
    };
    match (not, bits > 0) {
        (true, _) if set.is_empty() => vec![with(region.clone(), true)],
        (true, _) => vec![with(others, true)],
        (false, false) => vec![region.clone().with(Field::State, &set)],
        (false, true) if set.is_empty() => vec![with(region.clone(), false)],
        (false, true) => {
            let of_states = region.clone().with(Field::State, &set);
            [of_states, with(others, false)].into_iter().filter(|region| !region.is_empty()).collect()
        }
    }
}

/// Returns the condition that one of some status bits is set, or that none is.
fn status(mask: u128, not: bool) -> Condition {
    // A single set bit has one form, so that rules can be compared.
    match (mask.is_power_of_two(), not) {
        (true, false) => Condition::Bits { field: Field::Status, mask, value: mask, not: false },
        _ => Condition::Bits { field: Field::Status, mask, value: 0, not: !not },
    }
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
        let matches = Match::decode(name, revision, bytes, Some(Family::Ipv4), |_| None);
        super::regions(&matches, Some(Family::Ipv4))
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
    fn tcp_flags_are_compared() {
        let mut bytes = info(12, &[(2, 0xffff), (4, 80), (6, 80)]);
        let region = &regions("tcp", 0, &bytes)[0];
        assert_eq!((region.get(Field::Port), region.get(Field::SourcePort)), (&Set::single(80), &Set::ALL));
        (bytes[9], bytes[10]) = (0x17, 2);
        let region = &regions("tcp", 0, &bytes)[0];
        for (flags, truth) in [(2, Truth::Yes), (0x12, Truth::No), (0xc2, Truth::Yes)] {
            let packet = Packet::new(Family::Ipv4).with(Field::Protocol, 6).with(Field::Port, 80);
            assert_eq!(region.has(&packet.with(Field::TcpFlags, flags)), truth, "{flags:#x}");
        }
        bytes[8] = 5;
        assert!(!regions("tcp", 0, &bytes)[0].is_known());
    }

    #[test]
    fn ports_of_sctp_are_behind_the_chunks() {
        let mut bytes = info(292, &[(0, 9000), (2, 9000), (6, 0xffff), (284, 2)]);
        let region = &regions("sctp", 0, &bytes)[0];
        assert_eq!((region.get(Field::Port), region.is_known()), (&Set::single(9000), true));
        bytes[288..290].copy_from_slice(&2u16.to_ne_bytes());
        assert_eq!(regions("sctp", 0, &bytes)[0].get(Field::Port), &Set::single(9000).not());
        bytes[284..286].copy_from_slice(&6u16.to_ne_bytes());
        assert!(!regions("sctp", 0, &bytes)[0].is_known());
        assert!(!regions("sctp", 0, &bytes[..280])[0].is_known());
    }

    #[test]
    fn other_options_are_skipped_without_a_connection() {
        // --ctstate INVALID --ctorigdstport 80
        let both = regions("conntrack", 3, &info(164, &[(146, 1 | 1 << 9), (140, 80), (156, 80), (150, 1)]));
        assert!(!both[0].is_known());
        let new = regions("conntrack", 3, &info(164, &[(146, 1 | 1 << 9), (140, 80), (156, 80), (150, 8)]));
        assert!(new[0].is_known());
    }
}
