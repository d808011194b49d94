//! A `[[forward]]` table to a forward.

use std::ops::Range;

use toml::de::DeValue;

use super::reader::{Reader, Table};
use crate::model::{Family, Forward, Listen, Network, ParseError, Protocol, Source, Target, prefix};

/// The keys of `[[forward]]`.
const FORWARD_KEYS: [&str; 9] =
    ["listen", "to", "protocol", "interface", "from", "source", "hairpin", "loopback", "comment"];

/// Reads a forward; the place is where it says what it listens at.
pub(super) fn forward(reader: &mut Reader, table: &Table<'_>, networks: &[Network]) -> Option<(Forward, Range<usize>)> {
    let before = reader.problems.len();
    reader.only(table, &FORWARD_KEYS);
    let listen = reader.required(table, "listen", "\"8080\"");
    let listen_span = listen.map_or(table.span.clone(), toml::Spanned::span);
    let listen: Option<Listen> = listen.and_then(|value| reader.parsed(value, "listen"));
    let to = reader.required(table, "to", "\"172.17.0.3:80\"");
    let to_span = to.map_or(table.span.clone(), toml::Spanned::span);
    let to: Option<Target> = to.and_then(|value| reader.parsed(value, "to"));
    let protocols = protocols(reader, table);
    let interface = reader.optional(table, "interface");
    let from = reader.list(table, "from", prefix::parse);
    if matches!(&from, Some(from) if from.is_empty())
        && let Some(value) = table.values.get("from")
        && matches!(value.get_ref(), DeValue::Array(list) if list.is_empty())
    {
        reader.problem(value.span(), "`from` is empty, so nobody could connect", "leave it out to let everybody in");
    }
    let comment = reader.optional(table, "comment");
    let source: Option<Source> = reader.optional(table, "source");
    let hairpin = reader.boolean(table, "hairpin", true);
    let loopback = reader.boolean(table, "loopback", false);
    if let Some(to) = &to
        && let Err(error) = host_of_network(to, networks)
    {
        reader.wrong(to_span, &error);
    }
    let from = from.unwrap_or_default().into_iter().map(|(prefix, _)| prefix).collect();
    let source = source.unwrap_or_default();
    let (listen, to) = (listen?, to?);
    let forward = Forward { listen, to, protocols, interface, from, source, hairpin, loopback, comment };
    if let Err(error) = forward.bindings() {
        // A key that is wrong because it is missing has no place of its own.
        let value = error.key().and_then(|key| table.values.get(key));
        reader.wrong(value.map_or(listen_span.clone(), toml::Spanned::span), &error);
    }
    (reader.problems.len() == before).then_some((forward, listen_span))
}

fn protocols(reader: &mut Reader, table: &Table<'_>) -> Vec<Protocol> {
    let mut protocols: Vec<Protocol> = Vec::new();
    for (protocol, span) in reader.list(table, "protocol", str::parse::<Protocol>).unwrap_or_default() {
        if protocols.contains(&protocol) {
            reader.problem(span, format!("`{protocol}` is named twice"), "name every protocol once");
        } else {
            protocols.push(protocol);
        }
    }
    if let Some(value) = table.values.get("protocol")
        && matches!(value.get_ref(), DeValue::Array(list) if list.is_empty())
    {
        reader.problem(value.span(), "`protocol` is empty", "leave it out for tcp, or name at least one");
    }
    protocols
}

/// Refuses a target that is no host of its network: the network's own address, or its broadcast address.
fn host_of_network(to: &Target, networks: &[Network]) -> Result<(), ParseError> {
    let Some(address) = to.address.filter(|address| Family::of(*address) == Family::Ipv4) else { return Ok(()) };
    for subnet in networks.iter().flat_map(|network| &network.subnets).filter(|subnet| subnet.prefix() < 31) {
        let what = if address == subnet.broadcast() {
            "broadcast address"
        } else if address == subnet.network() {
            "own address"
        } else {
            continue;
        };
        let what = format!("the target `{address}` is the {what} of `{subnet}`");
        return Err(ParseError::new(what, "write the address of one host"));
    }
    Ok(())
}
