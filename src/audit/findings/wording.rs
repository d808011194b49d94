//! Forwards, rules and lists of them in words.

use std::collections::BTreeMap;

use crate::audit::describe;
use crate::audit::finding::Finding;
use crate::audit::forwards::Forward;
use crate::audit::host::Host;
use crate::audit::region::{Field, Region};
use crate::audit::ruleset::{At, TableFamily, Tool};
use crate::audit::set::address_of;
use crate::audit::view::Translation;
use crate::model::Family;
use crate::model::error::printable;

/// How many things of a list are named, and how many findings of one kind are told apart.
pub(super) const FEW: usize = 5;

/// What a forward takes and where it leads, `8080/tcp -> 172.17.0.2:80`.
pub(super) fn name(forward: &Forward<'_>) -> String {
    let listen = forward.region().map_or_else(String::new, |region| listen(region, forward.family));
    let to = describe::target(forward.to);
    match (forward.translation, to.as_str()) {
        (Translation::Redirect, to) => format!("`{listen} -> this host{to}`"),
        (_, to) => format!("`{listen} -> {to}`"),
    }
}

/// The address, the ports and the protocols of a region, `192.0.2.1:8080/tcp`.
fn listen(region: &Region, family: Family) -> String {
    let address = region.get(Field::Destination).only().and_then(|address| address_of(address, family));
    let (ports, protocols) = (region.get(Field::Port), region.get(Field::Protocol));
    let ports = (!ports.is_all()).then(|| describe::set(Field::Port, ports, family));
    let text = match (address, ports) {
        (Some(address), Some(ports)) if address.is_ipv6() => format!("[{address}]:{ports}"),
        (Some(address), Some(ports)) => format!("{address}:{ports}"),
        (Some(address), None) => address.to_string(),
        (None, Some(ports)) => ports,
        (None, None) => "everything".to_owned(),
    };
    match protocols.is_all() {
        true => text,
        false => format!("{text}/{}", describe::set(Field::Protocol, protocols, family)),
    }
}

/// A few words for many: the first ones, and how many more there are.
pub(super) fn list(words: impl ExactSizeIterator<Item = String>) -> String {
    let more = words.len().saturating_sub(FEW);
    let text = words.take(FEW).collect::<Vec<_>>().join(", ");
    if more == 0 { text } else { format!("{text} and {more} more") }
}

/// Some forwards by their names, `3 forwards (…)`, or one by its name alone.
pub(super) fn several(forwards: &[&Forward<'_>]) -> String {
    match forwards {
        [one] => name(one),
        some => format!("{} forwards ({})", some.len(), list(some.iter().map(|forward| name(forward)))),
    }
}

/// `one` or `many`, by how many there are.
pub(super) fn verb<'a, T>(of: &[T], one: &'a str, many: &'a str) -> &'a str {
    if of.len() == 1 { one } else { many }
}

/// A finding with the places of the first of some forwards, and what they are about.
pub(super) fn at_all(mut finding: Finding, host: &Host, forwards: &[&Forward<'_>]) -> Finding {
    for forward in forwards.iter().take(FEW) {
        finding = finding.at(host.place(forward.at)).seen(words(host, forward.at));
    }
    finding
}

/// What a rule says: its words where there are any, else what its case asks for and does.
pub(super) fn words(host: &Host, at: At) -> String {
    let Some((table, _, rule)) = host.rules.at(at) else { return host.place(at).to_string() };
    if let Some(words) = &rule.words {
        return printable(words);
    }
    let family = if table.family == TableFamily::Ip6 { Family::Ipv6 } else { Family::Ipv4 };
    rule.cases.get(at.case).map_or_else(String::new, |case| {
        let region = describe::region(&case.region, family);
        let done: Vec<String> = case.actions.iter().map(describe::action).collect();
        format!("{region} {}", done.join(" ")).trim().to_owned()
    })
}

/// The command that removes a rule; `None` where it is one of several elements of a map, or its tool is not known.
pub(super) fn removal(host: &Host, at: At) -> Option<String> {
    let (table, chain, rule) = host.rules.at(at)?;
    let program = match (table.tool, table.family) {
        (Tool::Nft, _) if rule.cases.len() == 1 => {
            let handle = rule.handle?;
            return Some(format!(
                "nft delete rule {} {} handle {handle}",
                printable(&table.to_string()),
                printable(&chain.name)
            ));
        }
        (Tool::IptablesNft | Tool::Iptables, TableFamily::Ip) => "iptables",
        (Tool::IptablesNft | Tool::Iptables, TableFamily::Ip6) => "ip6tables",
        (Tool::IptablesLegacy, TableFamily::Ip) => "iptables-legacy",
        (Tool::IptablesLegacy, TableFamily::Ip6) => "ip6tables-legacy",
        _ => return None,
    };
    let rest = match rule.words.as_deref().and_then(|words| words.strip_prefix("-A ")) {
        Some(words) => words.to_owned(),
        None => format!("{} {}", chain.name, at.rule.checked_add(1)?),
    };
    Some(format!("{program} -t {} -D {}", printable(&table.name), printable(&rest)))
}

/// Findings by what they have in common: each by itself where they are few, else all as one.
pub(super) fn by_cause<K: Ord, T>(
    groups: BTreeMap<K, Vec<T>>,
    one: impl Fn(&[(K, Vec<T>)]) -> Finding,
) -> Vec<Finding> {
    let groups: Vec<(K, Vec<T>)> = groups.into_iter().collect();
    match groups.len() {
        0 => Vec::new(),
        1..=FEW => groups.chunks(1).map(one).collect(),
        _ => vec![one(&groups)],
    }
}

#[cfg(test)]
mod tests {
    use super::super::typical;
    use super::*;

    #[test]
    fn forwards_read_like_what_people_type() {
        let host = typical::dump(&typical::nat(
            "-A PREROUTING -d 192.0.2.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.9\n\
             -A PREROUTING -p tcp -m multiport --dports 80,443 -j REDIRECT --to-ports 3128\n\
             -A PREROUTING -j DNAT --to-destination 10.0.0.1",
        ));
        let all = Forward::all(&host.view);
        let names: Vec<String> = all.iter().map(name).collect();
        assert_eq!(
            names,
            ["`192.0.2.1:53/udp -> 10.0.0.9`", "`{ 80, 443 }/tcp -> this host:3128`", "`everything -> 10.0.0.1`"]
        );
        assert_eq!(
            removal(&host, all[1].at).as_deref(),
            Some("iptables -t nat -D PREROUTING -p tcp -m multiport --dports 80,443 -j REDIRECT --to-ports 3128")
        );
        assert_eq!(list((0..7).map(|n| n.to_string())), "0, 1, 2, 3, 4 and 2 more");
    }
}
