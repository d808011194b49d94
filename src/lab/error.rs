//! Errors of throw-away networks.

use std::io;

use crate::engine::EngineError;

/// Why a throw-away network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Neither as root nor in a user namespace.
    #[error("may not make network namespaces: not root, and unprivileged user namespaces are not allowed here")]
    NotAllowed(#[source] io::Error),
    /// The rule sets cannot be laid out as a network.
    #[error("{0}")]
    Topology(String),
    /// A link, address or route could not be made.
    #[error("cannot make {0} in the throw-away network")]
    Link(String, #[source] io::Error),
    /// Something else failed.
    #[error("{0} failed in the throw-away network")]
    Io(&'static str, #[source] io::Error),
    /// The rules could not be applied.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The kernel's word for what failed in a namespace.
pub(in crate::lab) fn into_io(error: LabError) -> io::Error {
    match error {
        LabError::Io(_, error) | LabError::Link(_, error) | LabError::NotAllowed(error) => error,
        other => io::Error::other(other),
    }
}
