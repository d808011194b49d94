//! Errors of standing networks, the labs of `portfwd lab`.

use std::io;
use std::path::PathBuf;

use super::host;
use super::name::{LabName, NetnsName};
use super::plan::{Name, Step};
use crate::config::Problem;
use crate::engine::EngineError;
use crate::lab::LabError;
use crate::model::IfName;

/// An error of a `portfwd lab` command.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A step failed, and the steps before it were undone.
    #[error("cannot make the {step}{}", .left.as_ref().map(|left| format!(" (and cannot undo the {left})")).unwrap_or_default())]
    Step {
        /// The step that failed.
        step: Box<Step>,
        /// The cause of the failure.
        #[source]
        error: io::Error,
        /// The first step that could not be undone, with the cause. `None` if every step was undone.
        left: Option<String>,
    },
    /// A step cannot be undone.
    #[error("cannot undo the {0}")]
    Undo(Box<Step>, #[source] io::Error),
    /// An object with this name exists, and the lab did not create it.
    #[error("{}", taken(.0))]
    Taken(Name),
    /// The lab was created with another namespace as its host.
    #[error("the lab `{0}` was created in another network namespace")]
    OtherHost(LabName, host::Id),
    /// No lab has this name.
    #[error("there is no lab `{0}`")]
    Unknown(LabName),
    /// No lab has a namespace of this name.
    #[error("no lab has a namespace `{0}`")]
    NoNamespace(NetnsName),
    /// The lab's rules contradict other rule sets, or would take the port of a listener or the ssh connection.
    #[error("the rules of the lab contradict other rule sets")]
    Conflict(Vec<Problem>),
    /// The engine cannot read the rules.
    #[error(transparent)]
    Rules(#[from] EngineError),
    /// The file has an Open vSwitch bridge, but the lab is for one command and has no daemon in its host.
    #[error("`{0}` is an Open vSwitch bridge, and a lab for one command has no `ovs-vswitchd`")]
    OvsAlone(IfName),
    /// The init process of a container has ended.
    #[error("the process of the container `{0}` has ended")]
    NoProcess(NetnsName),
    /// The journal at this path cannot be read or written.
    #[error("cannot use the lab journal `{}`", .0.display())]
    Journal(PathBuf, #[source] io::Error),
    /// Another process holds the lock of all labs.
    #[error("another portfwd command is changing labs")]
    Busy,
    /// The kernel refused to report the live state of a lab.
    #[error("cannot read the live state of the lab")]
    Inspect(#[source] io::Error),
    /// The thread cannot enter a namespace.
    #[error("cannot enter the namespace `{0}`")]
    Enter(NetnsName, #[source] io::Error),
    /// A command cannot be run.
    #[error("cannot run `{0}`")]
    Command(String, #[source] io::Error),
    /// The process needs more privileges.
    #[error("no permission to change network namespaces")]
    NotPermitted(#[source] io::Error),
    /// An error of the code shared with throw-away networks.
    #[error(transparent)]
    Lab(#[from] LabError),
}

fn taken(name: &Name) -> String {
    match name {
        Name::Namespace(name) => format!("the namespace `{name}` exists, and this lab did not create it"),
        Name::Link(location, link) => {
            format!("the interface `{link}` exists in {location}, and this lab did not create it")
        }
        Name::Route(to, via, _) => {
            format!("the route {to} via {via} exists in the host, and this lab did not create it")
        }
        Name::Rules(set) => format!("the rule set `{set}` exists, and this lab did not create it"),
    }
}

/// Returns [`NetError::NotPermitted`] if privileges are missing, or else the error that `other` makes.
pub(super) fn permitted(error: io::Error, other: impl FnOnce(io::Error) -> NetError) -> NetError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => NetError::NotPermitted(error),
        _ => other(error),
    }
}
