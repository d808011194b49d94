//! The difference between what is asked and what the kernel holds, in the words of the rule sets.

use std::collections::BTreeMap;
use std::fmt;

use super::{Home, Live, Work};
use crate::model::{Asked, Binding, Owned};

/// What becomes of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It comes.
    Add,
    /// It changes.
    Change,
    /// It goes.
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

/// What becomes of one rule of a rule set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub sign: Sign,
    /// The set that it belongs to; none for what belongs to no set.
    pub set: Option<String>,
    /// The rule as it is now.
    pub before: Option<String>,
    /// The rule as it will be.
    pub after: Option<String>,
}

impl Step {
    /// Rules of ours go from a place where they are no more.
    pub(super) fn leave(home: Home) -> Self {
        Self { sign: Sign::Remove, set: None, before: Some(format!("what {home} holds of ours")), after: None }
    }
}

/// What would have to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What becomes of each rule.
    pub steps: Vec<Step>,
    /// What would be sent.
    pub work: Work,
}

impl Plan {
    /// Puts the difference between what is asked and what the kernel holds into words.
    pub fn new(live: &Live, asked: &Asked, work: Work) -> Self {
        let steps = if work.is_empty() { Vec::new() } else { steps(live, asked) };
        Self { steps, work }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.work.is_empty()
    }

    /// How many rules come, change and go.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |sign| self.steps.iter().filter(|step| step.sign == sign).count();
        (count(Sign::Add), count(Sign::Change), count(Sign::Remove))
    }
}

/// What becomes of each rule, where something must change.
pub(super) fn steps(live: &Live, asked: &Asked) -> Vec<Step> {
    let lifted = live.lift();
    let mut steps = forwards(&lifted.asked, asked);
    let networks = |asked: &Asked| shown(asked.networks.iter().filter(|owned| leaves_a_trace(&owned.rule)));
    steps.extend(others(networks(&lifted.asked), networks(asked)));
    steps.extend(others(shown(&lifted.asked.masquerades), shown(&asked.masquerades)));
    steps.extend(others(shown(&lifted.asked.snats), shown(&asked.snats)));
    steps.extend(others(shown(&lifted.asked.netmaps), shown(&asked.netmaps)));
    for name in lifted.foreign {
        steps.push(Step { sign: Sign::Remove, set: None, before: Some(name), after: None });
    }
    if steps.is_empty() {
        // The rules of all sets are there, but what is around them is not as we make it.
        let after = Some(match live {
            Live::Nft { .. } => format!("table inet {}", crate::nft::program::TABLE),
            Live::Iptables(_) => format!("chains {}…", crate::iptables::program::PREFIX),
        });
        steps.push(Step { sign: Sign::Change, set: None, before: after.clone(), after });
    }
    steps
}

/// A network that neither masquerades nor isolates is nothing that a kernel could hold.
fn leaves_a_trace(network: &crate::model::Network) -> bool {
    network.masquerade || network.isolate
}

fn forwards(live: &Asked, asked: &Asked) -> Vec<Step> {
    // What makes a forward the same one: whose it is and what it listens at.
    let keyed = |asked: &'_ Asked| -> BTreeMap<_, _> {
        let key = |owned: &Owned<Binding>| {
            let rule = &owned.rule;
            (owned.set.clone(), rule.family, rule.protocol, rule.ports, rule.address, rule.interface.clone(), rule.from)
        };
        asked.bindings.iter().map(|owned| (key(owned), owned.rule.clone())).collect()
    };
    let (before, after) = (keyed(live), keyed(asked));
    let mut steps = Vec::new();
    for (key, rule) in &after {
        let now = before.get(key);
        let sign = match now {
            None => Sign::Add,
            Some(now) if now != rule => Sign::Change,
            Some(_) => continue,
        };
        let set = Some(key.0.to_string());
        steps.push(Step { sign, set, before: now.map(describe), after: Some(describe(rule)) });
    }
    for (key, rule) in before.iter().filter(|(key, _)| !after.contains_key(*key)) {
        let set = Some(key.0.to_string());
        steps.push(Step { sign: Sign::Remove, set, before: Some(describe(rule)), after: None });
    }
    steps
}

fn describe(binding: &Binding) -> String {
    match &binding.comment {
        Some(comment) => format!("{binding} # {comment}"),
        None => binding.to_string(),
    }
}

type Shown = Vec<(String, String)>;

fn shown<'a, T: fmt::Display + 'a>(rules: impl IntoIterator<Item = &'a Owned<T>>) -> Shown {
    let mut shown: Shown = rules.into_iter().map(|owned| (owned.set.to_string(), owned.rule.to_string())).collect();
    shown.sort_unstable();
    shown.dedup();
    shown
}

fn others(before: Shown, after: Shown) -> Vec<Step> {
    let mut steps = Vec::new();
    for (set, rule) in after.iter().filter(|rule| !before.contains(rule)) {
        steps.push(Step { sign: Sign::Add, set: Some(set.clone()), before: None, after: Some(rule.clone()) });
    }
    for (set, rule) in before.into_iter().filter(|rule| !after.contains(rule)) {
        steps.push(Step { sign: Sign::Remove, set: Some(set), before: Some(rule), after: None });
    }
    steps
}
