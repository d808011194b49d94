//! Making the kernel hold what is asked, and the state say so.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Engine, EngineError, Plan};
use crate::model::Asked;
use crate::netfilter::{route, sysctl};
use crate::nft::decode;
use crate::nft::element;
use crate::nft::encode::{Batch, Subject, encode};
use crate::nft::program::{Element, Key, Program};
use crate::nft::transaction::CommitError;
use crate::store::State;

/// How often a plan is made anew because somebody else committed in between.
const ATTEMPTS: u32 = 100;

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What became of each rule; empty where the kernel held all of it already.
    pub plan: Plan,
    /// What was sent, a line a message; empty where nothing was.
    pub messages: Vec<String>,
    /// The switches that had to be set.
    pub sysctls: Vec<sysctl::Change>,
    /// The switches that got back the values that they had.
    pub given_back: Vec<sysctl::Change>,
}

/// Makes the kernel hold what `after` asks, and keeps `after` as the state. Switches that `after` no longer remembers get
/// back the values that they had.
///
/// # Errors
/// [`EngineError`]; kernel and state are then as they were, but for [`EngineError::Differs`] and
/// [`EngineError::Unchecked`], which come after everything was done.
pub fn commit(engine: &mut Engine, mut after: State) -> Result<Outcome, EngineError> {
    let switches = Switches::of(&mut after, &engine.state)?;
    let before = engine.state.clone();
    if after != before {
        engine.store.save(&before, &after)?;
    }
    match switches.around(|| to_kernel(engine, &after)) {
        Ok(((plan, messages), given_back)) => {
            engine.state = after;
            // From here on it is done, and an error can only say that it does not look so.
            if !plan.is_empty() {
                check(engine, &plan)?;
            }
            Ok(Outcome { plan, messages, sysctls: switches.set(), given_back })
        }
        Err(error) => {
            if after != before {
                engine.store.save(&after, &before)?;
            }
            Err(error)
        }
    }
}

/// The switches that change with a commit.
struct Switches {
    /// Forwarding: on before the rules that need it.
    forward: Vec<sysctl::Change>,
    /// Loopback addresses on an interface: on when the rules that guard them are there.
    open: Vec<sysctl::Change>,
    /// The same, off again before those rules go.
    close: Vec<sysctl::Change>,
    /// Back to what they were, at the end.
    give_back: Vec<sysctl::Change>,
}

impl Switches {
    /// What `after` needs and `before` had. `after` is made to remember what is set, and to forget what is given back.
    fn of(after: &mut State, before: &State) -> Result<Self, EngineError> {
        let mut forward = Vec::new();
        for family in after.asked.forwarding() {
            forward.extend(sysctl::forwarding(family)?);
        }
        let (needed, open) = loopback(&after.asked)?;
        after.sysctls.retain(|known| !sysctl::is_route_localnet(&known.key) || needed.contains(&known.key));
        for change in forward.iter().chain(&open) {
            // Only the first value counts: what the host had before we came.
            if !after.sysctls.iter().any(|known| known.key == change.key) {
                after.sysctls.push(change.clone());
            }
        }
        let gone = before.sysctls.iter().filter(|known| !after.sysctls.iter().any(|kept| kept.key == known.key));
        let (close, give_back) = gone.cloned().partition(|change| sysctl::is_route_localnet(&change.key));
        Ok(Self { forward, open, close, give_back })
    }

    /// Sets them in their order around a commit, and says which were given back; where that fails, all are as before.
    fn around<T>(
        &self,
        commit: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<(T, Vec<sysctl::Change>), EngineError> {
        sysctl::may_set(&self.open)?;
        sysctl::set(&self.forward)?;
        let mut given_back = sysctl::undo(&self.close);
        match commit() {
            Ok(done) => {
                sysctl::set(&self.open)?;
                given_back.extend(sysctl::undo(&self.give_back));
                Ok((done, given_back))
            }
            Err(error) => {
                sysctl::redo(&given_back);
                sysctl::undo(&self.forward);
                Err(error)
            }
        }
    }

    /// Those that had to be set.
    fn set(self) -> Vec<sysctl::Change> {
        self.forward.into_iter().chain(self.open).collect()
    }
}

/// The switches that let loopback forwards reach other hosts: the keys of all that are needed, and those to be changed. A
/// target that no route leads to yet needs none.
fn loopback(asked: &Asked) -> Result<(BTreeSet<String>, Vec<sysctl::Change>), EngineError> {
    let opened = asked.bindings.iter().map(|owned| &owned.rule).filter(|rule| rule.loopback);
    let targets: BTreeSet<IpAddr> = opened.filter_map(|rule| rule.to.address).collect();
    let mut interfaces = BTreeSet::new();
    for target in targets {
        interfaces.extend(route::interface_to(target).map_err(EngineError::Route)?);
    }
    // To itself this host gets without any switch.
    interfaces.retain(|interface| interface.as_str() != "lo");
    let mut changes = Vec::new();
    for interface in &interfaces {
        changes.extend(sysctl::route_localnet(interface)?);
    }
    Ok((interfaces.iter().map(sysctl::route_localnet_key).collect(), changes))
}

fn to_kernel(engine: &mut Engine, after: &State) -> Result<(Plan, Vec<String>), EngineError> {
    for _ in 0..ATTEMPTS {
        let plan = engine.plan(&after.asked)?;
        if plan.is_empty() {
            return Ok((plan, Vec::new()));
        }
        let batch = encode(&plan.changes, plan.generation);
        match engine.connection.commit(&batch) {
            Ok(()) => {
                let messages = batch.lines().collect();
                return Ok((plan, messages));
            }
            Err(CommitError::Stale) => {}
            Err(error) => return Err(named(error, &batch)),
        }
    }
    Err(EngineError::Busy)
}

/// How many of the changed elements are read back.
const CHECKED: usize = 256;

/// Reads the kernel again and compares: every chain, rule and map, and of the elements that were changed as many as
/// [`CHECKED`], spread over all of them.
///
/// Elements are asked for by their keys. A dump of 60,000 costs more than their commit, because the kernel begins at the
/// first of them again for every 32 KiB of the answer.
fn check(engine: &mut Engine, plan: &Plan) -> Result<(), EngineError> {
    let (live, generation) = decode::structure(&mut engine.connection).map_err(EngineError::Unchecked)?;
    let mut differs = difference(&live, plan).map(str::to_owned);
    let count: usize = plan.changes.add_elements.iter().map(|come| come.elements.len()).sum();
    let step = count.div_ceil(CHECKED).max(1);
    for come in &plan.changes.add_elements {
        let sample: Vec<&(Key, Element)> = come.elements.iter().step_by(step).collect();
        for some in sample.chunks(decode::KEYS_PER_QUESTION) {
            let keys = some.iter().map(|(key, _)| key);
            let found = decode::elements_by_key(&mut engine.connection, &come.map, keys)
                .map_err(EngineError::Unchecked)?
                .unwrap_or_default();
            let same = |(key, now): &&(Key, Element)| found.get(key).is_some_and(|found| found.says_the_same(now));
            if !some.iter().copied().all(|element| same(&element)) {
                differs = Some(format!("the map `{}`", come.map));
            }
        }
    }
    match differs {
        // A commit of somebody else's after ours is theirs to answer for, and the next plan's to show.
        Some(what) if generation.wrapping_sub(plan.generation) == 1 => Err(EngineError::Differs(what)),
        _ => Ok(()),
    }
}

/// What of the table, its elements aside, is not as planned.
fn difference<'a>(live: &'a Program, plan: &'a Plan) -> Option<&'a str> {
    let shapes = |program: &'a Program| program.maps.iter().map(|(name, map)| (name, &map.shape));
    if live.table != plan.program.table {
        Some("the table")
    } else if live.chains != plan.program.chains {
        Some("a chain")
    } else if !shapes(live).eq(shapes(&plan.program)) {
        Some("a map")
    } else {
        None
    }
}

/// Says of a refusal which forward it is about.
fn named(error: CommitError, batch: &Batch<'_>) -> EngineError {
    let CommitError::Refused { seq, error, reason, offset } = error else { return error.into() };
    let element = offset.and_then(|offset| batch.element_at(seq, offset));
    let forward = element.and_then(|(map, key, element)| {
        let owned = element::read(&map.parse().ok()?, key, element)?;
        Some(format!("the forward `{}` of the rule set `{}`", owned.rule, owned.set))
    });
    let subject = forward.unwrap_or_else(|| match batch.subject(seq) {
        Some(Subject::Table) => "our table".into(),
        Some(Subject::Chain(name)) => format!("the chain `{name}`"),
        Some(Subject::Rule(chain, rule)) => format!("a rule of the chain `{chain}`, `{rule}`"),
        Some(Subject::Map(name)) => format!("the map `{name}`"),
        Some(Subject::Elements(map, _)) => format!("a forward in the map `{map}`"),
        Some(Subject::Batch) | None => "the batch".into(),
    });
    EngineError::Refused { subject, reason, error }
}
