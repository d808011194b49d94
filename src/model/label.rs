//! Conntrack labels: the data that a forwarded connection carries from the DNAT rules to the source NAT rules.
//!
//! A conntrack entry has 128 label bits, which it keeps from its first packet on. portfwd uses label bits because the
//! packet mark and the connection mark select routes, and many other programs use them.
//!
//! | bits | meaning |
//! | --- | --- |
//! | 121 | [`FORWARDED`]: a forward or 1:1 translation of portfwd matched the connection |
//! | 120 | [`MASQUERADE`]: the connection takes the address of its egress interface |
//! | 119 | [`SKIP_HAIRPIN`]: the hairpin rule ignores the connection |
//! | 118 | [`LOOPBACK`]: the forward also has loopback listeners; only used to read the forward back |
//! | 117 | [`UNMATCHED`]: iptables only; no forward matched the connection, although [`FORWARDED`] is set |
//! | 88 to 111 | the ID of the source address in the maps `sources-ip` and `sources-ip6`; 0 is none |
//!
//! Most forwards need only [`FORWARDED`], and their DNAT rule sets this label. A forward that needs more labels has an
//! element in a map whose name ends in `-labels`. A rule reads the labels from this map.
//!
//! Be aware: in the kernel these maps have the type `ipv6_addr`, the only type of 128 bits that nft(8) 1.0.6 can list.
//! It refuses to list maps of type `ct_label`, and crashes with `--debug` (seen on Debian 12).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Binding, DesiredState, Family, Source};

/// A forward or 1:1 translation of portfwd matched the connection.
pub const FORWARDED: u8 = 121;
/// The connection takes the address of its egress interface.
pub const MASQUERADE: u8 = 120;
/// The hairpin rule ignores the connection: it keeps its source address, or another rule rewrites the address.
pub const SKIP_HAIRPIN: u8 = 119;
/// The forward also has loopback listeners.
pub const LOOPBACK: u8 = 118;

/// No forward or 1:1 translation matched the connection, although [`FORWARDED`] is set.
///
/// Only the iptables backend uses this label. One rule before all forwards sets [`FORWARDED`] and one rule behind them
/// sets this label, which costs less than one more match in thousands of rules.
pub const UNMATCHED: u8 = 117;

/// The range of bytes, within the 16 bytes of a label, that contains the ID of a source address.
const SOURCE_ID_BYTES: std::ops::Range<usize> = 11..14;

/// Returns 128 bits in which only `labels` are set. Label 0 is the lowest bit of the first byte.
pub fn to_bits(labels: &[u8]) -> Vec<u8> {
    let byte_of = |byte: u8| {
        let in_byte = labels.iter().filter(|label| *label / 8 == byte);
        in_byte.fold(0, |bits, label| bits | 1 << (label % 8))
    };
    (0..16).map(byte_of).collect()
}

/// Returns the labels that are set in 128 bits in ascending order. Inverse of [`to_bits`].
pub fn from_bits(bits: &[u8]) -> impl Iterator<Item = u8> {
    let bytes = (0..16).zip(bits).filter(|(_, byte)| **byte > 0);
    bytes.flat_map(|(index, byte)| (0..8).filter(move |bit| byte >> bit & 1 > 0).map(move |bit| index * 8 + bit))
}

/// The number of bits of a source ID.
pub const SOURCE_ID_BITS: u8 = 24;

/// Returns the label of one bit of a source ID. Bit 0 is the lowest bit.
pub fn label_of_id_bit(bit: u8) -> u8 {
    let last = u8::try_from(SOURCE_ID_BYTES.end).unwrap_or(u8::MAX) - 1;
    (last - bit / 8) * 8 + bit % 8
}

/// Returns the mask of the bits that contain the source ID.
pub fn source_id_mask() -> Vec<u8> {
    (0..16).map(|byte| if SOURCE_ID_BYTES.contains(&byte) { 0xff } else { 0 }).collect()
}

/// The kinds of forwarded connections that need a masquerade rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MasqueradeNeeds {
    /// Connections of clients in the target's network.
    pub hairpin: bool,
    /// Connections of forwards with `source = "masquerade"` or loopback listeners.
    pub forwards: bool,
}

impl MasqueradeNeeds {
    /// Returns the masquerade rules that the forwards and 1:1 translations of the selected families need.
    pub fn new(desired: &DesiredState, families: impl Fn(Family) -> bool) -> Self {
        let matches = |rule: &&Binding| rule.to.address.is_some() && families(rule.family);
        let dnat_rules = || desired.bindings.iter().map(|owned| &owned.rule).filter(matches);
        let hairpin = |rule: &Binding| rule.source.is_keep() && rule.hairpin && rule.serves_non_loopback();
        let forwards = |rule: &Binding| rule.source == Source::Masquerade || rule.loopback;
        let translated = desired.netmaps.iter().any(|owned| families(Family::of_network(owned.rule.listen)));
        Self { hairpin: dnat_rules().any(hairpin) || translated, forwards: dnat_rules().any(forwards) }
    }

    /// Returns true if the rules need at least one masquerade rule.
    pub fn any(&self) -> bool {
        self.hairpin || self.forwards
    }
}

/// The source addresses of forwards, each with an ID.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    ids: BTreeMap<IpAddr, u32>,
    addresses: BTreeMap<u32, IpAddr>,
}

impl Sources {
    /// Assigns an ID to the source address of every forward.
    ///
    /// The ID is a hash of the address. A new address does not change the IDs of other addresses, and equal sets of
    /// addresses always have equal IDs. If two hashes collide, the greater address takes the next free ID.
    pub fn of_state(desired: &DesiredState) -> Self {
        let address =
            |binding: &Binding| if let Source::Address(address) = binding.source { Some(address) } else { None };
        let addresses: BTreeSet<IpAddr> = desired.bindings.iter().filter_map(|owned| address(&owned.rule)).collect();
        let mut sources = Self::default();
        for address in addresses {
            let mut id = hash(address);
            while sources.addresses.contains_key(&id) {
                id = next_id(id);
            }
            sources.insert(id, address);
        }
        sources
    }

    /// Reads the IDs and addresses from the elements of the kernel's maps.
    pub fn from_elements(elements: impl IntoIterator<Item = (u32, IpAddr)>) -> Self {
        let mut sources = Self::default();
        elements.into_iter().for_each(|(id, address)| sources.insert(id, address));
        sources
    }

    /// Returns true if every address that both contain has the same ID in both.
    ///
    /// The IDs differ if two hashes collide and only one of the two `Sources` contains the lesser address.
    pub fn agree(&self, other: &Self) -> bool {
        let same = |(address, id): (&IpAddr, &u32)| other.id(*address).is_none_or(|other_id| other_id == *id);
        self.ids.iter().all(same)
    }

    fn insert(&mut self, id: u32, address: IpAddr) {
        self.ids.insert(address, id);
        self.addresses.insert(id, address);
    }

    /// Returns the addresses of a family, each with the label bits of its ID.
    pub fn elements(&self, family: Family) -> impl Iterator<Item = (Vec<u8>, IpAddr)> {
        let of_family = self.ids.iter().filter(move |(address, _)| Family::of_address(**address) == family);
        of_family.map(|(address, id)| (source_id_bits(*id), *address))
    }

    fn id(&self, address: IpAddr) -> Option<u32> {
        self.ids.get(&address).copied()
    }

    fn address(&self, id: u32) -> Option<IpAddr> {
        self.addresses.get(&id).copied()
    }
}

/// Returns the ID after `id`, from 1 to 2^24 - 1.
fn next_id(id: u32) -> u32 {
    id % 0xff_ffff + 1
}

/// Returns the FNV-1a hash of the address, folded to 24 bits. Collisions are allowed, see [`Sources::of_state`].
fn hash(address: IpAddr) -> u32 {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let hash = octets.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    next_id(hash >> 8 ^ hash & 0xff)
}

fn source_id_bits(id: u32) -> Vec<u8> {
    let [_, bytes @ ..] = id.to_be_bytes();
    let mut label = vec![0; 16];
    label.splice(SOURCE_ID_BYTES, bytes);
    label
}

/// Returns the source ID in label bits, or 0 if there is none. Returns `None` if `label` is too short.
pub fn source_id(label: &[u8]) -> Option<u32> {
    let [a, b, c] = label.get(SOURCE_ID_BYTES)?.try_into().ok()?;
    Some(u32::from_be_bytes([0, a, b, c]))
}

/// Returns the label bits of a binding's connections, except those to loopback addresses.
///
/// Returns `None` if only [`FORWARDED`] is set.
pub fn encode(binding: &Binding, sources: &Sources) -> Option<Vec<u8>> {
    let loopback = binding.loopback && binding.serves_non_loopback();
    if binding.source.is_keep() && binding.hairpin && !loopback {
        return None;
    }
    let mut labels = vec![FORWARDED];
    match binding.source {
        Source::Masquerade => labels.push(MASQUERADE),
        Source::Address(_) => labels.push(SKIP_HAIRPIN),
        Source::Keep if !binding.hairpin => labels.push(SKIP_HAIRPIN),
        Source::Keep => {}
    }
    if loopback {
        labels.push(LOOPBACK);
    }
    Some(with_source_id(to_bits(&labels), binding, sources))
}

/// Returns the label bits of a binding's connections to loopback addresses.
///
/// Returns `None` for the default of these connections: [`FORWARDED`] and [`MASQUERADE`].
pub fn encode_loopback(binding: &Binding, sources: &Sources) -> Option<Vec<u8>> {
    match binding.source {
        Source::Keep => None,
        // Equal to the default. portfwd writes it to read the option `source = "masquerade"` back.
        Source::Masquerade => Some(to_bits(&[FORWARDED, MASQUERADE])),
        Source::Address(_) => Some(with_source_id(to_bits(&[FORWARDED, SKIP_HAIRPIN]), binding, sources)),
    }
}

fn with_source_id(label: Vec<u8>, binding: &Binding, sources: &Sources) -> Vec<u8> {
    let Source::Address(address) = binding.source else { return label };
    let id = source_id_bits(sources.id(address).unwrap_or(0));
    label.iter().zip(id).map(|(a, b)| a | b).collect()
}

/// Sets the options of a binding from label bits. Inverse of [`encode`] and [`encode_loopback`].
///
/// Returns `None` if portfwd never writes these bits.
pub fn decode(label: &[u8], sources: &Sources, binding: &mut Binding) -> Option<()> {
    let has = |wanted: u8| label.get(usize::from(wanted / 8)).is_some_and(|byte| byte >> (wanted % 8) & 1 > 0);
    let id = source_id(label)?;
    binding.source = match (id, has(MASQUERADE)) {
        (0, true) => Source::Masquerade,
        (0, false) => Source::Keep,
        (id, _) => Source::Address(sources.address(id)?),
    };
    binding.hairpin = !(has(SKIP_HAIRPIN) && binding.source.is_keep());
    binding.loopback |= has(LOOPBACK);
    let encoded = [encode(binding, sources), encode_loopback(binding, sources)];
    encoded.iter().flatten().any(|bits| bits == label).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Forward, SetName, SetRule};

    fn binding(listen: &str, change: impl FnOnce(&mut Forward)) -> Binding {
        let mut forward = Forward::new(listen.parse().expect(listen), "10.0.0.1".parse().expect("target"));
        change(&mut forward);
        forward.bindings().expect("valid").remove(0)
    }

    #[test]
    fn sources_disagree_if_one_address_has_two_ids() {
        let [a, b] = ["192.0.2.9", "192.0.2.10"].map(|text| text.parse::<IpAddr>().expect(text));
        let both = Sources::from_elements([(5, a), (6, b)]);
        assert!(both.agree(&Sources::from_elements([(6, b)])) && Sources::from_elements([(6, b)]).agree(&both));
        assert!(!both.agree(&Sources::from_elements([(5, b)])) && !Sources::from_elements([(5, b)]).agree(&both));
    }

    #[test]
    fn setting_a_label_twice_sets_it() {
        assert_eq!(to_bits(&[127, 127, 121, 121]), to_bits(&[121, 127]));
        assert!(from_bits(&to_bits(&[0, 127, 0, 255])).eq([0, 127]));
    }

    #[test]
    fn label_bits_go_both_ways() {
        let source = |text: &str| text.parse().expect(text);
        let bindings = [
            binding("80", |f| f.source = source("masquerade")),
            binding("80", |f| f.source = source("192.0.2.1")),
            binding("80", |f| f.hairpin = false),
            binding("80", |f| f.loopback = true),
            binding("80", |f| (f.loopback, f.hairpin) = (true, false)),
            binding("80", |f| (f.loopback, f.source) = (true, source("192.0.2.1"))),
        ];
        let owned = bindings.iter().map(|rule| SetRule { set: SetName::cli(), rule: rule.clone() }).collect();
        let desired = DesiredState { bindings: owned, ..DesiredState::default() };
        let sources = Sources::of_state(&desired);
        assert_eq!(
            Sources::from_elements([(sources.id([192, 0, 2, 1].into()).expect("an ID"), [192, 0, 2, 1].into())]),
            sources
        );
        for wanted in bindings {
            let label = encode(&wanted, &sources).expect("more than one label");
            let mut found = Binding { source: Source::Keep, hairpin: true, loopback: false, ..wanted.clone() };
            assert_eq!(decode(&label, &sources, &mut found), Some(()), "{wanted}");
            assert_eq!(found, wanted);
        }
        assert_eq!(encode(&binding("80", |_| {}), &sources), None);
        for strange in [&[0; 16][..], &[0xff; 16], &[0; 3]] {
            assert_eq!(decode(strange, &sources, &mut binding("80", |_| {})), None);
        }
    }

    #[test]
    fn ids_depend_on_other_addresses_only_if_hashes_collide() {
        let sources = |count: u32| {
            let mut desired = DesiredState::default();
            for address in 0..count {
                let address = IpAddr::from((0x0a00_0000 + address * 7).to_be_bytes());
                let rule = binding("80", |f| f.source = Source::Address(address));
                desired.bindings.push(SetRule { set: SetName::cli(), rule });
            }
            Sources::of_state(&desired)
        };
        let (few, many) = (sources(2_000), sources(4_000));
        let distinct: BTreeSet<u32> = many.ids.values().copied().collect();
        assert!(distinct.len() == 4_000 && !distinct.contains(&0));
        assert!(few.ids.iter().filter(|(address, id)| many.ids.get(address) != Some(id)).count() < 3);
    }

    #[test]
    fn lists_of_labels_go_both_ways() {
        for labels in [&[][..], &[0], &[7, 8, 121], &[88, 111, 127]] {
            assert!(from_bits(&to_bits(labels)).eq(labels.iter().copied()));
        }
        for id in [1, 0x80_0000, 0x12_3456] {
            let expected = (0..SOURCE_ID_BITS).filter(|bit| id >> bit & 1 > 0).map(label_of_id_bit);
            let mut expected: Vec<u8> = expected.collect();
            expected.sort_unstable();
            assert!(from_bits(&source_id_bits(id)).eq(expected));
        }
    }

    #[test]
    fn label_0_is_the_lowest_bit_of_the_first_byte() {
        assert_eq!(to_bits(&[0, 9, 121])[..], [1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(source_id(&source_id_bits(0x123456)), Some(0x123456));
    }
}
