//! Converts the tables `[[network]]`, `[[masquerade]]`, `[[snat]]` and `[[netmap]]`.

use std::ops::Range;

use ipnetwork::IpNetwork;
use toml::de::DeValue;

use super::reader::{Table, TableReader};
use crate::model::network::check_subnet;
use crate::model::{ChainName, IfName, Masquerade, Mode, Netmap, Network, ParseError, Pool, Snat, prefix};

/// Reads a network. Also returns the byte range of its `name` value in the file, for error messages.
pub(super) fn read_network(reader: &mut TableReader, table: &Table<'_>) -> Option<(Network, Range<usize>)> {
    reader.reject_unknown_keys(table, &["name", "subnet", "masquerade", "chain", "isolate"]);
    let name = reader.required(table, "name", "\"docker0\"");
    let name = name.map(|value| (value.span(), reader.parse::<IfName>(value, "name")));
    if let Some((span, Some(name))) = &name
        && name.as_str() == "lo"
    {
        let help = "write the name of a bridge, for example `docker0`";
        reader.report(span.clone(), "`lo` is not a bridge network", help);
    }
    let subnets = reader.list(table, "subnet", parse_subnet);
    if subnets.is_none() {
        reader.required(table, "subnet", "[\"172.17.0.0/16\"]");
    } else if let Some(value) = table.values.get("subnet")
        && matches!(value.get_ref(), DeValue::Array(list) if list.is_empty())
    {
        reader.report(value.span(), "`subnet` is empty", "write at least one subnet, `[\"172.17.0.0/16\"]`");
    }
    let masquerade = reader.boolean(table, "masquerade", true);
    let chain = read_chain(reader, table).unwrap_or_else(ChainName::docker);
    let isolate = reader.boolean(table, "isolate", false);
    let (span, name) = name?;
    let mut subnets: Vec<IpNetwork> = subnets?.into_iter().map(|(subnet, _)| subnet).collect();
    // The order of subnets has no meaning, and duplicates are allowed.
    subnets.sort_unstable();
    subnets.dedup();
    Some((Network { name: name?, subnets, masquerade, chain, isolate }, span))
}

fn parse_subnet(text: &str) -> Result<IpNetwork, ParseError> {
    let subnet = prefix::parse(text)?;
    check_subnet(subnet)?;
    Ok(subnet)
}

/// Reads the chain of a network. Refuses the endings that portfwd uses for its own parts of a chain.
///
/// [`ChainName`] accepts these endings, because an earlier version of portfwd may have stored such a name.
fn read_chain(reader: &mut TableReader, table: &Table<'_>) -> Option<ChainName> {
    let value = table.values.get("chain")?;
    let chain: ChainName = reader.parse(value, "chain")?;
    let number = chain.as_str().rsplit_once('-').and_then(|(_, tail)| tail.parse::<u32>().ok());
    let numbered = number.is_some_and(|number| number > 1);
    if numbered || chain.as_str().ends_with("-loopback") || chain.as_str().contains("-clients") {
        let what = format!("the chain name `{chain}` ends like the names of portfwd's own chains");
        reader.report(value.span(), what, "do not use the endings `-2`, `-3` and so on, `-loopback` or `-clients…`");
    }
    Some(chain)
}

/// Reads a masquerade and the range of its table.
pub(super) fn read_masquerade(reader: &mut TableReader, table: &Table<'_>) -> Option<(Masquerade, Range<usize>)> {
    reader.reject_unknown_keys(table, &["from", "out"]);
    let before = reader.problems.len();
    let (from, out) = read_from_and_out(reader, table);
    (reader.problems.len() == before).then_some((Masquerade { from, out }, table.span.clone()))
}

/// Reads a source NAT rule and the range of its `to` value.
pub(super) fn read_snat(reader: &mut TableReader, table: &Table<'_>) -> Option<(Snat, Range<usize>)> {
    reader.reject_unknown_keys(table, &["from", "out", "to", "mode"]);
    let before = reader.problems.len();
    let (from, out) = read_from_and_out(reader, table);
    let to = reader.required(table, "to", "\"203.0.113.5\"");
    let span = to.map_or(table.span.clone(), toml::Spanned::span);
    let to: Option<Pool> = to.and_then(|value| reader.parse(value, "to"));
    let mode: Option<Mode> = reader.optional(table, "mode");
    let snat = Snat { from, out, to: to?, mode };
    if let Err(error) = snat.check() {
        reader.report_error(span.clone(), &error);
    }
    (reader.problems.len() == before).then_some((snat.canonical(), span))
}

/// Reads a 1:1 translation and the range of its `listen` value.
pub(super) fn read_netmap(reader: &mut TableReader, table: &Table<'_>) -> Option<(Netmap, Range<usize>)> {
    reader.reject_unknown_keys(table, &["listen", "to"]);
    let before = reader.problems.len();
    let listen = reader.required(table, "listen", "\"192.0.2.0/24\"");
    let span = listen.map_or(table.span.clone(), toml::Spanned::span);
    let listen = listen.and_then(|_| read_prefix(reader, table, "listen"));
    let to = reader.required(table, "to", "\"10.0.0.0/24\"").and_then(|_| read_prefix(reader, table, "to"));
    let netmap = Netmap { listen: listen?, to: to? };
    if let Err(error) = netmap.check() {
        reader.report_error(span.clone(), &error);
    }
    (reader.problems.len() == before).then_some((netmap, span))
}

/// Reads `from` and `out`. Reports an error if both are missing.
fn read_from_and_out(reader: &mut TableReader, table: &Table<'_>) -> (Option<IpNetwork>, Option<IfName>) {
    if !table.values.contains_key("from") && !table.values.contains_key("out") {
        let help = "add `from = \"10.0.0.0/24\"` or `out = \"eth0\"`; a rule without both would match every packet";
        reader.report(table.span.clone(), format!("{} has neither `from` nor `out`", table.name), help);
    }
    let out: Option<IfName> = reader.optional(table, "out");
    if let Some(value) = table.values.get("out")
        && out.as_ref().is_some_and(|out| out.as_str() == "lo")
    {
        let help = "write the name of the egress interface";
        reader.report(value.span(), "`lo` cannot be the egress interface: its packets do not leave this host", help);
    }
    (read_prefix(reader, table, "from"), out)
}

/// Reads the prefix of an optional key. Reports an error if the prefix is invalid.
fn read_prefix(reader: &mut TableReader, table: &Table<'_>, key: &str) -> Option<IpNetwork> {
    let value = table.values.get(key)?;
    let text = reader.text(value, key)?;
    prefix::parse(text).map_err(|error| reader.report_error(value.span(), &error)).ok()
}
