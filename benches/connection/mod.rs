//! What a new connection costs on the way through a host with thousands of forwards, against a host with one forward.
//!
//! A class is an address or none, an interface or none, and a client prefix of some length or none. With thousands of
//! forwards in every class together, connections go through the class that is asked first, one in the middle and the one
//! that is asked last, to the last forwards of each. With thousands of ranges of ports, they go through the last ranges.
//! Both hosts stand side by side and take turns; a connection is connected and reset (`SO_LINGER` 0).
//!
//! Prints the medians of the slices, their ratio, and for nftables how many rules of the table rewrite destinations: at most
//! one for each class and kind of ports, however many forwards there are. With iptables there is one for each forward, and
//! what counts is how few of them a connection meets.
//!
//! Be aware: the client is in all prefixes, but meets a forward of one class only. A class's misses cost what they cost
//! anybody; the conntrack table is shared by all namespaces, so both sides pay for what it grows by.

mod class;
mod net;

use portfwd::iptables::command::Variant;

use crate::median;
use class::{classes, last_ranges, last_singles, one_forward, own_ports, ranges, rule_set, singles};
use net::{CONNECTIONS, Net};

/// The port of the only forward that the other host has.
const ONE: u16 = 8080;
/// Connections in one measurement.
const SLICE: u16 = 200;
/// The most ways through one rule set that are measured.
const WAYS: usize = 3;
/// How often each of them is measured.
const ROUNDS: usize = CONNECTIONS / WAYS / SLICE as usize;

/// A way through a rule set.
struct Way {
    name: String,
    /// The words of its class.
    class: String,
    ports: Vec<u16>,
}

/// Measures and prints.
pub fn bench(quick: bool) {
    println!(
        "{:<34} {:<24} {:>8} {:>6} {:>9} {:>9} {:>6}",
        "connection/nft/…/N", "class", "forwards", "rules", "one (µs)", "all (µs)", "ratio"
    );
    let rounds = if quick { ROUNDS / 5 } else { ROUNDS };
    let every: Vec<u8> = (0..=32).collect();
    for (lengths, count) in [(&[8, 16, 24, 32][..], 5_000), (&every, if quick { 500 } else { 5_000 })] {
        let classes = classes(lengths);
        let places = [("first", 0), ("middle", classes.len() / 2), ("last", classes.len() - 1)];
        let ways = places.map(|(name, place)| Way {
            name: format!("connection/nft/classes/{}/{name}", classes.len()),
            class: classes[place].to_string(),
            ports: own_ports(place),
        });
        measure(&rule_set(&classes, count), classes.len() * usize::from(count), classes.len(), ways.into(), rounds);
    }
    for variant in Variant::ALL {
        crate::host::with(variant, || with_iptables(variant, rounds));
    }
    for count in [1, 1_000, 3_000] {
        let name = format!("connection/nft/ranges/{count}");
        let way = Way { name, class: "-".into(), ports: last_ranges(count) };
        // Of a range sent to one port, whole blocks are in one map and the ports around them in another.
        measure(&ranges(count), usize::from(count), 2, vec![way], rounds);
    }
}

/// Connections through the last of many forwards of single ports, with a variant of iptables on both hosts.
fn with_iptables(variant: Variant, rounds: usize) {
    for count in [1, 6_000, 60_000] {
        let (mut one, mut all) = (Net::new(), Net::new());
        one.apply_with("iptables", &one_forward(ONE));
        all.apply_with("iptables", &singles(count));
        let name = format!("connection/iptables-{}/{count}", variant.name());
        let way = Way { name, class: "-".into(), ports: last_singles(count) };
        compare(&mut one, &mut all, usize::from(count), None, vec![way], rounds);
    }
}

fn measure(rule_set: &str, forwards: usize, most: usize, ways: Vec<Way>, rounds: usize) {
    let (mut one, mut all) = (Net::new(), Net::new());
    one.apply(&one_forward(ONE));
    all.apply(rule_set);
    let table = all.table();
    let rules = table.lines().filter(|line| line.contains("dnat")).count();
    assert!(rules <= most, "{rules} rules, not {most} at most:\n{table}");
    compare(&mut one, &mut all, forwards, Some(rules), ways, rounds);
}

fn compare(one: &mut Net, all: &mut Net, forwards: usize, rules: Option<usize>, ways: Vec<Way>, rounds: usize) {
    let rules = rules.map_or_else(|| "-".to_owned(), |rules| rules.to_string());
    let mut slices: Vec<_> = ways.into_iter().map(|way| (way, Vec::new(), Vec::new())).collect();
    for _ in 0..rounds {
        for (way, of_one, of_all) in &mut slices {
            of_one.push(one.connections(&[ONE], SLICE));
            of_all.push(all.connections(&way.ports, SLICE));
        }
    }
    for (Way { name, class, .. }, of_one, of_all) in slices {
        let (of_one, of_all) = (median(of_one), median(of_all));
        let ratio = of_all / of_one;
        let (of_one, of_all) = (of_one * 1e6, of_all * 1e6);
        println!("{name:<34} {class:<24} {forwards:>8} {rules:>6} {of_one:>9.2} {of_all:>9.2} {ratio:>6.3}");
    }
}
