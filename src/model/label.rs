//! Connection labels: what a forward's connection carries from the place where its destination is rewritten to the places
//! where its source is.
//!
//! A label is one of 128 bits that a connection keeps from its first packet on. We use bits of it rather than of the packet
//! or connection mark, because marks steer routing and everybody fights over them.
//!
//! | bits | say |
//! | --- | --- |
//! | 121 | [`OURS`]: one of our forwards or 1:1 translations sent it on |
//! | 120 | [`MASQUERADE`]: it takes the address of the interface it leaves by |
//! | 119 | [`SETTLED`]: hairpin or not, its source is seen to elsewhere or stays |
//! | 118 | [`LOOPBACK`]: its forward also serves the loopback addresses; for reading the forward back, packets do not care |
//! | 117 | [`PASSED`]: with iptables, where [`OURS`] is set before the forwards are asked: none of them wanted it |
//! | 88 to 111 | the number of the address it takes, in the maps `sources-ip` and `sources-ip6`; 0 is none |
//!
//! Most forwards need nothing but [`OURS`], which their rule sets. A forward that asks for more has an element in a map
//! whose name ends in `-labels`, and a rule that sets the label from there.
//!
//! Be aware: in the kernel these maps are of type `ipv6_addr`, the only one of 128 bits that nft(8) 1.0.6 can list. Of
//! type `ct_label` it refuses to list them, and with `--debug` it crashes (seen on Debian 12).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Asked, Binding, Family, Source};

/// One of our forwards or 1:1 translations sent the connection on.
pub const OURS: u8 = 121;
/// It must take the address of the interface it leaves by.
pub const MASQUERADE: u8 = 120;
/// Its source is seen to elsewhere, or stays; it is not asked whether it goes back to where it came from.
pub const SETTLED: u8 = 119;
/// Its forward also serves the loopback addresses.
pub const LOOPBACK: u8 = 118;

/// No forward or 1:1 translation wanted the connection, although it has [`OURS`]: set behind the last of them, by iptables
/// alone, where one rule before and one behind thousands cost less than one more match in each.
pub const PASSED: u8 = 117;

/// Where the number of a source begins in a label, in bytes, and how long it is.
const NUMBER: std::ops::Range<usize> = 11..14;

/// The 128 bits in which only `labels` are set. Labels are counted from the low bit of the first byte.
pub fn bits(labels: &[u8]) -> Vec<u8> {
    let of_byte = |byte: u8| {
        let in_byte = labels.iter().filter(|label| *label / 8 == byte);
        in_byte.fold(0, |bits, label| bits | 1 << (label % 8))
    };
    (0..16).map(of_byte).collect()
}

/// The labels that are set in 128 bits, rising; the other direction of [`bits`].
pub fn labels(bits: &[u8]) -> impl Iterator<Item = u8> {
    let bytes = (0..16).zip(bits).filter(|(_, byte)| **byte > 0);
    bytes.flat_map(|(at, byte)| (0..8).filter(move |bit| byte >> bit & 1 > 0).map(move |bit| at * 8 + bit))
}

/// How many bits the number of a source has.
pub const NUMBER_BITS: u8 = 24;

/// The label that stands for a bit of the number of a source, counted from its lowest.
pub fn of_number_bit(bit: u8) -> u8 {
    let last = u8::try_from(NUMBER.end).unwrap_or(u8::MAX) - 1;
    (last - bit / 8) * 8 + bit % 8
}

/// The bits that hold the number of a source.
pub fn number_mask() -> Vec<u8> {
    (0..16).map(|byte| if NUMBER.contains(&byte) { 0xff } else { 0 }).collect()
}

/// Which connections of forwards take the address of the interface they leave by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Masqueraded {
    /// Those of neighbours of a target.
    pub neighbours: bool,
    /// Others: on request, or to loopback addresses.
    pub others: bool,
}

impl Masqueraded {
    /// Tells it of everything that is asked of some families.
    pub fn of(asked: &Asked, families: impl Fn(Family) -> bool) -> Self {
        let here = |rule: &&Binding| rule.to.address.is_some() && families(rule.family);
        let to_others = || asked.bindings.iter().map(|owned| &owned.rule).filter(here);
        let neighbours = |rule: &Binding| rule.source.is_keep() && rule.hairpin && rule.serves_others();
        let others = |rule: &Binding| rule.source == Source::Masquerade || rule.loopback;
        let translated = asked.netmaps.iter().any(|owned| families(Family::of_network(owned.rule.listen)));
        Self { neighbours: to_others().any(neighbours) || translated, others: to_others().any(others) }
    }

    /// Whether any do.
    pub fn any(&self) -> bool {
        self.neighbours || self.others
    }
}

/// The addresses that forwards name as their source, each with its number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    numbers: BTreeMap<IpAddr, u32>,
    addresses: BTreeMap<u32, IpAddr>,
}

impl Sources {
    /// Numbers the addresses. A number is a hash of its address, so that one address more leaves all others theirs, and
    /// the same addresses always have the same numbers. Where two hashes meet, the greater address takes the next number
    /// that is free.
    pub fn of(asked: &Asked) -> Self {
        let address =
            |binding: &Binding| if let Source::Address(address) = binding.source { Some(address) } else { None };
        let addresses: BTreeSet<IpAddr> = asked.bindings.iter().filter_map(|owned| address(&owned.rule)).collect();
        let mut sources = Self::default();
        for address in addresses {
            let mut number = hash(address);
            while sources.addresses.contains_key(&number) {
                number = next(number);
            }
            sources.put(number, address);
        }
        sources
    }

    /// Reads the numbers back from keys and addresses of the maps.
    pub fn read(elements: impl IntoIterator<Item = (u32, IpAddr)>) -> Self {
        let mut sources = Self::default();
        elements.into_iter().for_each(|(number, address)| sources.put(number, address));
        sources
    }

    /// Whether every address that is in both has the same number in both. It has not where two hashes meet and the address
    /// that comes or goes is the lesser one.
    pub fn agree(&self, other: &Self) -> bool {
        let same = |(address, number): (&IpAddr, &u32)| other.number(*address).is_none_or(|theirs| theirs == *number);
        self.numbers.iter().all(same)
    }

    fn put(&mut self, number: u32, address: IpAddr) {
        self.numbers.insert(address, number);
        self.addresses.insert(number, address);
    }

    /// The addresses of a family, each with the bits of its number.
    pub fn elements(&self, family: Family) -> impl Iterator<Item = (Vec<u8>, IpAddr)> {
        let of_family = self.numbers.iter().filter(move |(address, _)| Family::of(**address) == family);
        of_family.map(|(address, number)| (number_bits(*number), *address))
    }

    fn number(&self, address: IpAddr) -> Option<u32> {
        self.numbers.get(&address).copied()
    }

    fn address(&self, wanted: u32) -> Option<IpAddr> {
        self.addresses.get(&wanted).copied()
    }
}

/// The numbers begin at 1.
fn next(number: u32) -> u32 {
    number % 0xff_ffff + 1
}

/// FNV-1a over the bytes of the address, folded to 24 bits. Only the spread matters: collisions are seen to.
fn hash(address: IpAddr) -> u32 {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let whole = octets.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    next(whole >> 8 ^ whole & 0xff)
}

fn number_bits(number: u32) -> Vec<u8> {
    let [_, number @ ..] = number.to_be_bytes();
    let mut label = vec![0; 16];
    label.splice(NUMBER, number);
    label
}

/// The number of a source in a label; 0 where it has none.
pub fn number(label: &[u8]) -> Option<u32> {
    let [a, b, c] = label.get(NUMBER)?.try_into().ok()?;
    Some(u32::from_be_bytes([0, a, b, c]))
}

/// The label of a binding's connections to other than loopback addresses; `None` where [`OURS`] is all of it.
pub fn of(binding: &Binding, sources: &Sources) -> Option<Vec<u8>> {
    let loopback = binding.loopback && binding.serves_others();
    if binding.source.is_keep() && binding.hairpin && !loopback {
        return None;
    }
    let mut labels = vec![OURS];
    match binding.source {
        Source::Masquerade => labels.push(MASQUERADE),
        Source::Address(_) => labels.push(SETTLED),
        Source::Keep if !binding.hairpin => labels.push(SETTLED),
        Source::Keep => {}
    }
    if loopback {
        labels.push(LOOPBACK);
    }
    Some(with_number(bits(&labels), binding, sources))
}

/// The label of a binding's connections to loopback addresses; `None` where it is that of every such connection, which
/// [`OURS`] and [`MASQUERADE`] are all of.
pub fn at_loopback(binding: &Binding, sources: &Sources) -> Option<Vec<u8>> {
    match binding.source {
        Source::Keep => None,
        // Said again, so that it is read back as what was asked.
        Source::Masquerade => Some(bits(&[OURS, MASQUERADE])),
        Source::Address(_) => Some(with_number(bits(&[OURS, SETTLED]), binding, sources)),
    }
}

fn with_number(label: Vec<u8>, binding: &Binding, sources: &Sources) -> Vec<u8> {
    let Source::Address(address) = binding.source else { return label };
    let number = number_bits(sources.number(address).unwrap_or(0));
    label.iter().zip(number).map(|(a, b)| a | b).collect()
}

/// Puts what a label says into a binding; the other direction of [`of`] and [`at_loopback`]. `None` where it is none of
/// ours.
pub fn read(label: &[u8], sources: &Sources, binding: &mut Binding) -> Option<()> {
    let has = |wanted: u8| label.get(usize::from(wanted / 8)).is_some_and(|byte| byte >> (wanted % 8) & 1 > 0);
    let number = number(label)?;
    binding.source = match (number, has(MASQUERADE)) {
        (0, true) => Source::Masquerade,
        (0, false) => Source::Keep,
        (number, _) => Source::Address(sources.address(number)?),
    };
    binding.hairpin = !(has(SETTLED) && binding.source.is_keep());
    binding.loopback |= has(LOOPBACK);
    let again = [of(binding, sources), at_loopback(binding, sources)];
    again.iter().flatten().any(|again| again == label).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Forward, Owned, SetName};

    fn binding(listen: &str, change: impl FnOnce(&mut Forward)) -> Binding {
        let mut forward = Forward::new(listen.parse().expect(listen), "10.0.0.1".parse().expect("target"));
        change(&mut forward);
        forward.bindings().expect("valid").remove(0)
    }

    #[test]
    fn one_source_less_may_give_another_its_number() {
        let [a, b] = ["192.0.2.9", "192.0.2.10"].map(|text| text.parse::<IpAddr>().expect(text));
        let both = Sources::read([(5, a), (6, b)]);
        assert!(both.agree(&Sources::read([(6, b)])) && Sources::read([(6, b)]).agree(&both));
        assert!(!both.agree(&Sources::read([(5, b)])) && !Sources::read([(5, b)]).agree(&both));
    }

    #[test]
    fn a_label_that_is_set_twice_is_set() {
        assert_eq!(bits(&[127, 127, 121, 121]), bits(&[121, 127]));
        assert!(labels(&bits(&[0, 127, 0, 255])).eq([0, 127]));
    }

    #[test]
    fn a_label_is_read_back() {
        let source = |text: &str| text.parse().expect(text);
        let bindings = [
            binding("80", |f| f.source = source("masquerade")),
            binding("80", |f| f.source = source("192.0.2.1")),
            binding("80", |f| f.hairpin = false),
            binding("80", |f| f.loopback = true),
            binding("80", |f| (f.loopback, f.hairpin) = (true, false)),
            binding("80", |f| (f.loopback, f.source) = (true, source("192.0.2.1"))),
        ];
        let owned = bindings.iter().map(|rule| Owned { set: SetName::cli(), rule: rule.clone() }).collect();
        let asked = Asked { bindings: owned, ..Asked::default() };
        let sources = Sources::of(&asked);
        assert_eq!(
            Sources::read([(sources.number([192, 0, 2, 1].into()).expect("numbered"), [192, 0, 2, 1].into())]),
            sources
        );
        for wanted in bindings {
            let label = of(&wanted, &sources).expect("more than ours");
            let mut found = Binding { source: Source::Keep, hairpin: true, loopback: false, ..wanted.clone() };
            assert_eq!(read(&label, &sources, &mut found), Some(()), "{wanted}");
            assert_eq!(found, wanted);
        }
        assert_eq!(of(&binding("80", |_| {}), &sources), None);
        for strange in [&[0; 16][..], &[0xff; 16], &[0; 3]] {
            assert_eq!(read(strange, &sources, &mut binding("80", |_| {})), None);
        }
    }

    #[test]
    fn numbers_do_not_depend_on_each_other_but_where_they_meet() {
        let numbers = |count: u32| {
            let mut asked = Asked::default();
            for address in 0..count {
                let address = IpAddr::from((0x0a00_0000 + address * 7).to_be_bytes());
                let rule = binding("80", |f| f.source = Source::Address(address));
                asked.bindings.push(Owned { set: SetName::cli(), rule });
            }
            Sources::of(&asked)
        };
        let (few, many) = (numbers(2_000), numbers(4_000));
        let distinct: BTreeSet<u32> = many.numbers.values().copied().collect();
        assert!(distinct.len() == 4_000 && !distinct.contains(&0));
        assert!(few.numbers.iter().filter(|(address, number)| many.numbers.get(address) != Some(number)).count() < 3);
    }

    #[test]
    fn labels_and_bits_go_both_ways() {
        for some in [&[][..], &[0], &[7, 8, 121], &[88, 111, 127]] {
            assert!(labels(&bits(some)).eq(some.iter().copied()));
        }
        for number in [1, 0x80_0000, 0x12_3456] {
            let expected = (0..NUMBER_BITS).filter(|bit| number >> bit & 1 > 0).map(of_number_bit);
            let mut expected: Vec<u8> = expected.collect();
            expected.sort_unstable();
            assert!(labels(&number_bits(number)).eq(expected));
        }
    }

    #[test]
    fn labels_count_from_the_low_bit_of_the_first_byte() {
        assert_eq!(bits(&[0, 9, 121])[..], [1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(number(&number_bits(0x123456)), Some(0x123456));
    }
}
