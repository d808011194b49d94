//! Describes the difference between live and desired rules for users, with one step for each changed rule.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::backend::Decision;
use super::timing::Phase;
use super::{BackendId, Engine, EngineError, Live, Sysctls, Work};
use crate::model::{Binding, DesiredState, Family, IfName, Observed, PortRange, Protocol, SetName, SetRule};
use crate::store::State;

/// The kind of change of one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The rule is added.
    Add,
    /// The rule changes.
    Change,
    /// The rule is removed.
    Remove,
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "+",
            Self::Change => "~",
            Self::Remove => "-",
        })
    }
}

/// A rule as text. A forward becomes text only when it is printed, because most changes of thousands of forwards are
/// only counted.
#[derive(Debug, Clone)]
pub enum Words {
    /// A forward, as an index into the `bindings` of a desired state.
    Forward(Arc<DesiredState>, usize),
    /// The text of a rule that is not a forward.
    Text(String),
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward(desired, at) => match desired.bindings.get(*at).map(|owned| &owned.rule) {
                Some(rule) => match &rule.comment {
                    Some(comment) => write!(f, "{rule} # {comment}"),
                    None => rule.fmt(f),
                },
                None => Ok(()),
            },
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl From<String> for Words {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// Compares two rules by their texts.
impl PartialEq for Words {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Words {}

/// The change of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The kind of change.
    pub sign: Sign,
    /// The rule set that contains the rule, if there is one.
    pub set: Option<SetName>,
    /// The live rule; `None` if the step adds a rule.
    pub before: Option<Words>,
    /// The desired rule; `None` if the step removes a rule.
    pub after: Option<Words>,
}

impl Step {
    /// Returns the step that removes portfwd's rules from another backend.
    pub(super) fn remove_backend(backend: BackendId) -> Self {
        let before = Some(format!("the rules of portfwd in {backend}").into());
        Self { sign: Sign::Remove, set: None, before, after: None }
    }
}

/// A planned change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The steps, one for each changed rule.
    pub steps: Vec<Step>,
    /// The changes to send to the backend.
    pub work: Work,
}

impl Plan {
    /// Describes the difference between live and desired rules, rule by rule.
    pub fn new(live: &Live, desired: &Arc<DesiredState>, work: Work) -> Self {
        let steps = if work.is_empty() { Vec::new() } else { steps(live, desired) };
        Self { steps, work }
    }

    /// Returns true if the live rules equal the desired rules.
    pub fn is_empty(&self) -> bool {
        self.work.is_empty()
    }

    /// Returns the number of added, changed and removed rules.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |sign| self.steps.iter().filter(|step| step.sign == sign).count();
        (count(Sign::Add), count(Sign::Change), count(Sign::Remove))
    }
}

impl Engine {
    /// Plans the change to the desired rules. Changes nothing.
    ///
    /// # Errors
    /// Fails if the kernel cannot be read, or the rule sets cannot be compiled.
    pub fn plan_rules(&mut self, desired: &Arc<DesiredState>) -> Result<Plan, EngineError> {
        let Decision { live, work, compared } = self.backend.plan(desired, &mut self.timing)?;
        Ok(self.timing.measure(Phase::Plan, || Plan::new(&live, &compared, work)))
    }

    /// Plans the change to a state: rules, sysctls, and the removal of rules from unused backends. Changes nothing.
    ///
    /// # Errors
    /// Fails like [`Engine::plan_rules`]. Also fails if a sysctl or the routing table cannot be read.
    pub fn plan(&mut self, after: &State) -> Result<Plan, EngineError> {
        let mut plan = self.plan_rules(&after.desired)?;
        let sysctls = Sysctls::needed(&mut after.clone(), &self.state)?;
        let step = |name: String, before: &str, after: &str| Step {
            sign: Sign::Change,
            set: None,
            before: Some(format!("{name} = {before}").into()),
            after: Some(format!("{name} = {after}").into()),
        };
        plan.steps.extend(self.stale_backends().into_iter().map(Step::remove_backend));
        plan.steps.extend(sysctls.to_set().map(|change| step(change.name(), &change.before, &change.after)));
        plan.steps.extend(sysctls.to_restore().map(|change| step(change.name(), &change.after, &change.before)));
        Ok(plan)
    }
}

/// Returns one step for each rule that differs.
pub(super) fn steps(live: &Live, desired: &Arc<DesiredState>) -> Vec<Step> {
    steps_from(live, desired).0
}

/// Returns one step for each rule that differs, and the live rules as a desired state.
pub(super) fn steps_from(live: &Live, desired: &Arc<DesiredState>) -> (Vec<Step>, Arc<DesiredState>) {
    let Observed { desired: lifted, foreign, .. } = live.lift();
    let lifted = Arc::new(lifted);
    let mut steps = forwards(&lifted, desired);
    let networks = |desired: &DesiredState| shown(desired.networks.iter().filter(|owned| leaves_a_trace(&owned.rule)));
    steps.extend(others(networks(&lifted), networks(desired)));
    steps.extend(others(shown(&lifted.masquerades), shown(&desired.masquerades)));
    steps.extend(others(shown(&lifted.snats), shown(&desired.snats)));
    steps.extend(others(shown(&lifted.netmaps), shown(&desired.netmaps)));
    for name in foreign {
        steps.push(Step { sign: Sign::Remove, set: None, before: Some(name.into()), after: None });
    }
    if steps.is_empty() {
        // All rules of the rule sets are live, but portfwd's table or chains differ in another part.
        let after = Some(Words::Text(match live {
            Live::Nft { .. } => format!("table inet {}", crate::nft::program::TABLE),
            Live::Iptables(_) => format!("chains {}…", crate::iptables::program::PREFIX),
        }));
        steps.push(Step { sign: Sign::Change, set: None, before: after.clone(), after });
    }
    (steps, lifted)
}

/// Returns true if a network masquerades or isolates. Only such a network has rules in the kernel.
fn leaves_a_trace(network: &crate::model::Network) -> bool {
    network.masquerade || network.isolate
}

/// The key that identifies a forward: its rule set, and the packets that it matches.
type Identity<'a> = (&'a SetName, Family, Protocol, PortRange, Option<IpAddr>, Option<&'a IfName>, Option<IpNetwork>);

fn identity(owned: &SetRule<Binding>) -> Identity<'_> {
    let rule = &owned.rule;
    (&owned.set, rule.family, rule.protocol, rule.ports, rule.address, rule.interface.as_ref(), rule.from)
}

fn forwards(live: &Arc<DesiredState>, desired: &Arc<DesiredState>) -> Vec<Step> {
    type Placed<'a> = Vec<(usize, &'a SetRule<Binding>)>;
    fn sorted(desired: &DesiredState) -> Placed<'_> {
        let mut bindings: Placed<'_> = desired.bindings.iter().enumerate().collect();
        bindings.sort_by(|(_, a), (_, b)| identity(a).cmp(&identity(b)));
        bindings
    }
    fn find<'a>(bindings: &Placed<'a>, owned: &SetRule<Binding>) -> Option<(usize, &'a SetRule<Binding>)> {
        let at = bindings.binary_search_by(|(_, known)| identity(known).cmp(&identity(owned))).ok()?;
        bindings.get(at).copied()
    }
    let (before, after) = (sorted(live), sorted(desired));
    let step = |sign, set: &SetName, before: Option<usize>, after: Option<usize>| Step {
        sign,
        set: Some(set.clone()),
        before: before.map(|at| Words::Forward(Arc::clone(live), at)),
        after: after.map(|at| Words::Forward(Arc::clone(desired), at)),
    };
    let mut steps = Vec::new();
    for (at, owned) in &after {
        let now = find(&before, owned);
        let sign = match now {
            None => Sign::Add,
            Some((_, now)) if now.rule != owned.rule => Sign::Change,
            Some(_) => continue,
        };
        steps.push(step(sign, &owned.set, now.map(|(at, _)| at), Some(*at)));
    }
    for (at, owned) in before.iter().filter(|(_, owned)| find(&after, owned).is_none()) {
        steps.push(step(Sign::Remove, &owned.set, Some(*at), None));
    }
    steps
}

type Shown = Vec<(SetName, String)>;

fn shown<'a, T: fmt::Display + 'a>(rules: impl IntoIterator<Item = &'a SetRule<T>>) -> Shown {
    let mut shown: Shown = rules.into_iter().map(|owned| (owned.set.clone(), owned.rule.to_string())).collect();
    shown.sort_unstable();
    shown.dedup();
    shown
}

fn others(before: Shown, after: Shown) -> Vec<Step> {
    let mut steps = Vec::new();
    for (set, rule) in after.iter().filter(|rule| !before.contains(rule)) {
        steps.push(Step { sign: Sign::Add, set: Some(set.clone()), before: None, after: Some(rule.clone().into()) });
    }
    for (set, rule) in before.into_iter().filter(|rule| !after.contains(rule)) {
        steps.push(Step { sign: Sign::Remove, set: Some(set), before: Some(rule.into()), after: None });
    }
    steps
}
