//! Opens the engine: chooses the backend, locks the store and loads the desired state.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::EngineError;
use super::backend::Backend;
use super::choice::{BackendId, Choice, LOCK_WAIT};
use super::iptables::{Iptables, wait_for_last_restore};
use super::live::Live;
use super::nft::Nftables;
use super::scope::{self, Scope};
use super::timing::{Phase, Timing};
use crate::iptables::command::{CommandError, Tools, Variant};
use crate::nft::transaction::KernelError;
use crate::store::{State, StateError, Store};
use crate::sys::namespace::{self, Identity};
use crate::sys::privilege;

/// The place where an engine keeps the desired state.
#[derive(Debug, Clone, Copy)]
pub enum Storage<'a> {
    /// A directory that the engine only reads. If the directory has no state, the desired state is empty.
    ReadOnly(&'a Path),
    /// A directory that the engine reads and writes.
    ReadWrite(&'a Path),
    /// A directory that the engine reads and writes. If the state file is damaged, the engine renames the file and
    /// starts with an empty state.
    Reset(&'a Path),
    /// Memory instead of a directory. The state is lost when the engine is dropped.
    Memory,
}

/// The live rules and the desired state of the calling thread's network namespace.
pub struct Engine {
    pub(super) backend: Box<dyn Backend>,
    pub(super) choice: Choice,
    pub(super) fallback_reason: Option<String>,
    pub(super) store: Store,
    pub(super) state: State,
    pub(super) scope: Scope,
    /// True if a commit may remove live rules of portfwd that are missing from the state.
    pub(super) replaces_unknown: bool,
    /// Variants of iptables that [`Engine::stale_backends`] searches, even if the state does not list them.
    pub(super) suspected: BTreeSet<Variant>,
    pub(super) quarantined: Option<PathBuf>,
    pub(super) timing: Timing,
}

impl Engine {
    /// Opens the backend and the store. [`Scope::Partial`] loads a few forwards instead of the whole state, if a
    /// few are enough.
    ///
    /// # Errors
    /// Fails if the kernel or the state cannot be read. Also fails if another portfwd process holds the store's lock for
    /// longer than [`LOCK_WAIT`].
    pub fn open(storage: Storage<'_>, choice: Choice, scope: Scope) -> Result<Self, EngineError> {
        let mut timing = Timing::default();
        let (nftables, fallback_reason) = timing.measure(Phase::Read, || open_nftables(choice))?;
        if let Some(nftables) = &nftables {
            timing.said(Phase::Read, nftables.connection().traffic());
        }
        let identity = || namespace::identity().map_err(EngineError::Namespace);
        let Loaded { store, state, scope, quarantined } = match storage {
            Storage::Memory => Loaded::empty(),
            Storage::ReadOnly(directory) => {
                let identity = identity()?;
                timing.measure(Phase::Store, || Loaded::from(directory, &identity, false, Scope::Full))?
            }
            Storage::ReadWrite(directory) => {
                let identity = identity()?;
                timing.measure(Phase::Store, || Loaded::from(directory, &identity, true, scope))?
            }
            Storage::Reset(directory) => {
                let identity = identity()?;
                timing.measure(Phase::Store, || Loaded::reset(directory, &identity))?
            }
        };
        let writes = !matches!(storage, Storage::ReadOnly(_));
        let unusable = state.unusable.as_ref().filter(|it| choice == Choice::Auto && it.kernel == kernel());
        let fallback_reason = fallback_reason.or_else(|| unusable.map(|unusable| unusable.why.clone()));
        let input = store.sibling("restore").filter(|_| writes);
        let backend: Box<dyn Backend> = match nftables.filter(|_| fallback_reason.is_none()) {
            Some(nftables) => Box::new(nftables),
            None => Box::new(Iptables::open(choice.variant(), input.as_deref())?),
        };
        if let (BackendId::Nft, false, Some(path)) = (backend.id(), state.iptables.is_empty(), &input) {
            wait_for_last_restore(path)?;
        }
        let replaces_unknown = matches!(storage, Storage::Reset(_));
        let suspected = BTreeSet::new();
        let mut engine = Self {
            backend,
            choice,
            fallback_reason,
            store,
            state,
            scope,
            replaces_unknown,
            suspected,
            quarantined,
            timing,
        };
        if engine.id() != BackendId::Nft || !engine.state.iptables.is_empty() {
            engine.load_full(&mut State::default())?;
        }
        Ok(engine)
    }

    /// Returns the state after the last load or commit. If [`Engine::is_partial`] returns true, it is only a part.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Returns the elapsed time and the kernel messages of each phase.
    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Returns the ID of the backend in use.
    pub fn id(&self) -> BackendId {
        self.backend.id()
    }

    /// Returns why [`Choice::Auto`] selected iptables; `None` if there was no fallback.
    pub fn fallback_reason(&self) -> Option<&str> {
        self.fallback_reason.as_deref()
    }

    /// Returns the version lines of the iptables commands; empty with nftables.
    pub fn versions(&self) -> Vec<String> {
        self.backend.versions()
    }

    /// Returns the new path of the damaged state file that [`Storage::Reset`] renamed.
    pub fn quarantined(&self) -> Option<&Path> {
        self.quarantined.as_deref()
    }

    /// Returns the path of a file that exists while a change waits for its confirmation. Returns `None` for
    /// [`Storage::Memory`].
    pub fn pending_flag(&self) -> Option<PathBuf> {
        self.store.pending_flag()
    }

    /// Returns true if [`Engine::state`] is only a part of the state.
    pub fn is_partial(&self) -> bool {
        matches!(self.scope, Scope::Partial(_))
    }

    /// Loads the whole state if only a part is loaded. `after` contains a change of the loaded part. This function
    /// applies the same change to the whole state, and stores the result in `after`.
    ///
    /// # Errors
    /// Fails if the state cannot be read.
    pub fn load_full(&mut self, after: &mut State) -> Result<(), EngineError> {
        if self.is_partial() {
            let full = self.timing.measure(Phase::Store, || self.store.load())?;
            *after = scope::rebase(&full, &self.state, after);
            self.state = full;
            self.scope = Scope::Full;
        }
        Ok(())
    }

    /// Reads the live rules of portfwd.
    ///
    /// # Errors
    /// Fails if the kernel cannot be read.
    pub fn live(&mut self) -> Result<Live, EngineError> {
        self.backend.live(&mut self.timing)
    }

    /// Replaces the backend with iptables.
    pub(super) fn use_iptables(&mut self, reason: &str) -> Result<(), EngineError> {
        self.backend = Box::new(Iptables::open(None, self.store.sibling("restore").as_deref())?);
        self.fallback_reason = Some(reason.to_owned());
        Ok(())
    }

    /// Saves a state, unless it equals the loaded state.
    pub(super) fn persist(&mut self, state: &State) -> Result<(), EngineError> {
        if *state == self.state {
            return Ok(());
        }
        let saved = self.timing.measure(Phase::Store, || self.store.save(&self.state, state));
        saved.map_err(|error| match self.store.is_undecided() {
            true => EngineError::Undecided(error),
            false => error.into(),
        })?;
        self.state = state.clone();
        Ok(())
    }
}

/// An open store, and the state that was loaded from it.
struct Loaded {
    store: Store,
    state: State,
    scope: Scope,
    quarantined: Option<PathBuf>,
}

impl Loaded {
    fn empty() -> Self {
        Self { store: Store::in_memory(), state: State::default(), scope: Scope::Full, quarantined: None }
    }

    fn from(directory: &Path, identity: &Identity, write: bool, scope: Scope) -> Result<Self, StateError> {
        let store = Store::open(directory, identity, write, LOCK_WAIT)?;
        let part = match &scope {
            Scope::Full => None,
            Scope::Partial(part) => store.load_partial(&part.bindings, &part.sets)?,
        };
        let (state, scope) = match part {
            Some(state) => (state, scope),
            None => (store.load()?, Scope::Full),
        };
        Ok(Self { store, state, scope, quarantined: None })
    }

    fn reset(directory: &Path, identity: &Identity) -> Result<Self, StateError> {
        match Self::from(directory, identity, true, Scope::Full) {
            Err(StateError::Damaged(path, _)) => {
                let (store, quarantined) = Store::reset_damaged(directory, identity, &path, LOCK_WAIT)?;
                let state = store.load()?;
                Ok(Self { store, state, scope: Scope::Full, quarantined: Some(quarantined) })
            }
            loaded => loaded,
        }
    }
}

/// Returns the kernel's release, as uname(1) prints it.
pub(super) fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Opens nftables unless the user chose iptables. If the kernel has no nf_tables, [`Choice::Auto`] returns no backend
/// and the reason.
///
/// Fails if the process may not administer the network. This check comes before all writes to disk.
fn open_nftables(choice: Choice) -> Result<(Option<Nftables>, Option<String>), EngineError> {
    if matches!(choice, Choice::Iptables | Choice::Variant(_)) {
        if !privilege::may_administer_network() {
            return Err(CommandError::NotPermitted("CAP_NET_ADMIN is missing".into()).into());
        }
        return Ok((None, None));
    }
    match (choice, Nftables::open()) {
        (_, Ok(nftables)) => Ok((Some(nftables), None)),
        (Choice::Auto, Err(KernelError::NoNfTables(error))) => match Tools::of_host() {
            Ok(_) => Ok((None, Some("this kernel has no nf_tables".into()))),
            // If iptables is missing too, returns the error about nf_tables, the preferred backend.
            Err(_) => Err(KernelError::NoNfTables(error).into()),
        },
        (_, Err(error)) => Err(error.into()),
    }
}
