//! The maps that forwards live in: which ones there are, and what their names say.
//!
//! A binding's class says what a map is asked with; its ports say of what kind it is:
//!
//! | kind | holds | key | data |
//! | --- | --- | --- | --- |
//! | `ports` | single ports | port | address and port |
//! | `spans` | ports of ranges, an element each | port | address and port |
//! | `ranges16`, `ranges1024` | blocks of so many ports of ranges that are kept | port without its low bits | address |
//! | `gathered16`, `gathered1024` | blocks of ranges that are sent to one port | port without its low bits | address and port |
//!
//! Every map is a hash table, so a lookup costs the same however much is in it. Intervals would not: a concatenation with
//! a range in it is a `pipapo` set, and its lookups grow with the number of its elements (2.1 times the cost of a whole
//! connection at 5,000 ranges; Linux 6.18). A range that is shifted is a port an element anyway, because the kernel does
//! not shift: `dnat to a:lo-hi` with another base sends every port to `lo` (measured, Linux 6.18). Ending in
//! `-redirect` maps lead to this host and their data have no address.
//!
//! What is asked only about packets to loopback addresses is in maps of their own, `loopback`: keys name the loopback
//! address where the forward does, `at`, and otherwise neither address nor interface, because at a loopback address it
//! matters only that the forward names them. A map of `labels` has the keys of another one, for those of its elements
//! that need more of a label than all have (see [`crate::model::label`]).
//!
//! A set of `clients` has the keys, without the client, of several maps with client prefixes (see `compile/clients.rs`).
//!
//! A name is `[CHAIN-]FAMILY[-loopback][-address|-at][-interface][-fromLENGTH]-KIND[-redirect][-labels|-clients]`, for example
//! `DOCKER-ip-ports` or `ip6-address-from64-ranges16`; it says all that is needed to read an element back
//! ([`super::element`]).

use std::fmt;
use std::str::FromStr;

use super::program::{Field, Shape};
use crate::model::{Binding, ChainName, Class, Family};

/// Which ports a map's elements stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Single ports. First, because an exact port wins over a range.
    Ports,
    /// Ports of ranges.
    Spans,
    /// Blocks of 16 ports of ranges kept as they are.
    Ranges16,
    /// Blocks of 1,024 ports of such ranges.
    Ranges1024,
    /// Blocks of 16 ports of ranges sent to one port.
    Gathered16,
    /// Blocks of 1,024 ports of such ranges.
    Gathered1024,
}

/// How many ports a small block has: ranges as people write them, of 10 to 1,000 ports, take the fewest elements of 16.
pub const NARROW: u16 = 16;
/// How many ports a large block has.
pub const WIDE: u16 = 1024;

impl Kind {
    /// All kinds in the order in which they are asked.
    pub const ALL: [Self; 6] =
        [Self::Ports, Self::Spans, Self::Ranges16, Self::Ranges1024, Self::Gathered16, Self::Gathered1024];

    /// How many ports a key stands for: a power of two.
    pub fn block(self) -> u16 {
        match self {
            Self::Ports | Self::Spans => 1,
            Self::Ranges16 | Self::Gathered16 => NARROW,
            Self::Ranges1024 | Self::Gathered1024 => WIDE,
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

/// About packets to which addresses a map is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// All but loopback addresses.
    Outside,
    /// One loopback address.
    LoopbackAt,
    /// Every loopback address.
    Loopback,
}

/// Which map: where its rule is, what it is asked with, what it holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapId {
    /// About which packets it is asked.
    pub place: Place,
    /// What it is asked with.
    pub class: Class,
    /// What becomes of the ports.
    pub kind: Kind,
    /// Whether it leads to this host.
    pub redirect: bool,
    /// The chain whose rule asks it.
    pub chain: ChainName,
    /// What it answers.
    pub role: Role,
}

/// What a map answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Which label a connection gets. First, because it is asked before where the connection leads.
    Labels,
    /// Where a connection leads.
    Targets,
    /// Whether any forward of those with a client prefix is about the packet, whoever sends it. A set, without data.
    Clients,
}

impl MapId {
    /// The map of a kind that a binding lives in when its forwards live in `chain`.
    pub fn of(binding: &Binding, kind: Kind, chain: ChainName) -> Self {
        let place = if binding.serves_others() { Place::Outside } else { Place::LoopbackAt };
        let redirect = binding.to.address.is_none();
        Self { place, class: binding.class(), kind, redirect, chain, role: Role::Targets }
    }

    /// The map that a binding lives in besides, because it also serves the loopback addresses.
    pub fn at_loopback(&self) -> Self {
        Self { place: Place::Loopback, ..self.clone() }
    }

    /// The map with the labels of this one's elements.
    pub fn labels(&self) -> Self {
        Self { role: Role::Labels, ..self.clone() }
    }

    /// The map whose elements' labels this one holds.
    pub fn targets(&self) -> Self {
        Self { role: Role::Targets, ..self.clone() }
    }

    /// The set that says whether this map, or one like it for another length of client prefixes, is worth asking.
    pub fn clients(&self) -> Self {
        let class = Class { from: None, ..self.class };
        Self { class, redirect: false, role: Role::Clients, ..self.clone() }
    }

    /// Whether a key has the address that is asked for.
    pub fn keys_address(&self) -> bool {
        self.class.address && self.place != Place::Loopback
    }

    /// Whether a key has the interface.
    pub fn keys_interface(&self) -> bool {
        self.class.interface && self.place == Place::Outside
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
            Role::Labels => data.push(LABEL),
            Role::Targets => {
                data.extend((!self.redirect).then_some(address));
                let kept = matches!(self.kind, Kind::Ranges16 | Kind::Ranges1024);
                data.extend((!kept).then_some(Field::Port));
            }
            Role::Clients => {}
        }
        Shape { key, data }
    }
}

/// A label in a map. The type says "IPv6 address" because that is the one type of 128 bits that nft(8) can list.
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
        if self.place != Place::Outside {
            f.write_str("-loopback")?;
        }
        if self.class.address {
            f.write_str(if self.place == Place::LoopbackAt { "-at" } else { "-address" })?;
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
            Role::Labels => f.write_str("-labels"),
            Role::Targets => Ok(()),
            Role::Clients => f.write_str("-clients"),
        }
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
        let role = match (take("labels"), take("clients")) {
            (false, false) => Role::Targets,
            (true, false) => Role::Labels,
            (false, true) => Role::Clients,
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
        let place = match (take("loopback"), at) {
            (false, false) => Place::Outside,
            (true, true) if !interface => Place::LoopbackAt,
            (true, false) => Place::Loopback,
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
        Ok(Self { place, class: Class { family, address, interface, from }, kind, redirect, chain, role })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Vec<MapId> {
        let mut ids = Vec::new();
        for family in Family::ALL {
            for bits in 0..8u8 {
                for kind in Kind::ALL {
                    for chain in ["forwards", "DOCKER", "br-ip-x"] {
                        let from = (bits & 1 > 0).then_some(24);
                        let class = Class { family, address: bits & 2 > 0, interface: bits & 4 > 0, from };
                        let roles = [Role::Targets, Role::Labels];
                        let mut each: Vec<_> = roles.iter().flat_map(|role| [(false, *role), (true, *role)]).collect();
                        each.extend(from.is_none().then_some((false, Role::Clients)));
                        for (redirect, role) in each {
                            let chain = chain.parse().expect(chain);
                            let id = MapId { place: Place::Outside, class, kind, redirect, chain, role };
                            ids.push(MapId { place: Place::Loopback, ..id.clone() });
                            if class.address && !class.interface {
                                ids.push(MapId { place: Place::LoopbackAt, ..id.clone() });
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
    fn every_name_is_read_back() {
        let ids = ids();
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
