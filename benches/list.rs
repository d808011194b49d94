//! Measures a list of all forwards with their counters, as JSON.

use crate::effort::Effort;
use crate::host::Host;
use crate::peer::{self, nft};
use crate::race::Race;
use crate::table::{Report, Row, Target};

const LIST: &str = "portfwd list --json";
const NFT: &str = "nft -j list ruleset";

/// Compares `portfwd list --json` with `nft -j list ruleset`.
pub fn bench(effort: Effort, report: &mut Report) {
    let (count, host, map) = (effort.most(), Host::new(), Host::new());
    host.portfwd(&["apply", &host.file("bench.toml", &peer::rule_set(count))]);
    map.run("nft", &["-f", &map.file("rival", &nft::map(count))]);
    let mut race = Race::default();
    race.enter(LIST, || host.portfwd(&["list", "--json"]));
    race.enter(NFT, || map.run("nft", &["-j", "list", "ruleset"]));
    let results = race.run(&format!("list/{count}"), effort.loads(count));
    let target = Target { memory: Some(0.2), ..Target::time(0.2) };
    report.rows.push(Row::new("list with counters", count, results.of(LIST), NFT, results.of(NFT)).target(target));
}
