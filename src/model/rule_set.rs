//! A named set of rules, as one file gives it.

use serde::{Deserialize, Serialize};

use super::{Forward, Masquerade, Netmap, Network, SetName, Snat};

/// Where a base chain runs among the others on its hook; lower runs earlier.
///
/// Unit: netfilter hook priority, signed. NAT chains of equal priority run in reverse order of registration
/// (measured, Linux 6.18), so ours is not the -100 that everyone else uses.
/// Source: nft(8), CHAINS; `enum nf_ip_hook_priorities` in include/uapi/linux/netfilter_ipv4.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(i32);

impl Priority {
    /// Of the DNAT chains unless a set says otherwise: before Docker, netavark, CNI and kube-proxy (-100).
    pub const DEFAULT: Self = Self(-105);

    /// A priority at which NAT can be done; `None` below -199 and above 49.
    ///
    /// NAT chains must run after connection tracking (-200), and the source chain, at the negative of it less ten,
    /// must stay before the confirmation of the connection and after everybody's mangling.
    pub fn new(value: i32) -> Option<Self> {
        (-199..50).contains(&value).then_some(Self(value))
    }

    /// The number.
    pub fn value(self) -> i32 {
        self.0
    }

    /// Where sources are rewritten: at the negative of it less ten, 95 for -105.
    pub fn source_priority(self) -> i32 {
        -self.0 - 10
    }
}

/// What to do about IP forwarding, without which a forward to another host is a dead letter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpForward {
    /// Switch it on where it is off, and say so.
    #[default]
    Enable,
    /// Leave it as it is.
    Keep,
}

/// The settings of a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The priority of the DNAT chains, where the set has an opinion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// What to do about IP forwarding.
    #[serde(default)]
    pub ip_forward: IpForward,
}

/// A named set of rules. Order in its lists has no meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    /// The set's name.
    pub name: SetName,
    /// Its forwards.
    pub forwards: Vec<Forward>,
    /// Its networks.
    pub networks: Vec<Network>,
    /// Its masquerades.
    pub masquerades: Vec<Masquerade>,
    /// Its source NAT.
    pub snats: Vec<Snat>,
    /// Its 1:1 translations.
    pub netmaps: Vec<Netmap>,
    /// Its settings.
    pub settings: Settings,
}

impl RuleSet {
    /// An empty set.
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
    fn sources_are_rewritten_at_the_negative_less_ten() {
        assert_eq!(Priority::DEFAULT.source_priority(), 95);
        assert_eq!(Priority::new(-200), None);
        assert_eq!(Priority::new(50), None);
    }
}
