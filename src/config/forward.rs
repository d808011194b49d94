//! Converts a `[[forward]]` table into a forward.

use std::ops::Range;

use toml::de::DeValue;

use super::reader::{Table, TableReader};
use crate::model::{Family, Forward, Listen, Network, ParseError, Protocol, Source, Target, prefix};

/// The keys of `[[forward]]`.
const FORWARD_KEYS: [&str; 9] =
    ["listen", "to", "protocol", "interface", "from", "source", "hairpin", "loopback", "comment"];

/// Reads a forward and the range of its `listen` value.
pub(super) fn read_forward(
    reader: &mut TableReader,
    table: &Table<'_>,
    networks: &[Network],
) -> Option<(Forward, Range<usize>)> {
    let before = reader.problems.len();
    reader.reject_unknown_keys(table, &FORWARD_KEYS);
    let listen = reader.required(table, "listen", "\"8080\"");
    let listen_span = listen.map_or(table.span.clone(), toml::Spanned::span);
    let listen: Option<Listen> = listen.and_then(|value| reader.parse(value, "listen"));
    let to = reader.required(table, "to", "\"172.17.0.3:80\"");
    let to_span = to.map_or(table.span.clone(), toml::Spanned::span);
    let to: Option<Target> = to.and_then(|value| reader.parse(value, "to"));
    let protocols = read_protocols(reader, table);
    let interface = reader.optional(table, "interface");
    let from = reader.list(table, "from", prefix::parse);
    if matches!(&from, Some(from) if from.is_empty())
        && let Some(value) = table.values.get("from")
        && matches!(value.get_ref(), DeValue::Array(list) if list.is_empty())
    {
        reader.report(value.span(), "`from` is empty, so no client can connect", "remove it to accept every client");
    }
    let comment = reader.optional(table, "comment");
    let source: Option<Source> = reader.optional(table, "source");
    let hairpin = reader.boolean(table, "hairpin", true);
    let loopback = reader.boolean(table, "loopback", false);
    if let Some(to) = &to
        && let Err(error) = check_target_host(to, networks)
    {
        reader.report_error(to_span, &error);
    }
    let from = from.unwrap_or_default().into_iter().map(|(prefix, _)| prefix).collect();
    let source = source.unwrap_or_default();
    let (listen, to) = (listen?, to?);
    let forward = Forward { listen, to, protocols, interface, from, source, hairpin, loopback, comment };
    if let Err(error) = forward.bindings() {
        // If the key is missing, the error is at `listen`.
        let value = error.key().and_then(|key| table.values.get(key));
        reader.report_error(value.map_or(listen_span.clone(), toml::Spanned::span), &error);
    }
    (reader.problems.len() == before).then_some((forward, listen_span))
}

fn read_protocols(reader: &mut TableReader, table: &Table<'_>) -> Vec<Protocol> {
    let mut protocols: Vec<Protocol> = Vec::new();
    for (protocol, span) in reader.list(table, "protocol", str::parse::<Protocol>).unwrap_or_default() {
        if protocols.contains(&protocol) {
            reader.report(span, format!("`{protocol}` occurs twice"), "write every protocol once");
        } else {
            protocols.push(protocol);
        }
    }
    if let Some(value) = table.values.get("protocol")
        && matches!(value.get_ref(), DeValue::Array(list) if list.is_empty())
    {
        reader.report(value.span(), "`protocol` is empty", "remove it for tcp, or write at least one protocol");
    }
    protocols
}

/// Checks that the target is not the first or the broadcast address of a network.
///
/// # Errors
/// If it is.
fn check_target_host(to: &Target, networks: &[Network]) -> Result<(), ParseError> {
    let Some(address) = to.address.filter(|address| Family::of_address(*address) == Family::Ipv4) else {
        return Ok(());
    };
    for subnet in networks.iter().flat_map(|network| &network.subnets).filter(|subnet| subnet.prefix() < 31) {
        let kind = if address == subnet.broadcast() {
            "broadcast address"
        } else if address == subnet.network() {
            "network address"
        } else {
            continue;
        };
        let what = format!("the target `{address}` is the {kind} of `{subnet}`");
        return Err(ParseError::new(what, "write the address of one host"));
    }
    Ok(())
}
