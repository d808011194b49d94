//! Forwards and rules in words.

use crate::audit::describe;
use crate::audit::finding::Finding;
use crate::audit::forwards::Forward;
use crate::audit::host::Host;
use crate::audit::region::Field;
use crate::audit::ruleset::{At, Hook, Kind, Table, TableFamily, Tool};
use crate::audit::set::address_of;
use crate::audit::view::Translation;
use crate::model::Family;
use crate::model::error::printable;

/// How many forwards of many are named.
const FEW: usize = 3;

/// A forward, `8080/tcp -> 172.17.0.2:80`.
pub(super) fn name(forward: &Forward<'_>) -> String {
    let Some(region) = forward.region() else { return describe::target(forward.to) };
    let family = forward.family;
    let set = |field| describe::set(field, region.get(field), family);
    let ports = if region.get(Field::Port).is_all() { "*".into() } else { set(Field::Port) };
    let address = match region.get(Field::Destination).only().and_then(|number| address_of(number, family)) {
        Some(address) if address.is_ipv6() => format!("[{address}]:"),
        Some(address) => format!("{address}:"),
        None => String::new(),
    };
    let protocols = if region.get(Field::Protocol).is_all() { "any".into() } else { set(Field::Protocol) };
    let to = describe::target(forward.to);
    let to = if forward.translation == Translation::Redirect { format!("this host{to}") } else { to };
    format!("`{address}{ports}/{protocols} -> {to}`")
}

/// Some forwards: their names, or the first few and how many there are; with the verb that belongs to as many.
pub(super) fn several(forwards: &[&Forward<'_>], one: &str, many: &str) -> String {
    let names: Vec<String> = forwards.iter().take(FEW).map(|forward| name(forward)).collect();
    match (forwards.len(), names.as_slice()) {
        (1, [name]) => format!("{name} {one}"),
        (all, names) if all <= FEW => format!("{} {many}", names.join(", ")),
        (all, names) => format!("{all} forwards ({} and {} more) {many}", names.join(", "), all - names.len()),
    }
}

/// The finding with the places of the first few forwards and of the rules that decide, and with what those say.
pub(super) fn placed(
    mut finding: Finding,
    host: &Host,
    forwards: &[&Forward<'_>],
    deciding: impl IntoIterator<Item = At>,
) -> Finding {
    for forward in forwards.iter().take(FEW) {
        finding = finding.at(host.place(forward.at)).seen(rule(host, forward.at));
    }
    for at in deciding {
        finding = finding.at(host.place(at)).seen(rule(host, at));
    }
    finding
}

/// What a rule says, or a policy.
pub(super) fn rule(host: &Host, at: At) -> String {
    let place = host.place(at);
    let Some((table, _, rule)) = host.rules.at(at) else { return format!("{place}: drop") };
    if let Some(words) = &rule.words {
        return format!("{place}: {}", printable(words));
    }
    let family = if table.family == TableFamily::Ip6 { Family::Ipv6 } else { Family::Ipv4 };
    let case = rule.cases.get(at.case);
    let said = case.map(|case| {
        let asked = describe::region(&case.region, family);
        let done: Vec<String> = case.actions.iter().map(describe::action).collect();
        format!("{asked} {}", done.join(" ")).trim().to_owned()
    });
    format!("{place}: {}", said.unwrap_or_default())
}

/// The command that lets a forward through, in front of what drops it.
pub(super) fn let_through(host: &Host, at: At, owner: &str, hook: Hook, forward: &Forward<'_>) -> String {
    let (target, protocol) = (forward.target(), forward.protocol());
    let port = forward.first_port().and_then(|port| forward.port_there(port));
    let protocol = protocol.map_or_else(|| "tcp".into(), |protocol| describe::protocol(protocol.into()));
    match (owner, hook, target, port) {
        ("ufw", Hook::Forward, Some(target), Some(port)) => {
            return format!("ufw route allow proto {protocol} from any to {target} port {port}");
        }
        ("ufw", _, _, Some(port)) => return format!("ufw allow {port}/{protocol}"),
        ("firewalld", ..) => {
            return "let firewalld forward there: a policy from the client's zone to the target's with target ACCEPT, or \
                    firewall-cmd --zone=ZONE --add-forward-port=…"
                .into();
        }
        _ => {}
    }
    let Some(table) = host.rules.tables.get(at.table) else { return "accept it before it is dropped".into() };
    let (family, word) = match forward.family {
        Family::Ipv4 => ("", "ip"),
        Family::Ipv6 => ("6", "ip6"),
    };
    let base = base_chain(table, hook).map_or_else(String::new, printable);
    if table.tool == Tool::Nft {
        let to = target.map_or_else(String::new, |target| format!(" {word} daddr {target}"));
        let port = port.map_or_else(String::new, |port| format!(" {protocol} dport {port}"));
        return format!("nft insert rule {} {base}{to}{port} ct status dnat accept", printable(&table.to_string()));
    }
    let variant = if table.tool == Tool::IptablesLegacy { "-legacy" } else { "" };
    let to = target.map_or_else(String::new, |target| format!(" -d {target}"));
    let port = port.map_or_else(String::new, |port| format!(" -p {protocol} --dport {port}"));
    let name = printable(&table.name);
    format!("ip{family}tables{variant} -t {name} -I {base}{to}{port} -m conntrack --ctstate DNAT -j ACCEPT")
}

/// The name of the first base chain of a table at a hook that filters.
fn base_chain(table: &Table, hook: Hook) -> Option<&str> {
    let is_it = |base: &crate::audit::ruleset::Base| base.hook == hook && base.kind != Kind::Nat;
    table.chains.iter().find(|chain| chain.base.as_ref().is_some_and(is_it)).map(|chain| &*chain.name)
}
