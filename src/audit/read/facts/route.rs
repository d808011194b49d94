//! Addresses, routes, neighbours, and the rules of which table of routes is asked.
//!
//! Source: `IFA_…` in include/uapi/linux/if_addr.h, `RTA_…` and `struct rtnexthop` in rtnetlink.h, `NDA_…` and `NUD_…` in
//! neighbour.h, `FRA_…` in fib_rules.h.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::libc::{AF_INET, AF_INET6};

use super::dump::{Message, word};
use crate::audit::facts::{Neighbour, Route};
use crate::model::Family;
use crate::sys::netlink::attributes;

/// The kernel's number of a family.
pub(super) fn number(family: Family) -> u8 {
    let number = match family {
        Family::Ipv4 => AF_INET,
        Family::Ipv6 => AF_INET6,
    };
    u8::try_from(number).unwrap_or(0)
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn value_of<'a>(message: Message<'a>, key: u16) -> Option<&'a [u8]> {
    message.attributes().find(|(found, _)| *found == key).map(|(_, value)| value)
}

/// Reads an address; none that turned out to be another host's (`IFA_F_DADFAILED`), which is not used.
pub(super) fn address(message: Message<'_>, found: &mut Vec<(u32, IpNetwork)>) -> Option<()> {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    const REFUSED: u8 = 0x08;
    let length = message.byte(1)?;
    let address = value_of(message, ADDRESS).and_then(address_of);
    let local = value_of(message, LOCAL).and_then(address_of);
    // Of two ends of a wire, ADDRESS is the other, and the length is that of the network there.
    let (own, length) = match (local, address) {
        (Some(local), Some(address)) if local != address => (local, if local.is_ipv4() { 32 } else { 128 }),
        (Some(own), _) | (None, Some(own)) => (own, length),
        (None, None) => return None,
    };
    let network = IpNetwork::new(own, length).ok()?;
    if message.byte(2)? & REFUSED == 0 {
        found.push((message.word(4)?, network));
    }
    Some(())
}

/// A route as the kernel tells of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// One that is asked by destination alone, by each of its ways.
    Route(Route),
    /// The same, where only packets from some sources ask it.
    FromSome(Route),
    /// One that only packets of a type of service ask.
    OfService,
    /// One whose way is an object (`ip nexthop`) of this number that is not told with it.
    Object(Route, u32),
}

/// Reads a route: one for each way where it has several. Ways that are dead are none (`RTNH_F_DEAD`).
pub(super) fn route(message: Message<'_>, found: &mut Vec<Told>) -> Option<()> {
    mod key {
        pub const DESTINATION: u16 = 1;
        pub const OUTPUT: u16 = 4;
        pub const PRIORITY: u16 = 6;
        pub const WAYS: u16 = 9;
        pub const TABLE: u16 = 15;
        pub const OBJECT: u16 = 30;
    }
    const CLONED: u32 = 0x200;
    const DEAD: u8 = 1;
    let any = if i32::from(message.byte(0)?) == AF_INET { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let (length, from_some, of_service) = (message.byte(1)?, message.byte(2)? > 0, message.byte(3)? > 0);
    let (kind, flags) = (message.byte(7)?, message.word(8)?);
    let destination = match value_of(message, key::DESTINATION) {
        Some(value) => address_of(value)?,
        None => any,
    };
    let to = IpNetwork::new(destination, length).ok()?;
    let table = value_of(message, key::TABLE).and_then(word).or(message.byte(4).map(u32::from))?;
    let metric = value_of(message, key::PRIORITY).and_then(word).unwrap_or(0);
    if flags & CLONED > 0 {
        return Some(());
    }
    if of_service {
        found.push(Told::OfService);
        return Some(());
    }
    let by = |output: Option<u32>, gateway: Option<IpAddr>| Route { to, output, gateway, kind, table, metric };
    let told = |route: Route| if from_some { Told::FromSome(route) } else { Told::Route(route) };
    if let Some(mut ways) = value_of(message, key::WAYS) {
        while !ways.is_empty() {
            let length = usize::from(u16::from_ne_bytes(ways.get(..2)?.try_into().ok()?));
            let output = word(ways.get(4..8)?);
            if ways.get(2)? & DEAD == 0 {
                found.push(told(by(output, gateway(attributes(ways.get(8..length)?)))));
            }
            ways = ways.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        return Some(());
    }
    let (output, gateway) = (value_of(message, key::OUTPUT).and_then(word), gateway(message.attributes()));
    match value_of(message, key::OBJECT).and_then(word) {
        Some(object) if output.is_none() && kind == 1 => found.push(Told::Object(by(None, None), object)),
        _ if flags & u32::from(DEAD) > 0 => {}
        _ => found.push(told(by(output, gateway))),
    }
    Some(())
}

/// The next host on the way: `RTA_GATEWAY`, or of the other family `RTA_VIA`, which begins with that.
fn gateway<'a>(mut attributes: impl Iterator<Item = (u16, &'a [u8])>) -> Option<IpAddr> {
    attributes.find_map(|(key, value)| match key {
        5 => address_of(value),
        18 => address_of(value.get(2..)?),
        _ => None,
    })
}

/// Reads a neighbour; none that needs no asking, like those for multicast (`NUD_NOARP`), or that nobody asked for yet.
pub(super) fn neighbour(message: Message<'_>, found: &mut Vec<Neighbour>) -> Option<()> {
    const DESTINATION: u16 = 1;
    const INCOMPLETE: u16 = 0x01;
    const FAILED: u16 = 0x20;
    const NO_ASKING: u16 = 0x40;
    let (link, state) = (message.word(4)?, message.short(8)?);
    let address = value_of(message, DESTINATION).and_then(address_of)?;
    if state != 0 && state & NO_ASKING == 0 {
        found.push(Neighbour { address, link, failed: state & (INCOMPLETE | FAILED) > 0 });
    }
    Some(())
}

/// A rule of which table is asked, so far as it is a usual one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// First of all the addresses of this host.
    Local,
    /// Then the main table.
    Main,
    /// At last the default one, which mostly is empty.
    Default,
    /// Anything else.
    Other,
}

/// Reads such a rule.
pub(super) fn lookup(message: Message<'_>, found: &mut Vec<Lookup>) -> Option<()> {
    const PRIORITY: u16 = 6;
    const SUPPRESS: u16 = 14;
    const TABLE: u16 = 15;
    const PROTOCOL: u16 = 21;
    const TO_TABLE: u8 = 1;
    let priority = value_of(message, PRIORITY).and_then(word).unwrap_or(0);
    let table = value_of(message, TABLE).and_then(word).or(message.byte(4).map(u32::from))?;
    // Lengths of networks, type of service; of the flags, that it is turned round.
    let for_all = (1..=3).all(|at| message.byte(at) == Some(0)) && message.word(8) == Some(0);
    let plain = message.byte(7) == Some(TO_TABLE)
        && message.attributes().all(|(key, value)| match key {
            PRIORITY | TABLE | PROTOCOL => true,
            // −1 suppresses nothing.
            SUPPRESS => value == [0xff; 4],
            _ => false,
        });
    found.push(match (priority, table) {
        (0, 255) if for_all && plain => Lookup::Local,
        (32766, 254) if for_all && plain => Lookup::Main,
        (32767, 253) if for_all && plain => Lookup::Default,
        _ => Lookup::Other,
    });
    Some(())
}

/// Whether the rules of a family are others than the usual ones. A kernel that can have no rules has none.
pub(super) fn unusual(rules: &[Lookup]) -> bool {
    let has = |rule| rules.contains(&rule);
    !rules.is_empty() && (has(Lookup::Other) || !has(Lookup::Local) || !has(Lookup::Main))
}

#[cfg(test)]
mod tests;
