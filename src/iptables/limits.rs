//! The features of rule sets that iptables does not support. portfwd refuses a rule set with such a feature, and does
//! not approximate the feature.
//!
//! | feature | reason |
//! | --- | --- |
//! | `priority` other than the default | the tables of iptables have fixed priorities |
//! | another port for UDP-Lite | DNAT and REDIRECT rewrite ports of TCP, UDP, SCTP and DCCP only |
//! | interface names with `+` at the end | `+` matches every name with this prefix |
//! | interface names with `!` or `-` at the beginning, quotes, backslashes or characters outside of ASCII | iptables-restore(8) cannot read these names from the output of iptables-save(8) |

use std::fmt;

use crate::model::{Binding, DesiredState, IfName, Priority, Protocol, SetName};

/// An unsupported feature in a rule set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// The error message: the unsupported feature and the reason.
    pub what: String,
    /// The help text: the change that makes the rule set valid.
    pub help: String,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

const OTHERWISE: &str = "or use the nftables backend";

/// Returns the first unsupported feature of a binding.
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

/// Returns a limit if iptables cannot match an interface with this name.
pub fn of_interface(name: &IfName) -> Option<Limit> {
    let text = name.as_str();
    let why = if text.ends_with('+') {
        "a `+` at the end matches every name with this prefix"
    } else if text.starts_with(['!', '-']) {
        "it reads a `!` or `-` at the beginning as an option"
    } else if !text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\')) {
        "iptables-restore cannot read the name as iptables-save prints it"
    } else {
        return None;
    };
    Some(Limit {
        what: format!("iptables cannot name the interface `{text}`: {why}"),
        help: format!("rename the interface, {OTHERWISE}"),
    })
}

/// Returns a limit if the priority is not the default.
pub fn of_priority(priority: Option<Priority>) -> Option<Limit> {
    let priority = priority.filter(|priority| *priority != Priority::DEFAULT)?;
    Some(Limit {
        what: format!("iptables cannot run at priority {}: its tables have fixed priorities", priority.value()),
        help: format!("leave `priority` out, {OTHERWISE}"),
    })
}

/// Returns all unsupported features of the desired state, each with the name of its rule set.
pub fn find(desired: &DesiredState) -> Vec<(SetName, Limit)> {
    let mut found = Vec::new();
    let mut add = |set: &SetName, limit: Option<Limit>| found.extend(limit.map(|limit| (set.clone(), limit)));
    for (set, settings) in &desired.settings {
        add(set, of_priority(settings.priority));
    }
    for owned in &desired.networks {
        add(&owned.set, of_interface(&owned.rule.name));
    }
    for owned in &desired.bindings {
        add(&owned.set, of_binding(&owned.rule));
    }
    for owned in &desired.masquerades {
        add(&owned.set, owned.rule.out.as_ref().and_then(of_interface));
    }
    for owned in &desired.snats {
        add(&owned.set, owned.rule.out.as_ref().and_then(of_interface));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_that_iptables_cannot_match_are_refused() {
        for good in ["eth0", "br-4f2a", "wg.1", "a+b", "a!b", "veth@x", "e*"] {
            assert_eq!(of_interface(&good.parse().expect(good)), None, "{good}");
        }
        for bad in ["eth+", "!eth0", "-i", "a\"b", "a'b", "a\\b", "é"] {
            assert!(of_interface(&bad.parse().expect(bad)).is_some(), "{bad}");
        }
    }
}
