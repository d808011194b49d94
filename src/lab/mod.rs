//! Throw-away networks, and probes that send real packets through them. Standing networks from a file are in [`net`].
//!
//! Input: rule sets and the packets to try. Output: for each probe, the result and the expected result.
//!
//! The namespaces of a throw-away network have no names. Only open files of this process keep them, so they end with
//! the process, even after Ctrl-C or SIGKILL. The state of the host under test is kept in memory. Nothing is written to
//! disk, so there is nothing to clean up.

pub mod capture;
mod client;
mod datagram;
mod error;
mod layout;
mod link;
pub mod net;
pub mod netns;
mod probe;
pub mod raw_socket;
mod responder;
mod topology;

use crate::engine::{Choice as Backend, Engine, EngineError, Options, Outcome, Scope, Storage};
use crate::model::meaning::Host;
use crate::model::{DesiredState, Packet, Protocol, RuleSet};
use crate::store::State;
use crate::sys::{sysctl, tracking};

pub use capture::{Capture, Observation};
pub use client::Answer;
pub use error::LabError;
pub use link::Links;
pub use netns::Netns;
pub use probe::{Probe, Report, Vantage};
pub use topology::{Topology, set_bridge_netfilter};

/// The result of [`try_out`].
#[derive(Debug)]
pub struct Trial {
    /// The result of the commit in the host under test.
    pub outcome: Outcome,
    /// The number of forwards in the rule sets, and the number of forwards that were probed. If the packets were given,
    /// the second number counts the forwards that match the protocol and port of a packet.
    pub forwards: (usize, usize),
    /// The reports, one per probe, in the order of sending.
    pub reports: Vec<Report>,
}

/// The packets that [`try_out`] sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Packets for at most this number of forwards, sampled evenly, and for every other rule.
    Forwards(usize),
    /// The packets that the user gave.
    Packets(Vec<Packet>),
}

/// Builds a network for the rule sets, applies the rule sets in its host, and sends packets from every side.
///
/// `asked` is the union of the rule sets `written`. The expected results are computed from `written`.
///
/// # Errors
/// [`LabError::NotAllowed`] if the process may not create namespaces. Other variants if the network cannot be built or
/// the rules cannot be applied.
pub fn try_out(
    desired: &DesiredState,
    written: &[RuleSet],
    selection: &Selection,
    backend: Backend,
) -> Result<Trial, LabError> {
    netns::gain_privileges()?;
    let (chosen, named) = match selection {
        Selection::Forwards(limit) => (probe::sample_forwards(desired, *limit), &[][..]),
        Selection::Packets(packets) => (probe::forwards_for(desired, packets), packets.as_slice()),
    };
    let topology = Topology::build_with_packets(desired, &chosen, named)?;
    let packets = match selection {
        Selection::Forwards(_) => probe::plan_packets(desired, &chosen, &topology),
        Selection::Packets(packets) => packets.clone(),
    };
    let capture = Capture::open(&topology)?;
    let (outcome, host) = apply(&topology, desired, backend)?;
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
    Ok(Trial { outcome, forwards: (desired.bindings.len(), chosen.len()), reports })
}

/// Applies rule sets in the host of a network, with a state in memory. Returns the outcome and the host with its
/// forwarding sysctls.
///
/// # Errors
/// If the engine cannot apply the rule sets.
pub fn apply(topology: &Topology, desired: &DesiredState, backend: Backend) -> Result<(Outcome, Host), LabError> {
    if desired.bindings.iter().any(|owned| owned.rule.protocol == Protocol::Udplite) {
        let set = topology.host.run(tracking::ignore_checksums)?;
        set.map_err(|error| LabError::Io("switching checksums off for UDP-Lite", error))?;
    }
    let outcome = topology.host.run(|| -> Result<Outcome, EngineError> {
        let mut engine = Engine::open(Storage::Memory, backend, Scope::Full)?;
        engine.commit(State { desired: desired.clone().into(), ..State::default() }, Options::default())
    })??;
    let forwarding = topology.host.run(sysctl::forwarded)?.map_err(EngineError::from)?;
    Ok((outcome, Host { forwarding, ..topology.plan.clone() }))
}
