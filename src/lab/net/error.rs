//! Errors of standing networks.

use std::io;
use std::path::PathBuf;

use super::host;
use super::name::{LabName, NetnsName};
use super::plan::{Name, Step};
use crate::config::Problem;
use crate::engine::EngineError;
use crate::lab::LabError;
use crate::model::IfName;

/// Why a standing network is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A step failed; what was made before it was taken back.
    #[error("cannot make the {step}{}", .left.as_ref().map(|left| format!(" (and cannot take back the {left})")).unwrap_or_default())]
    Step {
        /// The step.
        step: Box<Step>,
        /// Why.
        #[source]
        error: io::Error,
        /// What could not be taken back, and why; none where all was.
        left: Option<String>,
    },
    /// Something cannot be taken back.
    #[error("cannot take back the {0}")]
    Undo(Box<Step>, #[source] io::Error),
    /// A name is taken by something that no lab of this name made.
    #[error("{}", taken(.0))]
    Taken(Name),
    /// The lab was made with another namespace as its host.
    #[error("the lab `{0}` is up with another host")]
    OtherHost(LabName, host::Id),
    /// There is no such lab.
    #[error("there is no lab `{0}`")]
    Unknown(LabName),
    /// No lab has a namespace of this name.
    #[error("no lab has a namespace `{0}`")]
    NoNamespace(NetnsName),
    /// The rules that a lab asks for contradict those of others, or take what reaches somebody else.
    #[error("the rules of the lab contradict others")]
    Conflict(Vec<Problem>),
    /// The rules cannot be seen.
    #[error(transparent)]
    Rules(#[from] EngineError),
    /// A bridge of Open vSwitch is wanted where its daemon is not.
    #[error("`{0}` is a bridge of Open vSwitch, whose daemon does not work in a host that is made for one command")]
    OvsAlone(IfName),
    /// The process of a container is gone.
    #[error("the container `{0}` has no process any more")]
    NoProcess(NetnsName),
    /// The journal of a lab cannot be read or written.
    #[error("cannot use `{}`, where labs are noted", .0.display())]
    Journal(PathBuf, #[source] io::Error),
    /// Another process works on labs.
    #[error("another portfwd is working on labs")]
    Busy,
    /// What is there cannot be found out.
    #[error("cannot see what is there")]
    Inspect(#[source] io::Error),
    /// A namespace cannot be entered.
    #[error("cannot enter the namespace `{0}`")]
    Enter(NetnsName, #[source] io::Error),
    /// A command cannot be run.
    #[error("cannot run `{0}`")]
    Command(String, #[source] io::Error),
    /// It takes more privileges.
    #[error("may not work on namespaces that have names")]
    NotPermitted(#[source] io::Error),
    /// What every lab needs failed.
    #[error(transparent)]
    Lab(#[from] LabError),
}

fn taken(name: &Name) -> String {
    match name {
        Name::Namespace(name) => format!("there is a namespace `{name}` already, and this lab did not make it"),
        Name::Link(location, link) => {
            format!("there is an interface `{link}` already in {location}, and this lab did not make it")
        }
        Name::Route(to, via, _) => {
            format!("there is a route {to} via {via} already in the host, and this lab did not make it")
        }
        Name::Rules(set) => format!("there is a rule set `{set}` already, and this lab did not make it"),
    }
}

/// What an error means: that privileges are missing, or something else.
pub(super) fn permitted(error: io::Error, other: impl FnOnce(io::Error) -> NetError) -> NetError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => NetError::NotPermitted(error),
        _ => other(error),
    }
}
