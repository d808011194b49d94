//! One more forward, live and durable, compared with one more of others', which is live.
//!
//! The state is in the directory for temporary files, so what it costs to wait for that disk is a part of it; in a race of its own
//! it is in memory, which says how much that is.

use portfwd::iptables::command::Variant;

use crate::chart::Panel;
use crate::effort::Effort;
use crate::floor;
use crate::host::{self, Host, iptables};
use crate::peer::{self, nft, portmap};
use crate::race::{Cost, Race, Results};
use crate::table::{Report, Row, Target};

const OURS: &str = "portfwd add";
const ELEMENT: &str = "nft add element";

/// The port of the floor, and before the first of those that come one after the other: nobody removes any, which would have
/// everything read, and leave the processor's caches to that.
const PORT: u32 = 61_000;

/// Measures.
pub fn bench(effort: Effort, report: &mut Report) {
    let mut panel = Panel::new("add: one more forward, whole process");
    for count in effort.numbers() {
        let results = one_more(*count, effort.small());
        let appended = appended(*count, effort.loads(*count));
        for (name, samples) in results.but(&[]).chain(appended.but(&[OURS])) {
            panel.point(name, *count, samples.seconds());
        }
        let (ours, floor) = (results.of(OURS), results.of(floor::NAME));
        let row = Row::new("one more forward", *count, ours, ELEMENT, results.of(ELEMENT));
        report.rows.push(row.floor(ours, floor).target(Target::time(1.0)));
        if *count == effort.most() {
            if let Some(memory) = Host::in_memory() {
                let results = in_memory(memory, *count, effort.small());
                let what = "one more forward, state in memory";
                report.rows.push(Row::new(what, *count, results.of(OURS), ELEMENT, results.of(ELEMENT)));
            }
            for (peer, theirs) in appended.but(&[OURS]) {
                let row = Row::new("one more forward", *count, appended.of(OURS), peer, theirs);
                report.rows.push(row.target(Target::time(1.0)));
            }
        }
    }
    match portmap::program() {
        Some(program) => with_portmap(program, effort, report, &mut panel),
        None => println!("SKIPPED: CNI portmap is neither in /opt/cni/bin nor in /usr/lib/cni"),
    }
    report.panels.push(panel);
}

/// One more element, where there are so many. Whoever is twice in a race finds its own program in the processor's caches more
/// often than others, so nobody is.
fn one_more(count: u32, rounds: usize) -> Results {
    let mut race = Race::default();
    enter(&mut race, Host::new(), count);
    let (before, port) = (peer::rule_set(count), PORT);
    let after = format!("{before}[[forward]]\nlisten = \"{port}\"\nto = \"10.9.9.9:80\"\n");
    floor::enter(&mut race, &before, &after);
    race.run(&format!("add/{count}"), rounds)
}

/// The same without a disk to wait for.
fn in_memory(ours: Host, count: u32, rounds: usize) -> Results {
    let mut race = Race::default();
    enter(&mut race, ours, count);
    race.run(&format!("add/memory/{count}"), rounds)
}

fn enter(race: &mut Race<'_>, ours: Host, count: u32) {
    ours.portfwd(&["apply", &ours.file("bench.toml", &peer::rule_set(count))]);
    race.enter(OURS, adding(ours));
    let map = Host::new();
    map.run("nft", &["-f", &map.file("rival", &nft::map(count))]);
    let mut ports = PORT + 1..;
    race.enter(ELEMENT, move || {
        let add = format!("{{ {} }}", nft::element(ports.next().unwrap_or(PORT)));
        map.run("nft", &["add", "element", "inet", nft::TABLE, "m", &add])
    });
}

/// One more rule, where there are so many. These take so much memory that they are kept apart from those that take little.
fn appended(count: u32, rounds: usize) -> Results {
    let mut race = Race::default();
    let ours = Host::new();
    ours.portfwd(&["apply", &ours.file("bench.toml", &peer::rule_set(count))]);
    race.enter(OURS, adding(ours));
    for variant in Variant::ALL {
        let host = Host::new();
        host.run(
            &iptables(variant, "-restore"),
            &["--wait=60", "--noflush", &host.file("rival", &peer::iptables::rules(count))],
        );
        let mut ports = PORT + 1..;
        race.enter(format!("iptables-{} -A", variant.name()), move || {
            let rule = peer::iptables::rule("-A", ports.next().unwrap_or(PORT));
            host.run(&iptables(variant, ""), &rule.iter().map(String::as_str).collect::<Vec<_>>())
        });
    }
    race.run(&format!("add/iptables/{count}"), rounds)
}

/// Adds a forward each time.
fn adding(host: Host) -> impl FnMut() -> Cost {
    let mut ports = PORT + 1..;
    move || host.portfwd(&["add", &ports.next().unwrap_or(PORT).to_string(), "10.9.9.9:80"])
}

/// The plugin runs `iptables` many times for each port, and each of them reads everything, so it has few turns, and not at
/// more than this.
const PORTMAP_MOST: u32 = 6_000;

fn with_portmap(program: &'static str, effort: Effort, report: &mut Report, panel: &mut Panel) {
    for variant in Variant::ALL {
        let name = format!("CNI portmap, iptables-{}", variant.name());
        let most = PORTMAP_MOST.min(effort.most() / if effort.quick { 10 } else { 1 });
        for count in effort.numbers().iter().filter(|count| **count <= most) {
            let race = || {
                let (ours, theirs) = (Host::new(), Host::new());
                ours.portfwd(&["apply", &ours.file("bench.toml", &peer::rule_set(*count))]);
                let layout = theirs.file("rival", &portmap::layout(*count));
                theirs.run(&iptables(variant, "-restore"), &["--wait=60", "--noflush", &layout]);
                let mut race = Race::default();
                race.enter(OURS, adding(ours));
                race.enter(name.clone(), || {
                    let cost = portmap::call(&theirs.namespace, program, "ADD", PORT);
                    portmap::call(&theirs.namespace, program, "DEL", PORT);
                    cost
                });
                race.run(&format!("add/portmap-{}/{count}", variant.name()), effort.loads(*count).min(5))
            };
            let results = host::with(variant, race);
            panel.point(&name, *count, results.of(&name).seconds());
            if *count == most {
                let row = Row::new("one more forward", *count, results.of(OURS), name.clone(), results.of(&name));
                report.rows.push(row.target(Target::time(1.0)));
            }
        }
    }
}
