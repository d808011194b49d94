//! Packets, and which of them a rule is about: for each field the set of what it may be.

use std::fmt;
use std::sync::Arc;

use super::set::{self, Set};
use crate::model::Family;

/// A field of a packet, or of what is known of it, that rules ask about. Each is a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// The interface it arrived by: [`set::number_of_name`].
    Input,
    /// The interface it leaves by.
    Output,
    /// The address it is from: [`set::number_of`].
    Source,
    /// The address it is for.
    Destination,
    /// The transport protocol's number.
    Protocol,
    /// The port it is from. Only of protocols that have ports.
    SourcePort,
    /// The port it is for.
    Port,
    /// What kind of address it is for: `RTN_…` in include/uapi/linux/rtnetlink.h, of which [`LOCAL`] is one.
    DestinationKind,
    /// What kind of address it is from.
    SourceKind,
    /// The state of its connection: one of [`State`].
    State,
    /// Its mark.
    Mark,
    /// The mark of its connection.
    ConnectionMark,
    /// The status of its connection: bits, `IPS_…` in include/uapi/linux/netfilter/nf_conntrack_common.h.
    Status,
    /// The address that its connection's first packet was for.
    OriginalDestination,
    /// The port that its connection's first packet was for.
    OriginalPort,
    /// Whether it goes the way of its connection's first packet, 0, or back, 1.
    Direction,
    /// Its family: 4 or 6, see [`family_number`]. Rules in tables of both ask for it.
    Family,
    /// The labels of its connection, 128 bits; the first is the lowest of the highest byte, as the kernel has them in memory.
    Label,
    /// The flags of TCP, the byte at offset 13 of its header.
    TcpFlags,
    /// 1 if the route to the destination leaves by the input interface, otherwise 0: `fib daddr . iif oif exists`.
    RouteViaInput,
}

impl Field {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::Input,
        Self::Output,
        Self::Source,
        Self::Destination,
        Self::Protocol,
        Self::SourcePort,
        Self::Port,
        Self::DestinationKind,
        Self::SourceKind,
        Self::State,
        Self::Mark,
        Self::ConnectionMark,
        Self::Status,
        Self::OriginalDestination,
        Self::OriginalPort,
        Self::Direction,
        Self::Family,
        Self::Label,
        Self::TcpFlags,
        Self::RouteViaInput,
    ];

    fn index(self) -> usize {
        self as usize
    }

    /// Whether a mask has all bits that the field can have.
    fn is_all_of_it(self, mask: u128) -> bool {
        let all = match self {
            Self::Mark | Self::ConnectionMark | Self::Status => u32::MAX.into(),
            Self::TcpFlags | Self::RouteViaInput => u8::MAX.into(),
            _ => u128::MAX,
        };
        mask & all == all
    }
}

/// The kind of the addresses that are this host's: `RTN_LOCAL` in include/uapi/linux/rtnetlink.h.
pub const LOCAL: u128 = 2;

/// `IPS_SRC_NAT` in include/uapi/linux/netfilter/nf_conntrack_common.h.
pub const SRC_NAT: u128 = 1 << 4;

/// `IPS_DST_NAT` there.
pub const DST_NAT: u128 = 1 << 5;

/// `IPS_CONFIRMED` there: the first packet of the connection has passed all hooks.
pub const CONFIRMED: u128 = 1 << 3;

/// `IPS_DST_NAT_DONE` there: set together with [`DST_NAT`], and alone where a rule left the destination as it was
/// (`nf_nat_setup_info` in net/netfilter/nf_nat_core.c).
pub const DST_NAT_DONE: u128 = 1 << 8;

/// States of connections, by the bits that nf_tables has for them: `NF_CT_STATE_BIT` in
/// include/uapi/linux/netfilter/nf_conntrack_common.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// None that can be.
    Invalid = 0,
    /// Both sides have been heard.
    Established = 1,
    /// Belongs to another.
    Related = 2,
    /// The first packet.
    New = 3,
    /// Not followed.
    Untracked = 6,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Invalid, Self::Established, Self::Related, Self::New, Self::Untracked];

    /// Its number as a value of [`Field::State`].
    pub fn number(self) -> u128 {
        self as u128
    }
}

/// Whether something is so, as far as can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// It depends on what is not known.
    Maybe,
}

impl Truth {
    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Maybe,
        }
    }
}

impl std::ops::Not for Truth {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
        }
    }
}

impl From<bool> for Truth {
    fn from(is: bool) -> Self {
        if is { Self::Yes } else { Self::No }
    }
}

/// What a rule asks for that is no set of one field's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Some bits of a field are these, or are not.
    Bits {
        /// The field.
        field: Field,
        /// Which bits.
        mask: u128,
        /// What they are.
        value: u128,
        /// Whether anything else is asked for.
        not: bool,
    },
    /// The packet is in none of these.
    Outside(Arc<[Region]>),
    /// Something that cannot be told from the packet, or that is not understood, in the words of who wrote it.
    Unknown(Arc<str>),
}

/// A packet, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Its family.
    pub family: Family,
    fields: [Option<u128>; Field::ALL.len()],
}

impl Packet {
    /// A packet of which only its family is known.
    pub fn new(family: Family) -> Self {
        let packet = Self { family, fields: [None; Field::ALL.len()] };
        packet.with(Field::Family, family_number(family))
    }

    /// The same with one more field known.
    #[must_use]
    pub fn with(mut self, field: Field, value: u128) -> Self {
        self.put(field, value);
        self
    }

    /// What a field is, if that is known.
    pub fn get(&self, field: Field) -> Option<u128> {
        self.fields.get(field.index()).copied().flatten()
    }

    /// Lets a field be known.
    pub fn put(&mut self, field: Field, value: u128) {
        self.set(field, Some(value));
    }

    /// Lets a field be known or not.
    pub fn set(&mut self, field: Field, value: Option<u128>) {
        if let Some(known) = self.fields.get_mut(field.index()) {
            *known = value;
        }
    }
}

/// Packets of one family: those of which every field is in its set and all conditions hold.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Region {
    /// Those fields that may not be anything, in order.
    sets: Vec<(Field, Set)>,
    conditions: Vec<Condition>,
}

impl Region {
    /// All packets.
    pub fn all() -> Self {
        Self::default()
    }

    /// The set of a field.
    pub fn get(&self, field: Field) -> &Set {
        static ALL: Set = Set::ALL;
        self.sets.iter().find(|(one, _)| *one == field).map_or(&ALL, |(_, set)| set)
    }

    /// Narrows a field.
    pub fn narrow(&mut self, field: Field, to: &Set) {
        if to.is_all() {
            return;
        }
        match self.sets.binary_search_by_key(&field, |(one, _)| *one) {
            Ok(at) => self.sets[at].1 = self.sets[at].1.and(to),
            Err(at) => {
                self.sets.reserve_exact(1);
                self.sets.insert(at, (field, to.clone()));
            }
        }
    }

    /// The same with a field narrowed.
    #[must_use]
    pub fn with(mut self, field: Field, to: &Set) -> Self {
        self.narrow(field, to);
        self
    }

    /// Lets a field be anything.
    pub fn forget(&mut self, field: Field) {
        self.put(field, Set::ALL);
    }

    /// What is asked for besides.
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// Asks for one thing more. Bits that are all a field has, and of which a set tells as much, become one.
    pub fn add_condition(&mut self, condition: Condition) {
        match condition {
            Condition::Bits { field, mask, value, not } if field.is_all_of_it(mask) => {
                let set = Set::single(value);
                self.narrow(field, &if not { set.not() } else { set });
            }
            // Of one bit there is one other value, so that one question has one form, whoever asks it.
            Condition::Bits { field, mask, value, not: true } if mask.is_power_of_two() && value & !mask == 0 => {
                self.add_condition(Condition::Bits { field, mask, value: value ^ mask, not: false });
            }
            condition if self.conditions.contains(&condition) => {}
            condition => self.conditions.push(condition),
        }
    }

    /// Whether everything that is asked for is understood and can be told from the packet.
    pub fn is_known(&self) -> bool {
        !self.conditions.iter().any(|condition| matches!(condition, Condition::Unknown(_)))
    }

    /// Whether no packet is in it, as far as the sets tell.
    pub fn is_empty(&self) -> bool {
        self.sets.iter().any(|(_, set)| set.is_empty())
    }

    /// The packets that are in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for (field, set) in &other.sets {
            both.narrow(*field, set);
        }
        for condition in &other.conditions {
            both.add_condition(condition.clone());
        }
        both
    }

    /// Whether there may be a packet that is in both: sure where both are only sets.
    pub fn meets(&self, other: &Self) -> bool {
        !other.is_empty() && self.sets.iter().all(|(field, set)| set.meets(other.get(*field)))
    }

    /// Whether every packet of `other` is surely in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.conditions.iter().all(|condition| other.conditions.contains(condition))
            && self.is_known()
            && self.sets.iter().all(|(field, set)| set.covers(other.get(*field)))
    }

    /// What of it is outside of `other`, in pieces that are apart from each other; `None` where that cannot be said, because
    /// `other` asks for more than sets.
    pub fn minus(&self, other: &Self) -> Option<Vec<Self>> {
        if !self.meets(other) {
            return Some(vec![self.clone()]);
        }
        if !other.conditions.iter().all(|condition| self.conditions.contains(condition)) || !other.is_known() {
            return None;
        }
        let (mut rest, mut pieces) = (self.clone(), Vec::new());
        for field in Field::ALL {
            let outside = rest.get(field).minus(other.get(field));
            if !outside.is_empty() {
                let mut piece = rest.clone();
                piece.put(field, outside);
                pieces.push(piece);
            }
            rest.narrow(field, other.get(field));
        }
        Some(pieces)
    }

    fn put(&mut self, field: Field, set: Set) {
        self.sets.retain(|(one, _)| *one != field);
        self.narrow(field, &set);
    }

    /// Whether a packet is in it.
    pub fn has(&self, packet: &Packet) -> Truth {
        let mut truth = Truth::Yes;
        for (field, set) in &self.sets {
            truth = truth.and(match packet.get(*field) {
                Some(value) => set.has(value).into(),
                None => Truth::Maybe,
            });
            if truth == Truth::No {
                return truth;
            }
        }
        self.conditions.iter().fold(truth, |truth, condition| truth.and(condition.holds(packet)))
    }
}

impl Condition {
    /// Whether it holds of a packet.
    pub fn holds(&self, packet: &Packet) -> Truth {
        match self {
            Self::Bits { field, mask, value, not } => match packet.get(*field) {
                Some(is) => ((is & mask == *value) != *not).into(),
                None => Truth::Maybe,
            },
            Self::Outside(regions) => regions.iter().fold(Truth::Yes, |truth, region| truth.and(!region.has(packet))),
            Self::Unknown(_) => Truth::Maybe,
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (field, set) in &self.sets {
            map.entry(field, set);
        }
        map.entries(self.conditions.iter().map(|condition| ("asks", condition))).finish()
    }
}

/// The number of a family as a value of [`Field::Family`].
pub fn family_number(family: Family) -> u128 {
    match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 6,
    }
}

/// The set of the states that are named.
pub fn states(named: impl IntoIterator<Item = State>) -> Set {
    Set::from_ranges(named.into_iter().map(|state| (state.number(), state.number())))
}

/// A packet that arrives by an interface, or that this host sends where there is none.
pub fn packet(family: Family, input: Option<&str>) -> Packet {
    let packet = Packet::new(family).with(Field::State, State::New.number()).with(Field::Direction, 0);
    let packet =
        packet.with(Field::Mark, 0).with(Field::ConnectionMark, 0).with(Field::Status, 0).with(Field::Label, 0);
    // The first packet of a TCP connection has the flag SYN alone.
    let packet = packet.with(Field::TcpFlags, 2);
    packet.with(Field::Input, set::number_of_name(input.unwrap_or_default().as_bytes(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(first: u128, last: u128) -> Region {
        Region::all().with(Field::Port, &Set::range(first, last))
    }

    #[test]
    fn what_is_left_of_a_region_is_outside_of_the_other() {
        let a = ports(10, 20).with(Field::Protocol, &Set::from_ranges([(6, 6), (17, 17)]));
        let b = ports(15, 30).with(Field::Protocol, &Set::single(6));
        let rest = a.minus(&b).expect("only sets");
        for protocol in [6, 17] {
            for port in 9..32 {
                let packet = Packet::new(Family::Ipv4).with(Field::Port, port).with(Field::Protocol, protocol);
                let wanted = a.has(&packet).and(!b.has(&packet));
                let within: Vec<Truth> = rest.iter().map(|piece| piece.has(&packet)).collect();
                assert_eq!(within.contains(&Truth::Yes), wanted == Truth::Yes, "{protocol} {port}");
                assert!(within.iter().filter(|is| **is == Truth::Yes).count() <= 1);
            }
        }
        assert!(a.covers(&a.and(&b)) && !b.covers(&a));
        assert!(a.meets(&b) && !ports(1, 2).meets(&b));
    }

    #[test]
    fn what_is_not_understood_is_never_sure() {
        let mut asks = ports(10, 20);
        asks.add_condition(Condition::Unknown("-m tomorrow".into()));
        let packet = Packet::new(Family::Ipv4).with(Field::Port, 10);
        assert_eq!(asks.has(&packet), Truth::Maybe);
        assert_eq!(asks.has(&packet.clone().with(Field::Port, 9)), Truth::No);
        assert!(!asks.covers(&asks.clone()), "nor is it so twice");
        assert_eq!(ports(1, 30).minus(&asks), None);
        assert!(ports(1, 30).covers(&asks));
    }

    #[test]
    fn bits_are_asked_for_as_they_are() {
        let mut marked = Region::all();
        marked.add_condition(Condition::Bits { field: Field::Mark, mask: 0x2000, value: 0x2000, not: false });
        let packet = |mark| Packet::new(Family::Ipv4).with(Field::Mark, mark);
        assert_eq!(marked.has(&packet(0x2001)), Truth::Yes);
        assert_eq!(marked.has(&packet(1)), Truth::No);
        assert_eq!(marked.has(&Packet::new(Family::Ipv4)), Truth::Maybe);
        let mut whole = Region::all();
        whole.add_condition(Condition::Bits { field: Field::Mark, mask: 0xffff_ffff, value: 7, not: true });
        assert!(whole.conditions().is_empty() && !whole.get(Field::Mark).has(7) && whole.get(Field::Mark).has(8));
        // Not to have a bit and to have it at zero is the same.
        let asked = |value, not| {
            let mut region = Region::all();
            region.add_condition(Condition::Bits { field: Field::Mark, mask: 0x4000, value, not });
            region
        };
        assert_eq!((asked(0x4000, true), asked(0, true)), (asked(0, false), asked(0x4000, false)));
        assert_ne!(asked(0x4001, true), asked(1, false));
    }

    #[test]
    fn a_packet_is_of_its_family() {
        let of_ipv4 = Region::all().with(Field::Family, &Set::single(family_number(Family::Ipv4)));
        assert_eq!(of_ipv4.has(&Packet::new(Family::Ipv4)), Truth::Yes);
        assert_eq!(of_ipv4.has(&packet(Family::Ipv6, Some("eth0"))), Truth::No);
    }

    #[test]
    fn outside_means_in_none() {
        let mut outside = Region::all();
        outside.add_condition(Condition::Outside(Arc::new([ports(1, 2), ports(4, 5)])));
        for (port, is) in [(1, Truth::No), (3, Truth::Yes), (5, Truth::No)] {
            assert_eq!(outside.has(&Packet::new(Family::Ipv4).with(Field::Port, port)), is);
        }
    }
}
