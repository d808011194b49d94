//! Throw-away networks, and probes with real packets in them; standing networks from a file are in [`net`].
//!
//! Comes in: the rule sets to try. Goes out: what each probe got, and what it should have got.
//!
//! Namespaces of a throw-away network have no names: they are held by open files of this process, so whatever ends it, Ctrl-C and SIGKILL
//! included, ends them and everything in them. The state of the host under test is kept in memory. Nothing is left
//! behind because nothing is put anywhere.

mod ask;
mod datagram;
mod error;
mod layout;
mod link;
pub mod net;
pub mod netns;
mod probe;
mod responder;
pub mod sight;
mod topology;
pub mod wire;

use crate::engine::{Choice as Backend, Engine, EngineError, Options, Outcome, Scope, Storage};
use crate::model::meaning::Host;
use crate::model::{Asked, Packet, Protocol, RuleSet};
use crate::store::State;
use crate::sys::{sysctl, tracking};

pub use ask::Answer;
pub use error::LabError;
pub use link::Links;
pub use netns::Netns;
pub use probe::{Probe, Report, Vantage};
pub use sight::{Capture, Observation};
pub use topology::{Topology, set_bridge_netfilter};

/// What was tried.
#[derive(Debug)]
pub struct Trial {
    /// What applying the rules did.
    pub outcome: Outcome,
    /// How many forwards there are, and how many of them were probed; of given packets, how many one of them could meet.
    pub forwards: (usize, usize),
    /// The probes, in order.
    pub reports: Vec<Report>,
}

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Packets for at most so many forwards, spread over all of them, and for every other rule.
    Forwards(usize),
    /// These packets.
    Packets(Vec<Packet>),
}

/// Builds the network that the rule sets are about, applies them there, and sends packets from everywhere. `asked` is
/// what the rule sets, `written`, ask together; what must become of packets is told from these.
///
/// # Errors
/// [`LabError::NotAllowed`] where no namespace may be made; others where the network cannot be built or the rules not
/// be applied.
pub fn try_out(asked: &Asked, written: &[RuleSet], selection: &Selection, backend: Backend) -> Result<Trial, LabError> {
    netns::gain_privileges()?;
    let (chosen, named) = match selection {
        Selection::Forwards(limit) => (probe::sample_forwards(asked, *limit), &[][..]),
        Selection::Packets(packets) => (probe::forwards_for(asked, packets), packets.as_slice()),
    };
    let topology = Topology::build_with_packets(asked, &chosen, named)?;
    let packets = match selection {
        Selection::Forwards(_) => probe::packets(asked, &chosen, &topology),
        Selection::Packets(packets) => packets.clone(),
    };
    let capture = Capture::open(&topology)?;
    let (outcome, host) = apply(&topology, asked, backend)?;
    let probes = probe::predict(packets, written, &host);
    let _responders = match selection {
        Selection::Forwards(_) => Some(responder::start(&topology, &probes)?),
        Selection::Packets(_) => None,
    };
    let mut reports = Vec::with_capacity(probes.len());
    for probe in probes {
        reports.push(match selection {
            Selection::Forwards(_) => probe::send(probe, &topology, &capture)?,
            Selection::Packets(_) => probe::observe(probe, &topology, &capture)?,
        });
    }
    Ok(Trial { outcome, forwards: (asked.bindings.len(), chosen.len()), reports })
}

/// Applies rule sets in the host of a network, with a state that nobody keeps; gives what that did, and the host as it is
/// then.
///
/// # Errors
/// Where they cannot be applied.
pub fn apply(topology: &Topology, asked: &Asked, backend: Backend) -> Result<(Outcome, Host), LabError> {
    if asked.bindings.iter().any(|owned| owned.rule.protocol == Protocol::Udplite) {
        let set = topology.host.run(tracking::ignore_checksums)?;
        set.map_err(|error| LabError::Io("switching checksums off for UDP-Lite", error))?;
    }
    let outcome = topology.host.run(|| -> Result<Outcome, EngineError> {
        let mut engine = Engine::open(Storage::Memory, backend, Scope::Full)?;
        engine.commit(State { asked: asked.clone().into(), ..State::default() }, Options::default())
    })??;
    let forwarding = topology.host.run(sysctl::forwarded)?.map_err(EngineError::from)?;
    Ok((outcome, Host { forwarding, ..topology.plan.clone() }))
}
