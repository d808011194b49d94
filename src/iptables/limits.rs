//! What rule sets may ask that iptables cannot do exactly. It is refused, not approximated.
//!
//! | what | why |
//! | --- | --- |
//! | `priority` other than the usual one | the tables of iptables run at fixed places |
//! | another port for UDP-Lite | DNAT and REDIRECT rewrite ports of TCP, UDP, SCTP and DCCP only |
//! | interface names with quotes, a backslash, `+` at the end, `!` or `-` at the beginning, or outside of ASCII | `+` matches every name that begins so; others iptables-restore(8) cannot read back from iptables-save(8) |

use std::fmt;

use crate::model::{Asked, Binding, IfName, Priority, Protocol, SetName};

/// Something that iptables cannot do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// What, and why.
    pub what: String,
    /// What to write instead.
    pub help: String,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

const OTHERWISE: &str = "or use the nftables backend";

/// What of a binding iptables cannot do.
pub fn of_binding(binding: &Binding) -> Option<Limit> {
    let moved = binding.target_port(binding.ports.first()) != binding.ports.first()
        || binding.target_port(binding.ports.last()) != binding.ports.last();
    if binding.protocol == Protocol::Udplite && moved {
        return Some(Limit {
            what: format!("`{binding}` changes the port, and iptables rewrites no ports of UDP-Lite"),
            help: format!("forward it to the same port, {OTHERWISE}"),
        });
    }
    binding.interface.as_ref().and_then(of_interface)
}

/// What of the name of an interface iptables cannot do.
pub fn of_interface(name: &IfName) -> Option<Limit> {
    let text = name.as_str();
    let why = if text.ends_with('+') {
        "it takes a `+` at the end for every name that begins so"
    } else if text.starts_with(['!', '-']) {
        "it takes what begins so for something else"
    } else if !text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\')) {
        "iptables-save prints it so that iptables-restore cannot read it"
    } else {
        return None;
    };
    Some(Limit {
        what: format!("iptables cannot name the interface `{text}`: {why}"),
        help: format!("rename the interface, {OTHERWISE}"),
    })
}

/// What of a priority iptables cannot do.
pub fn of_priority(priority: Option<Priority>) -> Option<Limit> {
    let priority = priority.filter(|priority| *priority != Priority::DEFAULT)?;
    Some(Limit {
        what: format!("iptables cannot run at priority {}: its tables have fixed places", priority.value()),
        help: format!("leave `priority` out, {OTHERWISE}"),
    })
}

/// Everything that iptables cannot do, with the set that asks it.
pub fn find(asked: &Asked) -> Vec<(SetName, Limit)> {
    let mut found = Vec::new();
    let mut put = |set: &SetName, limit: Option<Limit>| found.extend(limit.map(|limit| (set.clone(), limit)));
    for (set, settings) in &asked.settings {
        put(set, of_priority(settings.priority));
    }
    for owned in &asked.networks {
        put(&owned.set, of_interface(&owned.rule.name));
    }
    for owned in &asked.bindings {
        put(&owned.set, of_binding(&owned.rule));
    }
    for owned in &asked.masquerades {
        put(&owned.set, owned.rule.out.as_ref().and_then(of_interface));
    }
    for owned in &asked.snats {
        put(&owned.set, owned.rule.out.as_ref().and_then(of_interface));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_that_iptables_would_take_for_others_are_refused() {
        for good in ["eth0", "br-4f2a", "wg.1", "a+b", "a!b", "veth@x", "e*"] {
            assert_eq!(of_interface(&good.parse().expect(good)), None, "{good}");
        }
        for bad in ["eth+", "!eth0", "-i", "a\"b", "a'b", "a\\b", "é"] {
            assert!(of_interface(&bad.parse().expect(bad)).is_some(), "{bad}");
        }
    }
}
