//! Refuses new forwards that take the port of a local service or of the user's SSH connection, unless the user gives `--force`.
//!
//! This module reads the state, the listening sockets and the environment. It changes nothing.

use std::collections::{HashMap, HashSet};

use super::{Failure, Global, Output};
use crate::config::{Loaded, Location, Problem, ProblemKind};
use crate::engine::Engine;
use crate::engine::guard::{self, Interfaces, Taking};
use crate::model::error::printable;
use crate::model::{Binding, DesiredState};
use crate::store::State;
use crate::sys::sockets::{self, Owner};
use crate::sys::ssh::Ssh;

/// The most forwards that an error names, and the most sockets that it names for each forward.
const MAX_NAMED: usize = 5;

/// Fails if a forward of `after` takes a port that is in use, unless a forward of the current state already takes this
/// port. `sets` are the rule-set files to show in errors.
///
/// # Errors
/// Returns [`Failure::Taken`] with the refused forwards.
pub fn check(
    engine: &mut Engine,
    after: &mut State,
    sets: &[Loaded],
    global: &Global,
    output: &mut Output<'_>,
) -> anyhow::Result<()> {
    let refused = check_loaded(engine, &after.desired, sets, global, output);
    if refused.is_err() && engine.is_partial() {
        // A forward outside of the loaded part may already take the port, so the check needs the whole state.
        engine.load_full(after)?;
        return check_loaded(engine, &after.desired, sets, global, output);
    }
    refused
}

/// Does the check of [`check`] on the loaded part of the state.
fn check_loaded(
    engine: &Engine,
    after: &DesiredState,
    sets: &[Loaded],
    global: &Global,
    output: &mut Output<'_>,
) -> anyhow::Result<()> {
    let sockets = match sockets::waiting(&guard::protocols(after)) {
        Ok(sockets) => sockets,
        Err(error) => {
            writeln!(output.stderr, "note: cannot read which ports are in use: {error}")?;
            Vec::new()
        }
    };
    // The SSH connection is in the namespace that portfwd was started in, not in that of `--netns`.
    let ssh = if global.netns.is_none() { std::env::var("SSH_CONNECTION").ok() } else { None };
    let ssh = ssh.and_then(|text| Ssh::parse(&text));
    let takings = guard::takings(&engine.state().desired, after, &sockets, ssh, &Interfaces::read(after, ssh));
    if takings.is_empty() {
        return Ok(());
    }
    let shown = takings.get(..MAX_NAMED).unwrap_or(&takings);
    let inodes: HashSet<u32> = shown.iter().flat_map(|taking| &taking.sockets).map(|socket| socket.inode).collect();
    let owners = sockets::owners(&inodes);
    let problems = shown.iter().map(|taking| problem(taking, &owners, sets)).collect();
    Err(Failure::Taken { problems, all: takings.len() }.into())
}

fn problem(taking: &Taking<'_>, owners: &HashMap<u32, Owner>, sets: &[Loaded]) -> Problem {
    let owner = |inode| match owners.get(&inode) {
        Some(owner) => format!("{}, process {}", printable(&owner.name), owner.process),
        None => "another process".into(),
    };
    let mut texts: Vec<String> =
        taking.sockets.iter().map(|socket| format!("`{socket}` ({})", owner(socket.inode))).collect();
    // A process may have several sockets at one port (SO_REUSEPORT).
    texts.dedup();
    let mut what = texts.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if texts.len() > MAX_NAMED {
        what += &format!(" and {} more", texts.len() - MAX_NAMED);
    }
    if !what.is_empty() {
        what.insert_str(0, "the port of ");
    }
    if let Some(Ssh { client, server }) = taking.ssh {
        let and = if what.is_empty() { "" } else { ", and " };
        what += &format!("{and}your SSH connection from {client} to {server}");
    }
    let help = match taking.ssh {
        Some(_) => "choose another port, or use `--force`",
        None => "stop the service, choose another port, or use `--force`",
    };
    Problem {
        kind: ProblemKind::Conflict,
        what: format!("`{}` would take {what}", taking.binding),
        location: place(taking.binding, sets),
        related: None,
        help: help.into(),
    }
}

/// Returns the position of a binding in the rule-set files.
fn place(binding: &Binding, sets: &[Loaded]) -> Option<Location> {
    let mut forwards = sets.iter().flat_map(|loaded| loaded.set.forwards.iter().zip(&loaded.forwards));
    let has_binding = |bindings: Vec<Binding>| bindings.contains(binding);
    forwards.find(|(forward, _)| forward.bindings().is_ok_and(has_binding)).map(|(_, place)| place.clone())
}
