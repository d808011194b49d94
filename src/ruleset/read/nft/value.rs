//! What is in the registers while a rule is asked: bytes that are known, bytes of something about the packet, and bytes of
//! which nothing is known.
//!
//! nft(8) loads what lies side by side at once (`tcp sport 1 tcp dport 2` is one comparison of four bytes), cuts what is not
//! compared (`10.0.0.0/8` is one of one byte), and masks the rest. Rendered byte by byte all of it is the same.

use std::collections::HashMap;

use crate::ruleset::region::{Condition, Field, Region};
use crate::ruleset::set::{self, Set};

/// The bytes of all registers: `NFT_REG32_COUNT` of four, include/uapi/linux/netfilter/nf_tables.h.
pub(super) const REGISTERS: usize = 64;

/// Something about a packet that the kernel loads as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The number of a field, of so many bits.
    Field(Field, u8),
    /// The state of its connection, as one bit of several: `NF_CT_STATE_BIT`.
    State,
    /// Its family, as `NFPROTO_…`.
    Nfproto,
    /// Its family, as `ETH_P_…`.
    Ethertype,
    /// An interface, by its number.
    Index(Field),
}

/// What a number is asked to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Want {
    /// These of its bits are so.
    Bits {
        /// Which bits.
        mask: u128,
        /// What they are.
        value: u128,
    },
    /// It is in a set.
    In(Set),
}

/// A number of 128 bits of which the lowest `bits` are set.
fn ones(bits: u8) -> u128 {
    1u128.checked_shl(bits.into()).map_or(u128::MAX, |above| above - 1)
}

impl Source {
    /// How many bits it has.
    fn bits(self) -> u8 {
        match self {
            Self::Field(_, bits) => bits,
            Self::State | Self::Index(_) => 32,
            Self::Nfproto => 8,
            Self::Ethertype => 16,
        }
    }

    /// Where its highest byte is.
    pub(super) fn top(self) -> Option<u8> {
        self.bits().checked_sub(8)
    }

    /// Its field, and where it has only few numbers, what each is there.
    fn few(self) -> Option<(Field, &'static [(u128, u128)])> {
        match self {
            // By the bit that each has, which is also its number: see `State`.
            Self::State => Some((Field::State, &[(1, 0), (2, 1), (4, 2), (8, 3), (64, 6)])),
            Self::Nfproto => Some((Field::Family, &[(2, 4), (10, 6)])),
            Self::Ethertype => Some((Field::Family, &[(0x0800, 4), (0x86dd, 6)])),
            Self::Field(..) | Self::Index(_) => None,
        }
    }

    /// Whether bytes of a name that are asked for have its end among them.
    fn ends(self, mask: u128, value: u128) -> bool {
        let bytes = mask.to_be_bytes().into_iter().zip(value.to_be_bytes());
        let asked: Vec<u8> = bytes.take_while(|(mask, _)| *mask == 0xff).map(|(_, byte)| byte).collect();
        let front = asked.len() * 8 == usize::try_from(mask.count_ones()).unwrap_or(0);
        self.bits() == 128
            && matches!(self, Self::Field(Field::Input | Field::Output, _))
            && front
            && asked.last() == Some(&0)
    }

    /// The set of its numbers that are wanted; `None` where that are no few ranges.
    pub(super) fn set(self, want: &Want) -> Option<Set> {
        let all = ones(self.bits());
        match want {
            Want::In(set) => Some(set.clone()),
            Want::Bits { mask, value } if *mask == all => Some(Set::single(*value)),
            // The zero behind a name is compared too, and what is behind that is none of it.
            Want::Bits { mask, value } if self.ends(*mask, *value) => Some(Set::single(*value)),
            // The highest bits and no others.
            Want::Bits { mask, value } if (all & !mask).checked_add(1).is_some_and(u128::is_power_of_two) => {
                Some(Set::range(*value, value | (all & !mask)))
            }
            Want::Bits { .. } => None,
        }
    }

    /// Lets a region be of packets whose number is wanted, or is not.
    pub(super) fn narrow(self, region: &mut Region, want: &Want, not: bool, names: &HashMap<u32, String>) {
        if let Some((field, few)) = self.few() {
            let holds = |raw: u128| match want {
                Want::Bits { mask, value } => raw & mask == *value,
                Want::In(set) => set.has(raw),
            };
            let those = few.iter().filter(|(raw, _)| holds(*raw) != not).map(|(_, number)| (*number, *number));
            region.narrow(field, &Set::from_ranges(those));
            return;
        }
        let inverted = |set: Set| if not { set.not() } else { set };
        match (self, self.set(want), want) {
            (Self::Field(field, _), Some(set), _) => region.narrow(field, &inverted(set)),
            (Self::Field(field, _), None, Want::Bits { mask, value }) => {
                region.add_condition(bits(field, *mask, *value, not));
            }
            (Self::Index(field), Some(indexes), _) => match interfaces(&indexes, names) {
                Some(set) => region.narrow(field, &inverted(set)),
                None => region.add_condition(Condition::Unknown(self.words().into())),
            },
            _ => region.add_condition(Condition::Unknown(self.words().into())),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Index(Field::Output) => "oif, of an interface that is not known",
            Self::Index(_) => "iif, of an interface that is not known",
            _ => "bits",
        }
    }
}

/// Asks for bits of a field. That one bit is not clear is that it is set: one form, so that rules can be compared.
pub(super) fn bits(field: Field, mask: u128, value: u128, not: bool) -> Condition {
    if not && mask.is_power_of_two() {
        return Condition::Bits { field, mask, value: value ^ mask, not: false };
    }
    Condition::Bits { field, mask, value, not }
}

/// The names of interfaces of these numbers; `None` where one is not known.
fn interfaces(indexes: &Set, names: &HashMap<u32, String>) -> Option<Set> {
    const MANY: u128 = 1 << 16;
    if indexes.size() > MANY {
        let others = indexes.not();
        return (others.size() <= MANY).then(|| interfaces(&others, names)).flatten().map(|others| others.not());
    }
    let numbers = indexes.ranges().iter().flat_map(|(first, last)| *first..=*last);
    let known = numbers.map(|index| match u32::try_from(index).ok()? {
        0 => Some((0, 0)),
        index => names.get(&index).map(|name| set::number_of_name(name.as_bytes(), 0)).map(|name| (name, name)),
    });
    Some(Set::from_ranges(known.collect::<Option<Vec<_>>>()?))
}

/// What a byte of a register is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Byte {
    /// Always this.
    Known(u8),
    /// `(number >> shift & mask) ^ flip`.
    Of {
        /// Of what.
        source: Source,
        /// Where in its number.
        shift: u8,
        /// Which of its bits.
        mask: u8,
        /// Which of them are turned round.
        flip: u8,
    },
    /// Something that is not known: the number of its words.
    Unknown(u16),
}

/// What is in the registers.
#[derive(Debug, Clone)]
pub(super) struct Registers([Byte; REGISTERS]);

impl Default for Registers {
    fn default() -> Self {
        Self([Byte::Known(0); REGISTERS])
    }
}

/// Where the bytes of a register begin; `None` of the one of verdicts, and of none at all. Four have 16 bytes, and the same
/// bytes have names in pieces of four. Source: `nft_parse_register` in net/netfilter/nf_tables_api.c.
pub(super) fn start(register: u32) -> Option<usize> {
    let number = usize::try_from(register).ok()?;
    match register {
        1..=4 => Some((number - 1) * 16),
        8..=23 => Some((number - 8) * 4),
        _ => None,
    }
}

/// Whether a register, and what is behind it, has so many bytes.
pub(super) fn exists(register: u32, length: usize) -> Option<()> {
    (start(register)?.checked_add(length)? <= REGISTERS).then_some(())
}

impl Registers {
    /// The bytes in a register, and behind it.
    pub(super) fn get(&self, register: u32, length: usize) -> Option<&[Byte]> {
        let start = start(register)?;
        self.0.get(start..start.checked_add(length)?)
    }

    /// Those bytes where all are known.
    pub(super) fn known<const N: usize>(&self, register: u32) -> Option<[u8; N]> {
        let bytes = self.get(register, N)?;
        let mut known = [0; N];
        for (to, from) in known.iter_mut().zip(bytes) {
            let Byte::Known(byte) = from else { return None };
            *to = *byte;
        }
        Some(known)
    }

    /// Puts bytes into a register; the rest of the last four becomes zero, as the kernel does it.
    pub(super) fn put(&mut self, register: u32, bytes: impl IntoIterator<Item = Byte>) {
        let Some(rest) = start(register).and_then(|start| self.0.get_mut(start..)) else { return };
        let mut length = 0usize;
        for (to, from) in rest.iter_mut().zip(bytes) {
            *to = from;
            length += 1;
        }
        for byte in rest.iter_mut().take(length.next_multiple_of(4)).skip(length) {
            *byte = Byte::Known(0);
        }
    }

    /// Changes bytes in a register.
    pub(super) fn get_mut(&mut self, register: u32, length: usize) -> Option<&mut [Byte]> {
        let start = start(register)?;
        self.0.get_mut(start..start.checked_add(length)?)
    }
}

/// The bytes of a number in network byte order.
pub(super) fn in_network_order(source: Source, length: u8) -> impl Iterator<Item = Byte> {
    (0..length).rev().map(move |at| byte(source, at))
}

/// The bytes of a number in the order of this host.
pub(super) fn in_host_order(source: Source, length: u8) -> impl Iterator<Item = Byte> {
    let little = cfg!(target_endian = "little");
    (0..length).map(move |at| byte(source, if little { at } else { length - 1 - at }))
}

fn byte(source: Source, at: u8) -> Byte {
    Byte::Of { source, shift: at.saturating_mul(8), mask: 0xff, flip: 0 }
}

impl Byte {
    /// `(byte & mask) ^ flip`.
    pub(super) fn bitwise(self, and: u8, xor: u8) -> Self {
        match self {
            Self::Known(byte) => Self::Known(byte & and ^ xor),
            Self::Of { mask, flip, .. } if mask & and == 0 => Self::Known(flip & and ^ xor),
            Self::Of { source, shift, mask, flip } => {
                Self::Of { source, shift, mask: mask & and, flip: flip & and ^ xor }
            }
            Self::Unknown(_) if and == 0 => Self::Known(xor),
            Self::Unknown(_) => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::region::State;

    #[test]
    fn registers_of_both_sizes_are_the_same_bytes() {
        let mut registers = Registers::default();
        registers.put(2, [Byte::Known(7)]);
        assert_eq!(registers.known::<4>(12), Some([7, 0, 0, 0]));
        registers.put(23, [1, 2, 3, 4, 5].map(Byte::Known));
        assert_eq!(registers.known::<4>(23), Some([1, 2, 3, 4]), "what is too long is cut");
        for register in [0, 5, 7, 24, u32::MAX] {
            registers.put(register, [Byte::Known(9)]);
            assert!(registers.get(register, 1).is_none());
        }
        assert!(registers.get(4, 17).is_none() && registers.get(1, usize::MAX).is_none());
    }

    #[test]
    fn bits_in_front_are_a_range() {
        let source = Source::Field(Field::Destination, 32);
        let set = |mask, value| source.set(&Want::Bits { mask, value });
        assert_eq!(set(0xff00_0000, 0x0a00_0000), Some(Set::range(0x0a00_0000, 0x0aff_ffff)));
        assert_eq!(set(0xffff_ffff, 7), Some(Set::single(7)));
        assert_eq!(set(0x00ff_0000, 0), None);
        let name = Source::Field(Field::Input, 128);
        let veth = set::number_of_name(b"veth", 0);
        assert_eq!(name.set(&Want::Bits { mask: u128::MAX << 96, value: veth }), Some(Set::names_that_begin(b"veth")));
        // "veth" with the zero behind it, as nft(8) and iptables(8) compare it.
        for mask in [u128::MAX, u128::MAX << 88] {
            assert_eq!(name.set(&Want::Bits { mask, value: veth }), Some(Set::single(veth)));
        }
    }

    #[test]
    fn states_are_bits_there_and_numbers_here() {
        let region = |want, not| {
            let mut region = Region::all();
            Source::State.narrow(&mut region, &want, not, &HashMap::new());
            region.get(Field::State).clone()
        };
        let new = State::New.number();
        // ct state new: the bits of it are not all clear.
        assert_eq!(region(Want::Bits { mask: 8, value: 0 }, true), Set::single(new));
        let others = region(Want::In(Set::single(8)), true);
        assert!(!others.has(new) && others.has(State::Untracked.number()) && others.has(State::Invalid.number()));
    }

    #[test]
    fn interfaces_are_known_by_their_numbers_or_not_at_all() {
        let names = HashMap::from([(3, "eth0".to_owned())]);
        let region = |index, not| {
            let mut region = Region::all();
            Source::Index(Field::Input).narrow(&mut region, &Want::In(Set::single(index)), not, &names);
            region
        };
        let eth0 = set::number_of_name(b"eth0", 0);
        assert_eq!(region(3, false).get(Field::Input), &Set::single(eth0));
        assert!(!region(3, true).get(Field::Input).has(eth0));
        assert!(!region(4, false).is_known());
    }

    #[test]
    fn masks_meet_masks() {
        let byte = in_network_order(Source::Field(Field::Protocol, 8), 1).next().expect("one");
        let masked = byte.bitwise(0x0f, 0xf0).bitwise(0xfc, 0x01);
        let wanted = Byte::Of { source: Source::Field(Field::Protocol, 8), shift: 0, mask: 0x0c, flip: 0xf1 };
        assert_eq!(masked, wanted);
        assert_eq!(byte.bitwise(0xf0, 1).bitwise(0x0f, 0), Byte::Known(1));
        assert_eq!(Byte::Unknown(3).bitwise(0, 5), Byte::Known(5));
    }
}
