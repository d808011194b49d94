//! How findings name forwards and rules, how sure they are, and how a rule is removed.

use crate::audit::describe;
use crate::audit::finding::{Confidence, Finding};
use crate::audit::forwards::Forward;
use crate::audit::host::Host;
use crate::audit::region::{Field, LOCAL, Region};
use crate::audit::ruleset::{At, Tool};
use crate::audit::set::{Set, address_of};
use crate::audit::view::Translation;
use crate::model::Family;
use crate::model::error::printable;

/// How many of many things are named.
const FEW: usize = 3;

/// The most bytes of a rule's words that are shown.
const LONGEST: usize = 300;

/// Whether a set holds most of what there is: it is not asked for, or only some are left out.
pub(super) fn is_open(set: &Set, field: Field, family: Family) -> bool {
    let all = match (field, family) {
        (Field::Source | Field::Destination, Family::Ipv4) => u32::MAX.into(),
        _ => u128::MAX,
    };
    set.and(&Set::range(0, all)).size() > all / 2
}

/// Whether a forward takes packets for any address of this host, or of anybody.
pub(super) fn is_wildcard(region: &Region, family: Family) -> bool {
    region.get(Field::DestinationKind).only() == Some(LOCAL)
        || is_open(region.get(Field::Destination), Field::Destination, family)
}

/// Where packets of a region are sent to: `192.0.2.1:8080/tcp`.
pub(super) fn listen(region: &Region, family: Family) -> String {
    let field = |field| describe::set(field, region.get(field), family);
    let ports = match region.get(Field::Port).is_all() {
        true => "*".to_owned(),
        false => field(Field::Port),
    };
    let protocols = match region.get(Field::Protocol).is_all() {
        true => "any".to_owned(),
        false => field(Field::Protocol),
    };
    let destination = region.get(Field::Destination);
    let address = match destination.only().and_then(|number| address_of(number, family)) {
        Some(address) if address.is_ipv6() => format!("[{address}]:"),
        Some(address) => format!("{address}:"),
        None if is_wildcard(region, family) => String::new(),
        None => format!("{}:", field(Field::Destination)),
    };
    format!("{address}{ports}/{protocols}")
}

/// A forward, `8080/tcp -> 172.17.0.2:80`.
pub(super) fn forward(forward: &Forward<'_>) -> String {
    let from = forward.region().map_or_else(String::new, |region| listen(region, forward.family));
    let to = match (describe::target(forward.to).as_str(), forward.translation) {
        ("", Translation::Redirect) => "this host".to_owned(),
        ("", _) => "itself".to_owned(),
        (target, _) => target.to_owned(),
    };
    format!("`{from} -> {to}`")
}

/// `a, b, c and 4 more`.
pub(super) fn few(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(FEW);
    let mut text = names.take(FEW).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text = format!("{text} and {more} more");
    }
    text
}

/// How sure something is that follows from rules that are all understood: only of a host that was looked at it is proved,
/// and what a dump tells may have been left behind.
pub(super) fn sure(host: &Host) -> Confidence {
    if host.facts.is_some() { Confidence::Proved } else { Confidence::Likely }
}

/// What a rule says, in its own words or in those of nft(8).
pub(super) fn rule(host: &Host, at: At, family: Family) -> String {
    let Some((_, chain, rule)) = host.rules.at(at) else { return "the policy of the chain".into() };
    let mut words = match (&rule.words, rule.cases.get(at.case)) {
        (Some(words), _) => printable(words),
        (None, Some(case)) => {
            let actions = case.actions.iter().map(describe::action);
            let parts = std::iter::once(describe::region(&case.region, family)).chain(actions);
            let parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
            format!("{}: {}", printable(&chain.name), parts.join(" "))
        }
        (None, None) => printable(&chain.name),
    };
    if words.len() > LONGEST {
        words = words.chars().take(LONGEST).chain(['…']).collect();
    }
    words
}

/// How a rule is removed: a command, or whom to ask.
pub(super) fn removal(host: &Host, at: At) -> String {
    let Some((table, chain, rule)) = host.rules.at(at) else { return "change the policy of the chain".into() };
    let owner = host.place(at).owner;
    if owner == "portfwd" {
        return "portfwd rm LISTEN, or remove it from the file of its rule set and run portfwd apply".into();
    }
    if !matches!(owner.as_str(), "user" | "unknown") {
        return format!("change what {owner} was asked to publish: it made the rule, and would make it again");
    }
    let (name, chain_name) = (printable(&table.name), printable(&chain.name));
    if table.tool == Tool::Nft {
        return match (rule.handle, rule.cases.len()) {
            (_, 2..) => format!("delete its element from the map that chain {chain_name} of table {table} asks"),
            (Some(handle), _) => {
                format!("nft delete rule {} {name} {chain_name} handle {handle}", table.family.name())
            }
            (None, _) => format!("remove rule {} of chain {chain_name} of table {table}", at.rule.saturating_add(1)),
        };
    }
    let of_six = if table.family == crate::audit::ruleset::TableFamily::Ip6 { "ip6tables" } else { "iptables" };
    let variant = match table.tool {
        Tool::IptablesNft => "-nft",
        Tool::IptablesLegacy => "-legacy",
        _ => "",
    };
    // What a shell would read otherwise than iptables is named by its number.
    let plain =
        |words: &&str| !words.contains(['$', '`', ';', '|', '&', '<', '>', '(', '*']) && printable(words) == **words;
    let words = rule.words.as_deref().and_then(|words| words.strip_prefix("-A ")).filter(plain);
    match words {
        Some(words) => format!("{of_six}{variant} -t {name} -D {words}"),
        None => format!("{of_six}{variant} -t {name} -D {chain_name} {}", at.rule.saturating_add(1)),
    }
}

/// The finding with the places of some rules, the first few.
pub(super) fn at(finding: Finding, host: &Host, places: impl IntoIterator<Item = At>) -> Finding {
    places.into_iter().take(2 * FEW).fold(finding, |finding, at| finding.at(host.place(at)))
}
