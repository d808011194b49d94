//! One binding as elements of the maps it lives in, and back.
//!
//! A single port is one element. A range is an element for each aligned block of 1,024 ports that is whole in it, one for
//! each block of 16 in what is left, and one for each port in what is left then: 141 for all ports together. A range that
//! is shifted is one for each port. Each carries the whole range with it ([`Span`]), so any one of them gives the binding
//! back, and a range of which some are missing is known for that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::map::{Kind, MapId, NARROW, Place, Role, WIDE};
use super::program::{Element, Key};
use super::user_data::Span;
use crate::model::rule_comment::parse_comment;
use crate::model::{
    Binding, Comment, Counter, Destination, Family, IfName, Owned, PortMap, PortRange, Protocol, Source,
};

/// The kinds of maps that a binding has elements in.
pub fn kinds(binding: &Binding) -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| pieces(binding, *kind).next().is_some())
}

/// The whole blocks of so many ports in a range: from the first port of the first to behind the last port of the last, as
/// 32-bit numbers because the last block ends at 65,535. Empty where there is none, or where every port goes its own way.
fn blocks(binding: &Binding, size: u16) -> Range<u32> {
    let (first, end) = (u32::from(binding.ports.first()), u32::from(binding.ports.last()) + 1);
    let start = first.next_multiple_of(size.into());
    let kept = matches!(binding.to.port, PortMap::Keep | PortMap::One(_)) && !binding.is_exact();
    if kept { start..(end / u32::from(size) * u32::from(size)).max(start) } else { first..first }
}

/// The ports, or the first ports of the blocks, by which a binding is in a map of a kind; rising.
fn pieces(binding: &Binding, kind: Kind) -> impl Iterator<Item = u16> {
    let all = u32::from(binding.ports.first())..u32::from(binding.ports.last()) + 1;
    let (wide, narrow) = (blocks(binding, WIDE), blocks(binding, NARROW));
    // Where larger blocks leave nothing out, smaller ones lie around no gap.
    let inside =
        |inner: &Range<u32>, outer: &Range<u32>| if inner.is_empty() { outer.end..outer.end } else { inner.clone() };
    let (outer, inner) = match (kind, binding.to.port) {
        (Kind::Ports, _) if binding.is_exact() => (all.clone(), all.end..all.end),
        (Kind::Spans, _) if !binding.is_exact() => (all.clone(), inside(&narrow, &all)),
        (Kind::Ranges16, PortMap::Keep) | (Kind::Gathered16, PortMap::One(_)) => {
            (narrow.clone(), inside(&wide, &narrow))
        }
        (Kind::Ranges1024, PortMap::Keep) | (Kind::Gathered1024, PortMap::One(_)) => (wide.clone(), wide.end..wide.end),
        _ => (0..0, 0..0),
    };
    let step = usize::from(kind.block());
    let around = (outer.start..inner.start).step_by(step).chain((inner.end..outer.end).step_by(step));
    around.filter_map(|port| u16::try_from(port).ok())
}

/// The kind of map that a port, or a block that begins at it, is in; `None` where it is inside of a block.
fn kind_of(binding: &Binding, port: u16) -> Option<Kind> {
    let (wide, narrow) = (blocks(binding, WIDE), blocks(binding, NARROW));
    let begins = |size: u16| port.is_multiple_of(size);
    let at = u32::from(port);
    match binding.to.port {
        _ if binding.is_exact() => Some(Kind::Ports),
        _ if !narrow.contains(&at) => Some(Kind::Spans),
        PortMap::Keep if wide.contains(&at) => begins(WIDE).then_some(Kind::Ranges1024),
        PortMap::Keep => begins(NARROW).then_some(Kind::Ranges16),
        _ if wide.contains(&at) => begins(WIDE).then_some(Kind::Gathered1024),
        _ => begins(NARROW).then_some(Kind::Gathered16),
    }
}

/// How many elements a binding has in all maps together, those of labels and of loopback addresses not counted.
pub fn count(binding: &Binding) -> usize {
    Kind::ALL.into_iter().map(|kind| pieces(binding, kind).count()).sum()
}

/// Writes a binding as elements of a map that it lives in. The data are where it leads, or `label` in a map of labels.
pub fn elements(id: &MapId, binding: &Binding, comment: &Arc<str>, label: &[u8]) -> Vec<(Key, Element)> {
    let span = (!binding.is_exact()).then_some(Span { ports: binding.ports, to: binding.to.port });
    let element = |port| {
        let data = if id.role == Role::Labels { label.into() } else { data(id, binding, port) };
        let element = Element { data, comment: Arc::clone(comment), span, counter: Counter::default() };
        (key(id, binding, port), element)
    };
    pieces(binding, id.kind).map(element).collect()
}

fn key(id: &MapId, binding: &Binding, port: u16) -> Key {
    let mut bytes = Vec::with_capacity(8);
    bytes.extend([binding.protocol.number(), 0, 0, 0]);
    put_port(&mut bytes, port);
    if let Some(address) = binding.address.filter(|_| id.keys_address()) {
        put_address(&mut bytes, address);
    }
    if let Some(interface) = binding.interface.as_ref().filter(|_| id.keys_interface()) {
        bytes.extend(interface.to_bytes());
    }
    if let Some(from) = binding.from {
        put_address(&mut bytes, from.network());
    }
    Key(bytes.into())
}

fn data(id: &MapId, binding: &Binding, port: u16) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(8);
    if let Some(address) = binding.to.address {
        put_address(&mut bytes, address);
    }
    let port = binding.target_port(port).to_be_bytes();
    match id.kind {
        Kind::Ranges16 | Kind::Ranges1024 => {}
        // A lone field is not padded; only fields of a concatenation are.
        _ if bytes.is_empty() => bytes.extend(port),
        _ => bytes.extend([port, [0, 0]].concat()),
    }
    bytes.into()
}

fn put_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
}

fn put_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
}

/// Reads an element back into the binding that it is all or a part of, but for what its label says; the other direction of
/// [`elements`].
///
/// `None` where the element is none of ours, or of a map that does not say where bindings lead.
pub fn read(id: &MapId, key: &Key, element: &Element) -> Option<Owned<Binding>> {
    if id.role != Role::Targets || id.place == Place::Loopback {
        return None;
    }
    let (set, remark) = parse_comment(&element.comment)?;
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
    let Span { ports, to: mapped } = match (id.kind, element.span) {
        (Kind::Ports, None) => Span { ports: PortRange::single(port)?, to: PortMap::One(words.port()?) },
        (Kind::Ports, Some(_)) | (_, None) => return None,
        (_, Some(span)) => span,
    };
    let rule = Binding {
        family,
        address,
        interface,
        from,
        protocol,
        ports,
        to: Destination { address: to, port: mapped },
        source: Source::Keep,
        hairpin: true,
        loopback: id.place == Place::LoopbackAt,
        comment: remark.map(|text| Comment::try_from(text.to_owned())).transpose().ok()?,
    };
    // A part must be where it would be written, and lead where that would lead.
    let inside = (rule.ports.first()..=rule.ports.last()).contains(&port);
    let written = inside && kind_of(&rule, port) == Some(id.kind) && data(id, &rule, port) == element.data;
    written.then_some(Owned { set, rule })
}

/// Reads a key or data word by word.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    /// Takes a field of `N` bytes and its padding.
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

    /// Every element of a binding with its map.
    fn all(rule: &Binding) -> Vec<(MapId, Key, Element)> {
        let comment = format_comment(&SetName::cli(), Some("a: b")).into();
        let of_kind = |kind| {
            let id = MapId::of(rule, kind, ChainName::docker());
            let elements = elements(&id, rule, &comment, &[]);
            elements.into_iter().map(move |(key, element)| (id.clone(), key, element))
        };
        kinds(rule).flat_map(of_kind).collect()
    }

    #[test]
    fn every_element_is_read_back() {
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
                let all = all(&rule);
                assert_eq!(all.len(), count(&rule), "{rule}");
                for (id, key, element) in all {
                    let shape = id.shape();
                    assert_eq!(key.0.len(), usize::from(Shape::length(&shape.key)));
                    assert_eq!(element.data.len(), usize::from(Shape::length(&shape.data)));
                    let owned = Owned { set: SetName::cli(), rule: rule.clone() };
                    assert_eq!(read(&id, &key, &element), Some(owned), "{id}");
                }
            }
        }
    }

    #[test]
    fn ranges_are_blocks_and_the_ports_around_them() {
        let shape = |listen: &str, to: &str| {
            let rule = bindings(listen, to, None).remove(0);
            Kind::ALL.map(|kind| pieces(&rule, kind).count())
        };
        assert_eq!(shape("80", "10.0.0.1"), [1, 0, 0, 0, 0, 0]);
        assert_eq!(shape("8000-8010", "10.0.0.1"), [0, 11, 0, 0, 0, 0]);
        assert_eq!(shape("8000-8015", "10.0.0.1"), [0, 0, 1, 0, 0, 0]);
        assert_eq!(shape("7999-8016", "10.0.0.1:80"), [0, 2, 0, 0, 1, 0]);
        assert_eq!(shape("8000-8031", "10.0.0.1:9000-9031"), [0, 32, 0, 0, 0, 0]);
        assert_eq!(shape("1-65535", "10.0.0.1"), [0, 15, 63, 63, 0, 0]);
        assert_eq!(shape("1-65535", "10.0.0.1:80"), [0, 15, 0, 0, 63, 63]);
        assert_eq!(shape("1024-2047", "10.0.0.1"), [0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_truncated_element_is_none_of_ours() {
        let rule = bindings("8080", "10.0.0.1", None).remove(0);
        for (id, mut key, mut element) in all(&rule) {
            element.data = element.data[..4].into();
            assert_eq!(read(&id, &key, &element), None);
            key = Key(key.0[..5].into());
            assert_eq!(read(&id, &key, &element), None);
        }
    }

    proptest! {
        #[test]
        fn every_port_of_a_range_is_in_one_element_and_no_other_port_is(first in 1u16.., width in 1u16..5000) {
            let last = first.saturating_add(width);
            prop_assume!(first < last);
            let rule = bindings(&format!("{first}-{last}"), "10.0.0.1", None).remove(0);
            let ports_of = |kind: Kind, port: u16| port..=port + (kind.block() - 1);
            let of_kind = |kind| pieces(&rule, kind).flat_map(move |port| ports_of(kind, port)).collect::<Vec<_>>();
            let mut ports: Vec<u16> = Kind::ALL.into_iter().flat_map(of_kind).collect();
            ports.sort_unstable();
            prop_assert!(ports.into_iter().eq(first..=last));
            for kind in Kind::ALL {
                prop_assert!(pieces(&rule, kind).all(|port| kind_of(&rule, port) == Some(kind)));
            }
        }
    }
}
