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

/// An error of the engine. Unless its documentation says otherwise, kernel and state are as before.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The kernel did not answer a request.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel did not commit the batch.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The kernel refused a message of the batch.
    #[error("the kernel refused {subject}{}", reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Refused {
        /// The refused object, as the rule set names it.
        subject: String,
        /// The extended acknowledgement of the kernel, if there is one.
        reason: Option<String>,
        /// The error number of the kernel.
        #[source]
        error: std::io::Error,
    },
    /// Another change is pending: it waits for its confirmation, for this long.
    #[error("an earlier change is pending: it waits for its confirmation")]
    Unconfirmed(Duration),
    /// Other programs changed the rules each time before the batch was sent.
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
    /// The kernel is as before. The state on disk is unknown, because writing it failed, and so did writing the old one again.
    #[error("the state could not be written, and its old content could not be written again")]
    Undecided(#[source] StateError),
    /// The rule sets cannot be one table.
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
    /// One family was changed, the other one refused the change, and the first could not be rolled back.
    #[error("{family} could not be rolled back after the other family was refused")]
    NotRolledBack {
        /// The family whose rules are neither the old nor the new ones.
        family: Family,
        /// The cause.
        #[source]
        error: Box<EngineError>,
    },
    /// The rules were committed, but portfwd's older rules in another backend could not be removed.
    #[error("the rules were committed, but portfwd's rules in {backend} could not be removed")]
    Left {
        /// The backend that has them.
        backend: BackendId,
        /// The cause.
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
    /// The kernel has rules of portfwd, but the state is empty.
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
