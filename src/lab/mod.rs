//! Throw-away networks, and probes with real packets in them.
//!
//! Comes in: the rule sets to try. Goes out: what each probe got, and what it should have got.
//!
//! Namespaces have no names: they are held by open files of this process, so whatever ends it, Ctrl-C and SIGKILL
//! included, ends them and everything in them. The state of the host under test is kept in memory. Nothing is left
//! behind because nothing is put anywhere.

mod link;
pub mod netns;
mod probe;
mod responder;
mod topology;
pub mod wire;

use std::io;

use crate::engine::{self, Engine, EngineError, Outcome};
use crate::model::Asked;
use crate::store::State;

pub use link::Links;
pub use netns::Netns;
pub use probe::{Answer, Probe, Report, Vantage};
pub use topology::Topology;

/// Why a throw-away network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Neither as root nor in a user namespace.
    #[error("may not make network namespaces: not root, and unprivileged user namespaces are not allowed here")]
    NotAllowed(#[source] io::Error),
    /// The rule sets cannot be laid out as a network.
    #[error("{0}")]
    Topology(String),
    /// A link, address or route could not be made.
    #[error("cannot make {0} in the throw-away network")]
    Link(String, #[source] io::Error),
    /// Something else failed.
    #[error("{0} failed in the throw-away network")]
    Io(&'static str, #[source] io::Error),
    /// The rules could not be applied.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What was tried.
#[derive(Debug)]
pub struct Trial {
    /// What applying the rules did.
    pub outcome: Outcome,
    /// How many forwards there are, and how many of them were probed.
    pub forwards: (usize, usize),
    /// The probes, in order.
    pub reports: Vec<Report>,
    /// Protocols of forwards that no probe speaks.
    pub unspoken: Vec<crate::model::Protocol>,
}

/// Builds the network that the rule sets are about, applies them there, and sends packets from everywhere.
///
/// At most `limit` forwards are probed, spread over all of them; all are applied.
///
/// # Errors
/// [`LabError::NotAllowed`] where no namespace may be made; others where the network cannot be built or the rules not
/// be applied.
pub fn try_out(asked: &Asked, limit: usize) -> Result<Trial, LabError> {
    netns::gain_privileges()?;
    let (chosen, unspoken) = probe::choose(asked, limit);
    let topology = Topology::build(asked, &chosen)?;
    let probes = probe::plan(asked, &chosen, &topology);
    let _responders = responder::start(&topology, &probes)?;
    let outcome = topology.host.run(|| -> Result<Outcome, EngineError> {
        let mut engine = Engine::in_memory()?;
        engine::commit(&mut engine, State { asked: asked.clone(), ..State::default() })
    })??;
    let mut reports = Vec::with_capacity(probes.len());
    for probe in probes {
        let answer = probe::send(&probe, &topology)?;
        reports.push(Report { probe, answer });
    }
    Ok(Trial { outcome, forwards: (asked.bindings.len(), chosen.len()), reports, unspoken })
}
