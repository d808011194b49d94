//! Measures a new connection through the last of N forwards, and compares it with one through a single forward.
//!
//! Each rule set has its own client, host and target. The rule sets take turns. The client opens each connection and
//! resets it (`SO_LINGER` 0).
//!
//! Be aware: all namespaces share the conntrack table. Its growth slows all measurements down.

mod forwards;
mod net;

use portfwd::iptables::command::Variant;

use crate::effort::Effort;
use crate::host;
use crate::race::{Cost, Race, Results};
use crate::table::{Report, Row, Target};
use forwards::{Forwards, classes, one, ranges, rules, singles};
use net::Net;

/// The number of connections in one measurement.
const TURN: u16 = 200;

const ONE: &str = "portfwd, N = 1";
const LAST: &str = "the last forward";
const RULES: &str = "nft, one rule each";

/// Compares the last of N forwards with a single forward, for nftables and both variants of iptables.
pub fn bench(effort: Effort, report: &mut Report) {
    let count = effort.most();
    let few = if effort.quick { 300 } else { 5_000 };
    let sets = [
        (LAST, singles(ports(effort)), count),
        ("twenty classes", classes(few), 20 * u32::from(few)),
        ("ranges", ranges(3_000), 3_000),
    ];
    let rival = Net::new();
    rival.load(&rules(ports(effort)));
    let results = race("nft", &sets, Some(&rival), effort);
    for (name, _, count) in &sets {
        let what = format!("new connection, nft, {name}");
        let row = Row::new(what, *count, results.of(name), ONE, results.of(ONE));
        report.rows.push(row.target(Target::time(1.1)));
    }
    let what = format!("new connection, nft, {LAST}");
    report.rows.push(Row::new(what, count, results.of(LAST), RULES, results.of(RULES)));
    for variant in Variant::ALL {
        let sets = [(LAST, singles(ports(effort)), count)];
        let results = host::with(variant, || race("iptables", &sets, None, effort));
        let what = format!("new connection, iptables-{}, {LAST}", variant.name());
        let row = Row::new(what, count, results.of(LAST), ONE, results.of(ONE));
        report.rows.push(row.target(Target::time(1.3)));
    }
}

/// Returns the largest number of forwards as a `u16`.
fn ports(effort: Effort) -> u16 {
    u16::try_from(effort.most()).expect("there are 65,535 ports")
}

/// Measures connections through each rule set and through a single forward. `rival` is a network with one nft(8) rule
/// for each forward of the first rule set.
fn race(backend: &str, sets: &[(&str, Forwards, u32)], rival: Option<&Net>, effort: Effort) -> Results {
    let one = one();
    let mut race = Race::default();
    let all = [(ONE, &one)].into_iter().chain(sets.iter().map(|(name, set, _)| (*name, set)));
    for (name, set) in all {
        let net = Net::new();
        net.apply(backend, &set.text);
        race.enter(name, move || Cost::seconds(net.connections(&set.last, TURN)));
    }
    if let (Some(net), [(_, set, _), ..]) = (rival, sets) {
        race.enter(RULES, || Cost::seconds(net.connections(&set.last, TURN)));
    }
    race.run(&format!("connection/{backend}"), if effort.quick { 9 } else { 41 })
}
