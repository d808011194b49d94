//! A named set of rules, the content of one file.

use serde::{Deserialize, Serialize};

use super::{Forward, Masquerade, Netmap, Network, SetName, Snat};

/// The priority of a base chain. Chains with a lower priority run earlier on the same hook.
///
/// Unit: netfilter hook priority, signed. NAT chains of equal priority run in reverse order of registration
/// (measured, Linux 6.18), so portfwd does not use -100 like other programs.
/// Source: nft(8), CHAINS; `enum nf_ip_hook_priorities` in include/uapi/linux/netfilter_ipv4.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(i32);

impl Priority {
    /// The default of the DNAT chains. They run before Docker, netavark, CNI and kube-proxy (-100).
    pub const DEFAULT: Self = Self(-105);

    /// Returns a priority for DNAT chains, or `None` if `value` is below -199 or above 49.
    ///
    /// NAT chains must run after connection tracking (-200). The source NAT chain, see [`Priority::source_priority`],
    /// must run after the mangle chains of other programs and before the kernel confirms the connection.
    pub fn new(value: i32) -> Option<Self> {
        (-199..50).contains(&value).then_some(Self(value))
    }

    /// Returns the netfilter hook priority.
    pub fn value(self) -> i32 {
        self.0
    }

    /// Returns the priority of the source NAT chain: `-value - 10`, which is 95 for -105.
    pub fn source_priority(self) -> i32 {
        -self.0 - 10
    }
}

/// The handling of the sysctls for IP forwarding. Forwards to other hosts need IP forwarding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpForward {
    /// Enable IP forwarding, and report a change.
    #[default]
    Enable,
    /// Do not change IP forwarding.
    Keep,
}

/// The settings of a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The priority of the DNAT chains, if the set has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// The handling of IP forwarding.
    #[serde(default)]
    pub ip_forward: IpForward,
}

/// A named set of rules. The order of the lists has no meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    /// The name of the set.
    pub name: SetName,
    /// The `[[forward]]` tables.
    pub forwards: Vec<Forward>,
    /// The `[[network]]` tables.
    pub networks: Vec<Network>,
    /// The `[[masquerade]]` tables.
    pub masquerades: Vec<Masquerade>,
    /// The `[[snat]]` tables.
    pub snats: Vec<Snat>,
    /// The `[[netmap]]` tables.
    pub netmaps: Vec<Netmap>,
    /// The `[settings]` table.
    pub settings: Settings,
}

impl RuleSet {
    /// Returns a set without rules and with default settings.
    pub fn new(name: SetName) -> Self {
        Self {
            name,
            forwards: Vec::new(),
            networks: Vec::new(),
            masquerades: Vec::new(),
            snats: Vec::new(),
            netmaps: Vec::new(),
            settings: Settings::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_priority_is_the_negative_less_ten() {
        assert_eq!(Priority::DEFAULT.source_priority(), 95);
        assert_eq!(Priority::new(-200), None);
        assert_eq!(Priority::new(50), None);
    }
}
