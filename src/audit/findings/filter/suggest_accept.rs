//! Commands that accept a forward in a filter.

use crate::audit::forwards::Forward;
use crate::model::Family;
use crate::model::error::printable;
use crate::ruleset::describe;
use crate::ruleset::host::Host;
use crate::ruleset::table::{At, Base, Hook, Kind, Table, Tool};

/// Returns the command that accepts a forward before the rule that drops it.
pub(super) fn suggest_accept(host: &Host, at: At, owner: &str, hook: Hook, forward: &Forward<'_>) -> String {
    let (target, protocol) = (forward.target(), forward.protocol());
    let port = forward.first_port().and_then(|port| forward.to.port_for(port));
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

/// Returns the name of a table's first filter chain at a hook.
fn base_chain(table: &Table, hook: Hook) -> Option<&str> {
    let is_it = |base: &Base| base.hook == hook && base.kind != Kind::Nat;
    table.chains.iter().find(|chain| chain.base.as_ref().is_some_and(is_it)).map(|chain| &*chain.name)
}
