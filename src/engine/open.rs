//! The engine, and how it is opened.

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
    /// In this directory, to be read only. Nothing is created there; a missing state is an empty one.
    ReadOnly(&'a Path),
    /// In this directory, to be read and written.
    ReadWrite(&'a Path),
    /// In this directory. A damaged state file gets another name, and an empty state takes its place.
    Reset(&'a Path),
    /// In memory, until the engine is dropped.
    Memory,
}

/// The live rules and the desired state of one network namespace: the one that the calling thread is in.
pub struct Engine {
    pub(super) backend: Box<dyn Backend>,
    pub(super) choice: Choice,
    pub(super) fallback_reason: Option<String>,
    pub(super) store: Store,
    pub(super) state: State,
    pub(super) scope: Scope,
    /// Whether a commit may remove live rules of portfwd that the state does not know.
    pub(super) replaces_unknown: bool,
    /// Variants of iptables to search for portfwd's rules, beside those that the state names.
    pub(super) suspected: BTreeSet<Variant>,
    pub(super) quarantined: Option<PathBuf>,
    pub(super) timing: Timing,
}

impl Engine {
    /// Opens the kernel's rules and the desired state. With [`Scope::Partial`], loads only the part of a large state that the
    /// change concerns, if that is enough.
    ///
    /// # Errors
    /// If the kernel or the state cannot be read, or another portfwd holds the lock of the state for longer than
    /// [`LOCK_WAIT`].
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

    /// Returns the loaded or last committed state; with [`Scope::Partial`] only a part of it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Returns the time that the phases took, and the messages of each.
    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Returns the backend that holds the rules.
    pub fn id(&self) -> BackendId {
        self.backend.id()
    }

    /// Returns why iptables is used although the user left the choice to portfwd.
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

    /// Returns a file that exists while a change waits for its confirmation; `None` without a state directory.
    pub fn pending_flag(&self) -> Option<PathBuf> {
        self.store.pending_flag()
    }

    /// Returns true if [`Engine::state`] is only a part of the state.
    pub fn is_partial(&self) -> bool {
        matches!(self.scope, Scope::Partial(_))
    }

    /// Loads the whole state if only a part of it is loaded. `after` is a change of that part, and becomes the same change
    /// of the whole.
    ///
    /// # Errors
    /// If the state cannot be read.
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
    /// If the kernel cannot be read.
    pub fn live(&mut self) -> Result<Live, EngineError> {
        self.backend.live(&mut self.timing)
    }

    /// Replaces the backend with iptables.
    pub(super) fn use_iptables(&mut self, reason: &str) -> Result<(), EngineError> {
        self.backend = Box::new(Iptables::open(None, self.store.sibling("restore").as_deref())?);
        self.fallback_reason = Some(reason.to_owned());
        Ok(())
    }

    /// Writes a state to disk.
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

/// Opens nftables unless the user chose iptables. With [`Choice::Auto`], returns the reason if nftables is missing.
///
/// A process without permission fails here, before it writes anything to disk.
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
            // Without iptables either, the error names nf_tables: portfwd prefers it.
            Err(_) => Err(KernelError::NoNfTables(error).into()),
        },
        (_, Err(error)) => Err(error.into()),
    }
}
