//! The statements of NAT: `dnat`, `snat`, `masquerade`, `redirect`, with constants, ranges, prefixes and maps.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::key;
use super::lower::{Draft, Lower};
use super::value::Json;
use crate::model::Family;
use crate::ruleset::table::{Action, Rewrite};

/// Reads such a statement.
///
/// In a table of both families one with an address is only about packets of its family (`nft_nat_inet_eval` in
/// net/netfilter/nft_nat.c); the others go on behind the rule.
pub fn apply<'a>(lower: &mut Lower<'_, 'a>, name: &str, statement: &Json<'a>, of: &Json<'a>) {
    let (address, port) = (of.get("addr"), of.get("port"));
    let prefix = of.get("type_flags").is_some_and(|flags| flags.names("prefix"))
        || of.get("flags").is_some_and(|flags| flags.names("netmap"));
    let family = match of.get("family").map(Json::text) {
        None => None,
        Some(Some("ip")) => Some(Family::Ipv4),
        Some(Some("ip6")) => Some(Family::Ipv6),
        Some(_) => return lower.act(&Action::Unknown(statement.words())),
    };
    let nothing = &Json::Null;
    let drafts = std::mem::take(&mut lower.live);
    let addressed = match lower.values(drafts, address.unwrap_or(nothing)) {
        Ok(addressed) => addressed,
        Err(drafts) => return unknown(lower, drafts, statement),
    };
    lower.expect(addressed.len());
    // Without a map there is nothing to multiply, and no need for a second copy of what may be many.
    let complete: Box<dyn Iterator<Item = _>> = match port {
        Some(port) if port.get("map").is_some() => match lower.values(addressed, port) {
            Ok(complete) => Box::new(complete.into_iter()),
            Err(drafts) => return unknown(lower, drafts, statement),
        },
        _ => Box::new(addressed.into_iter().map(|draft| draft.with(port.unwrap_or(nothing)))),
    };
    let table = lower.place.table.family;
    for mut draft in complete {
        let (((), address), port) = draft.note;
        let Some(to) = rewrite(address, port, prefix, family) else {
            lower.act_one(draft, Action::Unknown(statement.words()));
            continue;
        };
        let of_address = to.addresses.map(|(first, _)| Family::of_address(first));
        if let Some(family) = family.or(of_address).filter(|family| table != (*family).into()) {
            lower.leave(&draft);
            key::only(&mut draft.region, family, table);
        }
        let action = match name {
            "dnat" => Action::Dnat(to),
            "snat" => Action::Snat(to),
            "masquerade" => Action::Masquerade(to),
            _ => Action::Redirect(to),
        };
        lower.decide_one(draft, action);
    }
}

/// Returns the address and port of `tproxy` if they are constants.
pub fn constant(of: &Json<'_>) -> Rewrite {
    let nothing = &Json::Null;
    let (address, port) = (of.get("addr").unwrap_or(nothing), of.get("port").unwrap_or(nothing));
    rewrite(address, port, false, None).unwrap_or_default()
}

fn unknown<T>(lower: &mut Lower<'_, '_>, drafts: Vec<Draft<T>>, statement: &Json<'_>) {
    let words = statement.words();
    for draft in drafts {
        lower.act_one(draft, Action::Unknown(words.clone()));
    }
}

/// To what is rewritten; `None` where that is not understood.
fn rewrite(address: &Json<'_>, port: &Json<'_>, prefix: bool, family: Option<Family>) -> Option<Rewrite> {
    let mut to = Rewrite::default();
    let (address, port) = match address.only() {
        // What a map tells may be both.
        Some(("concat", both)) => match (both.list(), port) {
            ([address, port], Json::Null) => (address, port),
            _ => return None,
        },
        _ => (address, port),
    };
    if *address != Json::Null {
        let (first, last, length) = addresses(address)?;
        let same = Family::of_address(first) == Family::of_address(last)
            && family.is_none_or(|family| family == Family::of_address(first));
        if !same || first > last {
            return None;
        }
        to.addresses = Some((first, last));
        if prefix {
            to.prefix = Some(length?);
        }
    }
    if *port != Json::Null {
        let (first, last) = match port.only() {
            Some(("range", ends)) => match ends.list() {
                [first, last] => (self::port(first)?, self::port(last)?),
                _ => return None,
            },
            _ => (self::port(port)?, self::port(port)?),
        };
        if first > last {
            return None;
        }
        to.ports = Some((first, last));
    }
    Some(to)
}

fn port(value: &Json<'_>) -> Option<u16> {
    u16::try_from(value.number()?).ok()
}

/// The first and the last address, and the length of the prefix where it is one; one address is a prefix of all its bits.
fn addresses(value: &Json<'_>) -> Option<(IpAddr, IpAddr, Option<u8>)> {
    let one = |value: &Json<'_>| value.text()?.parse::<IpAddr>().ok();
    match value.only() {
        Some(("range", ends)) => match ends.list() {
            [first, last] => Some((one(first)?, one(last)?, None)),
            _ => None,
        },
        Some(("prefix", of)) => {
            let length = u8::try_from(of.get("len")?.number()?).ok()?;
            let network = IpNetwork::new(one(of.get("addr")?)?, length).ok()?;
            Some((network.network(), network.broadcast(), Some(length)))
        }
        _ => {
            let address = one(value)?;
            Some((address, address, Some(if address.is_ipv4() { 32 } else { 128 })))
        }
    }
}
