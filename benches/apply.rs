//! Measures how long a program needs to apply all forwards of a file.
//!
//! Compares `portfwd apply` with `nft -f` and with the kernel alone. Only portfwd writes its state to disk and reads
//! the rules back.

use crate::effort::Effort;
use crate::floor;
use crate::host::Host;
use crate::peer::{self, nft};
use crate::race::Race;
use crate::table::{Report, Row, Target};

const APPLY: &str = "portfwd apply";
const TENTH: &str = "portfwd apply, N / 10";
const MAP: &str = "nft -f, a map";
const RULES: &str = "nft -f, one rule each";

/// Compares `portfwd apply` with `nft -f` and with the kernel alone.
pub fn bench(effort: Effort, report: &mut Report) {
    let count = effort.most();
    let rule_set = peer::rule_set(count);
    let mut race = Race::default();
    for (name, rule_set) in [(APPLY, &rule_set), (TENTH, &peer::rule_set(count / 10))] {
        let host = Host::new();
        let file = host.file("bench.toml", rule_set);
        race.enter(name, move || {
            let cost = host.portfwd(&["apply", &file]);
            host.portfwd(&["flush"]);
            cost
        });
    }
    for (name, text) in [(MAP, nft::map(count)), (RULES, nft::rules(count))] {
        let host = Host::new();
        let file = host.file("rival", &text);
        race.enter(name, move || {
            let cost = host.run("nft", &["-f", &file]);
            host.run("nft", &["flush", "ruleset"]);
            cost
        });
    }
    floor::enter(&mut race, &rule_set);
    let results = race.run(&format!("apply/{count}"), effort.loads(count));
    let row = |what, peer| Row::new(what, count, results.of(APPLY), peer, results.of(peer));
    let target = Target { memory: Some(0.5), ..Target::time(0.7) };
    report.rows.push(row("apply", MAP).target(target));
    report.rows.push(row("apply", floor::NAME).target(Target::time(1.5)));
    report.rows.push(row("apply", RULES));
    report.rows.push(row("growth of apply", TENTH).target(Target::time(11.0)));
}
