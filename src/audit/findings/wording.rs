//! The wording of findings: names of forwards and rules, confidence, and commands that delete a rule.

use std::collections::BTreeMap;

use crate::audit::finding::Finding;
use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::model::error::printable;
use crate::ruleset::confidence::Confidence;
use crate::ruleset::describe;
use crate::ruleset::host::Host;
use crate::ruleset::owner;
use crate::ruleset::region::{Field, Region, family_number};
use crate::ruleset::set::address_of;
use crate::ruleset::table::{At, Table, TableFamily, Tool};
use crate::ruleset::view::Translation;

use super::addresses::is_wildcard;

/// The maximum number of names in a list.
pub(super) const FEW: usize = 3;

/// The maximum number of separate findings of one kind.
pub(super) const APART: usize = 5;

/// The maximum length of a rule's text, in characters.
const LONGEST: usize = 300;

/// Returns the name of a forward, for example `8080/tcp -> 172.17.0.2:80`.
pub(super) fn name(forward: &Forward<'_>) -> String {
    let from = listens(forward);
    let to = match (describe::target(forward.to).as_str(), forward.translation) {
        (to, Translation::Redirect) => format!("this host{to}"),
        ("", _) => "itself".to_owned(),
        (to, _) => to.to_owned(),
    };
    format!("`{from} -> {to}`")
}

/// Returns the destinations of arriving packets for each path to the rule. For a forward of local packets only, returns
/// their destinations.
fn listens(forward: &Forward<'_>) -> String {
    let first = forward.steps.first().map(|(hook, _, _)| *hook);
    let mut ways: Vec<String> = Vec::new();
    for (_, _, step) in forward.steps.iter().filter(|(hook, _, _)| Some(*hook) == first) {
        let way = listen(&step.region, forward.family);
        if !ways.contains(&way) {
            if ways.len() == FEW {
                ways.push("…".to_owned());
                break;
            }
            ways.push(way);
        }
    }
    ways.join(", ")
}

/// Returns the destination of a region, for example `192.0.2.1:8080/tcp`.
fn listen(region: &Region, family: Family) -> String {
    let set = |field| describe::set(field, region.get(field), family);
    let destination = region.get(Field::Destination);
    let address = match destination.only().and_then(|number| address_of(number, family)) {
        Some(address) if address.is_ipv6() => Some(format!("[{address}]")),
        Some(address) => Some(address.to_string()),
        None => (!is_wildcard(region, family)).then(|| set(Field::Destination)),
    };
    let ports = (!region.get(Field::Port).is_all()).then(|| set(Field::Port));
    let protocols = (!region.get(Field::Protocol).is_all()).then(|| set(Field::Protocol));
    let at = match (address, ports) {
        (Some(address), Some(ports)) => format!("{address}:{ports}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) if protocols.is_some() => "*".to_owned(),
        (None, None) => "everything".to_owned(),
    };
    protocols.map_or_else(|| at.clone(), |protocols| format!("{at}/{protocols}"))
}

/// Returns a list with at most a few names, for example `a, b, c and 4 more`.
pub(super) fn list(words: impl ExactSizeIterator<Item = String>) -> String {
    let more = words.len().saturating_sub(FEW);
    let text = words.take(FEW).collect::<Vec<_>>().join(", ");
    if more == 0 { text } else { format!("{text} and {more} more") }
}

/// Returns the names of forwards. For many forwards, returns their number and the first names: `7 forwards (…)`.
pub(super) fn several(forwards: &[&Forward<'_>]) -> String {
    let mut names: Vec<String> = forwards.iter().take(FEW + 1).map(|forward| name(forward)).collect();
    names.dedup();
    // Several paths to one rule may have the same name.
    if let ([only], 2..=FEW) = (names.as_slice(), forwards.len()) {
        return format!("{only} (by {} ways)", forwards.len());
    }
    let names = list(forwards.iter().map(|forward| name(forward)));
    if forwards.len() > FEW { format!("{} forwards ({names})", forwards.len()) } else { names }
}

/// Returns `one` for 1 and `many` otherwise.
pub(super) fn verb<'a, T>(of: &[T], one: &'a str, many: &'a str) -> &'a str {
    if of.len() == 1 { one } else { many }
}

/// Returns the names of forwards with a verb in singular or plural.
pub(super) fn each(forwards: &[&Forward<'_>], one: &str, many: &str) -> String {
    format!("{} {}", several(forwards), verb(forwards, one, many))
}

/// Returns the confidence of a statement about understood rules: proved for a live host, likely for a dump.
pub(super) fn sure(host: &Host) -> Confidence {
    if host.facts.is_some() { Confidence::Proved } else { Confidence::Likely }
}

/// Returns true if portfwd made the rule. Then the user chose its addresses, family and options.
pub(super) fn is_own(host: &Host, at: At) -> bool {
    host.rules.at(at).is_some_and(|(table, chain, _)| owner::of_rule(table, chain, at.rule) == "portfwd")
}

/// Returns a rule as text: its own text, or nft(8) syntax with the chain's name, or the policy.
pub(super) fn rule(host: &Host, at: At) -> String {
    let Some((table, chain, rule)) = host.rules.at(at) else { return format!("{}: drop", host.place(at).rule) };
    let mut words = match (&rule.words, rule.cases.get(at.case)) {
        (Some(words), _) => printable(words),
        (None, Some(case)) => {
            let actions = case.actions.iter().map(describe::action);
            let asked = describe::region(&case.region, family(table, &case.region));
            let parts: Vec<String> = std::iter::once(asked).chain(actions).filter(|part| !part.is_empty()).collect();
            format!("{}: {}", printable(&chain.name), parts.join(" "))
        }
        (None, None) => printable(&chain.name),
    };
    if words.chars().nth(LONGEST).is_some() {
        words = words.chars().take(LONGEST).chain(['…']).collect();
    }
    words
}

/// Returns the family of a rule's packets, or IPv4 for an inet rule.
fn family(table: &Table, region: &Region) -> Family {
    let six = Some(family_number(Family::Ipv6));
    let is_six = table.family == TableFamily::Ip6 || region.get(Field::Family).only() == six;
    if is_six { Family::Ipv6 } else { Family::Ipv4 }
}

/// Returns the command that deletes a rule, or the program to use.
pub(super) fn removal(host: &Host, at: At) -> String {
    let Some((table, chain, rule)) = host.rules.at(at) else { return "change the policy of the chain".into() };
    let owner = host.place(at).owner;
    if owner == "portfwd" {
        return "portfwd rm LISTEN, or remove it from the file of its rule set and run portfwd apply".into();
    }
    if !matches!(owner.as_str(), "user" | "unknown") {
        return format!("change what {owner} was asked to publish: it made the rule, and would make it again");
    }
    deletion(host, at).unwrap_or_else(|| {
        let chain_name = printable(&chain.name);
        match rule.cases.len() {
            2.. => format!("delete its element from the map that chain {chain_name} of table {table} asks"),
            _ => format!("remove rule {} of chain {chain_name} of table {table}", at.rule.saturating_add(1)),
        }
    })
}

/// Returns the command that deletes a rule. Returns `None` if one command cannot.
pub(super) fn deletion(host: &Host, at: At) -> Option<String> {
    let (table, chain, rule) = host.rules.at(at)?;
    let (name, chain_name) = (printable(&table.name), printable(&chain.name));
    if table.tool == Tool::Nft {
        let handle = rule.handle.filter(|_| rule.cases.len() < 2)?;
        return Some(format!("nft delete rule {} {name} {chain_name} handle {handle}", table.family.name()));
    }
    let of_six = if table.family == TableFamily::Ip6 { "ip6tables" } else { "iptables" };
    let variant = match table.tool {
        Tool::IptablesNft => "-nft",
        Tool::IptablesLegacy => "-legacy",
        _ => "",
    };
    // A shell would change such a text, so the command uses the rule's number.
    let plain =
        |words: &&str| !words.contains(['$', '`', ';', '|', '&', '<', '>', '(', '*']) && printable(words) == **words;
    let words = rule.words.as_deref().and_then(|words| words.strip_prefix("-A ")).filter(plain);
    Some(match words {
        Some(words) => format!("{of_six}{variant} -t {name} -D {words}"),
        None => format!("{of_six}{variant} -t {name} -D {chain_name} {}", at.rule.saturating_add(1)),
    })
}

/// Returns the places without duplicates.
fn unique(places: impl IntoIterator<Item = At>) -> impl Iterator<Item = At> {
    let mut known = Vec::new();
    let is_new = move |at: &At| {
        let is_new = !known.contains(at);
        // The list shows at most this number of places.
        if is_new && known.len() < 2 * FEW {
            known.push(*at);
        }
        is_new
    };
    places.into_iter().filter(is_new)
}

/// Adds the places of the first rules to a finding.
pub(super) fn at(finding: Finding, host: &Host, places: impl IntoIterator<Item = At>) -> Finding {
    unique(places).take(2 * FEW).fold(finding, |finding, at| finding.at(host.place(at)))
}

/// Adds the places and the text of the first rules to a finding.
pub(super) fn placed(finding: Finding, host: &Host, places: impl IntoIterator<Item = At>) -> Finding {
    unique(places).take(2 * FEW).enumerate().fold(finding, |finding, (number, at)| {
        let finding = finding.at(host.place(at));
        if number < FEW { finding.seen(rule(host, at)) } else { finding }
    })
}

/// Adds the places and the rules of the first forwards to a finding.
pub(super) fn at_all(finding: Finding, host: &Host, forwards: &[&Forward<'_>]) -> Finding {
    placed(finding, host, forwards.iter().map(|forward| forward.at))
}

/// Groups findings: one finding for each item if there are few, else one for all.
pub(super) fn by_cause<K: Ord, T>(
    groups: BTreeMap<K, Vec<T>>,
    one: impl Fn(&[(K, Vec<T>)]) -> Finding,
) -> Vec<Finding> {
    let groups: Vec<(K, Vec<T>)> = groups.into_iter().collect();
    match groups.len() {
        0 => Vec::new(),
        1..=APART => groups.chunks(1).map(one).collect(),
        _ => vec![one(&groups)],
    }
}

#[cfg(test)]
mod tests {
    use super::super::hosts::{dump, nat};
    use super::*;

    #[test]
    fn forwards_read_like_what_people_type() {
        let host =
            dump(&nat("-A PREROUTING -d 192.0.2.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.9\n\
             -A PREROUTING -p tcp -m multiport --dports 80,443 -j REDIRECT --to-ports 3128\n\
             -A PREROUTING -j DNAT --to-destination 10.0.0.1"));
        let all = Forward::all(&host.view);
        let names: Vec<String> = all.iter().map(name).collect();
        assert_eq!(
            names,
            ["`192.0.2.1:53/udp -> 10.0.0.9`", "`{ 80, 443 }/tcp -> this host:3128`", "`everything -> 10.0.0.1`"]
        );
        assert_eq!(
            removal(&host, all[1].at),
            "iptables -t nat -D PREROUTING -p tcp -m multiport --dports 80,443 -j REDIRECT --to-ports 3128"
        );
        assert_eq!(list((0..7).map(|n| n.to_string())), "0, 1, 2 and 4 more");
    }
}
