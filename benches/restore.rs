//! All forwards back from the state that is kept, as at boot, compared with loading them from a script.

use crate::apply::MAP;
use crate::effort::Effort;
use crate::floor;
use crate::host::Host;
use crate::peer::{self, nft};
use crate::race::Race;
use crate::table::{Report, Row, Target};

const OURS: &str = "portfwd restore";

/// Measures.
pub fn bench(effort: Effort, report: &mut Report) {
    let count = effort.most();
    let (ours, map) = (Host::new(), Host::new());
    let rule_set = peer::rule_set(count);
    ours.portfwd(&["apply", &ours.file("bench.toml", &rule_set)]);
    let mut race = Race::default();
    race.enter(OURS, move || {
        ours.run("nft", &["flush", "ruleset"]);
        ours.portfwd(&["restore"])
    });
    let file = map.file("rival", &nft::map(count));
    race.enter(MAP, move || {
        map.run("nft", &["flush", "ruleset"]);
        map.run("nft", &["-f", &file])
    });
    floor::enter(&mut race, "", &rule_set);
    let results = race.run(&format!("restore/{count}"), effort.loads(count));
    let row = Row::new("restore", count, results.of(OURS), MAP, results.of(MAP));
    report.rows.push(row.floor(results.of(OURS), results.of(floor::NAME)).target(Target::time(1.0)));
}
