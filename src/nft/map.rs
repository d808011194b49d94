//! The maps that forwards live in: which ones there are, what their names say, and one binding as elements of one.
//!
//! A binding's class says what a map is asked with; what becomes of the ports says what kind it is:
//!
//! | kind | holds | key | data |
//! | --- | --- | --- | --- |
//! | `ports` | single ports | port | address and port |
//! | `shifted` | ranges moved one to one, an element a port | port | address and port |
//! | `gathered` | ranges sent to one port | range | address and port |
//! | `ranges` | ranges kept as they are | range | address |
//!
//! `shifted` is one element a port because the kernel does not shift: `dnat to a:lo-hi` with another base sends every
//! port to `lo` (measured, Linux 6.18). Ending in `-redirect` they lead to this host and their data have no address.
//!
//! A name is `[CHAIN-]FAMILY[-address][-interface][-fromLENGTH]-KIND[-redirect]`, for example `DOCKER-ip-ports` or
//! `ip6-address-from64-ranges`; it says all that is needed to read an element back.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::program::{Counter, Element, Field, Key, Shape};
use crate::model::{
    Binding, ChainName, Class, Comment, Destination, Family, IfName, Owned, PortMap, PortRange, Protocol, SetName,
};

/// What becomes of the ports of a map's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Single ports. First, because an exact port wins over a range.
    Ports,
    /// Ranges moved one to one.
    Shifted,
    /// Ranges sent to one port.
    Gathered,
    /// Ranges kept as they are.
    Ranges,
}

impl Kind {
    /// All kinds in the order in which they are asked.
    pub const ALL: [Self; 4] = [Self::Ports, Self::Shifted, Self::Gathered, Self::Ranges];

    fn name(self) -> &'static str {
        match self {
            Self::Ports => "ports",
            Self::Shifted => "shifted",
            Self::Gathered => "gathered",
            Self::Ranges => "ranges",
        }
    }

    fn of(binding: &Binding) -> Self {
        match binding.to.port {
            PortMap::One(_) if binding.is_exact() => Self::Ports,
            PortMap::One(_) => Self::Gathered,
            PortMap::Shift(_) => Self::Shifted,
            PortMap::Keep => Self::Ranges,
        }
    }
}

/// Which map: where its rule is, what it is asked with, what it holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapId {
    /// What it is asked with.
    pub class: Class,
    /// What becomes of the ports.
    pub kind: Kind,
    /// Whether it leads to this host.
    pub redirect: bool,
    /// The chain whose rule asks it.
    pub chain: ChainName,
}

impl MapId {
    /// The map that a binding lives in when its forwards live in `chain`.
    pub fn of(binding: &Binding, chain: ChainName) -> Self {
        Self { class: binding.class(), kind: Kind::of(binding), redirect: binding.to.address.is_none(), chain }
    }

    /// The shape of the map.
    pub fn shape(&self) -> Shape {
        let address = match self.class.family {
            Family::Ipv4 => Field::Ipv4,
            Family::Ipv6 => Field::Ipv6,
        };
        // The protocol comes first because nft(8) reads its own listing back only so.
        let mut key = Vec::with_capacity(5);
        key.extend([Field::Protocol, Field::Port]);
        if self.class.address {
            key.push(address);
        }
        if self.class.interface {
            key.push(Field::Interface);
        }
        if self.class.from.is_some() {
            key.push(address);
        }
        let mut data = Vec::with_capacity(2);
        if !self.redirect {
            data.push(address);
        }
        if self.kind != Kind::Ranges {
            data.push(Field::Port);
        }
        Shape { key, data, interval: matches!(self.kind, Kind::Gathered | Kind::Ranges) }
    }
}

impl fmt::Display for MapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.chain != ChainName::forwards() {
            write!(f, "{}-", self.chain)?;
        }
        f.write_str(match self.class.family {
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        })?;
        if self.class.address {
            f.write_str("-address")?;
        }
        if self.class.interface {
            f.write_str("-interface")?;
        }
        if let Some(length) = self.class.from {
            write!(f, "-from{length}")?;
        }
        write!(f, "-{}", self.kind.name())?;
        if self.redirect { f.write_str("-redirect") } else { Ok(()) }
    }
}

/// A name that is not one of our maps'.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of one of our maps")]
pub struct ForeignName(String);

impl FromStr for MapId {
    type Err = ForeignName;

    fn from_str(name: &str) -> Result<Self, ForeignName> {
        let foreign = || ForeignName(name.to_owned());
        let mut words: Vec<&str> = name.split('-').collect();
        let mut take = |word: &str| words.pop_if(|last| *last == word).is_some();
        let redirect = take("redirect");
        let kind = Kind::ALL.into_iter().find(|kind| take(kind.name())).ok_or_else(foreign)?;
        let from = words.pop_if(|last| last.starts_with("from") && last.len() > 4);
        let from = from.map(|word| word.trim_start_matches("from").parse::<u8>()).transpose().map_err(|_| foreign())?;
        let mut take = |word: &str| words.pop_if(|last| *last == word).is_some();
        let interface = take("interface");
        let address = take("address");
        let family = if take("ip") {
            Family::Ipv4
        } else if take("ip6") {
            Family::Ipv6
        } else {
            return Err(foreign());
        };
        let chain =
            if words.is_empty() { ChainName::forwards() } else { words.join("-").parse().map_err(|_| foreign())? };
        Ok(Self { class: Class { family, address, interface, from }, kind, redirect, chain })
    }
}

/// The comment of an element or a rule: the set's name, then the owner's remark.
pub fn comment(set: &SetName, remark: Option<&str>) -> String {
    match remark {
        Some(remark) => format!("{set}: {remark}"),
        None => set.to_string(),
    }
}

/// The set and the remark of a comment; `None` where it is not one of ours.
pub fn read_comment(text: &str) -> Option<(SetName, Option<&str>)> {
    let (set, remark) = match text.split_once(": ") {
        Some((set, remark)) => (set, Some(remark)),
        None => (text, None),
    };
    Some((set.parse().ok()?, remark))
}

/// Writes a binding as the elements of its map: one, or for a shifted range one for each port.
pub fn elements(binding: &Binding, comment: &Arc<str>) -> Vec<(Key, Element)> {
    let element =
        |port| Element { data: data(binding, port), comment: Arc::clone(comment), counter: Counter::default() };
    match binding.to.port {
        PortMap::Shift(_) => {
            let each = |port| (Key { first: key(binding, port), last: None }, element(Some(binding.target_port(port))));
            binding.ports.iter().map(each).collect()
        }
        PortMap::One(to) => {
            let last = (!binding.is_exact()).then(|| key(binding, binding.ports.last()));
            vec![(Key { first: key(binding, binding.ports.first()), last }, element(Some(to)))]
        }
        PortMap::Keep => {
            let last = Some(key(binding, binding.ports.last()));
            vec![(Key { first: key(binding, binding.ports.first()), last }, element(None))]
        }
    }
}

fn key(binding: &Binding, port: u16) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(8);
    bytes.extend([binding.protocol.number(), 0, 0, 0]);
    put_port(&mut bytes, port);
    if let Some(address) = binding.address {
        put_address(&mut bytes, address);
    }
    if let Some(interface) = &binding.interface {
        bytes.extend(interface.to_bytes());
    }
    if let Some(from) = binding.from {
        put_address(&mut bytes, from.network());
    }
    bytes.into()
}

fn data(binding: &Binding, port: Option<u16>) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(8);
    if let Some(address) = binding.to.address {
        put_address(&mut bytes, address);
    }
    match port {
        // A lone field is not padded; only fields of a concatenation are.
        Some(port) if bytes.is_empty() => bytes.extend(port.to_be_bytes()),
        Some(port) => put_port(&mut bytes, port),
        None => {}
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

/// Reads an element back into a binding; the other direction of [`elements`]. A port of a shifted range comes back on
/// its own: [`crate::nft::lift`] joins them.
///
/// `None` where the element is none of ours.
pub fn read(id: &MapId, key: &Key, element: &Element) -> Option<Owned<Binding>> {
    let (set, remark) = read_comment(&element.comment)?;
    let mut words = Words(&key.first);
    let family = id.class.family;
    let protocol = Protocol::from_number(words.take::<1>()?[0])?;
    let first = words.port()?;
    let address = if id.class.address { Some(words.address(family)?) } else { None };
    let interface = if id.class.interface { Some(words.interface()?) } else { None };
    let from = match id.class.from {
        Some(length) => Some(IpNetwork::new(words.address(family)?, length).ok()?),
        None => None,
    };
    let last = match &key.last {
        Some(last) => Words(last.get(4..)?).port()?,
        None => first,
    };
    let mut words = Words(&element.data);
    let to = if id.redirect { None } else { Some(words.address(family)?) };
    let port = match id.kind {
        Kind::Ranges => PortMap::Keep,
        Kind::Ports | Kind::Gathered | Kind::Shifted => PortMap::One(words.port()?),
    };
    let comment: Option<Comment> = remark.map(str::parse).transpose().ok()?;
    let ports = PortRange::new(first, last)?;
    let to = Destination { address: to, port };
    Some(Owned { set, rule: Binding { family, address, interface, from, protocol, ports, to, comment } })
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
    use crate::model::Forward;

    fn ids() -> Vec<MapId> {
        let mut ids = Vec::new();
        for family in Family::ALL {
            for bits in 0..8u8 {
                for kind in Kind::ALL {
                    for chain in ["forwards", "DOCKER", "br-ip-x"] {
                        let from = (bits & 1 > 0).then_some(24);
                        let class = Class { family, address: bits & 2 > 0, interface: bits & 4 > 0, from };
                        for redirect in [false, true] {
                            ids.push(MapId { class, kind, redirect, chain: chain.parse().expect(chain) });
                        }
                    }
                }
            }
        }
        ids
    }

    #[test]
    fn every_name_is_read_back() {
        let ids = ids();
        for id in &ids {
            assert_eq!(id.to_string().parse().as_ref(), Ok(id));
        }
        for foreign in ["", "ports", "ip", "ip7-ports", "ip-port", "ip-from-ports", "ip-from999-ports"] {
            assert!(foreign.parse::<MapId>().is_err(), "{foreign}");
        }
    }

    #[test]
    fn every_element_is_read_back() {
        for (listen, to) in [
            ("8080", "172.17.0.3:80"),
            ("192.0.2.1:53/udp", "10.0.0.2"),
            ("[2001:db8::1]:8000-8010", "fd00::2"),
            ("8000-8010", "10.0.0.2:80"),
            ("80", ":8080"),
            ("80-90", ":8080"),
        ] {
            for interface in [None, Some("eth0".parse().expect("name"))] {
                let mut forward = Forward::new(listen.parse().expect(listen), to.parse().expect(to));
                forward.interface = interface;
                forward.comment = Some("a: b".parse().expect("comment"));
                for rule in forward.bindings().expect("valid") {
                    let id = MapId::of(&rule, ChainName::docker());
                    let comment = comment(&SetName::cli(), Some("a: b")).into();
                    let elements = elements(&rule, &comment);
                    let [(key, element)] = elements.as_slice() else { panic!("one element") };
                    let shape = id.shape();
                    assert_eq!(key.first.len(), usize::from(Shape::length(&shape.key)));
                    assert_eq!(element.data.len(), usize::from(Shape::length(&shape.data)));
                    assert_eq!(key.last.is_some(), shape.interval);
                    assert_eq!(read(&id, key, element), Some(Owned { set: SetName::cli(), rule }));
                }
            }
        }
    }

    #[test]
    fn a_truncated_element_is_none_of_ours() {
        let rule = Forward::new("8080".parse().expect("listen"), "10.0.0.1".parse().expect("to"));
        let rule = rule.bindings().expect("valid").remove(0);
        let id = MapId::of(&rule, ChainName::docker());
        for (mut key, mut element) in elements(&rule, &"cli".into()) {
            element.data = element.data[..4].into();
            assert_eq!(read(&id, &key, &element), None);
            key.first = key.first[..5].into();
            assert_eq!(read(&id, &key, &element), None);
        }
    }
}
