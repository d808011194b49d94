//! The maps that contain forwards, and the names of these maps.
//!
//! The class of a binding determines the key fields of its map. The ports of a binding determine the kind of the map:
//!
//! | kind | contents | key | data |
//! | --- | --- | --- | --- |
//! | `ports` | single ports | port | address and port |
//! | `spans` | single ports of a range | port | address and port |
//! | `ranges16`, `ranges1024` | blocks of 16 or 1,024 ports of a range that keeps its ports | port without its low bits | address |
//! | `gathered16`, `gathered1024` | blocks of 16 or 1,024 ports of a range with one target port | port without its low bits | address and port |
//!
//! Every map is a hash table, so the number of elements does not affect the cost of a lookup. Interval maps are slower.
//! The kernel stores a concatenation with a range as a `pipapo` set, and every element makes a lookup slower. With
//! 5,000 ranges, a lookup costs 2.1 times as much as a whole connection (Linux 6.18).
//!
//! If a forward shifts the ports of a range, each port needs one element, because the kernel does not shift ports.
//! `dnat to a:lo-hi` with another base sends every port to `lo` (measured, Linux 6.18).
//!
//! If the name of a map ends in `-redirect`, the target is this host, and the data contain no address.
//!
//! Maps with `loopback` in the name are for packets to loopback addresses. If the forward listens on a loopback
//! address, the name contains `at` and the key contains the address. Otherwise the key contains neither address nor
//! interface, even if the forward has them.
//!
//! A `labels` map has the keys of elements that need additional connection labels (see [`crate::model::label`]). A
//! `clients` set has the keys of several maps with client prefixes, without the client field (see
//! `compile/clients.rs`).
//!
//! The format of a name is
//! `[CHAIN-]FAMILY[-loopback][-address|-at][-interface][-fromLENGTH]-KIND[-redirect][-labels|-clients]`. Examples are
//! `DOCKER-ip-ports` and `ip6-address-from64-ranges16`. [`super::element`] needs only the name of the map to read an
//! element.

use std::fmt;
use std::str::FromStr;

use super::program::{Field, Shape};
use crate::model::{Binding, ChainName, Class, Family};

/// The kind of a map: what one element of the map stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Single ports. Rules look up this kind first, because a single port has precedence over a range.
    Ports,
    /// Ports of a range, with one element for each port.
    Spans,
    /// Blocks of 16 ports of a range that keeps its ports.
    Ranges16,
    /// Blocks of 1,024 ports of a range that keeps its ports.
    Ranges1024,
    /// Blocks of 16 ports of a range with one target port.
    Gathered16,
    /// Blocks of 1,024 ports of a range with one target port.
    Gathered1024,
}

/// The number of ports in a small block. With 16 ports in a block, typical ranges of 10 to 1,000 ports need the fewest
/// elements.
pub const SMALL_BLOCK: u16 = 16;
/// The number of ports in a large block.
pub const LARGE_BLOCK: u16 = 1024;

impl Kind {
    /// All kinds of maps, in the order in which rules look up the maps.
    pub const ALL: [Self; 6] =
        [Self::Ports, Self::Spans, Self::Ranges16, Self::Ranges1024, Self::Gathered16, Self::Gathered1024];

    /// Returns the number of ports that one key covers: a power of two.
    pub fn ports_per_key(self) -> u16 {
        match self {
            Self::Ports | Self::Spans => 1,
            Self::Ranges16 | Self::Gathered16 => SMALL_BLOCK,
            Self::Ranges1024 | Self::Gathered1024 => LARGE_BLOCK,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ports => "ports",
            Self::Spans => "spans",
            Self::Ranges16 => "ranges16",
            Self::Ranges1024 => "ranges1024",
            Self::Gathered16 => "gathered16",
            Self::Gathered1024 => "gathered1024",
        }
    }
}

/// The destination addresses that a map serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressScope {
    /// All addresses except loopback addresses.
    NonLoopback,
    /// The loopback address that the key contains.
    OneLoopback,
    /// Every loopback address of the family.
    AnyLoopback,
}

/// The properties of a map. The name of the map contains all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapId {
    /// The destination addresses that the map serves.
    pub scope: AddressScope,
    /// The fields of the key in addition to protocol and port.
    pub class: Class,
    /// The kind of the map: single ports, ports of ranges, or blocks of ports.
    pub kind: Kind,
    /// True if the target is this host.
    pub redirect: bool,
    /// The chain with the rule that looks up the map.
    pub chain: ChainName,
    /// The contents of the map's data: labels, targets or nothing.
    pub role: MapRole,
}

/// The contents of a map's data: labels, targets or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapRole {
    /// The data are connection labels. This variant is the first, because rules look up labels before targets.
    Labels,
    /// The data are the target of a connection.
    Targets,
    /// No data: a set with the ports of forwards that have client prefixes. The set has no field for the client.
    Clients,
}

impl MapId {
    /// Returns the properties of the target map for a binding. `chain` is the chain of the binding's forwards.
    pub fn for_binding(binding: &Binding, kind: Kind, chain: ChainName) -> Self {
        let scope = if binding.serves_non_loopback() { AddressScope::NonLoopback } else { AddressScope::OneLoopback };
        let redirect = binding.to.address.is_none();
        Self { scope, class: binding.class(), kind, redirect, chain, role: MapRole::Targets }
    }

    /// Returns the properties of the map for any loopback address. All other properties stay the same.
    pub fn any_loopback(&self) -> Self {
        Self { scope: AddressScope::AnyLoopback, ..self.clone() }
    }

    /// Returns the properties of the map that contains the labels for this map's elements.
    pub fn labels(&self) -> Self {
        Self { role: MapRole::Labels, ..self.clone() }
    }

    /// Returns the properties of the target map that belongs to this map of labels.
    pub fn targets(&self) -> Self {
        Self { role: MapRole::Targets, ..self.clone() }
    }

    /// Returns the properties of the client set for this map. Maps that differ only in the client prefix length share
    /// the set.
    pub fn clients(&self) -> Self {
        let class = Class { from: None, ..self.class };
        Self { class, redirect: false, role: MapRole::Clients, ..self.clone() }
    }

    /// Returns true if a key contains the destination address.
    pub fn keys_address(&self) -> bool {
        self.class.address && self.scope != AddressScope::AnyLoopback
    }

    /// Returns true if a key contains the ingress interface.
    pub fn keys_interface(&self) -> bool {
        self.class.interface && self.scope == AddressScope::NonLoopback
    }

    /// Returns the key and data types of the map.
    pub fn shape(&self) -> Shape {
        let address = match self.class.family {
            Family::Ipv4 => Field::Ipv4,
            Family::Ipv6 => Field::Ipv6,
        };
        // If the protocol is not the first field of a key, nft(8) cannot read its own output back.
        let mut key = Vec::with_capacity(5);
        key.extend([Field::Protocol, Field::Port]);
        if self.keys_address() {
            key.push(address);
        }
        if self.keys_interface() {
            key.push(Field::Interface);
        }
        if self.class.from.is_some() {
            key.push(address);
        }
        let mut data = Vec::with_capacity(2);
        match self.role {
            MapRole::Labels => data.push(LABEL),
            MapRole::Targets => {
                data.extend((!self.redirect).then_some(address));
                let kept = matches!(self.kind, Kind::Ranges16 | Kind::Ranges1024);
                data.extend((!kept).then_some(Field::Port));
            }
            MapRole::Clients => {}
        }
        Shape { key, data }
    }
}

/// The field type of a connection label. IPv6 addresses are the only 128-bit type that nft(8) can list.
pub const LABEL: Field = Field::Ipv6;

impl fmt::Display for MapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.chain != ChainName::forwards() {
            write!(f, "{}-", self.chain)?;
        }
        f.write_str(match self.class.family {
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        })?;
        if self.scope != AddressScope::NonLoopback {
            f.write_str("-loopback")?;
        }
        if self.class.address {
            f.write_str(if self.scope == AddressScope::OneLoopback { "-at" } else { "-address" })?;
        }
        if self.class.interface {
            f.write_str("-interface")?;
        }
        if let Some(length) = self.class.from {
            write!(f, "-from{length}")?;
        }
        write!(f, "-{}", self.kind.name())?;
        if self.redirect {
            f.write_str("-redirect")?;
        }
        match self.role {
            MapRole::Labels => f.write_str("-labels"),
            MapRole::Targets => Ok(()),
            MapRole::Clients => f.write_str("-clients"),
        }
    }
}

/// The error for a name that is not the name of a portfwd map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a portfwd map")]
pub struct ForeignName(String);

impl FromStr for MapId {
    type Err = ForeignName;

    fn from_str(name: &str) -> Result<Self, ForeignName> {
        let foreign = || ForeignName(name.to_owned());
        let mut words: Vec<&str> = name.split('-').collect();
        let mut take = |word: &str| words.pop_if(|last| *last == word).is_some();
        let role = match (take("labels"), take("clients")) {
            (false, false) => MapRole::Targets,
            (true, false) => MapRole::Labels,
            (false, true) => MapRole::Clients,
            (true, true) => return Err(foreign()),
        };
        let redirect = take("redirect");
        let kind = Kind::ALL.into_iter().find(|kind| take(kind.name())).ok_or_else(foreign)?;
        let from = words.pop_if(|last| last.starts_with("from") && last.len() > 4);
        let from = from.map(|word| word.trim_start_matches("from").parse::<u8>()).transpose().map_err(|_| foreign())?;
        let mut take = |word: &str| words.pop_if(|last| *last == word).is_some();
        let interface = take("interface");
        let at = take("at");
        let address = at || take("address");
        let scope = match (take("loopback"), at) {
            (false, false) => AddressScope::NonLoopback,
            (true, true) if !interface => AddressScope::OneLoopback,
            (true, false) => AddressScope::AnyLoopback,
            _ => return Err(foreign()),
        };
        let family = if take("ip") {
            Family::Ipv4
        } else if take("ip6") {
            Family::Ipv6
        } else {
            return Err(foreign());
        };
        let chain =
            if words.is_empty() { ChainName::forwards() } else { words.join("-").parse().map_err(|_| foreign())? };
        Ok(Self { scope, class: Class { family, address, interface, from }, kind, redirect, chain, role })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ids() -> Vec<MapId> {
        let mut ids = Vec::new();
        for family in Family::ALL {
            for bits in 0..8u8 {
                for kind in Kind::ALL {
                    for chain in ["forwards", "DOCKER", "br-ip-x"] {
                        let from = (bits & 1 > 0).then_some(24);
                        let class = Class { family, address: bits & 2 > 0, interface: bits & 4 > 0, from };
                        let roles = [MapRole::Targets, MapRole::Labels];
                        let mut each: Vec<_> = roles.iter().flat_map(|role| [(false, *role), (true, *role)]).collect();
                        each.extend(from.is_none().then_some((false, MapRole::Clients)));
                        for (redirect, role) in each {
                            let chain = chain.parse().expect(chain);
                            let id = MapId { scope: AddressScope::NonLoopback, class, kind, redirect, chain, role };
                            ids.push(MapId { scope: AddressScope::AnyLoopback, ..id.clone() });
                            if class.address && !class.interface {
                                ids.push(MapId { scope: AddressScope::OneLoopback, ..id.clone() });
                            }
                            ids.push(id);
                        }
                    }
                }
            }
        }
        ids
    }

    #[test]
    fn every_map_name_is_parsed_back() {
        let ids = all_ids();
        for id in &ids {
            assert_eq!(id.to_string().parse().as_ref(), Ok(id));
        }
        for foreign in [
            "",
            "ports",
            "ip",
            "ip-at-ports",
            "ip-loopback-at-interface-ports",
            "ip7-ports",
            "ip-port",
            "ip-from-ports",
            "ip-from999-ports",
        ] {
            assert!(foreign.parse::<MapId>().is_err(), "{foreign}");
        }
    }
}
