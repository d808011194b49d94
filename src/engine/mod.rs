//! Where state and kernel meet: reading the live rules, planning, committing.
//!
//! ```text
//! state ──asked──▶ compile ──▶ program ─┐
//!                                       ├─diff──▶ changes ──encode──▶ batch ──commit──▶ kernel ──decode──▶ checked
//! kernel ───────── decode ───▶ program ─┘
//! ```
//! Everything is decided on what the kernel holds now, never on a memory of what was sent, and the batch carries the
//! generation it was decided on: when somebody else commits in between, the kernel refuses it and we look again.
//! The state is written before the kernel and taken back if the kernel refuses, so that being killed in between leaves
//! a wish that the next command fulfils.

pub mod commit;
pub mod plan;
mod switches;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use crate::model::{Asked, Held};
use crate::netfilter::namespace;
use crate::netfilter::sysctl::SysctlError;
use crate::nft::compile::CompileError;
use crate::nft::decode::decode;
use crate::nft::lift::lift;
use crate::nft::program::Program;
use crate::nft::transaction::{CommitError, Connection, KernelError};
use crate::store::{State, StateError, Store};

pub use commit::{Outcome, commit};
pub use plan::{Plan, Sign, Step};
pub use switches::Switches;

/// How long a command waits for another portfwd that is at work in the same namespace.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The batch was not carried out.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The kernel refused one thing of the batch.
    #[error("the kernel refused {subject}{}", reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Refused {
        /// What, in the words of the rule set.
        subject: String,
        /// The kernel's words, where it gave any.
        reason: Option<String>,
        /// Its error.
        #[source]
        error: std::io::Error,
    },
    /// Others committed again and again in between.
    #[error("somebody else keeps changing the rules of this network namespace")]
    Busy,
    /// What the kernel holds after the commit is not what was asked.
    #[error("{0} is not as it was committed a moment ago")]
    Differs(String),
    /// It was committed, but the kernel could not be asked whether it holds it.
    #[error("the rules were committed, but could not be read back")]
    Unchecked(#[source] KernelError),
    /// The state could not be read or kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// The rule sets cannot be one table.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A switch could not be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The way to a target could not be told.
    #[error("cannot ask the routing table for the way to the target {0}")]
    Route(IpAddr, #[source] std::io::Error),
    /// The rules are there, but loopback forwards do not reach their targets.
    #[error("the rules were committed, but loopback forwards cannot reach their targets")]
    Closed(#[source] SysctlError),
    /// The namespace could not be told.
    #[error("cannot tell which network namespace this is")]
    Namespace(#[source] std::io::Error),
}

/// The kernel's rules and the state of one network namespace: the one the thread is in.
pub struct Engine {
    connection: Connection,
    store: Store,
    state: State,
}

/// What the kernel holds.
pub struct Live {
    /// As a program.
    pub program: Program,
    /// The generation of which it is the truth.
    pub generation: u32,
}

impl Live {
    /// What it means.
    pub fn lift(&self) -> Held {
        lift(&self.program)
    }
}

impl Engine {
    /// Opens both. With `write` false nothing is made on disk, and a state that is not there is empty.
    ///
    /// # Errors
    /// Where one of them cannot be opened, or another portfwd keeps the state for longer than [`LOCK_WAIT`].
    pub fn open(state_directory: &Path, write: bool) -> Result<Self, EngineError> {
        let mut connection = Connection::open()?;
        // Asked first, so that who may not do anything at all leaves no trace on disk.
        connection.generation()?;
        let identity = namespace::identity(connection.namespace_cookie()).map_err(EngineError::Namespace)?;
        let store = Store::open(state_directory, &identity, write, LOCK_WAIT)?;
        let state = store.load()?;
        Ok(Self { connection, store, state })
    }

    /// Opens the kernel's rules, with a state that nobody sees and that is gone afterwards.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn in_memory() -> Result<Self, EngineError> {
        let connection = Connection::open()?;
        Ok(Self { connection, store: Store::in_memory(), state: State::default() })
    }

    /// The state as it was when it was opened, or as it was committed last.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Reads what the kernel holds.
    ///
    /// # Errors
    /// Where it does not tell.
    pub fn live(&mut self) -> Result<Live, EngineError> {
        let (program, generation) = decode(&mut self.connection)?;
        Ok(Live { program, generation })
    }

    /// Keeps a state on disk, in the place of the one that is kept now.
    fn keep(&mut self, state: &State) -> Result<(), EngineError> {
        if *state != self.state {
            self.store.save(&self.state, state)?;
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
            before: Some(format!("{name} = {before}")),
            after: Some(format!("{name} = {after}")),
        };
        plan.steps.extend(switches.to_set().map(|change| step(change.name(), &change.before, &change.after)));
        plan.steps.extend(switches.to_give_back().map(|change| step(change.name(), &change.after, &change.before)));
        Ok(plan)
    }

    /// What would have to change for the kernel to hold the rules that are asked.
    ///
    /// # Errors
    /// Where the kernel does not tell what it holds, or the sets cannot be one table.
    pub fn plan(&mut self, asked: &Asked) -> Result<Plan, EngineError> {
        let live = self.live()?;
        Plan::new(&live, asked)
    }
}
