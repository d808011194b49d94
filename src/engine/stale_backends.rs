//! Rules that portfwd left in other backends: in iptables before nftables was used, or in another variant of iptables.

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

/// A backend that has rules of portfwd, or why that could not be found out.
type Found = Result<Box<dyn Backend>, EngineError>;

impl Engine {
    /// Lets the next commit remove portfwd's rules from every backend, whether or not the state knows them.
    pub fn remove_from_all_backends(&mut self) {
        self.suspected = Variant::ALL.into();
        self.replaces_unknown = true;
    }

    /// Returns the other backends that have rules of portfwd, or may have some and cannot be read.
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
                // The programs of iptables are missing, and the kernel has no rules that could be portfwd's.
                Err(_) if id != BackendId::Nft && (!known(id) || !may_have_rules(id)) => {}
                Err(error) => stale.push((id, Err(error))),
            }
        }
        stale
    }

    /// Removes portfwd's rules from all other backends, and returns those that had some.
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

/// Returns true if the kernel may have rules of portfwd in a backend whose programs are missing: if nf_tables has a chain of
/// portfwd's name, or if a table of iptables-legacy was created since boot.
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
