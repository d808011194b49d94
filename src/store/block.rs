//! How the atoms of forwards are kept: in blocks of about sixteen.
//!
//! One by one, 60,000 of them cost twice as much time to write, most of it to find their places (redb 4.6, measured); all
//! together, one more would rewrite them all. The block of an atom follows from what it listens at, so that it is found
//! without a look at the others.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::model::{Asked, Binding, Family, Owned, Protocol, SetName};

/// How many blocks there are at most of one set, family, protocol and kind.
const BLOCKS: u16 = 0x0fff;

/// What the atoms of a block have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key<'a> {
    set: &'a SetName,
    family: Family,
    protocol: Protocol,
    kind: Kind,
    number: u16,
}

/// What must be looked at together to find what an atom contradicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Port,
    Range,
    Loopback,
}

impl<'a> Key<'a> {
    fn of(owned: &'a Owned<Binding>) -> Self {
        let rule = &owned.rule;
        let kind = match (rule.loopback, rule.is_exact()) {
            (true, _) => Kind::Loopback,
            (false, true) => Kind::Port,
            (false, false) => Kind::Range,
        };
        let number = place(rule).wrapping_add(rule.ports.first() >> 4) & BLOCKS;
        Self { set: &owned.set, family: rule.family, protocol: rule.protocol, kind, number }
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Port => "port",
            Kind::Range => "range",
            Kind::Loopback => "loopback",
        };
        write!(f, "{}\0{} {} {kind} {:03x}", self.set, self.family, self.protocol, self.number)
    }
}

/// Which blocks hold all that an atom of a set could contradict or be a change of: those whose keys are from the first up to
/// the second. Not for atoms that serve loopback addresses, nor among such.
pub(super) fn around(set: &SetName, rule: &Binding) -> (String, String) {
    let owned = Owned { set: set.clone(), rule: rule.clone() };
    let key = Key::of(&owned);
    match key.kind {
        // Ranges that meet may begin anywhere.
        Kind::Range => (Key { number: 0, ..key }.to_string(), Key { number: BLOCKS, ..key }.to_string()),
        Kind::Port | Kind::Loopback => (key.to_string(), key.to_string()),
    }
}

/// Which blocks hold all atoms of a set, as [`around`] says it.
pub(super) fn of_set(set: &SetName) -> (String, String) {
    (format!("{set}\0"), format!("{set}\u{1}"))
}

/// The name of the set that a block is a part of.
pub(super) fn set_of(key: &str) -> &str {
    key.split('\0').next().unwrap_or_default()
}

/// Puts every atom in its block.
pub(super) fn blocks(asked: &Asked) -> BTreeMap<Key<'_>, Vec<&Binding>> {
    let mut blocks: BTreeMap<Key<'_>, Vec<&Binding>> = BTreeMap::new();
    // Atoms of one block mostly follow each other.
    for run in asked.bindings.chunk_by(|one, next| Key::of(one) == Key::of(next)) {
        if let Some(first) = run.first() {
            blocks.entry(Key::of(first)).or_default().extend(run.iter().map(|owned| &owned.rule));
        }
    }
    blocks
}

/// A number that is the same for all atoms of one address, interface and client prefix, and mostly another one for others.
/// It is a part of what is on disk: it must not change from one version to the next.
fn place(rule: &Binding) -> u16 {
    let mix = |number: u16, bytes: &[u8]| {
        bytes.iter().fold(number, |number, byte| number.wrapping_mul(31).wrapping_add((*byte).into()))
    };
    let mix_address = |number: u16, address: IpAddr| match address {
        IpAddr::V4(address) => mix(number, &address.octets()),
        IpAddr::V6(address) => mix(number, &address.octets()),
    };
    let addresses = rule.address.into_iter().chain(rule.from.map(|from| from.network()));
    let interface = rule.interface.as_ref().map(|interface| interface.as_str().as_bytes());
    mix(addresses.fold(0, mix_address), interface.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Forward, RuleSet};

    fn asked(listens: impl Iterator<Item = String>) -> Asked {
        let mut set = RuleSet::new(SetName::cli());
        set.forwards.extend(
            listens.map(|listen| Forward::new(listen.parse().expect("listen"), "10.0.0.1".parse().expect("target"))),
        );
        let mut asked = Asked::default();
        asked.add(&set).expect("valid");
        asked
    }

    #[test]
    fn no_block_grows_with_all_the_others() {
        let ports = asked((1..=60_000).map(|port| port.to_string()));
        let addresses = asked((0..60_000).map(|n| format!("10.1.{}.{}:443", n / 250, n % 250 + 1)));
        for asked in [ports, addresses] {
            let blocks = blocks(&asked);
            assert!(blocks.len() <= 4096, "{}", blocks.len());
            assert!(blocks.values().all(|block| block.len() <= 60), "{:?}", blocks.values().map(Vec::len).max());
            assert_eq!(blocks.values().map(Vec::len).sum::<usize>(), 60_000);
        }
    }

    #[test]
    fn the_names_of_blocks_do_not_change() {
        let names = |listen: &str| {
            let asked = asked(std::iter::once(listen.to_owned()));
            blocks(&asked).keys().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names("80"), ["cli\0IPv4 tcp port 005"]);
        assert_eq!(names("65535/udp"), ["cli\0IPv4 udp port fff"]);
        assert_eq!(names("8000-8100"), ["cli\0IPv4 tcp range 1f4"]);
        assert_eq!(names("192.0.2.1:80"), ["cli\0IPv4 tcp port 784"]);
    }
}
