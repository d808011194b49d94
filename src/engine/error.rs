//! Errors of the engine.

use std::net::IpAddr;
use std::time::Duration;

use super::choice::BackendId;
use crate::iptables::command::CommandError;
use crate::model::Family;
use crate::nft::compile::CompileError;
use crate::nft::transaction::{CommitError, KernelError};
use crate::store::StateError;
use crate::sys::sysctl::SysctlError;

/// An error of the engine. Unless the variant documents a change, the kernel and the state are unchanged.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A request to nf_tables failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel did not commit the batch.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The kernel refused a message of the batch.
    #[error("the kernel refused {subject}{}", reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Refused {
        /// The refused object, such as a forward or a chain.
        subject: String,
        /// The extended acknowledgement of the kernel, if there is one.
        reason: Option<String>,
        /// The error number of the kernel.
        #[source]
        error: std::io::Error,
    },
    /// An earlier change waits for its confirmation. The value is the time until its deadline.
    #[error("an earlier change is pending: it waits for its confirmation")]
    Unconfirmed(Duration),
    /// Other programs kept changing the rules, or held a lock, until the time limit.
    #[error("another program keeps changing the rules of this network namespace")]
    Busy,
    /// The live rules differ from the committed ones.
    #[error("{0} differs from what portfwd committed a moment ago")]
    Differs(String),
    /// The rules were committed, but could not be read again.
    #[error("the rules were committed, but could not be read back")]
    Unchecked(#[source] Box<EngineError>),
    /// The state could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The new state could not be written, and the old state could not be written again. The state on disk is
    /// unknown. The kernel is unchanged.
    #[error("the state could not be written, and its old content could not be written again")]
    Undecided(#[source] StateError),
    /// The rule sets cannot be compiled to one nftables table.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The rule sets need a feature that iptables lacks.
    #[error(transparent)]
    Limit(#[from] crate::iptables::compile::CompileError),
    /// A command of iptables failed.
    #[error(transparent)]
    Iptables(#[from] CommandError),
    /// A rule needs ip6tables, which is missing.
    #[error("a rule needs IPv6, but {0}")]
    NoIpv6(String),
    /// A failed change could not be rolled back in one address family.
    #[error("{family} could not be rolled back after the other family was refused")]
    NotRolledBack {
        /// The family whose old rules are not restored.
        family: Family,
        /// The error of the failed rollback.
        #[source]
        error: Box<EngineError>,
    },
    /// The rules were committed, but portfwd's older rules in an unused backend could not be removed.
    #[error("the rules were committed, but portfwd's rules in {backend} could not be removed")]
    Left {
        /// The unused backend that still has rules of portfwd.
        backend: BackendId,
        /// The error of the failed removal.
        #[source]
        error: Box<EngineError>,
    },
    /// The input file of iptables-restore could not be written.
    #[error("cannot prepare the input of iptables-restore")]
    Input(#[source] std::io::Error),
    /// The interfaces could not be listed.
    #[error("cannot list the interfaces of this network namespace")]
    Interfaces(#[source] std::io::Error),
    /// A sysctl could not be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The route to a target could not be read.
    #[error("cannot look up the route to the target {0}")]
    Route(IpAddr, #[source] std::io::Error),
    /// The kernel has rules of portfwd, but the state is empty. The number counts the live forwards.
    #[error("{0} has {1} forwards of portfwd, but the state is empty: it was lost")]
    Unknown(BackendId, usize),
    /// The kernel has no rules of portfwd.
    #[error("{0} has no rules of portfwd to take over")]
    Nothing(BackendId),
    /// The rules were committed, but route_localnet could not be set for loopback forwards.
    #[error("the rules were committed, but loopback forwards cannot reach their targets")]
    Closed(#[source] SysctlError),
    /// The network namespace could not be identified.
    #[error("cannot identify the network namespace")]
    Namespace(#[source] std::io::Error),
}
