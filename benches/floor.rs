//! Measures the lower limit for `portfwd apply`: the kernel alone applies the same messages. The bench encodes the
//! messages before the clock starts, and sends them at once.

use std::sync::Arc;
use std::time::Instant;

use portfwd::config;
use portfwd::config::source;
use portfwd::lab::Netns;
use portfwd::model::DesiredState;
use portfwd::nft::compile::compile;
use portfwd::nft::diff::{Changes, diff};
use portfwd::nft::encode::encode;
use portfwd::nft::program::Program;
use portfwd::nft::transaction::Connection;

use crate::race::{Cost, Race};

/// The name of this measurement in the tables.
pub const NAME: &str = "the floor: one send";

/// Adds the kernel alone to a comparison. The kernel adds the forwards of a rule set. The removal of the forwards is
/// not measured.
pub fn enter(race: &mut Race<'_>, rule_set: &str) {
    let namespace = Netns::new().expect("run as root");
    let (none, all) = (Program::default(), program(rule_set));
    let (add, remove) = (diff(&none, &all), diff(&all, &none));
    race.enter(NAME, move || {
        let cost = send(&namespace, &add);
        send(&namespace, &remove);
        cost
    });
}

/// Returns the nftables program of a rule set in TOML.
fn program(rule_set: &str) -> Program {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("floor.toml");
    std::fs::write(&path, rule_set).expect("written");
    let (loaded, problems) = config::load(&Arc::new(source::read(&path).expect("read")));
    assert!(problems.is_empty(), "a valid rule set");
    let loaded = loaded.expect("a rule set");
    let desired = config::merge(DesiredState::default(), std::slice::from_ref(&loaded)).expect("no conflicts");
    compile(&desired).expect("one table")
}

/// Measures a send of changes in one batch, up to the kernel's acknowledgement.
fn send(namespace: &Netns, changes: &Changes) -> Cost {
    let commit = || {
        let mut connection = Connection::open().expect("netlink");
        let generation = connection.generation().expect("the generation");
        let batch = encode(changes, generation);
        let start = Instant::now();
        connection.commit(&batch).expect("committed");
        start.elapsed().as_secs_f64()
    };
    Cost::seconds(namespace.run(commit).expect("the namespace"))
}
