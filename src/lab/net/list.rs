//! Which labs there are, and what is there of them.

use std::sync::Arc;

use super::description::{Attachment, Container};
use super::ground::{Ground, Presence};
use super::host;
use super::journal::{Journal, Journals, Mark};
use super::name::{LabName, NetnsName};
use super::named::{self, Named};
use super::plan::Step;
use super::{NetError, permitted, read};
use crate::config::Source;
use crate::lab::Netns;

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
    journals.all()?.into_iter().map(standing).collect()
}

fn standing(journal: Journal) -> Result<Standing, NetError> {
    let mut ground = Ground::new(journal.host.find().map_err(NetError::Look)?);
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

/// Whether a lab has a container of this name that is in the host's own network.
fn is_in_host(name: &NetnsName, journal: &Journal) -> bool {
    let source = Arc::new(Source { path: format!("{}.toml", journal.name).into(), text: journal.description.clone() });
    let is_it = |container: &Container| container.name == *name && container.network == Attachment::Host;
    read(&source).is_ok_and(|lab| lab.containers.iter().any(is_it))
}

/// The namespace of a name that a lab made; the host's for a container that is in it.
///
/// # Errors
/// [`NetError::NoNamespace`] where no lab has made one, or it is gone.
pub fn namespace(name: &NetnsName, journals: &Journals) -> Result<Netns, NetError> {
    let all = journals.all()?;
    let entries = all.iter().flat_map(|journal| &journal.entries);
    let marks = entries.filter_map(|entry| match (&entry.step, &entry.mark) {
        (Step::Namespace(found), Mark::Namespace(mark)) if found == name => Some(mark),
        _ => None,
    });
    for mark in marks {
        if let Named::Ours(namespace) = named::look(name, mark).map_err(|error| permitted(error, NetError::Look))? {
            return Ok(namespace);
        }
    }
    for journal in all.iter().filter(|journal| is_in_host(name, journal)) {
        if let Some(host) = journal.host.find().map_err(NetError::Look)? {
            return Ok(host);
        }
    }
    Err(NetError::NoNamespace(name.clone()))
}
