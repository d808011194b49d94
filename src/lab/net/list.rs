//! Lists labs with their missing steps, and finds the namespaces of labs.

use super::error::{NetError, permitted};
use super::executor::Executor;
use super::host;
use super::journal::{Identity, Journal, Journals};
use super::name::{LabName, NetnsName};
use super::named::{self, Named};
use super::plan::Step;
use super::presence::Presence;
use crate::lab::Netns;
use crate::sys::process::Handle;

/// The state of a lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabStatus {
    /// The name of the lab.
    pub name: LabName,
    /// The identity of the lab's host.
    pub host: host::Id,
    /// The lab's namespaces, in the order of creation.
    pub namespaces: Vec<NetnsName>,
    /// The number of steps in the journal.
    pub steps: usize,
    /// The steps that are not present or not complete.
    pub missing: Vec<Step>,
}

/// Returns all labs by name, with their missing steps.
///
/// # Errors
/// If a journal cannot be read, or the kernel refuses a request.
pub fn list(journals: &Journals) -> Result<Vec<LabStatus>, NetError> {
    journals.all()?.into_iter().map(|journal| status(journals, journal)).collect()
}

fn status(journals: &Journals, journal: Journal) -> Result<LabStatus, NetError> {
    let mut executor =
        Executor::new(journal.host.find().map_err(|error| permitted(error, NetError::Inspect))?, journals);
    let mut missing = Vec::new();
    for entry in &journal.entries {
        if executor.presence(entry).map_err(|error| permitted(error, NetError::Inspect))? != Presence::Present {
            missing.push(entry.step.clone());
        }
    }
    let namespaces = journal.entries.iter().filter_map(|entry| match &entry.step {
        Step::Namespace(name) => Some(name.clone()),
        _ => None,
    });
    let namespaces = namespaces.collect();
    Ok(LabStatus { namespaces, steps: journal.entries.len(), missing, name: journal.name, host: journal.host })
}

/// The place that a command runs in.
pub(super) struct ExecTarget {
    /// The network namespace of the command.
    pub network: Netns,
    /// True if the network namespace is the host's.
    pub host: bool,
    /// The init process, if the container has a process namespace of its own.
    pub init: Option<Handle>,
}

/// Finds the namespace or container of a lab for a command.
///
/// # Errors
/// [`NetError::NoNamespace`] if no lab has the namespace, or it no longer exists. [`NetError::NoProcess`] if the
/// container should have a process namespace, but its init process has ended.
pub(super) fn exec_target(name: &NetnsName, journals: &Journals) -> Result<ExecTarget, NetError> {
    for journal in journals.all()? {
        let host = journal.entries.iter().any(|entry| entry.step == Step::Host(name.clone()));
        let network = if host {
            journal.host.find().map_err(|error| permitted(error, NetError::Inspect))?
        } else {
            namespace(name, &journal)?
        };
        let Some(network) = network else { continue };
        let init = journal.entries.iter().find_map(|entry| match (&entry.step, &entry.identity) {
            (Step::Process(process), Identity::Process(identity)) if process.name == *name && process.pid_namespace => {
                Some(identity)
            }
            _ => None,
        });
        let init = init.map(|identity| identity.find().map_err(NetError::Inspect)).transpose()?;
        return match init {
            Some(None) => Err(NetError::NoProcess(name.clone())),
            init => Ok(ExecTarget { network, host, init: init.flatten() }),
        };
    }
    Err(NetError::NoNamespace(name.clone()))
}

fn namespace(name: &NetnsName, journal: &Journal) -> Result<Option<Netns>, NetError> {
    let identity = journal.entries.iter().find_map(|entry| match (&entry.step, &entry.identity) {
        (Step::Namespace(found), Identity::Namespace(identity)) if found == name => Some(identity),
        _ => None,
    });
    let Some(identity) = identity else { return Ok(None) };
    match named::inspect(name, identity).map_err(|error| permitted(error, NetError::Inspect))? {
        Named::Present(namespace) => Ok(Some(namespace)),
        _ => Ok(None),
    }
}
