//! What becomes of the clients of all forwards, looked at once for the findings that are about that.

use super::accepted::{Blankets, Bypasses};
use super::clients::Clients;
use super::dropped::{self, Groups};
use crate::audit::findings::outlook::Outlook;

/// What clients of all forwards met. Without facts nothing: it is not known by which interfaces they come.
#[derive(Default)]
pub(in crate::audit::findings) struct Surveys {
    /// F36: dropped before NAT.
    pub(super) before_nat: Groups,
    /// F13: dropped behind it.
    pub(super) behind_nat: Groups,
    /// F14.
    pub(super) blankets: Blankets,
    /// F19.
    pub(super) bypasses: Bypasses,
}

impl Surveys {
    /// Leads clients to each forward.
    pub(in crate::audit::findings) fn new(outlook: &Outlook<'_>) -> Self {
        let (clients, mut surveys) = (Clients::new(outlook), Self::default());
        if clients.gates.is_empty() {
            return surveys;
        }
        for (number, forward) in outlook.forwards().iter().enumerate() {
            let survey = clients.survey(forward);
            dropped::add(&mut surveys.before_nat, &clients, number, &survey, true);
            dropped::add(&mut surveys.behind_nat, &clients, number, &survey, false);
            surveys.blankets.add(outlook, number, forward, &survey);
            surveys.bypasses.add(outlook, number, forward, &survey);
        }
        surveys
    }
}
