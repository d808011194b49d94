//! One rule-set file to one model.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::diagnostic::Problem;
use super::reader::{Reader, Table};
use super::source::{Place, Source};
use crate::model::{
    ChainName, Family, Forward, IpForward, Listen, Masquerade, Network, ParseError, Priority, Protocol, RuleSet,
    SetName, Settings, Target, prefix,
};

/// A set, and where its rules are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The set.
    pub set: RuleSet,
    /// The file.
    pub source: Arc<Source>,
    /// Where each forward says what it listens at.
    pub forwards: Vec<Place>,
    /// Where each network says its name.
    pub networks: Vec<Place>,
    /// Where the priority is set.
    pub priority: Option<Place>,
}

/// Reads the text of a rule-set file: what is valid in it, and every mistake. Only without a mistake is it the set that
/// was meant; with one, the rest still serves to find what contradicts each other in it. No set at all where not even its
/// name can be told.
pub fn load(source: &Arc<Source>) -> (Option<Loaded>, Vec<Problem>) {
    let mut reader = Reader::new(source);
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    for error in errors {
        let help = "see https://toml.io for what a file may look like";
        reader.problem(error.span().unwrap_or(0..0), error.message(), help);
    }
    let root = document.get_ref();
    let whole = Table { values: root, span: 0..0, name: "a rule set" };
    reader.only(&whole, &["network", "forward", "masquerade", "snat", "netmap", "settings"]);
    for (key, name) in [("snat", "[[snat]]"), ("netmap", "[[netmap]]")] {
        for table in reader.tables(root, key, name) {
            reader.problem(table.span, format!("`{name}` is not supported yet"), "take it out");
        }
    }
    let (settings, name, priority) = settings(&mut reader, root);
    let name = name.or_else(|| stem(&mut reader, &source.path));
    let (networks, network_places) = networks(&mut reader, root);
    let mut forwards = Vec::new();
    let mut forward_places = Vec::new();
    for table in reader.tables(root, "forward", "[[forward]]") {
        if let Some((forward, span)) = forward(&mut reader, &table, &networks) {
            forwards.push(forward);
            forward_places.push(reader.place(span));
        }
    }
    let tables = reader.tables(root, "masquerade", "[[masquerade]]");
    let masquerades: Vec<Masquerade> = tables.iter().filter_map(|table| masquerade(&mut reader, table)).collect();
    let loaded = name.map(|name| {
        let set = RuleSet { name, forwards, networks, masquerades, settings };
        let source = Arc::clone(source);
        Loaded { set, source, forwards: forward_places, networks: network_places, priority }
    });
    let mut problems = reader.problems;
    problems.sort_by_key(|problem| problem.place.as_ref().map(|place| place.span.start));
    (loaded, problems)
}

/// A set's name is its file's, without `.toml`.
fn stem(reader: &mut Reader, path: &Path) -> Option<SetName> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match stem.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            let help = format!("{}, or set `name` under `[settings]`", ParseError::help(&error));
            reader.problem(0..0, format!("the file's name gives no set name: {error}"), help);
            None
        }
    }
}

type ReadSettings = (Settings, Option<SetName>, Option<Place>);

fn settings(reader: &mut Reader, root: &DeTable<'_>) -> ReadSettings {
    let mut settings = Settings::default();
    let Some(value) = root.get("settings") else { return (settings, None, None) };
    let DeValue::Table(values) = value.get_ref() else {
        reader.wrong_type(value, "settings", value.get_ref(), "a table, `[settings]`");
        return (settings, None, None);
    };
    let table = Table { values, span: value.span(), name: "[settings]" };
    reader.only(&table, &["name", "priority", "ip_forward"]);
    let name = reader.optional(&table, "name");
    let mut place = None;
    if let Some(value) = values.get("priority") {
        let number = match value.get_ref() {
            DeValue::Integer(number) => i32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        settings.priority = number.and_then(Priority::new);
        place = Some(reader.place(value.span()));
        if settings.priority.is_none() {
            let help = "write a whole number from -199 to 49; the default is -105, and -100 is where Docker is";
            reader.problem(value.span(), "`priority` is no priority at which NAT can be done", help);
        }
    }
    if let Some(value) = values.get("ip_forward")
        && let Some(text) = reader.text(value, "ip_forward")
    {
        match text {
            "enable" => settings.ip_forward = IpForward::Enable,
            "keep" => settings.ip_forward = IpForward::Keep,
            other => {
                reader.problem(
                    value.span(),
                    format!("`{other}` is no choice for `ip_forward`"),
                    "write `enable` or `keep`",
                );
            }
        }
    }
    (settings, name, place)
}

fn networks(reader: &mut Reader, root: &DeTable<'_>) -> (Vec<Network>, Vec<Place>) {
    let mut networks = Vec::new();
    let mut places = Vec::new();
    for table in reader.tables(root, "network", "[[network]]") {
        reader.only(&table, &["name", "subnet", "masquerade", "chain", "isolate"]);
        let name =
            reader.required(&table, "name", "\"docker0\"").map(|value| (value.span(), reader.parsed(value, "name")));
        let subnets = reader.list(&table, "subnet", prefix::parse);
        if subnets.is_none() {
            reader.required(&table, "subnet", "[\"172.17.0.0/16\"]");
        } else if let Some(value) = table.values.get("subnet")
            && matches!(value.get_ref(), DeValue::Array(list) if list.is_empty())
        {
            reader.problem(value.span(), "`subnet` is empty", "write at least one subnet, `[\"172.17.0.0/16\"]`");
        }
        let masquerade = reader.boolean(&table, "masquerade", true);
        let chain = reader.optional(&table, "chain").unwrap_or_else(ChainName::docker);
        let isolate = reader.boolean(&table, "isolate", false);
        if let (Some((span, Some(name))), Some(subnets)) = (name, subnets) {
            let subnets = subnets.into_iter().map(|(subnet, _)| subnet).collect();
            networks.push(Network { name, subnets, masquerade, chain, isolate });
            places.push(reader.place(span));
        }
    }
    (networks, places)
}

fn masquerade(reader: &mut Reader, table: &Table<'_>) -> Option<Masquerade> {
    reader.only(table, &["from", "out"]);
    if !table.values.contains_key("from") && !table.values.contains_key("out") {
        let help = "add `from = \"10.0.0.0/24\"` or `out = \"eth0\"`; otherwise everything would be rewritten";
        reader.problem(table.span.clone(), "[[masquerade]] has neither `from` nor `out`", help);
        return None;
    }
    let before = reader.problems.len();
    let from = table.values.get("from").and_then(|value| {
        let text = reader.text(value, "from")?;
        prefix::parse(text).map_err(|error| reader.wrong(value.span(), &error)).ok()
    });
    let out = reader.optional(table, "out");
    (reader.problems.len() == before).then_some(Masquerade { from, out })
}

const FORWARD_KEYS: [&str; 9] =
    ["listen", "to", "protocol", "interface", "from", "source", "hairpin", "loopback", "comment"];

fn forward(reader: &mut Reader, table: &Table<'_>, networks: &[Network]) -> Option<(Forward, Range<usize>)> {
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
    unsupported(reader, table);
    if let Some(to) = &to {
        host_of_network(reader, to, &to_span, networks);
    }
    let from = from.unwrap_or_default().into_iter().map(|(prefix, _)| prefix).collect();
    let forward = Forward { listen: listen?, to: to?, protocols, interface, from, comment };
    if let Err(error) = forward.bindings() {
        reader.wrong(to_span, &error);
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

/// Refuses what is planned but not built, rather than doing something else in silence.
fn unsupported(reader: &mut Reader, table: &Table<'_>) {
    if let Some(value) = table.values.get("source")
        && let Some(text) = reader.text(value, "source")
        && text != "keep"
    {
        let known = text == "masquerade" || text.parse::<std::net::IpAddr>().is_ok();
        let what = if known { "is not supported yet" } else { "is no choice" };
        reader.problem(value.span(), format!("`source = \"{text}\"` {what}"), "write `keep` or leave it out");
    }
    for (key, default) in [("hairpin", true), ("loopback", false)] {
        if reader.boolean(table, key, default) != default
            && let Some(value) = table.values.get(key)
        {
            reader.problem(value.span(), format!("`{key} = {}` is not supported yet", !default), "leave it out");
        }
    }
}

/// Refuses a target that is no host of its network: the network's own address, or its broadcast address.
fn host_of_network(reader: &mut Reader, to: &Target, span: &Range<usize>, networks: &[Network]) {
    let Some(address) = to.address.filter(|address| Family::of(*address) == Family::Ipv4) else { return };
    for subnet in networks.iter().flat_map(|network| &network.subnets).filter(|subnet| subnet.prefix() < 31) {
        let what = if address == subnet.broadcast() {
            "broadcast address"
        } else if address == subnet.network() {
            "own address"
        } else {
            continue;
        };
        let help = "write the address of one host";
        reader.problem(span.clone(), format!("the target `{address}` is the {what} of `{subnet}`"), help);
    }
}
