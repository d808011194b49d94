//! The tables about networks and about what leaves: `[[network]]`, `[[masquerade]]`, `[[snat]]`, `[[netmap]]`.

use std::ops::Range;

use ipnetwork::IpNetwork;
use toml::de::DeValue;

use super::reader::{Reader, Table};
use crate::model::network::check_subnet;
use crate::model::{ChainName, IfName, Masquerade, Mode, Netmap, Network, ParseError, Pool, Snat, prefix};

/// Reads a network; the place is where it says its name.
pub(super) fn network(reader: &mut Reader, table: &Table<'_>) -> Option<(Network, Range<usize>)> {
    reader.only(table, &["name", "subnet", "masquerade", "chain", "isolate"]);
    let name = reader.required(table, "name", "\"docker0\"");
    let name = name.map(|value| (value.span(), reader.parsed::<IfName>(value, "name")));
    if let Some((span, Some(name))) = &name
        && name.as_str() == "lo"
    {
        let help = "name the bridge, for example `docker0`";
        reader.problem(span.clone(), "`lo` is no network: what this host sends to itself stays with it", help);
    }
    let subnets = reader.list(table, "subnet", subnet);
    if subnets.is_none() {
        reader.required(table, "subnet", "[\"172.17.0.0/16\"]");
    } else if let Some(value) = table.values.get("subnet")
        && matches!(value.get_ref(), DeValue::Array(list) if list.is_empty())
    {
        reader.problem(value.span(), "`subnet` is empty", "write at least one subnet, `[\"172.17.0.0/16\"]`");
    }
    let masquerade = reader.boolean(table, "masquerade", true);
    let chain = chain(reader, table).unwrap_or_else(ChainName::docker);
    let isolate = reader.boolean(table, "isolate", false);
    let (span, name) = name?;
    let mut subnets: Vec<IpNetwork> = subnets?.into_iter().map(|(subnet, _)| subnet).collect();
    // Neither their order nor how often one is written means anything.
    subnets.sort_unstable();
    subnets.dedup();
    Some((Network { name: name?, subnets, masquerade, chain, isolate }, span))
}

fn subnet(text: &str) -> Result<IpNetwork, ParseError> {
    let subnet = prefix::parse(text)?;
    check_subnet(subnet)?;
    Ok(subnet)
}

/// The chain of a network. Its name must not look like one that is made for the parts of another chain; a name that was
/// stored before these endings were ours is still good, so it is here that they are refused.
fn chain(reader: &mut Reader, table: &Table<'_>) -> Option<ChainName> {
    let value = table.values.get("chain")?;
    let chain: ChainName = reader.parsed(value, "chain")?;
    let number = chain.as_str().rsplit_once('-').and_then(|(_, tail)| tail.parse::<u32>().ok());
    let counted = number.is_some_and(|number| number > 1);
    if counted || chain.as_str().ends_with("-loopback") || chain.as_str().contains("-clients") {
        let what = format!("the chain name `{chain}` ends like the names of our own parts of chains");
        reader.problem(value.span(), what, "use none of the endings `-2`, `-3` and so on, `-loopback`, `-clients…`");
    }
    Some(chain)
}

/// Reads a masquerade; the place is the table's.
pub(super) fn masquerade(reader: &mut Reader, table: &Table<'_>) -> Option<(Masquerade, Range<usize>)> {
    reader.only(table, &["from", "out"]);
    let before = reader.problems.len();
    let (from, out) = from_and_out(reader, table);
    (reader.problems.len() == before).then_some((Masquerade { from, out }, table.span.clone()))
}

/// Reads source NAT; the place is where it says what sources become.
pub(super) fn snat(reader: &mut Reader, table: &Table<'_>) -> Option<(Snat, Range<usize>)> {
    reader.only(table, &["from", "out", "to", "mode"]);
    let before = reader.problems.len();
    let (from, out) = from_and_out(reader, table);
    let to = reader.required(table, "to", "\"203.0.113.5\"");
    let span = to.map_or(table.span.clone(), toml::Spanned::span);
    let to: Option<Pool> = to.and_then(|value| reader.parsed(value, "to"));
    let mode: Option<Mode> = reader.optional(table, "mode");
    let snat = Snat { from, out, to: to?, mode };
    if let Err(error) = snat.check() {
        reader.wrong(span.clone(), &error);
    }
    (reader.problems.len() == before).then_some((snat.canonical(), span))
}

/// Reads a 1:1 translation; the place is where it says what it listens at.
pub(super) fn netmap(reader: &mut Reader, table: &Table<'_>) -> Option<(Netmap, Range<usize>)> {
    reader.only(table, &["listen", "to"]);
    let before = reader.problems.len();
    let listen = reader.required(table, "listen", "\"192.0.2.0/24\"");
    let span = listen.map_or(table.span.clone(), toml::Spanned::span);
    let listen = listen.and_then(|_| network_of(reader, table, "listen"));
    let to = reader.required(table, "to", "\"10.0.0.0/24\"").and_then(|_| network_of(reader, table, "to"));
    let netmap = Netmap { listen: listen?, to: to? };
    if let Err(error) = netmap.check() {
        reader.wrong(span.clone(), &error);
    }
    (reader.problems.len() == before).then_some((netmap, span))
}

/// The two keys that say what leaves; at least one of them must be there.
fn from_and_out(reader: &mut Reader, table: &Table<'_>) -> (Option<IpNetwork>, Option<IfName>) {
    if !table.values.contains_key("from") && !table.values.contains_key("out") {
        let help = "add `from = \"10.0.0.0/24\"` or `out = \"eth0\"`; otherwise everything would be rewritten";
        reader.problem(table.span.clone(), format!("{} has neither `from` nor `out`", table.name), help);
    }
    let out: Option<IfName> = reader.optional(table, "out");
    if let Some(value) = table.values.get("out")
        && out.as_ref().is_some_and(|out| out.as_str() == "lo")
    {
        let help = "name the interface that leads outside";
        reader.problem(value.span(), "nothing leaves by `lo`: what this host sends itself stays with it", help);
    }
    (network_of(reader, table, "from"), out)
}

/// The prefix of a key that need not be there.
fn network_of(reader: &mut Reader, table: &Table<'_>, key: &str) -> Option<IpNetwork> {
    let value = table.values.get(key)?;
    let text = reader.text(value, key)?;
    prefix::parse(text).map_err(|error| reader.wrong(value.span(), &error)).ok()
}
