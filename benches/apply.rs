//! All forwards from a file: `portfwd apply` of TOML compared with what else loads as many, and with the kernel alone.
//!
//! Ours also keeps its state on disk and reads the kernel again to check.

use portfwd::iptables::command::Variant;

use crate::chart::Panel;
use crate::effort::Effort;
use crate::floor;
use crate::host::{self, Host, iptables};
use crate::peer::{self, nft};
use crate::race::{Cost, Race, Results};
use crate::table::{Report, Row, Target};

const OURS: &str = "portfwd apply";
const TENTH: &str = "portfwd apply, N / 10";
/// The fastest of the others.
pub const MAP: &str = "nft -f, a map";

/// Measures.
pub fn bench(effort: Effort, report: &mut Report) {
    let mut panel = Panel::new("apply: all forwards, whole process");
    for count in effort.numbers() {
        let results = with_nft(*count, effort);
        for (name, samples) in results.but(&[TENTH]) {
            panel.point(name, *count, samples.seconds());
        }
        rows(*count, effort, &results, report);
    }
    report.panels.push(panel);
    for variant in Variant::ALL {
        let count = effort.most();
        let results = host::with(variant, || with_iptables(variant, count, effort.loads(count)));
        report.against_all("apply, iptables backend", count, OURS_IPTABLES, &results, &[]);
    }
}

fn rows(count: u32, effort: Effort, results: &Results, report: &mut Report) {
    let (ours, floor) = (results.of(OURS), results.of(floor::NAME));
    if count == effort.most() {
        let most = Target { time: Some(0.4), memory: Some(0.5), towards: Some(1.5), ..Target::default() };
        report.rows.push(Row::new("apply", count, ours, MAP, results.of(MAP)).floor(ours, floor).target(most));
        for (peer, theirs) in results.but(&[OURS, TENTH, MAP, floor::NAME]) {
            report.rows.push(Row::new("apply", count, ours, peer, theirs).floor(ours, floor).target(Target::time(1.0)));
        }
        let row = Row::new("growth of apply", count, ours, TENTH, results.of(TENTH));
        report.rows.push(row.target(Target::time(11.0)));
    } else if count == 1 {
        report.rows.push(Row::new("apply", count, ours, MAP, results.of(MAP)).floor(ours, floor));
    }
}

fn with_nft(count: u32, effort: Effort) -> Results {
    let mut race = Race::default();
    let rule_set = peer::rule_set(count);
    enter_ours(&mut race, OURS, &rule_set);
    if count == effort.most() {
        enter_ours(&mut race, TENTH, &peer::rule_set(count / 10));
    }
    let texts = [
        (MAP, &["-f"][..], nft::map(count)),
        ("nft -f, one rule each", &["-f"], nft::rules(count)),
        ("nft -j -f, one rule each", &["-j", "-f"], nft::json(count)),
    ];
    for (name, arguments, text) in texts {
        let host = Host::new();
        let file = host.file("rival", &text);
        race.enter(name, move || {
            let cost = host.run("nft", &[arguments, &[&file]].concat());
            host.run("nft", &["flush", "ruleset"]);
            cost
        });
    }
    for variant in Variant::ALL {
        let host = Host::new();
        let file = host.file("rival", &peer::iptables::rules(count));
        race.enter(format!("iptables-{}-restore", variant.name()), move || restore(&host, variant, &file));
    }
    floor::enter(&mut race, "", &rule_set);
    race.run(&format!("apply/nft/{count}"), effort.loads(count))
}

/// Applies a rule set and removes it.
fn enter_ours(race: &mut Race<'_>, name: &str, rule_set: &str) {
    let host = Host::new();
    let file = host.file("bench.toml", rule_set);
    race.enter(name, move || {
        let cost = host.portfwd(&["apply", &file]);
        host.portfwd(&["flush"]);
        cost
    });
}

/// Loads rules and removes them.
fn restore(host: &Host, variant: Variant, file: &str) -> Cost {
    let cost = host.run(&iptables(variant, "-restore"), &["--wait=60", "--noflush", file]);
    for job in ["-F", "-X"] {
        host.run(&iptables(variant, ""), &["-w", "-t", "nat", job]);
    }
    cost
}

const OURS_IPTABLES: &str = "portfwd --backend iptables apply";

fn with_iptables(variant: Variant, count: u32, rounds: usize) -> Results {
    let (ours, theirs) = (Host::new(), Host::new());
    let set = ours.file("bench.toml", &peer::rule_set(count));
    let file = theirs.file("rival", &peer::iptables::rules(count));
    let mut race = Race::default();
    race.enter(OURS_IPTABLES, || {
        let cost = ours.portfwd(&["--backend", "iptables", "apply", &set]);
        ours.portfwd(&["--backend", "iptables", "flush"]);
        cost
    });
    race.enter(format!("iptables-{}-restore", variant.name()), || restore(&theirs, variant, &file));
    race.run(&format!("apply/iptables-{}/{count}", variant.name()), rounds)
}
