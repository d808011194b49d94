//! Measures how long portfwd needs to add one forward to a host with N forwards, and to remove one forward.
//!
//! portfwd changes the rules in the kernel and its state on disk. The state is in the directory for temporary files.
//! The time includes one fsync(2) to the disk of that directory.

use portfwd::iptables::command::Variant;

use crate::counted;
use crate::effort::Effort;
use crate::host::{Host, iptables};
use crate::peer::{self, nft};
use crate::race::{Cost, Race, Results};
use crate::table::{Report, Row, Target};

const ADD: &str = "portfwd add";
const AFTER: &str = "portfwd add, after another program committed";
const TRACKED: &str = "portfwd add, 200,000 connections tracked";
const REMOVE: &str = "portfwd rm";
const ELEMENT: &str = "nft add element";

/// The first port that a bench adds. [`one_more`] removes no forward, because a removal reads every element and leaves
/// other data in the processor's caches.
const FIRST: u32 = 61_000;

/// The number of conntrack entries for the bench [`TRACKED`].
const ENTRIES: u32 = 200_000;

/// Compares `portfwd add` with `nft add element` and with the crate `iptables`, and `portfwd rm` with `portfwd add`.
pub fn bench(effort: Effort, report: &mut Report) {
    for count in effort.numbers() {
        let results = one_more(count, effort);
        let row = |what, own, peer, limit| {
            Row::new(what, count, results.of(own), peer, results.of(peer)).target(Target::time(limit))
        };
        report.rows.push(row("one more forward", ADD, ELEMENT, 1.5));
        report.rows.push(row("one more forward, after another program committed", AFTER, ELEMENT, 2.0));
        if count == effort.most() {
            report.rows.push(row("one more forward, 200,000 conntrack entries", TRACKED, ADD, 2.0));
        }
        counts(count, report);
    }
    let count = effort.most();
    let results = one_less(count, effort);
    let row = Row::new("removing one", count, results.of(REMOVE), ADD, results.of(ADD));
    report.rows.push(row.target(Target::time(1.5)));
    let results = one_process(count, effort);
    for (peer, theirs) in results.but(&[ADD]) {
        report.rows.push(Row::new("one more forward", count, results.of(ADD), peer, theirs));
    }
}

/// Makes a host with `count` forwards.
fn busy(count: u32) -> Host {
    let host = Host::new();
    host.portfwd(&["apply", &host.file("bench.toml", &peer::rule_set(count))]);
    host
}

/// Returns a function that runs `before` and then measures the addition of one forward.
fn adding(host: Host, before: impl Fn(&Host)) -> impl FnMut() -> Cost {
    let mut ports = FIRST..;
    move || {
        before(&host);
        add(&host, ports.next().unwrap_or(FIRST))
    }
}

fn add(host: &Host, port: u32) -> Cost {
    host.portfwd(&["add", &port.to_string(), "10.9.9.9:80"])
}

/// Increases the generation of the ruleset, as a commit of another program does.
fn commit(host: &Host) {
    host.run("nft", &["add table inet another; delete table inet another"]);
}

fn one_more(count: u32, effort: Effort) -> Results {
    let mut race = Race::default();
    race.enter(ADD, adding(busy(count), |_| ()));
    race.enter(AFTER, adding(busy(count), commit));
    if count == effort.most() {
        let host = busy(count);
        host.track(ENTRIES);
        race.enter(TRACKED, adding(host, |_| ()));
    }
    let map = Host::new();
    map.run("nft", &["-f", &map.file("rival", &nft::map(count))]);
    let mut ports = FIRST..;
    race.enter(ELEMENT, move || {
        let add = format!("{{ {} }}", nft::element(ports.next().unwrap_or(FIRST)));
        map.run("nft", &["add", "element", "inet", nft::TABLE, "m", &add])
    });
    race.run(&format!("add/{count}"), effort.small())
}

/// Counts the fsyncs and the nf_tables requests of `portfwd add`.
fn counts(count: u32, report: &mut Report) {
    let host = busy(count);
    add(&host, FIRST);
    for (port, what) in
        [(FIRST + 1, "one more forward"), (FIRST + 2, "one more forward, after another program committed")]
    {
        let counted = counted::run(&host, &["add", &port.to_string(), "10.9.9.9:80"]);
        report.counts.push((format!("{what}: fsyncs"), count, counted.fsyncs, 1));
        report.counts.push((format!("{what}: nf_tables requests"), count, counted.requests, 3));
        commit(&host);
    }
}

fn one_less(count: u32, effort: Effort) -> Results {
    let (adds, removes) = (busy(count), busy(count));
    let remove = |host: &Host| host.portfwd(&["rm", &FIRST.to_string()]);
    let mut race = Race::default();
    race.enter(ADD, || {
        let cost = add(&adds, FIRST);
        remove(&adds);
        cost
    });
    race.enter(REMOVE, || {
        add(&removes, FIRST);
        remove(&removes)
    });
    race.run(&format!("rm/{count}"), effort.loads(count))
}

/// Compares `portfwd add` with the crate `iptables`, which starts one process for each rule.
fn one_process(count: u32, effort: Effort) -> Results {
    let mut race = Race::default();
    race.enter(ADD, adding(busy(count), |_| ()));
    for variant in Variant::ALL {
        let host = Host::new();
        let rules = host.file("rival", &peer::iptables::rules(count));
        host.run(&iptables(variant, "-restore"), &["--wait=60", "--noflush", &rules]);
        let mut ports = FIRST..;
        race.enter(format!("crate iptables, iptables-{}", variant.name()), move || {
            peer::iptables::append(&host, variant, ports.next().unwrap_or(FIRST))
        });
    }
    race.run(&format!("add/iptables/{count}"), effort.loads(count))
}
