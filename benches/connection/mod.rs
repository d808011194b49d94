//! What a new connection costs on the way through a host with thousands of forwards, against a host with one forward, and
//! against hosts with the same forwards in others' layouts.
//!
//! A class is an address or none, an interface or none, and a client prefix of some length or none. With thousands of
//! forwards in every class together, connections go through the class that is asked first, one in the middle and the one
//! that is asked last, to the last forwards of each. With thousands of ranges of ports, they go through the last ranges, and
//! with thousands of single ports through the first, the middle and the last. All hosts stand side by side and take turns; a
//! connection is connected and reset (`SO_LINGER` 0).
//!
//! For nftables it is also counted how many rules of the table rewrite destinations: at most one for each class and kind of
//! ports, however many forwards there are. With iptables there is one for each forward, and what counts is how few of
//! them a connection meets.
//!
//! Be aware: the client is in all prefixes, but meets a forward of one class only. A class's misses cost what they cost
//! anybody; the conntrack table is shared by all namespaces, so all sides pay for what it grows by.

mod class;
mod layout;
pub mod net;

use portfwd::iptables::command::Variant;

use crate::effort::Effort;
use crate::host;
use crate::race::{Cost, Race, Results};
use crate::table::{Report, Row, Target};
use class::{OWN, all_singles, classes, last_ranges, one_forward, own_ports, ranges, rule_set, singles, some_singles};
pub use layout::plain_nft;
use net::{CONNECTIONS, Net};

/// The port of the only forward that the other host has.
pub const ONE: u16 = 8080;
/// Connections in one measurement.
const SLICE: u16 = 200;
/// The most ways through one rule set that are measured.
const WAYS: usize = 3;
/// How often each of them can be measured.
const ROUNDS: usize = CONNECTIONS / WAYS / SLICE as usize - 1;

/// The names of the host with one forward, and of the ways through many.
const FEW: &str = "portfwd, N = 1";
const PLACES: [&str; 3] = ["first", "middle", "last"];

/// How many forwards of single ports, as a number of ports.
fn many(effort: Effort) -> u16 {
    u16::try_from(effort.most()).expect("there are 65,535 ports")
}

/// How often each way is measured: a linear one is long.
fn rounds(effort: Effort) -> usize {
    if effort.quick { 9 } else { 41 }
}

/// Measures.
pub fn bench(effort: Effort, report: &mut Report) {
    with_nft(effort, report);
    for variant in Variant::ALL {
        let results = host::with(variant, || with_iptables(variant, effort));
        let backend = format!("iptables-{}", variant.name());
        rows(&results, &backend, effort, 1.3, report);
    }
    with_classes(effort, report);
}

/// A host that loads somebody's rules.
type Loaded<'a> = (&'a str, Net);

/// Ours with one forward and with many, and others with as many, each through the first, the middle and the last.
fn race(id: &str, backend: &str, effort: Effort, others: &[Loaded<'_>]) -> Results {
    let count = many(effort);
    let (one, all) = (Net::new(), Net::new());
    one.apply_with(backend, &one_forward(ONE));
    all.apply_with(backend, &singles(count));
    let mut race = Race::default();
    race.enter(FEW, || Cost::seconds(one.connections(&[ONE], SLICE)));
    let all = [("portfwd", &all)].into_iter().chain(others.iter().map(|(name, net)| (*name, net)));
    for (name, net) in all {
        for (place, first) in PLACES.into_iter().zip([0, count / 2, count - OWN]) {
            let ports = some_singles(count, first);
            race.enter(format!("{name}, {place}"), move || Cost::seconds(net.connections(&ports, SLICE)));
        }
    }
    race.run(&format!("connection/{id}/{count}"), rounds(effort).min(ROUNDS))
}

fn with_nft(effort: Effort, report: &mut Report) {
    let ports = all_singles(many(effort));
    let (docker, crio) = (Net::new(), Net::new());
    docker.load("nft", &["-f"], &layout::docker_nft(ports.clone()));
    crio.load("nft", &["-f"], &layout::crio(ports));
    let results = race("nft", "nft", effort, &[("Docker's nftables", docker), ("CRI-O's two maps", crio)]);
    rows(&results, "nft", effort, 1.1, report);
}

fn with_iptables(variant: Variant, effort: Effort) -> Results {
    let docker = Net::new();
    let rules = layout::docker_iptables(all_singles(many(effort)));
    docker.load(&host::iptables(variant, "-restore"), &["--wait=60"], &rules);
    race(&format!("iptables-{}", variant.name()), "iptables", effort, &[("Docker's chain", docker)])
}

/// Ours with many against ours with one, and against everybody else's same way.
fn rows(results: &Results, backend: &str, effort: Effort, most: f64, report: &mut Report) {
    let count = effort.most();
    for place in PLACES {
        let ours = results.of(&format!("portfwd, {place}"));
        let what = format!("new connection, {backend}, {place}");
        let row = Row::new(&what, count, ours, FEW, results.of(FEW));
        report.rows.push(row.target(Target::time(most)));
        let same = results.but(&[]).filter(|(name, _)| name.ends_with(place) && !name.starts_with("portfwd"));
        for (peer, theirs) in same {
            report.rows.push(Row::new(&what, count, ours, peer, theirs));
        }
    }
}

/// Many classes with many forwards in each, and many ranges.
fn with_classes(effort: Effort, report: &mut Report) {
    let every: Vec<u8> = (0..=32).collect();
    let quick = if effort.quick { 500 } else { 5_000 };
    for (lengths, count) in [(&[8, 16, 24, 32][..], 5_000), (&every, quick)] {
        let classes = classes(lengths);
        let places = [0, classes.len() / 2, classes.len() - 1];
        let ways = places.map(|place| (format!("{} classes, {}", classes.len(), classes[place]), own_ports(place)));
        let forwards = u32::try_from(classes.len()).unwrap_or(0) * u32::from(count);
        measure(&rule_set(&classes, count), forwards, classes.len(), ways.into(), effort, report);
    }
    for count in [1_000, 3_000] {
        let way = ("ranges, last".to_owned(), last_ranges(count));
        // Of a range sent to one port, whole blocks are in one map and the ports around them in another.
        measure(&ranges(count), count.into(), 2, vec![way], effort, report);
    }
}

fn measure(
    rule_set: &str,
    forwards: u32,
    most: usize,
    ways: Vec<(String, Vec<u16>)>,
    effort: Effort,
    report: &mut Report,
) {
    let (one, all) = (Net::new(), Net::new());
    one.apply(&one_forward(ONE));
    all.apply(rule_set);
    let table = all.table();
    let rules = table.lines().filter(|line| line.contains("dnat")).count();
    assert!(rules <= most, "{rules} rules, not {most} at most:\n{table}");
    let mut race = Race::default();
    race.enter(FEW, || Cost::seconds(one.connections(&[ONE], SLICE)));
    for (name, ports) in &ways {
        race.enter(name, || Cost::seconds(all.connections(ports, SLICE)));
    }
    let results = race.run(&format!("connection/nft/{forwards}"), rounds(effort).min(ROUNDS));
    for (name, _) in &ways {
        let what = format!("new connection, {name}");
        let row = Row::new(what, forwards, results.of(name), FEW, results.of(FEW));
        report.rows.push(row.target(Target::time(1.1)));
    }
}
