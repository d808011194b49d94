//! Which labs there are, and what is there of them.

use super::error::{NetError, permitted};
use super::ground::Ground;
use super::host;
use super::journal::{Journal, Journals, Mark};
use super::name::{LabName, NetnsName};
use super::named::{self, Named};
use super::plan::Step;
use super::presence::Presence;
use crate::lab::Netns;
use crate::sys::process::Handle;

/// A lab that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub name: LabName,
    /// Its host.
    pub host: host::Id,
    /// Its namespaces.
    pub namespaces: Vec<NetnsName>,
    /// How many steps it has.
    pub steps: usize,
    /// Those that nothing is there of, or something else.
    pub missing: Vec<Step>,
}

/// All labs by name, each with what is missing of it.
///
/// # Errors
/// Where a journal cannot be read, or the kernel not be asked.
pub fn list(journals: &Journals) -> Result<Vec<Standing>, NetError> {
    journals.all()?.into_iter().map(|journal| standing(journals, journal)).collect()
}

fn standing(journals: &Journals, journal: Journal) -> Result<Standing, NetError> {
    let mut ground = Ground::new(journal.host.find().map_err(|error| permitted(error, NetError::Look))?, journals);
    let mut missing = Vec::new();
    for entry in &journal.entries {
        if ground.presence(entry).map_err(|error| permitted(error, NetError::Look))? != Presence::Here {
            missing.push(entry.step.clone());
        }
    }
    let namespaces = journal.entries.iter().filter_map(|entry| match &entry.step {
        Step::Namespace(name) => Some(name.clone()),
        _ => None,
    });
    let namespaces = namespaces.collect();
    Ok(Standing { namespaces, steps: journal.entries.len(), missing, name: journal.name, host: journal.host })
}

/// Where a command is run.
pub(super) struct Room {
    /// The network namespace.
    pub network: Netns,
    /// Whether that is the host's.
    pub host: bool,
    /// The first process of a process namespace of its own.
    pub first: Option<Handle>,
}

/// The namespaces of a name that a lab made.
///
/// # Errors
/// [`NetError::NoNamespace`] where no lab has made one, or it is gone; [`NetError::NoProcess`] where it should have
/// processes of its own, and has none.
pub(super) fn room(name: &NetnsName, journals: &Journals) -> Result<Room, NetError> {
    for journal in journals.all()? {
        let host = journal.entries.iter().any(|entry| entry.step == Step::Host(name.clone()));
        let network = if host {
            journal.host.find().map_err(|error| permitted(error, NetError::Look))?
        } else {
            namespace(name, &journal)?
        };
        let Some(network) = network else { continue };
        let first = journal.entries.iter().find_map(|entry| match (&entry.step, &entry.mark) {
            (Step::Process(process), Mark::Process(mark)) if process.name == *name && process.own => Some(mark),
            _ => None,
        });
        let first = first.map(|mark| mark.find().map_err(NetError::Look)).transpose()?;
        return match first {
            Some(None) => Err(NetError::NoProcess(name.clone())),
            first => Ok(Room { network, host, first: first.flatten() }),
        };
    }
    Err(NetError::NoNamespace(name.clone()))
}

fn namespace(name: &NetnsName, journal: &Journal) -> Result<Option<Netns>, NetError> {
    let mark = journal.entries.iter().find_map(|entry| match (&entry.step, &entry.mark) {
        (Step::Namespace(found), Mark::Namespace(mark)) if found == name => Some(mark),
        _ => None,
    });
    let Some(mark) = mark else { return Ok(None) };
    match named::look(name, mark).map_err(|error| permitted(error, NetError::Look))? {
        Named::Ours(namespace) => Ok(Some(namespace)),
        _ => Ok(None),
    }
}
