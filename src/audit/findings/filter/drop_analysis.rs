//! The results of all forwards' clients, simulated once for several findings.

use super::accepted::{Blankets, Bypasses};
use super::clients::Clients;
use super::dropped::{self, Groups};
use crate::audit::findings::context::Context;

/// The results of all forwards' clients. Empty without facts, because the ingress interfaces are unknown.
#[derive(Default)]
pub(in crate::audit::findings) struct DropAnalyses {
    /// F36: dropped before NAT.
    pub(super) before_nat: Groups,
    /// F13: dropped behind it.
    pub(super) behind_nat: Groups,
    /// F14.
    pub(super) blankets: Blankets,
    /// F19.
    pub(super) bypasses: Bypasses,
}

impl DropAnalyses {
    /// Simulates clients of each forward.
    pub(in crate::audit::findings) fn new(context: &Context<'_>) -> Self {
        let (clients, mut surveys) = (Clients::new(context), Self::default());
        if clients.gates.is_empty() {
            return surveys;
        }
        for (number, forward) in context.forwards().iter().enumerate() {
            let drop_analysis = clients.drop_analysis(forward);
            dropped::add(&mut surveys.before_nat, &clients, number, &drop_analysis, true);
            dropped::add(&mut surveys.behind_nat, &clients, number, &drop_analysis, false);
            surveys.blankets.add(context, number, forward, &drop_analysis);
            surveys.bypasses.add(context, number, forward, &drop_analysis);
        }
        surveys
    }
}
