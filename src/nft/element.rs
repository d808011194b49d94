//! Converts a binding to map elements, and map elements to bindings.
//!
//! A single port needs one element. A range is split into aligned blocks of 1,024 ports, blocks of 16 ports, and single
//! ports. Each block or port needs one element. The range of all ports has 141 elements. If a forward shifts the ports
//! of a range, each port needs one element.
//!
//! Every element of a range contains the complete range ([`Span`]). portfwd can therefore read the binding from any one
//! element, and detects missing elements of a range.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::map::{AddressScope, Kind, LARGE_BLOCK, MapId, MapRole, SMALL_BLOCK};
use super::program::{Element, Key};
use super::user_data::Span;
use crate::model::rule_comment::parse_comment;
use crate::model::{
    Binding, Comment, Counter, Destination, Family, IfName, PortMap, PortRange, Protocol, SetRule, Source,
};

/// Returns the kinds of maps that contain elements of the binding.
pub fn kinds(binding: &Binding) -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| key_ports(binding, *kind).next().is_some())
}

/// Returns the ports of the binding that form complete, aligned blocks of `size` ports.
///
/// The result is empty if the binding has no complete block, or if each port needs its own element. The numbers have 32
/// bits, because the end of the last block is 65,536.
fn complete_blocks(binding: &Binding, size: u16) -> Range<u32> {
    let (first, end) = (u32::from(binding.ports.first()), u32::from(binding.ports.last()) + 1);
    let start = first.next_multiple_of(size.into());
    let kept = matches!(binding.to.port, PortMap::Keep | PortMap::One(_)) && !binding.is_exact();
    if kept { start..(end / u32::from(size) * u32::from(size)).max(start) } else { first..first }
}

/// Returns the ports in the binding's keys for a map of `kind`, in ascending order. The key of a block contains the
/// first port of the block.
fn key_ports(binding: &Binding, kind: Kind) -> impl Iterator<Item = u16> {
    let all = u32::from(binding.ports.first())..u32::from(binding.ports.last()) + 1;
    let (large, small) = (complete_blocks(binding, LARGE_BLOCK), complete_blocks(binding, SMALL_BLOCK));
    // Larger blocks cover the ports of `inner`. If there are no larger blocks, `inner` is empty and at the end of
    // `outer`.
    let gap =
        |inner: &Range<u32>, outer: &Range<u32>| if inner.is_empty() { outer.end..outer.end } else { inner.clone() };
    let (outer, inner) = match (kind, binding.to.port) {
        (Kind::Ports, _) if binding.is_exact() => (all.clone(), all.end..all.end),
        (Kind::Spans, _) if !binding.is_exact() => (all.clone(), gap(&small, &all)),
        (Kind::Ranges16, PortMap::Keep) | (Kind::Gathered16, PortMap::One(_)) => (small.clone(), gap(&large, &small)),
        (Kind::Ranges1024, PortMap::Keep) | (Kind::Gathered1024, PortMap::One(_)) => {
            (large.clone(), large.end..large.end)
        }
        _ => (0..0, 0..0),
    };
    let step = usize::from(kind.ports_per_key());
    let ports = (outer.start..inner.start).step_by(step).chain((inner.end..outer.end).step_by(step));
    ports.filter_map(|port| u16::try_from(port).ok())
}

/// Returns the kind of map whose key contains `port`. Returns `None` if `port` is in a block, but is not the first port
/// of the block.
fn kind_of_key(binding: &Binding, port: u16) -> Option<Kind> {
    let (large, small) = (complete_blocks(binding, LARGE_BLOCK), complete_blocks(binding, SMALL_BLOCK));
    let starts_block = |size: u16| port.is_multiple_of(size);
    let number = u32::from(port);
    match binding.to.port {
        _ if binding.is_exact() => Some(Kind::Ports),
        _ if !small.contains(&number) => Some(Kind::Spans),
        PortMap::Keep if large.contains(&number) => starts_block(LARGE_BLOCK).then_some(Kind::Ranges1024),
        PortMap::Keep => starts_block(SMALL_BLOCK).then_some(Kind::Ranges16),
        _ if large.contains(&number) => starts_block(LARGE_BLOCK).then_some(Kind::Gathered1024),
        _ => starts_block(SMALL_BLOCK).then_some(Kind::Gathered16),
    }
}

/// Returns the number of map elements of a binding. Elements in the maps for labels and for any loopback address are
/// not counted.
pub fn count(binding: &Binding) -> usize {
    Kind::ALL.into_iter().map(|kind| key_ports(binding, kind).count()).sum()
}

/// Returns the elements of a binding in one map. The element data are the target. In a map of labels, the data are
/// `label`.
pub fn elements(id: &MapId, binding: &Binding, comment: &Arc<str>, label: &[u8]) -> Vec<(Key, Element)> {
    let span = (!binding.is_exact()).then_some(Span { ports: binding.ports, to: binding.to.port });
    let element = |port| {
        let data = if id.role == MapRole::Labels { label.into() } else { data(id, binding, port) };
        let element = Element { data, comment: Arc::clone(comment), span, counter: Counter::default() };
        (key(id, binding, port), element)
    };
    key_ports(binding, id.kind).map(element).collect()
}

fn key(id: &MapId, binding: &Binding, port: u16) -> Key {
    let mut bytes = Vec::with_capacity(8);
    bytes.extend([binding.protocol.number(), 0, 0, 0]);
    push_port(&mut bytes, port);
    if let Some(address) = binding.address.filter(|_| id.keys_address()) {
        push_address(&mut bytes, address);
    }
    if let Some(interface) = binding.interface.as_ref().filter(|_| id.keys_interface()) {
        bytes.extend(interface.to_bytes());
    }
    if let Some(from) = binding.from {
        push_address(&mut bytes, from.network());
    }
    Key(bytes.into())
}

fn data(id: &MapId, binding: &Binding, port: u16) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(8);
    if let Some(address) = binding.to.address {
        push_address(&mut bytes, address);
    }
    let port = binding.target_port(port).to_be_bytes();
    match id.kind {
        Kind::Ranges16 | Kind::Ranges1024 => {}
        // The kernel pads the fields of a concatenation, but not a single field.
        _ if bytes.is_empty() => bytes.extend(port),
        _ => bytes.extend([port, [0, 0]].concat()),
    }
    bytes.into()
}

fn push_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
}

fn push_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
}

/// Reads the binding that an element belongs to, without the options in its labels. The inverse of [`elements`].
///
/// Returns `None` in three cases: the map has no targets, the map is for any loopback address, or portfwd does not
/// write such elements.
pub fn read(id: &MapId, key: &Key, element: &Element) -> Option<SetRule<Binding>> {
    let (set, remark) = parse_comment(&element.comment)?;
    if (id.kind == Kind::Ports) != element.span.is_none() {
        return None;
    }
    let (port, mut rule) = binding(id, key, element)?;
    rule.comment = remark.map(|text| Comment::try_from(text.to_owned())).transpose().ok()?;
    // The map kind and the data of the element must be those that `elements` writes.
    let in_range = (rule.ports.first()..=rule.ports.last()).contains(&port);
    let same = in_range && kind_of_key(&rule, port) == Some(id.kind) && data(id, &rule, port) == element.data;
    same.then_some(SetRule { set, rule })
}

/// Reads the forward that an element of another program makes. Returns `None` if the map has no targets, or if the map
/// is for any loopback address.
pub fn read_foreign(id: &MapId, key: &Key, element: &Element) -> Option<Binding> {
    binding(id, key, &Element { span: None, ..element.clone() }).map(|(_, rule)| rule)
}

/// Reads the port of a key, and the binding without its comment. Without a span, the ports are those of the key.
fn binding(id: &MapId, key: &Key, element: &Element) -> Option<(u16, Binding)> {
    if id.role != MapRole::Targets || id.scope == AddressScope::AnyLoopback {
        return None;
    }
    let mut words = Words(&key.0);
    let family = id.class.family;
    let protocol = Protocol::from_number(words.take::<1>()?[0])?;
    let port = words.port()?;
    let address = if id.keys_address() { Some(words.address(family)?) } else { None };
    let interface = if id.keys_interface() { Some(words.interface()?) } else { None };
    let from = match id.class.from {
        Some(length) => Some(IpNetwork::new(words.address(family)?, length).ok()?),
        None => None,
    };
    let mut words = Words(&element.data);
    let to = if id.redirect { None } else { Some(words.address(family)?) };
    let Span { ports, to: mapped } = match element.span {
        Some(span) => span,
        None => {
            let last = port.checked_add(id.kind.ports_per_key() - 1)?;
            let to = match id.kind {
                Kind::Ranges16 | Kind::Ranges1024 => PortMap::Keep,
                _ => PortMap::One(words.port()?),
            };
            Span { ports: PortRange::new(port, last)?, to }
        }
    };
    let (source, hairpin, loopback) = (Source::Keep, true, id.scope == AddressScope::OneLoopback);
    let to = Destination { address: to, port: mapped };
    let comment = None;
    let rule = Binding { family, address, interface, from, protocol, ports, to, source, hairpin, loopback, comment };
    Some((port, rule))
}

/// The bytes of a key or of element data that are not read yet.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    /// Reads a field of `N` bytes and skips the padding of the field.
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let field = self.0.get(..N)?.try_into().ok()?;
        self.0 = self.0.get(N.next_multiple_of(4)..).unwrap_or_default();
        Some(field)
    }

    fn address(&mut self, family: Family) -> Option<IpAddr> {
        Some(match family {
            Family::Ipv4 => Ipv4Addr::from(self.take::<4>()?).into(),
            Family::Ipv6 => Ipv6Addr::from(self.take::<16>()?).into(),
        })
    }

    fn interface(&mut self) -> Option<IfName> {
        IfName::from_bytes(&self.take::<16>()?).ok()
    }

    fn port(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take::<2>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::rule_comment::format_comment;
    use crate::model::{ChainName, Forward, SetName};
    use crate::nft::program::Shape;
    use proptest::prelude::*;

    fn bindings(listen: &str, to: &str, interface: Option<&str>) -> Vec<Binding> {
        let mut forward = Forward::new(listen.parse().expect(listen), to.parse().expect(to));
        forward.loopback = forward.listen.address.is_some_and(|address| address.is_loopback());
        forward.interface = interface.filter(|_| !forward.loopback).map(|name| name.parse().expect(name));
        forward.comment = Some("a: b".parse().expect("comment"));
        forward.bindings().expect("valid")
    }

    /// Returns all elements of a binding, each with its map and key.
    fn all_elements(rule: &Binding) -> Vec<(MapId, Key, Element)> {
        let comment = format_comment(&SetName::cli(), Some("a: b")).into();
        let of_kind = |kind| {
            let id = MapId::for_binding(rule, kind, ChainName::docker());
            let elements = elements(&id, rule, &comment, &[]);
            elements.into_iter().map(move |(key, element)| (id.clone(), key, element))
        };
        kinds(rule).flat_map(of_kind).collect()
    }

    #[test]
    fn each_element_is_read_back_as_its_binding() {
        for (listen, to) in [
            ("8080", "172.17.0.3:80"),
            ("192.0.2.1:53/udp", "10.0.0.2"),
            ("[2001:db8::1]:8000-8010", "fd00::2"),
            ("8000-8100", "10.0.0.2:80"),
            ("8000-8100", "10.0.0.2"),
            ("8000-8100", "10.0.0.2:9000-9100"),
            ("80", ":8080"),
            ("80-190", ":8080"),
            ("80-190", ":80-190"),
            ("127.0.0.1:80", "10.0.0.2"),
        ] {
            for rule in [None, Some("eth0")].into_iter().flat_map(|interface| bindings(listen, to, interface)) {
                let all = all_elements(&rule);
                assert_eq!(all.len(), count(&rule), "{rule}");
                for (id, key, element) in all {
                    let shape = id.shape();
                    assert_eq!(key.0.len(), usize::from(Shape::length(&shape.key)));
                    assert_eq!(element.data.len(), usize::from(Shape::length(&shape.data)));
                    let owned = SetRule { set: SetName::cli(), rule: rule.clone() };
                    assert_eq!(read(&id, &key, &element), Some(owned), "{id}");
                }
            }
        }
    }

    #[test]
    fn ranges_are_split_into_blocks_and_single_ports() {
        let element_counts = |listen: &str, to: &str| {
            let rule = bindings(listen, to, None).remove(0);
            Kind::ALL.map(|kind| key_ports(&rule, kind).count())
        };
        assert_eq!(element_counts("80", "10.0.0.1"), [1, 0, 0, 0, 0, 0]);
        assert_eq!(element_counts("8000-8010", "10.0.0.1"), [0, 11, 0, 0, 0, 0]);
        assert_eq!(element_counts("8000-8015", "10.0.0.1"), [0, 0, 1, 0, 0, 0]);
        assert_eq!(element_counts("7999-8016", "10.0.0.1:80"), [0, 2, 0, 0, 1, 0]);
        assert_eq!(element_counts("8000-8031", "10.0.0.1:9000-9031"), [0, 32, 0, 0, 0, 0]);
        assert_eq!(element_counts("1-65535", "10.0.0.1"), [0, 15, 63, 63, 0, 0]);
        assert_eq!(element_counts("1-65535", "10.0.0.1:80"), [0, 15, 0, 0, 63, 63]);
        assert_eq!(element_counts("1024-2047", "10.0.0.1"), [0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn truncated_elements_are_rejected() {
        let rule = bindings("8080", "10.0.0.1", None).remove(0);
        for (id, mut key, mut element) in all_elements(&rule) {
            element.data = element.data[..4].into();
            assert_eq!(read(&id, &key, &element), None);
            key = Key(key.0[..5].into());
            assert_eq!(read(&id, &key, &element), None);
        }
    }

    proptest! {
        #[test]
        fn elements_cover_each_port_of_a_range_exactly_once(first in 1u16.., width in 1u16..5000) {
            let last = first.saturating_add(width);
            prop_assume!(first < last);
            let rule = bindings(&format!("{first}-{last}"), "10.0.0.1", None).remove(0);
            let ports_of = |kind: Kind, port: u16| port..=port + (kind.ports_per_key() - 1);
            let of_kind = |kind| key_ports(&rule, kind).flat_map(move |port| ports_of(kind, port)).collect::<Vec<_>>();
            let mut ports: Vec<u16> = Kind::ALL.into_iter().flat_map(of_kind).collect();
            ports.sort_unstable();
            prop_assert!(ports.into_iter().eq(first..=last));
            for kind in Kind::ALL {
                prop_assert!(key_ports(&rule, kind).all(|port| kind_of_key(&rule, port) == Some(kind)));
            }
        }
    }
}
