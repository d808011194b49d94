//! Where state and kernel meet: reading the live rules, planning, committing.
//!
//! ```text
//! state ──asked──▶ compile ──▶ program ─┐
//!                                       ├─diff──▶ changes ──encode──▶ batch ──commit──▶ kernel ──decode──▶ checked
//! kernel ───────── decode ───▶ program ─┘
//! ```
//! `backend.rs` is the same walk with nftables or with iptables, where text goes to iptables-restore in the place of a batch.
//!
//! Everything is decided on what the kernel holds now, and on a memory of what was sent only where the kernel says that
//! nobody has committed anything since (`near.rs`). The batch carries the generation it was decided on: when somebody else
//! commits in between, the kernel refuses it, and we look again, or send it again where that commit was known not to touch
//! our table.
//! The state is written before the kernel and taken back if the kernel refuses, so that being killed in between leaves
//! a wish that the next command fulfils.

mod backend;
pub mod commit;
pub mod confirm;
mod connections;
mod elsewhere;
mod error;
pub mod guard;
mod iptables;
mod live;
mod near;
mod nft;
pub mod plan;
mod switches;
pub mod timing;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::iptables::command::{CommandError, Tools, Variant};
use crate::model::{Asked, Held, SetName, Settings};
use crate::nft::transaction::{KernelError, namespace_cookie};
use crate::store::{State, StateError, Store};
use crate::sys::namespace::{self, Identity};
use crate::sys::privilege;

use backend::Backend;
pub use backend::{Choice, Home, Work};
use commit::Decided;
pub use commit::{Outcome, commit, finish};
pub use error::EngineError;
pub use live::Live;
pub use near::FEW;
pub use plan::{Plan, Sign, Step, Words};
pub use switches::Switches;
use timing::Phase;
pub use timing::Timing;

/// How long a command waits for another portfwd that is at work in the same namespace; for a queue of them as long as it
/// moves, and at most six times that. Of fifty debug builds on two busy cores one was measured to wait for 9.8 s.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);

/// The kernel's rules and the state of one network namespace: the one the thread is in.
pub struct Engine {
    backend: Backend,
    choice: Choice,
    /// Why it is not the backend that the choice would prefer.
    instead: Option<String>,
    /// Variants of iptables that may hold rules of ours although the state does not know it.
    suspected: BTreeSet<Variant>,
    store: Store,
    state: State,
    /// Whether rules in the kernel that the state does not know of may go.
    takes_over: bool,
    /// Whether a change before this one may have left connections that it made wrong.
    interrupted: bool,
    /// Whether connections that a change makes wrong are left to finish.
    keep_connections: bool,
    /// Whether the state is only what a change is about, see `near.rs`.
    near: bool,
    /// Sets of which all of it is.
    near_sets: Vec<SetName>,
    timing: Timing,
}

/// The kernel's release, as uname(1) prints it.
fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

impl Engine {
    /// Opens both. With `write` false nothing is made on disk, and a state that is not there is empty.
    ///
    /// # Errors
    /// Where one of them cannot be opened, or another portfwd keeps the state for longer than [`LOCK_WAIT`].
    pub fn open(state_directory: &Path, write: bool, choice: Choice) -> Result<Self, EngineError> {
        Self::open_with(choice, write, |identity| {
            let store = Store::open(state_directory, identity, write, LOCK_WAIT)?;
            let state = store.load()?;
            Ok((store, state))
        })
    }

    /// The same, to be written, where a damaged state may be given another name, which is given, and begun anew. Rules that the
    /// state does not know of are none that it must not lose then.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_or_anew(state_directory: &Path, choice: Choice) -> Result<(Self, Option<PathBuf>), EngineError> {
        let mut aside = None;
        let mut engine = Self::open_with(choice, true, |identity| {
            let open = || {
                let store = Store::open(state_directory, identity, true, LOCK_WAIT)?;
                let state = store.load()?;
                Ok((store, state))
            };
            match open() {
                Err(StateError::Damaged(path, _)) => {
                    let (store, name) = Store::reset_damaged(state_directory, identity, &path, LOCK_WAIT)?;
                    aside = Some(name);
                    let state = store.load()?;
                    Ok((store, state))
                }
                opened => opened,
            }
        })?;
        engine.takes_over = true;
        Ok((engine, aside))
    }

    fn open_with(
        choice: Choice,
        write: bool,
        store: impl FnOnce(&Identity) -> Result<(Store, State), StateError>,
    ) -> Result<Self, EngineError> {
        let mut timing = Timing::default();
        let (nft, instead) = timing.of(Phase::Read, || nftables(choice))?;
        if let Some(Backend::Nft(connection)) = &nft {
            timing.said(Phase::Read, connection.traffic());
        }
        let cookie = match &nft {
            Some(Backend::Nft(connection)) => connection.namespace_cookie(),
            _ => namespace_cookie(),
        };
        let identity = namespace::identity(cookie).map_err(EngineError::Namespace)?;
        let (store, state) = timing.of(Phase::Store, || store(&identity))?;
        let found_out = state.unusable.as_ref().filter(|it| choice == Choice::Auto && it.kernel == kernel());
        let instead = instead.or_else(|| found_out.map(|unusable| unusable.why.clone()));
        let backend = match nft.filter(|_| instead.is_none()) {
            Some(nft) => nft,
            None => Backend::iptables(variant(choice), store.sibling("restore").filter(|_| write).as_deref())?,
        };
        if let (Backend::Nft(_), true, false, Some(path)) =
            (&backend, write, state.iptables.is_empty(), store.sibling("restore"))
        {
            iptables::wait_for_the_last(&path)?;
        }
        let interrupted = state.unfinished.as_ref().is_some_and(|change| !change.keep_connections);
        Ok(Self {
            backend,
            choice,
            instead,
            suspected: BTreeSet::new(),
            store,
            state,
            takes_over: false,
            interrupted,
            keep_connections: false,
            near: false,
            near_sets: Vec::new(),
            timing,
        })
    }

    /// Opens the kernel's rules, with a state that nobody sees and that is gone afterwards.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn in_memory(choice: Choice) -> Result<Self, EngineError> {
        let (nft, instead) = nftables(choice)?;
        let backend = match nft {
            Some(nft) => nft,
            None => Backend::iptables(variant(choice), None)?,
        };
        let (store, state) = (Store::in_memory(), State::default());
        Ok(Self {
            backend,
            choice,
            instead,
            suspected: BTreeSet::new(),
            store,
            state,
            takes_over: false,
            interrupted: false,
            keep_connections: false,
            near: false,
            near_sets: Vec::new(),
            timing: Timing::default(),
        })
    }

    /// The state as it was when it was opened, or as it was committed last.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Where the time went since it was opened.
    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Where the rules are kept.
    pub fn home(&self) -> Home {
        self.backend.home()
    }

    /// Why it is not nftables, where that was not asked for.
    pub fn instead(&self) -> Option<&str> {
        self.instead.as_deref()
    }

    /// What the programs of iptables say of their versions, where they do the work.
    pub fn versions(&self) -> Vec<String> {
        match &self.backend {
            Backend::Nft(_) => Vec::new(),
            Backend::Iptables(iptables) => iptables.versions().collect(),
        }
    }

    fn variant(&self) -> Option<Variant> {
        match self.home() {
            Home::Nft => None,
            Home::Iptables(variant) => Some(variant),
        }
    }

    /// Goes on with iptables.
    fn use_iptables(&mut self, why: &str) -> Result<(), EngineError> {
        self.backend = Backend::iptables(None, self.store.sibling("restore").as_deref())?;
        self.instead = Some(why.to_owned());
        Ok(())
    }

    /// Leaves the connections that the next change makes wrong to finish.
    pub fn keep_connections(&mut self) {
        self.keep_connections = true;
    }

    /// Reads what the kernel holds.
    ///
    /// # Errors
    /// Where it does not tell.
    pub fn live(&mut self) -> Result<Live, EngineError> {
        self.backend.live(&mut self.timing)
    }

    /// A state that asks for what the kernel holds of ours, as far as that can be told from it.
    ///
    /// # Errors
    /// [`EngineError::Nothing`] where it holds nothing; others where it does not tell.
    pub fn held(&mut self) -> Result<State, EngineError> {
        let live = self.live()?;
        let Held { mut asked, .. } = live.lift();
        if asked.is_empty() {
            return Err(EngineError::Nothing(self.home()));
        }
        let settings = Settings { priority: live.priority(), ..Settings::default() };
        let sets = (asked.bindings.iter().map(|owned| &owned.set))
            .chain(asked.networks.iter().map(|owned| &owned.set))
            .chain(asked.masquerades.iter().map(|owned| &owned.set))
            .chain(asked.snats.iter().map(|owned| &owned.set))
            .chain(asked.netmaps.iter().map(|owned| &owned.set));
        let sets: BTreeSet<SetName> = sets.cloned().collect();
        asked.settings.extend(sets.into_iter().map(|set| (set, settings)));
        asked.normalize();
        let iptables = self.variant().into_iter().collect();
        // Whoever says that the kernel is right means it, confirmed or not.
        Ok(State { asked: asked.into(), iptables, unconfirmed: None, ..self.state.clone() })
    }

    /// Refuses to go on where the kernel holds forwards and the state knows of none: it was lost, and what is changed on
    /// nothing would take them away.
    fn know_what_is_there(&mut self) -> Result<(), EngineError> {
        let State { asked, unfinished, unconfirmed, .. } = &self.state;
        let blank = asked.is_empty() && unfinished.is_none() && unconfirmed.is_none();
        if self.takes_over || !blank {
            return Ok(());
        }
        let live = self.live()?;
        let held = live.lift().asked;
        if !held.is_empty() {
            return Err(EngineError::Unknown(self.home(), held.bindings.len()));
        }
        if let (Backend::Iptables(iptables), Live::Iptables(program)) = (&mut self.backend, live) {
            iptables.has_read(program);
        }
        Ok(())
    }

    /// Keeps a state on disk, in the place of the one that is kept now.
    fn keep(&mut self, state: &State) -> Result<(), EngineError> {
        if *state != self.state {
            let kept = self.timing.of(Phase::Store, || self.store.save(&self.state, state));
            kept.map_err(|error| unkept(&self.store, error))?;
            self.state = state.clone();
        }
        Ok(())
    }

    /// What would have to change for the kernel to do what a state asks: rules and switches.
    ///
    /// # Errors
    /// As [`Engine::plan`]; where switches or the routing table cannot be read.
    pub fn plan_all(&mut self, after: &State) -> Result<Plan, EngineError> {
        let mut plan = self.plan(&after.asked)?;
        let switches = Switches::of(&mut after.clone(), &self.state)?;
        let step = |name: String, before: &str, after: &str| Step {
            sign: Sign::Change,
            set: None,
            before: Some(format!("{name} = {before}").into()),
            after: Some(format!("{name} = {after}").into()),
        };
        plan.steps.extend(self.elsewhere().into_iter().map(Step::leave));
        plan.steps.extend(switches.to_set().map(|change| step(change.name(), &change.before, &change.after)));
        plan.steps.extend(switches.to_give_back().map(|change| step(change.name(), &change.after, &change.before)));
        Ok(plan)
    }

    /// What would have to change for the kernel to hold the rules that are asked.
    ///
    /// # Errors
    /// Where the kernel does not tell what it holds, or the sets cannot be one table.
    pub fn plan(&mut self, asked: &Arc<Asked>) -> Result<Plan, EngineError> {
        let (live, work) = self.backend.decide(asked, &mut self.timing)?;
        Ok(self.timing.of(Phase::Plan, || Plan::new(&live, asked, work)))
    }
}

/// What it means that a state could not be kept.
fn unkept(store: &Store, error: StateError) -> EngineError {
    if store.is_undecided() { EngineError::Undecided(error) } else { error.into() }
}

/// Does two things at once, the first in a thread of its own. That one should be the one that takes less memory: outside of
/// the main thread glibc gets it from the kernel a page at a time.
fn together<A: Send, B>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B) -> (A, B) {
    std::thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        (one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), other)
    })
}

/// Opens nftables where the choice is for it, or nothing where it is for iptables; with why it is not nftables where the
/// choice would have preferred that.
fn nftables(choice: Choice) -> Result<(Option<Backend>, Option<String>), EngineError> {
    if matches!(choice, Choice::Iptables | Choice::Variant(_)) {
        // Asked first, so that who may not do anything at all leaves no trace on disk.
        if !privilege::may_administer_network() {
            return Err(CommandError::NotPermitted("CAP_NET_ADMIN is missing".into()).into());
        }
        return Ok((None, None));
    }
    match (choice, Backend::nft()) {
        (_, Ok(nft)) => Ok((Some(nft), None)),
        (Choice::Auto, Err(KernelError::NoNfTables(error))) => {
            // Without iptables either, what is missing first is what to say.
            match Tools::of_host() {
                Ok(_) => Ok((None, Some("this kernel has no nf_tables".into()))),
                Err(_) => Err(KernelError::NoNfTables(error).into()),
            }
        }
        (_, Err(error)) => Err(error.into()),
    }
}

fn variant(choice: Choice) -> Option<Variant> {
    match choice {
        Choice::Variant(variant) => Some(variant),
        Choice::Auto | Choice::Nft | Choice::Iptables => None,
    }
}
