//! Refusing new forwards that would take what reaches a socket of this host today, or the ssh connection that the user is
//! on, unless that is wanted (`--force`). Looks at state, sockets and environment; nothing is changed.

use std::collections::{HashMap, HashSet};

use super::{Failure, Global, Output};
use crate::config::{Loaded, Location, Problem, ProblemKind};
use crate::engine::Engine;
use crate::engine::guard::{self, Ssh, Taking};
use crate::model::error::printable;
use crate::model::{Asked, Binding};
use crate::store::State;
use crate::sys::sockets::{self, Owner};

/// How many forwards, and of each how many sockets, are named at most.
const NAMED: usize = 5;

/// Refuses `after` where a forward in it takes something that those of the engine's state do not. `sets` are the files at
/// hand, to show where it is written.
pub fn check(
    engine: &mut Engine,
    after: &mut State,
    sets: &[Loaded],
    global: &Global,
    output: &mut Output<'_>,
) -> anyhow::Result<()> {
    let refused = seen(engine, &after.asked, sets, global, output);
    if refused.is_err() && engine.is_partial() {
        // Another forward, which was not seen, may take it already.
        engine.load_full(after)?;
        return seen(engine, &after.asked, sets, global, output);
    }
    refused
}

/// The same, as far as the engine sees.
fn seen(
    engine: &Engine,
    after: &Asked,
    sets: &[Loaded],
    global: &Global,
    output: &mut Output<'_>,
) -> anyhow::Result<()> {
    let sockets = match sockets::waiting(&guard::protocols(after)) {
        Ok(sockets) => sockets,
        Err(error) => {
            writeln!(output.stderr, "note: the kernel does not say which ports are in use: {error}")?;
            Vec::new()
        }
    };
    // The connection was made to the namespace that the program was started in.
    let ssh = if global.netns.is_none() { std::env::var("SSH_CONNECTION").ok() } else { None };
    let ssh = ssh.and_then(|text| Ssh::parse(&text));
    let takings = guard::takings(&engine.state().asked, after, &sockets, ssh);
    if takings.is_empty() {
        return Ok(());
    }
    let shown = takings.get(..NAMED).unwrap_or(&takings);
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
    // Several sockets may share a port, for their process to have several queues.
    texts.dedup();
    let mut what = texts.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if texts.len() > NAMED {
        what += &format!(" and {} more", texts.len() - NAMED);
    }
    if !what.is_empty() {
        what.insert_str(0, "the port of ");
    }
    if let Some(Ssh { client, server }) = taking.ssh {
        let and = if what.is_empty() { "" } else { ", and " };
        what += &format!("{and}the ssh connection that you are on, from {client} to {server}");
    }
    let help = match taking.ssh {
        Some(_) => "choose another port, or say `--force`",
        None => "stop it, choose another port, or say `--force`",
    };
    Problem {
        kind: ProblemKind::Conflict,
        what: format!("`{}` would take {what}", taking.binding),
        location: place(taking.binding, sets),
        related: None,
        help: help.into(),
    }
}

/// Where a forward is written.
fn place(binding: &Binding, sets: &[Loaded]) -> Option<Location> {
    let mut forwards = sets.iter().flat_map(|loaded| loaded.set.forwards.iter().zip(&loaded.forwards));
    let of = |bindings: Vec<Binding>| bindings.contains(binding);
    forwards.find(|(forward, _)| forward.bindings().is_ok_and(of)).map(|(_, place)| place.clone())
}
