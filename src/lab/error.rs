//! Errors of throw-away networks.

use std::io;

use crate::engine::EngineError;

/// An error while a throw-away network is built or used.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The process is not root and may not create a user namespace.
    #[error("cannot create network namespaces: not root, and unprivileged user namespaces are disabled")]
    NotAllowed(#[source] io::Error),
    /// No network can be planned for the rule sets.
    #[error("{0}")]
    Topology(String),
    /// The kernel refused a link, an address or a route.
    #[error("cannot create {0} in the throw-away network")]
    Link(String, #[source] io::Error),
    /// Another system call failed. The text names the action.
    #[error("{0} failed in the throw-away network")]
    Io(&'static str, #[source] io::Error),
    /// The engine could not apply the rules.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Returns the I/O error inside a [`LabError`], for callers that report only I/O errors.
pub(in crate::lab) fn into_io(error: LabError) -> io::Error {
    match error {
        LabError::Io(_, error) | LabError::Link(_, error) | LabError::NotAllowed(error) => error,
        other => io::Error::other(other),
    }
}
