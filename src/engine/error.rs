//! Why something could not be done.

use std::net::IpAddr;
use std::time::Duration;

use super::choice::BackendId;
use crate::iptables::command::CommandError;
use crate::model::Family;
use crate::nft::compile::CompileError;
use crate::nft::transaction::{CommitError, KernelError};
use crate::store::StateError;
use crate::sys::sysctl::SysctlError;

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The batch was not carried out.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The kernel refused one thing of the batch.
    #[error("the kernel refused {subject}{}", reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Refused {
        /// What, in the words of the rule set.
        subject: String,
        /// The kernel's words, where it gave any.
        reason: Option<String>,
        /// Its error.
        #[source]
        error: std::io::Error,
    },
    /// Another change waits to be confirmed, for so long yet.
    #[error("a change before this one waits to be confirmed")]
    Unconfirmed(Duration),
    /// Others committed again and again in between.
    #[error("somebody else keeps changing the rules of this network namespace")]
    Busy,
    /// What the kernel holds after the commit is not what was asked.
    #[error("{0} is not as it was committed a moment ago")]
    Differs(String),
    /// It was committed, but the kernel could not be asked whether it holds it.
    #[error("the rules were committed, but could not be read back")]
    Unchecked(#[source] Box<EngineError>),
    /// The state could not be read or kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel is as it was; what the state is cannot be told, because writing it failed, and putting it back too.
    #[error("the state could not be kept, nor put back to what it was")]
    Undecided(#[source] StateError),
    /// The rule sets cannot be one table.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The rule sets ask what iptables cannot do.
    #[error(transparent)]
    Limit(#[from] crate::iptables::compile::CompileError),
    /// iptables could not be asked, or did not do what it was told.
    #[error(transparent)]
    Iptables(#[from] CommandError),
    /// There is no ip6tables, and it is needed.
    #[error("IPv6 is asked for, but {0}")]
    NoIpv6(String),
    /// One family is changed, the other is not, and the first could not be put back.
    #[error("{family} could not be put back to what it was when the other family was refused")]
    Half {
        /// The family that is neither as before nor as asked.
        family: Family,
        /// Why not.
        #[source]
        error: Box<EngineError>,
    },
    /// The rules are there, but older ones of another backend could not be removed.
    #[error("the rules were committed, but those that {backend} holds could not be removed")]
    Left {
        /// The backend that has them.
        backend: BackendId,
        /// Why not.
        #[source]
        error: Box<EngineError>,
    },
    /// What iptables-restore reads could not be written.
    #[error("cannot prepare the input of iptables-restore")]
    Input(#[source] std::io::Error),
    /// The interfaces could not be listed.
    #[error("cannot list the interfaces of this network namespace")]
    Interfaces(#[source] std::io::Error),
    /// A switch could not be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The way to a target could not be told.
    #[error("cannot ask the routing table for the way to the target {0}")]
    Route(IpAddr, #[source] std::io::Error),
    /// The kernel holds rules of ours that the state knows nothing of.
    #[error("{0} holds {1} forwards of ours, and the state knows of none: it was lost")]
    Unknown(BackendId, usize),
    /// The kernel holds nothing of ours.
    #[error("{0} holds no rules of ours to be taken over")]
    Nothing(BackendId),
    /// The rules are there, but loopback forwards do not reach their targets.
    #[error("the rules were committed, but loopback forwards cannot reach their targets")]
    Closed(#[source] SysctlError),
    /// The namespace could not be told.
    #[error("cannot tell which network namespace this is")]
    Namespace(#[source] std::io::Error),
}
