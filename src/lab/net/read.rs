//! Reads a lab's file into a description. Each error has a position in the file.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use toml::de::{DeTable, DeValue};

use super::check::{Parts, check};
use super::description::{Attachment, Bridge, Container, End, Kind, Lab, Namespace, Publish, Route, Veth};
use super::name::{LabName, NetnsName};
use crate::config::reader::{Table, TableReader};
use crate::config::{Problem, Source};
use crate::model::address::invalid_host;
use crate::model::{ChainName, IfName, ParseError, prefix};

/// Reads the file of a lab.
///
/// # Errors
/// All errors of the file, sorted by position.
pub fn read(source: &Arc<Source>) -> Result<Lab, Vec<Problem>> {
    let mut reader = TableReader::new(source);
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    for error in errors {
        let help = "see https://toml.io for what a file may look like";
        reader.report(error.span().unwrap_or(0..0), error.message(), help);
    }
    let root = document.get_ref();
    let whole = Table { values: root, span: 0..0, name: "a lab" };
    reader.reject_unknown_keys(&whole, &["name", "namespace", "bridge", "veth", "route", "container"]);
    let name = read_name(&mut reader, &whole, source);
    let parts = Parts {
        namespaces: read_tables(&mut reader, root, "namespace", "[[namespace]]", read_namespace),
        bridges: read_tables(&mut reader, root, "bridge", "[[bridge]]", read_bridge),
        veths: read_tables(&mut reader, root, "veth", "[[veth]]", read_veth),
        routes: read_tables(&mut reader, root, "route", "[[route]]", read_route),
        containers: read_tables(&mut reader, root, "container", "[[container]]", read_container),
    };
    check(&mut reader, &parts);
    let mut problems = reader.problems;
    problems.sort_by_key(|problem| problem.location.as_ref().map(|place| place.span.start));
    match name {
        Some(name) if problems.is_empty() => Ok(parts.into_lab(name)),
        _ => Err(problems),
    }
}

/// Returns the lab's name: the key `name`, or the file's stem.
fn read_name(reader: &mut TableReader, whole: &Table<'_>, source: &Source) -> Option<LabName> {
    if whole.values.contains_key("name") {
        return reader.optional(whole, "name");
    }
    let stem = source.path.file_stem().unwrap_or_default().to_string_lossy();
    match stem.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            let help = format!("{}, or set `name` in the first line", ParseError::help(&error));
            reader.report(0..0, format!("the file name is no name for a lab: {error}"), help);
            None
        }
    }
}

fn read_tables<T, S>(
    reader: &mut TableReader,
    root: &DeTable<'_>,
    key: &'static str,
    name: &'static str,
    read: impl Fn(&mut TableReader, &Table<'_>) -> Option<(T, S)>,
) -> Vec<(T, S)> {
    let tables = reader.tables(root, key, name);
    tables.into_iter().filter_map(|table| read(reader, &table)).collect()
}

/// Reads the required key `name`, with its position.
fn read_required_name<T: std::str::FromStr<Err = ParseError>>(
    reader: &mut TableReader,
    table: &Table<'_>,
    example: &str,
) -> Option<(T, Range<usize>)> {
    let value = reader.required(table, "name", example)?;
    Some((reader.parse(value, "name")?, value.span()))
}

fn read_namespace(reader: &mut TableReader, table: &Table<'_>) -> Option<(Namespace, Range<usize>)> {
    reader.reject_unknown_keys(table, &["name", "forward"]);
    let forward = reader.boolean(table, "forward", false);
    let (name, span) = read_required_name(reader, table, "\"red\"")?;
    Some((Namespace { name, forward }, span))
}

fn read_bridge(reader: &mut TableReader, table: &Table<'_>) -> Option<(Bridge, Range<usize>)> {
    reader.reject_unknown_keys(table, &["name", "kind", "namespace", "address", "masquerade", "chain"]);
    let kind = read_choice(reader, table, "kind", &[("linux", Kind::Linux), ("ovs", Kind::Ovs)])?;
    let namespace: Option<NetnsName> = reader.optional(table, "namespace");
    let addresses = read_addresses(reader, table);
    let masquerade = reader.boolean(table, "masquerade", false);
    let chain = reader.optional(table, "chain").unwrap_or_else(ChainName::docker);
    let (name, span) = read_required_name(reader, table, "\"v-net-0\"")?;
    Some((Bridge { name, kind, namespace, addresses, masquerade, chain }, span))
}

fn read_veth(reader: &mut TableReader, table: &Table<'_>) -> Option<(Veth, [Range<usize>; 2])> {
    reader.reject_unknown_keys(table, &["ends"]);
    let value =
        reader.required(table, "ends", "[{ namespace = \"red\", name = \"veth-red\" }, { name = \"eth0\" }]")?;
    let tables = reader.tables(table.values, "ends", "an end of [[veth]]");
    let ends: Vec<_> = tables.iter().map(|table| read_end(reader, table)).collect();
    let count = ends.len();
    match <[_; 2]>::try_from(ends) {
        Ok([Some((first, one)), Some((second, other))]) => Some((Veth { ends: [first, second] }, [one, other])),
        Ok(_) => None,
        Err(_) => {
            let help = "write two, `{ namespace = \"red\", name = \"veth-red\" }` each";
            // A value that is no list of tables has been reported already.
            if matches!(value.get_ref(), DeValue::Array(list) if list.len() == count) {
                reader.report(value.span(), format!("a veth pair has two ends, not {count}"), help);
            }
            None
        }
    }
}

fn read_end(reader: &mut TableReader, table: &Table<'_>) -> Option<(End, Range<usize>)> {
    reader.reject_unknown_keys(table, &["namespace", "name", "address", "bridge"]);
    let namespace = reader.optional(table, "namespace");
    let addresses = read_addresses(reader, table);
    let bridge: Option<IfName> = reader.optional(table, "bridge");
    let (name, span) = read_required_name(reader, table, "\"veth-red\"")?;
    Some((End { namespace, name, addresses, bridge }, span))
}

fn read_route(reader: &mut TableReader, table: &Table<'_>) -> Option<(Route, Range<usize>)> {
    reader.reject_unknown_keys(table, &["namespace", "to", "via", "dev"]);
    let namespace = reader.optional(table, "namespace");
    let dev = reader.optional(table, "dev");
    let via = reader.required(table, "via", "\"192.168.15.5\"").and_then(|value| {
        let text = reader.text(value, "via")?;
        parse_host_address(text).map_err(|error| reader.report_error(value.span(), &error)).ok()
    });
    let value = reader.required(table, "to", "\"default\"")?;
    let text = reader.text(value, "to")?;
    let via: IpAddr = via?;
    let everything = if via.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    match prefix::parse(if text == "default" { everything } else { text }) {
        Ok(to) if to.is_ipv4() == via.is_ipv4() => Some((Route { namespace, to, via, dev }, value.span())),
        Ok(to) => {
            let help = "write both as IPv4 or both as IPv6";
            reader.report(
                value.span(),
                format!("the gateway `{via}` and the destination `{to}` are of different families"),
                help,
            );
            None
        }
        Err(error) => {
            reader.report_error(value.span(), &error);
            None
        }
    }
}

fn read_container(reader: &mut TableReader, table: &Table<'_>) -> Option<(Container, Range<usize>)> {
    reader.reject_unknown_keys(table, &["name", "network", "bridge", "address", "publish", "processes", "command"]);
    let networks = [("bridge", Attachment::Bridge), ("none", Attachment::None), ("host", Attachment::Host)];
    let network = read_choice(reader, table, "network", &networks)?;
    let addresses = reader.list(table, "address", parse_host_address).unwrap_or_default();
    if let [_, (more, span), ..] = addresses.as_slice() {
        reader.report(span.clone(), format!("`{more}` is a second address"), "write one; a container has no more");
    }
    let publish = reader.list(table, "publish", str::parse::<Publish>).unwrap_or_default();
    let processes = reader.boolean(table, "processes", false);
    let command = reader.list(table, "command", parse_argument).unwrap_or_default();
    if network != Attachment::Bridge {
        for key in ["bridge", "address", "publish"] {
            if let Some(value) = table.values.get(key) {
                let what = format!("`{key}` needs a container with `network = \"bridge\"`");
                reader.report(value.span(), what, format!("leave `{key}` out, or write `network = \"bridge\"`"));
            }
        }
    }
    let bridge: Option<IfName> = match table.values.get("bridge") {
        _ if network != Attachment::Bridge => None,
        Some(value) => Some(reader.parse(value, "bridge")?),
        None => "docker0".parse().ok(),
    };
    let (name, span) = read_required_name(reader, table, "\"web\"")?;
    let (publish, command) = (without_spans(publish), without_spans(command));
    let address = addresses.first().map(|(address, _)| *address);
    Some((Container { name, network, bridge, address, publish, processes, command }, span))
}

fn without_spans<T>(list: Vec<(T, Range<usize>)>) -> Vec<T> {
    list.into_iter().map(|(item, _)| item).collect()
}

/// Reads a key that has one of a few values. Returns the first value if the key is missing, and `None` for any other
/// value.
fn read_choice<T: Copy>(reader: &mut TableReader, table: &Table<'_>, key: &str, words: &[(&str, T)]) -> Option<T> {
    let Some(value) = table.values.get(key) else { return words.first().map(|(_, choice)| *choice) };
    let text = reader.text(value, key)?;
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
    if found.is_none() {
        let all: Vec<String> = words.iter().map(|(word, _)| format!("`\"{word}\"`")).collect();
        reader.report(
            value.span(),
            format!("`{text}` is no choice for `{key}`"),
            format!("write {}", all.join(" or ")),
        );
    }
    found
}

/// Reads the addresses of an interface.
fn read_addresses(reader: &mut TableReader, table: &Table<'_>) -> Vec<IpNetwork> {
    without_spans(reader.list(table, "address", parse_interface_address).unwrap_or_default())
}

/// Parses an address with its prefix length, such as `192.168.15.1/24`.
fn parse_interface_address(text: &str) -> Result<IpNetwork, ParseError> {
    let help = "write the address with its prefix length, `192.168.15.1/24`";
    let wrong = |why: &str| ParseError::new(format!("`{text}` {why}"), help);
    if !text.contains('/') {
        return Err(wrong("has no prefix length"));
    }
    let address: IpNetwork = text.parse().map_err(|_| wrong("is no interface address"))?;
    parse_host_address(&address.ip().to_string())?;
    let is_end = |end: IpAddr| address.is_ipv4() && address.prefix() < 31 && address.ip() == end;
    if is_end(address.network()) || is_end(address.broadcast()) {
        return Err(wrong("is the first or last address of its subnet, which no host can have"));
    }
    Ok(address)
}

/// Parses the address of a single host.
fn parse_host_address(text: &str) -> Result<IpAddr, ParseError> {
    let help = "write the address of one host, for example `192.168.15.1`";
    let address: IpAddr = text.parse().map_err(|_| ParseError::new(format!("`{text}` is no address"), help))?;
    match invalid_host(address) {
        Some(what) => Err(ParseError::new(format!("`{address}` {what}"), help)),
        None => Ok(address),
    }
}

/// Parses one argument of a command.
fn parse_argument(text: &str) -> Result<String, ParseError> {
    if text.contains('\0') {
        return Err(ParseError::new("an argument of the command contains a zero byte", "leave it out"));
    }
    Ok(text.to_owned())
}
