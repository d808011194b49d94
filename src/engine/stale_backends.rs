//! Finds and removes portfwd's rules in backends that portfwd no longer uses. Example: rules in iptables after a move
//! to nftables.

use std::time::Instant;

use super::backend::Backend;
use super::choice::BackendId;
use super::iptables::Iptables;
use super::nft::Nftables;
use super::{Engine, EngineError, Live, Timing};
use crate::iptables::command::Variant;
use crate::iptables::program::PREFIX;
use crate::model::DesiredState;
use crate::nft::decode::has_chain;
use crate::nft::transaction::{Connection, KernelError, PATIENCE};

/// A backend with rules of portfwd, or the error if portfwd could not read the backend.
type Found = Result<Box<dyn Backend>, EngineError>;

impl Engine {
    /// Makes the next commit remove portfwd's rules from every backend, even if the state does not list them.
    pub fn remove_from_all_backends(&mut self) {
        self.suspected = Variant::ALL.into();
        self.replaces_unknown = true;
    }

    /// Returns the unused backends that contain rules of portfwd. Includes an unreadable backend that may contain
    /// such rules.
    pub fn stale_backends(&self) -> Vec<BackendId> {
        self.find_stale().into_iter().map(|(backend, _)| backend).collect()
    }

    fn find_stale(&self) -> Vec<(BackendId, Found)> {
        let here = self.id();
        let known = |id: BackendId| id.variant().is_some_and(|variant| self.state.iptables.contains(&variant));
        let variants = self.state.iptables.union(&self.suspected).copied().map(BackendId::Iptables);
        let mut stale = Vec::new();
        for id in variants.chain([BackendId::Nft]).filter(|id| *id != here) {
            match open_if_used(id) {
                Ok(Some(backend)) => stale.push((id, Ok(backend))),
                Ok(None) | Err(EngineError::Kernel(KernelError::NoNfTables(_))) => {}
                // An unreadable iptables counts only if the state lists it and the kernel may have its
                // rules.
                Err(_) if id != BackendId::Nft && (!known(id) || !may_have_rules(id)) => {}
                Err(error) => stale.push((id, Err(error))),
            }
        }
        stale
    }

    /// Removes portfwd's rules from all unused backends. Returns the backends that had rules.
    pub(super) fn remove_stale_backends(&mut self) -> Result<Vec<BackendId>, EngineError> {
        let mut removed = Vec::new();
        for (backend, found) in self.find_stale() {
            let remove = found.and_then(|mut found| remove_all(&mut *found, &mut self.timing));
            remove.map_err(|error| EngineError::Left { backend, error: Box::new(error) })?;
            removed.push(backend);
        }
        Ok(removed)
    }
}

/// Opens a backend. Returns `None` if it has no rules of portfwd.
fn open_if_used(id: BackendId) -> Result<Option<Box<dyn Backend>>, EngineError> {
    let mut backend: Box<dyn Backend> = match id {
        BackendId::Nft => Box::new(Nftables::open()?),
        BackendId::Iptables(variant) => Box::new(Iptables::open(Some(variant), None)?),
    };
    let used = match backend.live(&mut Timing::default())? {
        Live::Nft { program, .. } => program.table,
        Live::Iptables(program) => !program.is_empty(),
    };
    Ok(used.then_some(backend))
}

fn remove_all(backend: &mut dyn Backend, timing: &mut Timing) -> Result<(), EngineError> {
    let nothing = DesiredState::default().into();
    let until = Instant::now() + PATIENCE;
    loop {
        let mut work = backend.plan(&nothing, timing)?.work;
        if backend.send(&mut work, timing)?.is_some() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(EngineError::Busy);
        }
    }
}

/// Returns true if the kernel may have rules of portfwd in a backend whose programs are missing.
///
/// For iptables-nft, nf_tables must have a chain with portfwd's name. For iptables-legacy, a table must have been
/// created since boot.
fn may_have_rules(id: BackendId) -> bool {
    match id {
        BackendId::Nft => true,
        BackendId::Iptables(Variant::Nft) => {
            match Connection::open().and_then(|mut kernel| has_chain(&mut kernel, PREFIX)) {
                Ok(found) => found,
                Err(error) => !matches!(error, KernelError::NoNfTables(_)),
            }
        }
        BackendId::Iptables(Variant::Legacy) => {
            let names = ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"];
            names.iter().any(|path| {
                std::fs::read_to_string(path)
                    .map_or_else(|error| error.kind() != std::io::ErrorKind::NotFound, |tables| !tables.is_empty())
            })
        }
    }
}
