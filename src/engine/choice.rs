//! The backend that the user chose, and the backend that holds the rules.

use std::fmt;
use std::time::Duration;

use crate::iptables::command::Variant;

/// The time that a command waits for another portfwd process in the same namespace. In a queue that moves, a command
/// waits at most six times as long. The last of fifty debug builds on two busy cores waited 9.8 s (measured).
pub const LOCK_WAIT: Duration = Duration::from_secs(10);

/// The backend that the user chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// nftables if the kernel has it, iptables otherwise.
    Auto,
    /// nftables, or an error if the kernel lacks it.
    Nft,
    /// iptables, in the variant of the host's own `iptables` command.
    Iptables,
    /// iptables, in the given variant.
    Variant(Variant),
}

impl Choice {
    /// Returns the iptables variant that the user chose, if any.
    pub(super) fn variant(self) -> Option<Variant> {
        match self {
            Self::Variant(variant) => Some(variant),
            _ => None,
        }
    }
}

/// The part of the kernel that holds portfwd's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendId {
    /// Table `inet portfwd` of nf_tables.
    Nft,
    /// Chains of iptables whose names begin with `PORTFWD`.
    Iptables(Variant),
}

impl BackendId {
    /// Returns the iptables variant; `None` for nftables.
    pub(super) fn variant(self) -> Option<Variant> {
        match self {
            Self::Nft => None,
            Self::Iptables(variant) => Some(variant),
        }
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nft => f.write_str("nftables"),
            Self::Iptables(variant) => write!(f, "iptables-{}", variant.name()),
        }
    }
}
