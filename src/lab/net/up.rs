//! Brings labs up and down: makes the steps that are missing, and undoes those that are no longer described.

use std::io;

use super::description::Lab;
use super::error::{NetError, permitted};
use super::executor::Executor;
use super::host;
use super::journal::{Entry, Identity, Journal, Journals};
use super::name::LabName;
use super::named;
use super::plan::{self, Location, Name, Step};
use super::presence::Presence;
use crate::lab::Netns;

/// The changes of `up` or `down`, done or planned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// The steps that were made, in order.
    pub made: Vec<Step>,
    /// The steps that were undone, in order.
    pub removed: Vec<Step>,
    /// The steps whose object has been replaced by another program. The object is kept.
    pub foreign: Vec<Step>,
    /// The error if the journal could not be marked as complete. The journal has every step, and the next `up` compares
    /// all of them again.
    pub journal_error: Option<String>,
}

impl Change {
    /// Returns true if nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.made.is_empty() && self.removed.is_empty()
    }
}

/// The difference between the live state and the description.
struct Diff {
    /// The entries to undo, in order.
    remove: Vec<Entry>,
    /// The entries of the described lab, in order.
    entries: Vec<Entry>,
    /// The indexes of the entries to make.
    make: Vec<usize>,
}

/// Makes the steps that are missing, and undoes those that are no longer described. The lab's host is the calling
/// thread's namespace.
///
/// If `dry` is true, it only returns the planned changes.
///
/// # Errors
/// If a step fails; the steps of this call are then undone. [`NetError::Taken`] if a name is in use; nothing is changed
/// then.
pub fn up(lab: &Lab, journals: &Journals, dry: bool) -> Result<Change, NetError> {
    build(lab, journals, dry, false)
}

/// Creates a lab whose container processes end with this process and all programs that it starts.
pub(super) fn up_bound(lab: &Lab, journals: &Journals) -> Result<Change, NetError> {
    build(lab, journals, false, true)
}

fn build(lab: &Lab, journals: &Journals, dry: bool, bound: bool) -> Result<Change, NetError> {
    let lock = journals.lock()?;
    let host = host::Id::current().map_err(NetError::Inspect)?;
    let known = journals.read(&lab.name)?;
    if let Some(known) = known.as_ref().filter(|known| !known.host.is_same(&host)) {
        return Err(NetError::OtherHost(lab.name.clone(), known.host.clone()));
    }
    let executor = Executor::new(Some(Netns::current().map_err(NetError::Inspect)?), journals);
    let mut executor = executor.bound(bound).inherit_lock(&lock).map_err(NetError::Inspect)?;
    let before = known.as_ref().map_or(&[][..], |known| &known.entries);
    let mut diff =
        diff(&mut executor, before, &plan::steps(lab)).map_err(|error| permitted(error, NetError::Inspect))?;
    let change = diff.change();
    ensure_names_free(&mut executor, &diff, before)?;
    ensure_rules_allowed(&executor, &diff, host.is_root_namespace())?;
    let description = lab.to_string();
    let done = known.as_ref().is_some_and(|known| known.complete && known.description == description);
    if dry || change.is_empty() && done {
        return Ok(change);
    }
    remove_leftovers(&mut executor, before)?;
    for index in &diff.make {
        let Some(entry) = diff.entries.get_mut(*index) else { continue };
        let marked = match previous_rules(before, &entry.step) {
            // A lab's rule set keeps its token.
            Some(known) => Ok(known.identity.clone()),
            None => executor.new_identity(&entry.step),
        };
        entry.identity = marked.map_err(|error| failed(&entry.step, error))?;
    }
    let union = diff.remove.iter().rev().chain(&diff.entries).cloned().collect();
    let journal = Journal::new(lab.name.clone(), host, description, union);
    let mut journal = journal.map_err(NetError::Inspect)?;
    journals.write(&journal)?;
    execute(&mut executor, &diff)
        .map_err(|error| roll_back(&mut executor, &diff, error, (journals, &lab.name, known.as_ref())))?;
    journal.entries = diff.entries;
    journal.complete = true;
    let journal_error = journals.write(&journal).err().map(|error| format!("{:#}", anyhow::Error::from(error)));
    Ok(Change { journal_error, ..change })
}

impl Diff {
    /// Returns true if the new entries replace this one atomically, so that it is not undone first.
    fn is_replaced(&self, gone: &Entry) -> bool {
        let mut made = self.make.iter().filter_map(|index| self.entries.get(*index));
        made.any(|entry| previous_rules(std::slice::from_ref(gone), &entry.step).is_some())
    }

    fn change(&self) -> Change {
        let step = |entry: &Entry| entry.step.clone();
        Change {
            made: self.make.iter().filter_map(|index| self.entries.get(*index)).map(step).collect(),
            removed: self.remove.iter().map(step).collect(),
            foreign: Vec::new(),
            journal_error: None,
        }
    }
}

/// Compares the live state with the steps of the description.
fn diff(executor: &mut Executor, before: &[Entry], wanted: &[Step]) -> io::Result<Diff> {
    let mut present: Vec<&Entry> = Vec::new();
    let mut gone: Vec<&Entry> = Vec::new();
    for entry in before {
        let is_wanted = wanted.contains(&entry.step);
        match (executor.presence(entry)?, &entry.step) {
            (Presence::Present, _) if is_wanted => present.push(entry),
            // Making a rule set replaces the previous one.
            (Presence::Partial, Step::Rules(_)) if is_wanted => {}
            (Presence::Present | Presence::Partial, _) => gone.push(entry),
            (Presence::Absent | Presence::Foreign, _) => {}
        }
    }
    let mut diff = Diff { remove: Vec::new(), entries: Vec::new(), make: Vec::new() };
    diff.remove.extend(gone.into_iter().rev().cloned());
    let removed: Vec<Step> = diff.remove.iter().map(|entry| entry.step.clone()).collect();
    let mut bases = removed.clone();
    for (index, step) in wanted.iter().enumerate() {
        let there = present.iter().find(|entry| entry.step == *step);
        let again = bases.iter().any(|base| step.depends_on(base));
        let again = again || removed.iter().any(|gone| step.removed_with(gone));
        match there.filter(|_| !again) {
            Some(entry) => diff.entries.push((*entry).clone()),
            None => {
                // The old process keeps its namespace alive, even if the namespace has lost its name.
                let process = there.filter(|entry| matches!(entry.step, Step::Process(_)));
                diff.remove.extend(process.map(|entry| (*entry).clone()));
                diff.entries.push(Entry { step: step.clone(), identity: Identity::None });
                diff.make.push(index);
                bases.push(step.clone());
            }
        }
    }
    Ok(diff)
}

/// Returns an error if another program uses a name that the lab needs.
fn ensure_names_free(executor: &mut Executor, diff: &Diff, before: &[Entry]) -> Result<(), NetError> {
    let goes = |name: &Name| diff.remove.iter().any(|entry| required_names(&entry.step).contains(name));
    for entry in diff.make.iter().filter_map(|index| diff.entries.get(*index)) {
        for name in required_names(&entry.step) {
            if !goes(&name) && is_taken(executor, &name, before).map_err(|error| permitted(error, NetError::Inspect))? {
                return Err(NetError::Taken(name));
            }
        }
    }
    Ok(())
}

/// Returns an error if the rules conflict with other rule sets or listeners.
fn ensure_rules_allowed(executor: &Executor, diff: &Diff, root_namespace: bool) -> Result<(), NetError> {
    for entry in diff.make.iter().filter_map(|index| diff.entries.get(*index)) {
        let Step::Rules(rules) = &entry.step else { continue };
        let refused = executor
            .with_rule_store(|store| store.check_conflicts(rules, root_namespace))
            .map_err(NetError::Inspect)?;
        refused.unwrap_or(Ok(()))?;
    }
    Ok(())
}

/// Returns the lab's earlier rule set, if the step replaces it.
fn previous_rules<'a>(before: &'a [Entry], step: &Step) -> Option<&'a Entry> {
    let Step::Rules(rules) = step else { return None };
    before.iter().find(|entry| matches!(&entry.step, Step::Rules(known) if known.set == rules.set))
}

fn required_names(step: &Step) -> Vec<Name> {
    match step {
        Step::Namespace(name) => vec![Name::Namespace(name.clone())],
        Step::Bridge(location, link) => vec![Name::Link(location.clone(), link.clone())],
        Step::OvsBridge(link) => vec![Name::Link(Location::HOST, link.clone())],
        Step::Veth(ends) => ends.iter().map(|(location, link)| Name::Link(location.clone(), link.clone())).collect(),
        Step::Route(Location(None), to, via, dev) => vec![Name::Route(*to, *via, dev.clone())],
        _ => Vec::new(),
    }
}

/// Returns true if another program uses the name.
fn is_taken(executor: &mut Executor, name: &Name, before: &[Entry]) -> io::Result<bool> {
    match name {
        Name::Namespace(name) => {
            let step = Step::Namespace(name.clone());
            match before.iter().find(|entry| entry.step == step).map(|entry| &entry.identity) {
                Some(Identity::Namespace(identity)) => named::is_taken(name, Some(identity)),
                _ => named::is_taken(name, None),
            }
        }
        Name::Link(location, link) => executor.has_link(location, link),
        Name::Route(to, via, dev) => {
            let step = Step::Route(Location::HOST, *to, *via, dev.clone());
            let ours = before.iter().any(|entry| entry.step == step);
            Ok(!ours && executor.presence(&Entry { step, identity: Identity::None })? == Presence::Present)
        }
        // `ensure_rules_allowed` checks this, together with conflicts.
        Name::Rules(_) => Ok(false),
    }
}

/// Removes the files of namespaces that were not completed, because their names are needed.
fn remove_leftovers(executor: &mut Executor, before: &[Entry]) -> Result<(), NetError> {
    for entry in before.iter().filter(|entry| matches!(entry.step, Step::Namespace(_))) {
        if executor.presence(entry).map_err(NetError::Inspect)? == Presence::Absent {
            executor.undo(entry).map_err(|error| NetError::Undo(Box::new(entry.step.clone()), error))?;
        }
    }
    Ok(())
}

fn failed(step: &Step, error: io::Error) -> NetError {
    let step = Box::new(step.clone());
    permitted(error, |error| NetError::Step { step, error, left: None })
}

fn execute(executor: &mut Executor, diff: &Diff) -> Result<(), (usize, NetError)> {
    let made = |entry: &&Entry| !diff.is_replaced(entry);
    let done = diff.remove.iter().filter(made).try_for_each(|entry| {
        let taken = executor.undo(entry);
        taken.map(drop).map_err(|error| NetError::Undo(Box::new(entry.step.clone()), error))
    });
    done.map_err(|error| (0, error))?;
    for (count, index) in diff.make.iter().enumerate() {
        let Some(entry) = diff.entries.get(*index) else { continue };
        let made = match entry.identity {
            // An object that depended on an undone step may still exist.
            Identity::None => executor.presence(entry).and_then(|presence| match presence {
                Presence::Present => Ok(()),
                _ => executor.make(entry),
            }),
            _ => executor.make(entry),
        };
        // The failed step may be partly made.
        made.map_err(|error| (count + 1, failed(&entry.step, error)))?;
    }
    Ok(())
}

/// Undoes the steps made before a failure, and restores the previous journal.
fn roll_back(
    executor: &mut Executor,
    diff: &Diff,
    (made, error): (usize, NetError),
    (journals, name, known): (&Journals, &LabName, Option<&Journal>),
) -> NetError {
    let made = diff.make.iter().take(made).filter_map(|index| diff.entries.get(*index));
    let mut left = None;
    for entry in made.rev() {
        let back = match previous_rules(&diff.remove, &entry.step) {
            Some(replaced) => executor.make(replaced).map(|()| true),
            None => executor.undo(entry),
        };
        if let Err(error) = back {
            left.get_or_insert_with(|| format!("{}: {error}", entry.step));
        }
    }
    if left.is_none() {
        let kept = match known {
            Some(known) => journals.write(&known.incomplete()),
            None => journals.remove(name),
        };
        left = kept.err().map(|error| error.to_string());
    }
    match error {
        NetError::Step { step, error, .. } => NetError::Step { step, error, left },
        other => other,
    }
}

/// Undoes every step of a lab. If `dry` is true, it only returns the planned changes.
///
/// # Errors
/// [`NetError::Unknown`] if there is no such lab. [`NetError::Undo`] if a step cannot be undone; the others are.
pub fn down(name: &LabName, journals: &Journals, dry: bool) -> Result<Change, NetError> {
    let lock = journals.lock()?;
    let Some(journal) = journals.read(name)? else {
        // A killed call may have left a partial journal.
        journals.remove(name)?;
        return Err(NetError::Unknown(name.clone()));
    };
    let executor = Executor::new(journal.host.find().map_err(|error| permitted(error, NetError::Inspect))?, journals);
    let mut executor = executor.inherit_lock(&lock).map_err(NetError::Inspect)?;
    let mut change = Change::default();
    let mut present = Vec::new();
    let mut unseen = None;
    for entry in &journal.entries {
        match executor.presence(entry) {
            Ok(Presence::Present | Presence::Partial) => present.push(entry),
            Ok(Presence::Foreign) => change.foreign.push(entry.step.clone()),
            Ok(Presence::Absent) => {}
            // Undo the other steps anyway.
            Err(error) => {
                unseen.get_or_insert(error);
            }
        }
    }
    if let Some(error) = unseen.filter(|error| dry || error.kind() == io::ErrorKind::PermissionDenied) {
        return Err(permitted(error, NetError::Inspect));
    }
    let goes = |entry: &&&Entry| !matches!(entry.step, Step::Up(..) | Step::Checksums(..) | Step::Host(_));
    change.removed = present.iter().rev().filter(goes).map(|entry| entry.step.clone()).collect();
    if dry {
        return Ok(change);
    }
    let mut left = None;
    for entry in journal.entries.iter().rev() {
        if let Err(error) = executor.undo(entry) {
            left.get_or_insert((Box::new(entry.step.clone()), error));
        }
    }
    match left {
        Some((step, error)) => Err(permitted(error, |error| NetError::Undo(step, error))),
        None => journals.remove(name).map(|()| change),
    }
}
