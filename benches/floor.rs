//! The floor: what the kernel alone needs for the messages that a command sends, encoded beforehand and sent at once.

use std::sync::Arc;
use std::time::Instant;

use portfwd::config;
use portfwd::config::source;
use portfwd::lab::Netns;
use portfwd::model::Asked;
use portfwd::nft::compile::compile;
use portfwd::nft::diff::{Changes, diff};
use portfwd::nft::encode::encode;
use portfwd::nft::program::Program;
use portfwd::nft::transaction::Connection;

use crate::race::{Cost, Race};

/// What the contender is called.
pub const NAME: &str = "the floor: one send";

/// Enters the kernel alone into a race: it goes from the forwards of one rule set to those of another, and back when the clock
/// stands.
pub fn enter(race: &mut Race<'_>, before: &str, after: &str) {
    let namespace = Netns::new().expect("run as root");
    let (before, after) = (program(before), program(after));
    send(&namespace, &diff(&Program::default(), &before));
    let (come, go) = (diff(&before, &after), diff(&after, &before));
    race.enter(NAME, move || {
        let cost = send(&namespace, &come);
        send(&namespace, &go);
        cost
    });
}

/// What a rule set compiles to.
fn program(rule_set: &str) -> Program {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("floor.toml");
    std::fs::write(&path, rule_set).expect("written");
    let (loaded, problems) = config::load(&Arc::new(source::read(&path).expect("read")));
    assert!(problems.is_empty(), "a valid rule set");
    let loaded = loaded.expect("a rule set");
    let asked = config::union(Asked::default(), std::slice::from_ref(&loaded)).expect("no conflicts");
    compile(&asked).expect("one table")
}

/// Sends changes in one batch and waits for the kernel's acknowledgement; the time begins with the send.
fn send(namespace: &Netns, changes: &Changes) -> Cost {
    let commit = || {
        if changes.is_empty() {
            return 0.0;
        }
        let mut connection = Connection::open().expect("netlink");
        let generation = connection.generation().expect("the generation");
        let batch = encode(changes, generation);
        let start = Instant::now();
        connection.commit(&batch).expect("committed");
        start.elapsed().as_secs_f64()
    };
    Cost::seconds(namespace.run(commit).expect("the namespace"))
}
